"""What a test found: `evaluation.json`, `scores.csv` and a table."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from nlzoo.files import write_whole


def write_report(checkpoint: str, task: Any, data: Any, trainer: Any) -> None:
    """Write both files to the trainer's folder, and print the table.

    Args:
        checkpoint: path of the weights.
        task: after `trainer.test`, with `test_results` (V, 2 + K) of `ViewScores`.
        data: with videos, expected, found, clips, crops and classes.
        trainer: with the metrics.
    """
    results = task.test_results.cpu()
    result = {
        **{k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items()},
        "videos_expected": data.expected["test"],
        "videos_found": data.found["test"],
        "videos_unreadable": int((results[:, 1] == 0).sum()),
        "views": f"{data.clips} clips x {data.crops} crops",
        "checkpoint": checkpoint,
        "sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
    }
    folder = Path(trainer.default_root_dir)
    write_whole(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    write_whole(folder / "scores.csv", _scores_csv(data, results))
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in result.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"Written: {folder / 'evaluation.json'}, {folder / 'scores.csv'}")


def _scores_csv(data: Any, results: Tensor) -> str:
    """One row a video: path, label, views used, and the score of each class."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("video", "label", "views", *data.classes))
    for video, (label, views, *scores) in zip(data.videos("test"), results.tolist(), strict=True):
        rows.writerow((video, int(label), int(views), *(f"{score:.9g}" for score in scores)))
    return text.getvalue()
