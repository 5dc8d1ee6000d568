"""Recipes: where they are, how they merge, the one parser, and `build`."""

import inspect
import json
import logging
import pydoc
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything

from nlzoo.data.kinetics import Kinetics
from nlzoo.data.sample import make_sample
from nlzoo.program import make_parser, nearest, parse_options
from nlzoo.run import RunFolder, WholeFiles, progress_bar
from nlzoo.tasks.video import VideoClassification

SECTIONS = ("seed", "checkpoint_every", "task", "data", "trainer")
SHOWN = ("max_steps", "max_epochs", "accelerator", "devices", "strategy", "precision")


def recipe_names() -> list[str]:
    """Names of the recipes installed with the package."""
    files = resources.files("nlzoo.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by its path, or by the name of an installed one.

    Raises:
        FileNotFoundError: neither; says which there are.
        ValueError: not YAML, or a section that no recipe has.
    """
    path = Path(name)
    if not path.is_file():
        stem, there = path.name.removesuffix(".yaml"), recipe_names()
        if stem not in there:
            close = nearest(stem, there)
            raise FileNotFoundError(f"no recipe {name!r}{close}; there are {', '.join(there)}")
        path = Path(str(resources.files("nlzoo.recipes") / f"{stem}.yaml"))
    return _parse(path.read_text(), str(path))


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{source} is not a recipe: it needs task, data and trainer")
    for key in recipe:
        if key not in SECTIONS:
            raise ValueError(f"{source}: unknown key {key!r}{nearest(str(key), SECTIONS)}")
    return recipe


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, dictionaries key by key."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def recipe_parser(prog: str, description: str = "") -> ArgumentParser:
    """Every key of a recipe as an option, beside the programs' own."""
    made = make_parser(prog, description)
    made.add_argument("--recipe", action="config", help="name or path; a second one is laid over")
    made.add_argument("--sample", action="store_true", help="train on a set made on the spot")
    made.add_argument("--run", default="", help="run folder (default: runs/RECIPE)")
    made.add_argument("--resume", default="", help="a checkpoint, or auto: the newest of the run")
    made.add_argument("--checkpoint", default="", help="what is evaluated; it carries its recipe")
    made.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    made.add_argument("--checkpoint_every", type=int, default=1000, help="iterations")
    made.add_subclass_arguments(LightningModule, "task", required=True, instantiate=False)
    made.add_subclass_arguments(LightningDataModule, "data", required=True, instantiate=False)
    made.add_class_arguments(Trainer, "trainer", instantiate=False)
    for action in made._actions:  # the Trainer has 40 options: all work, six are listed
        section, _, key = action.dest.partition(".")
        if section == "trainer" and key not in SHOWN:
            action.help = "==SUPPRESS=="
    return made


def parse(
    argv: Sequence[str],
    prog: str,
    description: str,
    base: dict[str, Any] | None = None,
    run: str = "",
) -> Namespace:
    """Recipes (over `base`), then the sample's, then options: the effective configuration.

    `--data PATH` is short for `--data.path PATH`.

    Raises:
        ValueError: one sentence that names the key and the nearest known one.
    """
    names, rest = _take_recipes(list(argv))
    merged = base or {}
    for name in names:
        merged = merge(merged, read_recipe(name))
    if "--sample" in rest:
        merged = merge(merged, read_recipe("video_sample"))
        merged = merge(merged, {"data": {"init_args": {"path": str(make_sample())}}})
    if (
        not merged
        and not {"--help", "-h"} & set(rest)
        and "--print_completion" not in " ".join(rest)
    ):
        raise ValueError(f"no recipe: --recipe NAME, one of {', '.join(recipe_names())}")
    given = ["--recipe", json.dumps(merged), *rest] if merged else rest
    classes = (VideoClassification, Kinetics)
    keys = [key for c in classes for key in inspect.signature(c).parameters]
    config = parse_options(recipe_parser(prog, description), given, keys)
    if not config.run:
        stem = Path(names[0]).stem if names else "run"
        config.run = run or f"runs/{stem}{'-sample' if config.sample else ''}"
    return config


def _take_recipes(argv: list[str]) -> tuple[list[str], list[str]]:
    """The values of --recipe, and what is left, with `--data PATH` written out."""
    names, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--recipe":
            names.append(value if equals else next(arguments, ""))
        else:
            rest.append(f"--data.path{equals}{value}" if name == "--data" else argument)
    return names, rest


def build(config: Namespace) -> tuple[LightningModule, LightningDataModule, Trainer]:
    """Seed, then data, task (told what the data look like) and trainer.

    Importable, so that another launcher can call it; `config.trainer` takes strategy and plugins.
    """
    logging.getLogger("lightning").setLevel(logging.WARNING)  # advice; the run folder says more
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    seed_everything(config.seed, verbose=False)
    run = Path(config.run)
    data = _instance(config.data, bad_files=str(run / "bad_files.txt"), seed=config.seed)
    task = _instance(config.task, preprocessing=data.preprocessing.to_dict())
    parser = recipe_parser("")
    task.recipe = recipe_text(config)
    options = parser.instantiate(config).trainer.as_dict()
    folder = RunFolder(run, task.recipe, config.checkpoint_every)
    options["callbacks"] = [
        *(options["callbacks"] or []),
        *folder.callbacks(),
        *progress_bar(options),
    ]
    options["enable_model_summary"] = bool(options["enable_model_summary"])
    options["plugins"] = [*(options["plugins"] or []), WholeFiles()]
    if options["logger"] is None:
        options["logger"] = folder.logger()
    return task, data, Trainer(**options)


def _instance(section: Namespace, **extra: Any) -> Any:
    """The class of a section, called with its arguments and those the program knows."""
    made: Any = pydoc.locate(section.class_path)
    return made(**{**section.init_args.as_dict(), **extra})


def recipe_text(config: Namespace) -> str:
    """The effective recipe as YAML that `--recipe` reads."""
    text = recipe_parser("").dump(config, skip_default=False)
    return yaml.safe_dump(
        {k: v for k, v in yaml.safe_load(text).items() if k in SECTIONS}, sort_keys=False
    )
