"""Recipes: where they are, how they merge, the one parser, and `build`."""

import argparse
import inspect
import json
import logging
import os
import pydoc
import re
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from nlzoo.callbacks.cluster import OneRecipe, Requeue
from nlzoo.callbacks.gradients import Gradients
from nlzoo.callbacks.run import LAST, RunFolder, WholeFiles, progress_bar
from nlzoo.data.charades import Charades
from nlzoo.data.coco import Coco
from nlzoo.data.images import Images
from nlzoo.data.kinetics import Kinetics
from nlzoo.data.labelled import check_least
from nlzoo.data.sample import make_sample
from nlzoo.data.sample_actions import make_actions
from nlzoo.data.sample_coco import make_coco
from nlzoo.data.sample_images import make_images
from nlzoo.files import read_text
from nlzoo.names import nearest
from nlzoo.preprocessing import canvas_side
from nlzoo.program import asks_for_help, make_parser, parse_options
from nlzoo.registry import FOLDED, base_of
from nlzoo.tasks.classification import Classification
from nlzoo.tasks.detection import Detection

SECTIONS = ("seed", "checkpoint_every", "task", "data", "trainer")
# laid over a recipe by --sample
SAMPLES = (
    *("_video_sample", "_frame_sample", "_actions_sample", "_image_sample"),
    *("_masks_sample", "_keypoints_sample"),
)
GIVEN = {"seed", "bad_files", "preprocessing"}  # by `build`, not by a recipe
SHOWN = {  # in --help and in completion
    "task": "--task.KEY VALUE, as in --task.lr 0.02 --task.non_local.form dot_product",
    "task.help": "list the keys: --task.help Classification|Detection",
    "data": "the folder; or --data.KEY VALUE, as in --data.batch_size 4",
    "data.help": "list the keys: --data.help Kinetics|Charades|Images|Coco",
    "trainer.max_steps": "iterations",
    "trainer.max_epochs": "epochs",
    "trainer.devices": "how many, or which",
    "trainer.precision": "32-true, bf16-mixed, ...",
}
GROUPS = {
    "task": None,
    "data": None,
    "trainer": "All other keys of Lightning's Trainer work too: --trainer.strategy ddp.",
}


def recipe_names() -> list[str]:
    """Names of the recipes installed with the package."""
    files = resources.files("nlzoo.recipes").iterdir()
    names = (f.name for f in files if f.name.endswith(".yaml") and not f.name.startswith("_"))
    return sorted(name.removesuffix(".yaml") for name in names)


def recipe_keys() -> list[str]:
    """What a recipe may say of task and data: `task.lr`, ..."""
    sections = {"task": (Classification, Detection), "data": (Kinetics, Charades, Images, Coco)}
    return [
        f"{section}.{key}"
        for section, classes in sections.items()
        for key in dict.fromkeys(k for c in classes for k in inspect.signature(c).parameters)
        if key not in GIVEN
    ]


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by its path, or by the name of an installed one.

    Raises:
        FileNotFoundError: neither; says which there are.
        ValueError: not YAML, or a section that no recipe has.
    """
    path = Path(name)
    if not path.is_file():
        stem, there = path.name.removesuffix(".yaml"), recipe_names()
        if stem not in (*there, *SAMPLES):
            raise FileNotFoundError(f"no recipe {name!r}{nearest(stem, there, len(there))}")
        path = Path(str(resources.files("nlzoo.recipes") / f"{stem}.yaml"))
    return _parse(read_text(path), str(path))


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{source}{where}: not valid YAML: {problem}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{source} is not a recipe: it needs task, data and trainer")
    for key in recipe:
        if key not in SECTIONS:
            raise ValueError(f"{source}: unknown key {key!r}{nearest(str(key), SECTIONS)}")
    for key in filter(recipe.__contains__, GROUPS):
        _check_section(source, key, recipe[key])
    return recipe


def _check_section(source: str, key: str, section: Any) -> None:
    if not isinstance(section, dict):
        wrong = "is empty" if section is None else f"is {section!r}"
        raise ValueError(f"{source}: {key} {wrong}; give its keys, or remove it")
    if "init_args" in section:
        _check_section(source, f"{key}.init_args", section["init_args"])


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, dictionaries key by key."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def recipe_parser(
    prog: str = "", description: str = "", main: str = "", example: str = ""
) -> ArgumentParser:
    """A parser with every key of a recipe as an option; `main` is what its usage begins with."""
    made = make_parser(prog, description, example)
    made.usage = f"{prog} {main} [--data PATH] [--run FOLDER] [--KEY VALUE ...]"
    made.add_argument("--recipe", action="config", help="name or path; a second one is laid over")
    made.add_argument("--sample", action="store_true", help="a set made on the spot, a small net")
    made.add_argument("--run", default="", help="folder for what is written")
    made.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    made.add_argument("--checkpoint_every", type=int, default=1000, help="iterations")
    for name, kind in (("task", LightningModule), ("data", LightningDataModule)):
        made.add_subclass_arguments(kind, name, skip=GIVEN, required=True, instantiate=False)
    made.add_class_arguments(Trainer, "trainer", instantiate=False)
    return made


def shorten_help(parser: ArgumentParser) -> None:
    """Of the Trainer's 40 keys show four; all work. (`dump` would leave out hidden ones.)"""
    for action in parser._actions:
        if action.help is argparse.SUPPRESS:
            continue
        if action.dest.partition(".")[0] in ("task", "data", "trainer"):
            action.help, action.metavar = SHOWN.get(action.dest, argparse.SUPPRESS), "VALUE"
        elif action.dest == "print_config":
            action.help = "print the effective recipe"
    parser._actions[:] = [a for a in parser._actions if a.help is not argparse.SUPPRESS]
    for group, (title, about) in zip(parser._action_groups[2:], GROUPS.items(), strict=False):
        group.title, group.description = title, about


