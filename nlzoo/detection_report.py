"""What a test of a detector found: `evaluation.json`, `classes.csv`, COCO's results, a table."""

import csv
import io
import json
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nlzoo.files import sha256_of, write_whole

FEW = 25  # classes that there is room for


def write_detections(folder: Path, checkpoint: str, task: Any, data: Any, trainer: Any) -> None:
    """Write the files to the folder, and print the tables.

    `detections_box.json` and so on are what COCO's server takes.

    Args:
        folder: that of the run.
        checkpoint: path of the weights.
        task: after `trainer.test`, with `found`, a `CocoMetric`.
        data: with expected and found.
        trainer: with the metrics.
    """
    found = task.found
    numbers = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items()}
    facts = {
        "images_expected": data.expected["test"],
        "images_scored": found.seen,
        "checkpoint": checkpoint,
        "sha256": sha256_of(checkpoint),
    }
    by_class = {
        name: {key: x if isfinite(x) else None for key, x in row.items()}
        for name, row in found.per_class().items()
    }
    document = json.dumps(numbers | facts | {"by_class": by_class}, indent=2)
    write_whole(folder / "evaluation.json", document + "\n")
    names = ["evaluation.json", "classes.csv"]
    write_whole(folder / "classes.csv", _csv(by_class))
    for kind in found.kinds:
        names.append(f"detections_{kind}.json")
        write_whole(folder / names[-1], json.dumps(found.results(kind)) + "\n")
    console = Console(soft_wrap=True, highlight=False)
    if len(by_class) <= FEW:
        console.print(_table(by_class))
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in (numbers | facts).items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"Written: {', '.join(str(folder / name) for name in names)}")


def _csv(by_class: dict[str, dict[str, Any]]) -> str:
    """A row a class; empty where the class is in no image."""
    text = io.StringIO()
    keys = list(next(iter(by_class.values()), {}))
    rows = csv.DictWriter(text, ("class", *keys))
    rows.writeheader()
    rows.writerows({"class": name, **row} for name, row in by_class.items())
    return text.getvalue()


def _table(by_class: dict[str, dict[str, Any]]) -> Table:
    keys = list(next(iter(by_class.values()), {}))
    table = Table("class", *keys)
    for name, row in by_class.items():
        table.add_row(name, *("" if row[k] is None else f"{row[k]:.3f}" for k in keys))
    return table
