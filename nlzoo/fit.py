"""Train a recipe: `python -m nlzoo.fit --recipe recipes/i3d_nl_kinetics.yaml`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning import Trainer

from nlzoo.callbacks.profiling import FIRST, MEASURED, Profile
from nlzoo.callbacks.run import LAST
from nlzoo.cli import build, dry_build, parse, recipe_parser
from nlzoo.cost import estimate
from nlzoo.program import run
from nlzoo.weights.load import check_fits
from nlzoo.weights.read import read_checkpoint


def main(argv: Sequence[str]) -> None:
    """Parse, build, train."""
    config = parse(argv, parser())
    if config.estimate:
        sys.stdout.write(f"{estimate(*dry_build(config))}\n")
        return
    if config.profile:
        profile(config)
        return
    resume = find_resume(config)
    task, data, trainer, done = resumed(config, resume) if resume else (*build(config), 0)
    try:
        trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C
        there = Path(config.run, LAST).exists()
        again = (
            f"--run {shlex.quote(config.run)} --resume auto continues"
            if there
            else "no checkpoint yet"
        )
        sys.stderr.write(f"nlzoo: interrupted; {again}\n")
        sys.exit(130)
    if trainer.global_step == done:
        limit = "max_steps" if done == trainer.max_steps else "max_epochs"
        sys.stderr.write(
            f"nlzoo: nothing to do, iteration {done} is the last; --trainer.{limit} N goes on\n"
        )


def parser() -> ArgumentParser:
    """Every key of a recipe, and --resume."""
    example = "python -m nlzoo.fit --recipe i3d_nl_kinetics --data kinetics400 --task.lr 0.02"
    made = recipe_parser("python -m nlzoo.fit", "Train a recipe.", "--recipe NAME|FILE", example)
    made.add_argument("--resume", default="", help="a checkpoint; auto: the newest of the run")
    made.add_argument(
        "--estimate", action="store_true", help="print cost and memory, train nothing"
    )
    made.add_argument(
        "--profile", action="store_true", help="a trace of a few iterations, and a verdict"
    )
    return made


def profile(config: Namespace) -> None:
    """Train for a few iterations and keep nothing but what they waited for."""
    recorder = Profile(Path(config.run, "trace.json.gz"))
    config.trainer.logger = False
    steps = FIRST + MEASURED
    task, data, trainer = build(config, max_epochs=-1, max_steps=steps, limit_val_batches=0)
    trainer.callbacks = [recorder]  # type: ignore[attr-defined]
    trainer.fit(task, data)
    if trainer.is_global_zero:
        sys.stdout.write(f"{recorder.verdict}; trace: {recorder.trace}\n")


def find_resume(config: Namespace) -> str | None:
    """The checkpoint to continue from.

    Raises:
        FileNotFoundError: --resume names a file that is not there.
        ValueError: the run folder holds a run and --resume was not given.
    """
    last = Path(config.run, LAST)
    if config.resume == "auto":  # or what Lightning saved before it asked for a requeue
        saved = [*last.parent.glob("hpc_ckpt_*.ckpt"), *([last] if last.exists() else [])]
        return str(max(saved, key=lambda path: path.stat().st_mtime)) if saved else None
    if config.resume:
        if not Path(config.resume).is_file():
            raise FileNotFoundError(
                f"no checkpoint {config.resume!r}; --resume auto takes the newest"
            )
        return config.resume
    if last.exists():
        raise ValueError(
            f"{config.run} already holds a run: "
            "--resume auto continues it, --run FOLDER starts another"
        )
    return None


def resumed(config: Namespace, path: str) -> tuple[Any, Any, Trainer, int]:
    """What `build` makes, its network as the checkpoint has it, and the iterations done.

    Raises:
        ValueError: no checkpoint of a training, or of another network; gives the first mismatches.
    """
    stored = read_checkpoint(path)
    if "optimizer_states" not in stored:
        raise ValueError(f"{path} is no training checkpoint; start from it by --task.pretrained")
    name, own = config.task.init_args.model, stored["nlzoo"]["model"]["name"]
    model = own if name.startswith(f"{own}.") else name  # NAME.TAG: not that tag's weights
    task, data, trainer = build(config, {"model": model, "pretrained": path})
    check_fits(stored["state_dict"], task.state_dict(), path)
    return task, data, trainer, int(stored["global_step"])


if __name__ == "__main__":
    run(main)
