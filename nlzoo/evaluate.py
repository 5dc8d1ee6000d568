"""Test a checkpoint: `python -m nlzoo.evaluate --checkpoint C [--data PATH] [--recipe R]`."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from nlzoo.answers.report import write_detections, write_report
from nlzoo.answers.watch import check_scores
from nlzoo.cli import build, merge, parse, recipe_parser
from nlzoo.program import asks_for_help, run
from nlzoo.tasks.detection import Detection
from nlzoo.weights.load import FreshHead, check_fits
from nlzoo.weights.read import read_checkpoint

TRAINING = {"checkpoint_every", "trainer.max_steps", "trainer.max_epochs"}  # no use in a test


def main(argv: Sequence[str]) -> None:
    """Load the checkpoint's recipe, test every view of every file, write the report."""
    if asks_for_help(argv):
        parse(argv, parser())
    checkpoint = find_checkpoint(argv)
    stored = read_checkpoint(checkpoint)
    trained_here = bool(stored.get("nlzoo", {}).get("recipe"))
    if trained_here:
        config = stored_config(argv, stored, checkpoint)
    else:
        config = published_config(argv, checkpoint)
    data = config.data.init_args  # the other splits need not be there
    data.test, data.train, data.val = data.test or data.val, "", ""
    config.trainer.logger = False
    warnings.simplefilter("error", FreshHead)
    try:
        task, data, trainer = build(config)
    except FreshHead as error:
        raise ValueError(
            f"{error}, and the weights have others: give --data of those that they were trained on"
        ) from error
    if trained_here:
        check_fits(stored["state_dict"], task.state_dict(), checkpoint)
        task.load_state_dict(stored["state_dict"])
    try:
        trainer.test(task, data, verbose=False)
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from error
    if not trainer.is_global_zero:
        return
    if isinstance(task, Detection):
        write_detections(Path(config.run), checkpoint, task, data, trainer)
    else:
        check_results(task, data)
        write_report(Path(config.run), checkpoint, task, data, trainer)


def check_results(task: Any, data: Any) -> None:
    """Raise ValueError for a file whose scores are NaN."""
    for file, scores in zip(data.files("test"), task.test_results.scores, strict=True):
        check_scores(file, scores)


def parser() -> ArgumentParser:
    """Every key of a recipe, and --checkpoint."""
    about = "Test a checkpoint on the views of its recipe: of videos 10 clips x 3 crops by default."
    example = "python -m nlzoo.evaluate --checkpoint runs/mine/checkpoints/best.ckpt --data.clips 3"
    made = recipe_parser("python -m nlzoo.evaluate", about, "--checkpoint FILE", example)
    made.add_argument("--checkpoint", required=True, help="of nlzoo.fit, or weights and --recipe")
    for action in made._actions:
        if action.dest in TRAINING:
            action.help = argparse.SUPPRESS
    return made


def stored_config(argv: Sequence[str], stored: dict[str, Any], checkpoint: str) -> Namespace:
    """That of the recipe that the checkpoint was trained by, with its network as it was built."""
    own = {
        "--data.classes": "class names",
        "--task.model": "network",
        "--task.pretrained": "weights",
    }
    for option, what in own.items():
        if any(argument.partition("=")[0] == option for argument in argv):
            raise ValueError(
                f"{option}: a checkpoint of nlzoo.fit has its own {what}; leave it out"
            )
    spec = stored["nlzoo"]["model"]
    network = {"model": spec["name"], "arch": spec["arch"], "non_local": spec["non_local"]}
    network["pretrained"] = checkpoint
    recipe = yaml.safe_load(stored["nlzoo"]["recipe"])
    config = parse(argv, parser(), base=merge(recipe, {"task": {"init_args": network}}))
    config.run = config.run or str(run_folder(checkpoint))
    config.data.init_args.classes = list(stored["nlzoo"]["preprocessing"]["classes"])
    return config


def published_config(argv: Sequence[str], checkpoint: str) -> Namespace:
    """That of --recipe, for weights that were not trained by one."""
    if not any(argument.startswith("--recipe") for argument in argv):
        raise ValueError(f"{checkpoint} holds no recipe: --recipe NAME says network and data")
    config = parse(argv, parser())
    config.task.init_args.pretrained = checkpoint
    if not any(argument.startswith("--run") for argument in argv):
        config.run = str(run_folder(checkpoint))  # of no training
    return config


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


if __name__ == "__main__":
    run(main)
