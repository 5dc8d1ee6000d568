"""What a test found: `evaluation.json`, scores or detections, what each class has, a table."""

import csv
import io
import json
from math import isfinite
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from nlzoo.console import table_console
from nlzoo.files import sha256_of, whole_file, write_whole
from nlzoo.tasks.scores import Results, of_class

FEW = 25  # classes that there is room for


def write_report(folder: Path, checkpoint: str, task: Any, data: Any, trainer: Any) -> None:
    """Write the files of a classifier's test to the folder, and print the tables.

    Args:
        folder: that of the run.
        checkpoint: path of the weights.
        task: after `trainer.test`, with `test_results` of `ViewScores`.
        data: with files, expected, found, views and classes.
        trainer: with the metrics.
    """
    results = Results(*(part.cpu() for part in task.test_results))
    read = results.views > 0
    files = {
        "files_expected": data.expected["test"],
        "files_found": data.found["test"],
        "files_unreadable": int((~read).sum()),
        "views": data.views,
    }
    _write_scores(folder / "scores.csv", data, results)
    tell = _tell_many if task.multilabel else _tell_one
    facts, by_class, last = tell(folder, results.scores[read], results.labels[read], data.classes)
    facts |= _metrics(trainer) | files
    _write_evaluation(folder, checkpoint, facts, by_class, ["scores.csv", last])


def write_detections(folder: Path, checkpoint: str, task: Any, data: Any, trainer: Any) -> None:
    """The same of a detector: `detections_box.json` and so on are what COCO's server takes.

    Args:
        folder: that of the run.
        checkpoint: path of the weights.
        task: after `trainer.test`, with `found`, a `CocoMetric`.
        data: with expected and found.
        trainer: with the metrics.
    """
    found = task.found
    facts = {"images_expected": data.expected["test"], "images_scored": found.seen}
    by_class = {name: _finite(row) for name, row in found.per_class().items()}
    _write_classes(folder, by_class)
    names = [f"detections_{kind}.json" for kind in found.kinds]
    for kind, name in zip(found.kinds, names, strict=True):
        write_whole(folder / name, json.dumps(found.results(kind)) + "\n")
    facts = _metrics(trainer) | facts
    _write_evaluation(folder, checkpoint, facts, {"by_class": by_class}, ["classes.csv", *names])


def _metrics(trainer: Any) -> dict[str, float | None]:
    found = trainer.callback_metrics.items()
    return _finite({key.removeprefix("test/"): float(value) for key, value in found})


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    """None for what there was nothing to count for: JSON has no NaN."""
    return {key: value if isfinite(value) else None for key, value in numbers.items()}


def _write_evaluation(
    folder: Path, checkpoint: str, facts: dict[str, Any], by_class: dict[str, Any], names: list[str]
) -> None:
    facts = facts | {"checkpoint": checkpoint, "sha256": sha256_of(checkpoint)}
    write_whole(folder / "evaluation.json", json.dumps(facts | by_class, indent=2) + "\n")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    console = table_console()
    console.print(table)
    written = (str(folder / name) for name in ("evaluation.json", *names))
    console.print(f"Written: {', '.join(written)}")


Told = tuple[dict[str, Any], dict[str, Any], str]  # facts, those of classes, the file written


def _tell_one(folder: Path, scores: Tensor, labels: Tensor, classes: list[str]) -> Told:
    """One label a file: accuracies and the confusion matrix."""
    confusion = multiclass_confusion_matrix(scores.argmax(1), labels, len(classes))
    write_whole(folder / "confusion.png", draw_confusion(confusion, classes))
    correct = confusion.diagonal() / confusion.sum(1)
    by_class = {n: c for n, c in zip(classes, correct.tolist(), strict=True) if c == c}
    error = multiclass_calibration_error(scores.float(), labels, len(classes))
    facts = {"correct": int(confusion.diagonal().sum()), "calibration_error": float(error)}
    return facts, {"correct_by_class": by_class}, "confusion.png"  # of classes that occur


def _tell_many(folder: Path, scores: Tensor, labels: Tensor, classes: list[str]) -> Told:
    """Many labels a file: a row a class."""
    columns = zip(classes, scores.T, labels.T, strict=True)
    found = {name: of_class(score, label) for name, score, label in columns}
    _write_classes(folder, found)
    without = sum(not facts["positives"] for facts in found.values())
    return {"classes_without_files": without}, {"by_class": found}, "classes.csv"


def _write_classes(folder: Path, by_class: dict[str, dict[str, Any]]) -> None:
    """`classes.csv`, a row a class, and the same as a table where there is room for it."""
    keys = list(dict.fromkeys(key for row in by_class.values() for key in row))
    text = io.StringIO()
    rows = csv.DictWriter(text, ("class", *keys))
    rows.writeheader()
    rows.writerows({"class": name, **row} for name, row in by_class.items())
    write_whole(folder / "classes.csv", text.getvalue())
    if len(by_class) <= FEW:
        table = Table("class", *keys)
        for name, row in by_class.items():
            cells = (row.get(key) for key in keys)
            table.add_row(name, *("" if cell is None else f"{cell:.4g}" for cell in cells))
        table_console().print(table)


def _write_scores(path: Path, data: Any, results: Results) -> None:
    """One row a file: path, label or labels, views used, and the score of each class."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(("file", "label", "views", *data.classes))
        for file, label, views, scores in zip(data.files("test"), *results, strict=True):
            several = " ".join(map(str, label.nonzero().flatten().tolist()))
            said = several if label.ndim and views else int(label.min())
            rows.writerow((file, said, int(views), *(f"{x:.9g}" for x in scores.tolist())))


def draw_confusion(confusion: Tensor, classes: list[str]) -> bytes:
    """Counts (K, K), rows being labels and columns answers, as shares of a row: a PNG.

    Names and counts are written where there is room for them, up to `FEW` classes.
    """
    from matplotlib.figure import Figure

    few = len(classes) <= FEW
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