def parse(
    argv: Sequence[str], parser: ArgumentParser, base: dict[str, Any] | None = None
) -> Namespace:
    """Recipes (over `base`), then the sample's, then options: the effective configuration.

    `--data PATH` is short for `--data.path PATH`. Without `base` and --run, the run folder gets the
    name of the recipe.

    Raises:
        ValueError: one sentence that names the key and the nearest known one.
    """
    names, nested, rest = _take_recipes(list(argv))
    merged = base or {}
    for name in names:
        merged = merge(merged, read_recipe(name))
    if merged and "--sample" in rest:
        if any(argument.startswith("--data.path") for argument in rest):
            raise ValueError("--sample brings data of its own: leave --data out, or --sample")
        merged = lay_sample(merged)
    merged = merge(merged, nested) if merged else merged
    if asks_for_help(rest):
        for option, value in zip(rest, [*rest[1:], "--"], strict=True):
            if option in ("--task.help", "--data.help") and value.startswith("--"):
                raise ValueError(f"{option} of what? {SHOWN[option[2:]]}")
        shorten_help(parser)
    elif not merged:
        words = (argument.partition("=")[0] for argument in rest if argument.startswith("--"))
        if meant := get_close_matches("--recipe", words, 1, 0.8):
            raise ValueError(f"unknown key {meant[0]!r}; did you mean '--recipe'?")
        raise ValueError(f"no recipe: --recipe NAME, one of {', '.join(recipe_names())}")
    given = ["--recipe", json.dumps(merged), *rest] if merged else rest
    config = parse_options(parser, given, [key.partition(".")[2] for key in recipe_keys()])
    if not config.run and base is None:
        config.run = f"runs/{Path(names[0]).stem}{'-sample' if config.sample else ''}"
    return config


