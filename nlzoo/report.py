"""What a test found: `evaluation.json`, `scores.csv`, `confusion.png` and a table."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from nlzoo.files import whole_file, write_whole


def write_report(checkpoint: str, task: Any, data: Any, trainer: Any) -> None:
    """Write the files to the trainer's folder, and print the table.

    Args:
        checkpoint: path of the weights.
        task: after `trainer.test`, with `test_results` (F, 2 + K) of `ViewScores`.
        data: with files, expected, found, views and classes.
        trainer: with the metrics.
    """
    results = task.test_results.cpu()
    read = results[results[:, 1] > 0]
    labels, scores = read[:, 0].long(), read[:, 2:]
    result = {
        "correct": int((scores.argmax(1) == labels).sum()),
        **{k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items()},
        "calibration_error": float(
            multiclass_calibration_error(scores.float(), labels, len(data.classes))
        ),
        "files_expected": data.expected["test"],
        "files_found": data.found["test"],
        "files_unreadable": len(results) - len(read),
        "views": data.views,
        "checkpoint": checkpoint,
        "sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
    }
    confusion = multiclass_confusion_matrix(scores.argmax(1), labels, len(data.classes))
    correct = confusion.diagonal() / confusion.sum(1)
    by_class = {n: c for n, c in zip(data.classes, correct.tolist(), strict=True) if c == c}
    folder = Path(trainer.default_root_dir)
    whole = result | {"correct_by_class": by_class}  # without the classes that do not occur
    write_whole(folder / "evaluation.json", json.dumps(whole, indent=2) + "\n")
    _write_scores(folder / "scores.csv", data, results)
    write_whole(folder / "confusion.png", draw_confusion(confusion, data.classes))
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in result.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    names = ("evaluation.json", "scores.csv", "confusion.png")
    console.print(f"Written: {', '.join(str(folder / name) for name in names)}")


def _write_scores(path: Path, data: Any, results: Tensor) -> None:
    """One row a file: path, label, views used, and the score of each class."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(("file", "label", "views", *data.classes))
        for file, result in zip(data.files("test"), results, strict=True):
            label, views, *scores = result.tolist()
            rows.writerow((file, int(label), int(views), *(f"{score:.9g}" for score in scores)))


def draw_confusion(confusion: Tensor, classes: list[str]) -> bytes:
    """Counts (K, K), rows being labels and columns answers, as shares of a row: a PNG.

    Names and counts are written where there is room for them, up to 25 classes.
    """
    from matplotlib.figure import Figure

    few = len(classes) <= 25
    side = 2.5 + 0.45 * len(classes) if few else 9
    figure = Figure(figsize=(side + 1, side), layout="compressed")
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the label's files")
    axes.set(xlabel="answer", ylabel="label")
    if few:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for i, row in enumerate(confusion.tolist()):
            for j, count in enumerate(row):
                shade = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=shade, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
