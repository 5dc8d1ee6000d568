"""Test a checkpoint: `python -m nlzoo.evaluate --checkpoint C [--data PATH]`."""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nlzoo.cli import build, parse, recipe_parser
from nlzoo.files import write_whole
from nlzoo.program import asks_for_help, run
from nlzoo.weights.load import check_fits, read_checkpoint


def main(argv: Sequence[str]) -> None:
    """Load the checkpoint's recipe, test every view of every video, write the report."""
    if asks_for_help(argv):
        parse(argv, parser())
    checkpoint = find_checkpoint(argv)
    stored = read_checkpoint(checkpoint)
    config = parse(argv, parser(), base=stored_recipe(stored, checkpoint))
    config.run = config.run or str(run_folder(checkpoint))
    config.task.init_args.pretrained = ""
    config.trainer.logger = False
    config.trainer.default_root_dir = config.run
    task, data, trainer = build(config)
    check_fits(stored["state_dict"], task.state_dict(), checkpoint)
    task.load_state_dict(stored["state_dict"])
    trainer.test(task, data, verbose=False)
    if trainer.is_global_zero:
        report(checkpoint, task, data, trainer)


def parser() -> ArgumentParser:
    """Every key of a recipe, and --checkpoint."""
    about = "Test a checkpoint on the views of its recipe, 10 clips x 3 crops by default."
    made = recipe_parser("python -m nlzoo.evaluate", about, "--checkpoint FILE")
    made.add_argument("--checkpoint", required=True, help="it carries its recipe")
    return made


def find_checkpoint(argv: Sequence[str]) -> str:
    """The value of --checkpoint; needed before the recipe can be read."""
    for i, argument in enumerate(argv):
        if argument.startswith("--checkpoint="):
            return argument.partition("=")[2]
        if argument == "--checkpoint" and i + 1 < len(argv):
            return argv[i + 1]
    raise ValueError("--checkpoint FILE is missing: a checkpoint of nlzoo.fit")


def run_folder(checkpoint: str) -> Path:
    """The run that a checkpoint belongs to, or else its folder."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def stored_recipe(stored: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The recipe that a checkpoint was trained by."""
    if "recipe" not in stored.get("nlzoo", {}):
        raise ValueError(f"{checkpoint} holds no recipe: evaluate takes checkpoints of nlzoo.fit")
    recipe: dict[str, Any] = yaml.safe_load(stored["nlzoo"]["recipe"])
    return recipe


def report(checkpoint: str, task: Any, data: Any, trainer: Any) -> None:
    """`evaluation.json`, `scores.csv` and a table."""
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


if __name__ == "__main__":
    run(main)