def lay_sample(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe on the sample of its kind, which is made if it is not there."""
    kind = recipe.get("data", {}).get("class_path")
    model = recipe.get("task", {}).get("init_args", {}).get("model", "")
    frames = model.startswith(FOLDED)
    wants = recipe.get("data", {}).get("init_args", {}).get("wants", "masks")
    others = {
        "Images": ("image", make_images),
        "Charades": ("actions", make_actions),
        "Coco": (wants, make_coco),
    }
    name, make = others.get(kind, ("frame" if frames else "video", make_sample))
    with Console(stderr=True).status("making the sample, once"):
        path = make()
    merged = merge(recipe, read_recipe(f"_{name}_sample"))
    if kind == "Coco" and "_nl" not in model:  # without blocks, as the recipe is
        small = merged["task"]["init_args"]
        small |= {"model": base_of(small["model"]), "non_local": None}
    return merge(merged, {"data": {"init_args": {"path": str(path)}}})


def _take_recipes(argv: list[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The values of --recipe, keys of keys, and what is left, with `--data PATH` written out.

    Keys of keys (`--task.non_local.norm null`) are merged as if they stood in a recipe:
    jsonargparse takes them for text, and what is beside them away.
    """
    names: list[str] = []
    nested: dict[str, Any] = {}
    rest = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--recipe":
            names.append(value if equals else next(arguments, ""))
        elif found := re.fullmatch(r"--(task|data)\.(?:init_args\.)?(\w+(?:\.\w+)+)", name):
            entry: Any = _value(value if equals else next(arguments, ""))
            for key in (*reversed(found[2].split(".")), "init_args", found[1]):
                entry = {key: entry}
            nested = merge(nested, entry)
        else:
            rest.append(f"--data.path{equals}{value}" if name == "--data" else argument)
    return names, nested, rest


def _value(text: str) -> Any:
    """What a recipe would make of it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def quiet() -> None:
    """No advice of Lightning's: the run folder says more."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def build(
    config: Namespace, network: dict[str, Any] | None = None, **trainer: Any
) -> tuple[LightningModule, LightningDataModule, Trainer]:
    """Seed, then data, task (told what the data look like) and trainer.

    Importable, so that another launcher can call it, with arguments of the Trainer that no recipe
    holds: build(parse(["--recipe", "..."], fit.parser()), strategy=RayDDPStrategy()). `network` are
    arguments in place of the task's: a resumed run has no need of ImageNet's weights.
    """
    quiet()
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    warnings.filterwarnings("ignore", "The number of training batches")  # below log_every_n_steps
    warnings.filterwarnings("ignore", ".*could not find the monitored key")  # not yet validated
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # frozen ones
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # resumed
    seed_everything(config.seed, verbose=False)
    if config.checkpoint_every < 1:
        raise ValueError(f"checkpoint_every = {config.checkpoint_every}: expected 1 or more")
    run = Path(config.run)
    data = _instance(config.data, bad_files=str(run / "bad_files.txt"), seed=config.seed)
    network = network or {}
    task = _instance(config.task, preprocessing=data.wishes, **network)
    for key in network:  # checkpoints keep what the recipe says
        task.hparams[key] = config.task.init_args[key]
    data.preprocessing = task.preprocessing
    task.recipe = recipe_text(config)
    options = recipe_parser().instantiate(Namespace(trainer=config.trainer)).trainer.as_dict()
    options["default_root_dir"] = options["default_root_dir"] or str((run / LAST).parent)
    options |= trainer
    folder = RunFolder(run, task.recipe, config.checkpoint_every, task.metric)
    options["callbacks"] = [
        *_listed(options["callbacks"]),
        OneRecipe(task.recipe),
        Gradients(run / "checkpoints/before_nan.ckpt"),
        Requeue(),
        *folder.callbacks(),
        *progress_bar(options),
    ]
    options["enable_model_summary"] = bool(options["enable_model_summary"])
    options["plugins"] = [*_listed(options["plugins"]), WholeFiles()]
    if options["logger"] is None:  # Lightning would begin the events before data are looked at
        options["logger"], folder.events = False, True
    made = _make_trainer(options)
    check_devices(made)
    return task, data, made


def _make_trainer(options: dict[str, Any]) -> Trainer:
    try:
        return Trainer(**options)
    except (ImportError, MisconfigurationException) as error:
        raise ValueError(f"trainer: {error}") from error


def check_devices(trainer: Trainer) -> None:
    """Raise ValueError for more processes than a CPU has cores: they would fill its memory."""
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise ValueError(
            f"trainer.devices = {trainer.num_devices}: each is a process, and there are {cores} "
            f"cores and no GPU; give {cores} or less"
        )


def _listed(given: Any) -> list[Any]:
    """Lightning takes one, several or none."""
    return given if isinstance(given, list) else [] if given is None else [given]


def dry_build(config: Namespace) -> tuple[Any, Trainer, tuple[int, ...]]:
    """Task, trainer and the shape of a device's batch: no data are read, no weights fetched."""
    quiet()
    data = config.data.init_args
    check_least(1, **{key: data[key] for key in ("batch_size", "frames") if key in data})
    check_least(0, crop=data.get("crop", 0))
    eager = {"compile": False} if "compile" in config.task.init_args else {}
    task = _instance(config.task, pretrained=False, **eager)
    pre = task.preprocessing
    options = recipe_parser().instantiate(Namespace(trainer=config.trainer)).trainer.as_dict()
    trainer = _make_trainer(options | {"logger": False, "enable_checkpointing": False})
    if pre.task == "detection":  # a wide image, padded
        size = [canvas_side(side) for side in (pre.test_size, pre.test_crop)]
    else:
        size = [data.crop or pre.crop] * 2
    frames = [data.frames] if "frames" in data else []
    return task, trainer, (data.batch_size, 3, *frames, *size)


def _instance(section: Namespace, **extra: Any) -> Any:
    """The class of a section, called with its arguments and those the program knows."""
    made: Any = pydoc.locate(section.class_path)
    return made(**{**section.init_args.as_dict(), **extra})


def recipe_text(config: Namespace) -> str:
    """The effective recipe as YAML that `--recipe` reads."""
    recipe = Namespace({key: config[key] for key in SECTIONS})
    text = recipe_parser().dump(recipe, skip_default=False, skip_validation=True)
    values = yaml.safe_load(text)
    return yaml.safe_dump({key: values[key] for key in SECTIONS}, sort_keys=False)
