"""Damaged recipes, lists, annotations and checkpoints end in one error of ours, never another.

    python tests/fuzz.py SECONDS [SEED]

Real files are changed byte by byte, those with a structure value by value, too.
"""

import faulthandler
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pickles
import safetensors.torch
import torch
import yaml

from nlzoo import create_model, load_model
from nlzoo.cli import parse, recipe_parser
from nlzoo.data.charades import Charades
from nlzoo.data.coco.module import Coco
from nlzoo.data.images import Images
from nlzoo.data.kinetics import Kinetics
from nlzoo.data.sample_coco import make_coco
from nlzoo.models import save_model
from nlzoo.program import one_line
from nlzoo.weights.load import read_weights

RECIPES = Path(__file__).parents[1] / "recipes"
VIDEOS = ("a.mp4", "b.mp4", "7dY_000001_000011.mp4", "46GP8.mp4")
VALUES = [None, True, -1, 0, 2, 1e400, float("nan"), 10**30, "", "x", "é\n", [], {}, [0], {"x": 1}]
PIECES = [b"\x00", b"\xff\xfe", b"\n", b"\r", b",", b'"', b";", b" ", b"\t", b"[", b"{", b"-", b"#"]
PIECES += [b"1e9", b"nan", b"null", b": ", b"&a *a", b"!!python/none ", b"c000 1 2", b"9" * 5000]
MEMORY = 16 << 30  # bytes of addresses: a length in a file is no reason to ask for more


@dataclass(frozen=True)
class Target:
    """A file that is read, how it is when it is whole, and what reads it."""

    file: Path
    whole: bytes
    read: Callable[[], object]
    tree: Any = None  # JSON and YAML: what it holds


def targets(folder: Path) -> dict[str, Target]:
    """By name, each kind of file in a folder of its own."""
    return dict([*_recipes(folder), *_lists(folder), *_annotations(folder), *_weights(folder)])


def _recipes(folder: Path) -> Iterator[tuple[str, Target]]:
    parser, file = recipe_parser(), folder / "recipe.yaml"
    for name in ("i3d_nl_charades", "images_finetune", "keypoint_rcnn_r101_nl_coco"):
        whole = (RECIPES / f"{name}.yaml").read_bytes()
        read = lambda: parse(["--recipe", str(file)], parser)  # noqa: E731
        yield name, Target(file, whole, read, yaml.safe_load(whole))


def _lists(folder: Path) -> Iterator[tuple[str, Target]]:
    kinetics = b'label,youtube_id,time_start,time_end\njump,7dY,1,11\n"a, b",x,2,12\n'
    charades = b'id,length,actions\n46GP8,24.83,"c092 11.90 21.20;c147 0 12.60"\nb,3.1,\n'
    plain, many = b"path,label\na.mp4 run\n'b.mp4', jump\n", b"a.mp4 0,2\nb.mp4 1\n"
    for name, file, whole, module in (
        ("kinetics", "train.csv", kinetics, Kinetics),
        ("plain", "train.txt", plain, Kinetics),
        ("many", "train.txt", many, lambda path: Kinetics(path, multilabel=True)),
        ("classes", "classes.txt", b"train\nval\n", Kinetics),
        ("images", "train.txt", b"a.png 0\nb.png 1\n", Images),
        ("charades", "Charades_v1_train.csv", charades, Charades),
    ):
        root = folder / name
        for video in (*VIDEOS, "a.png", "b.png") if name != "classes" else ("train/val/a.mp4",):
            (root / video).parent.mkdir(parents=True, exist_ok=True)
            (root / video).touch()
        yield name, Target(root / file, whole, lambda read=module, path=str(root): read(path))


def _annotations(folder: Path) -> Iterator[tuple[str, Target]]:
    root = make_coco(folder / "coco", train=1, val=2)
    for kind, wants in (("instances", "masks"), ("person_keypoints", "keypoints")):
        file = root / "annotations" / f"{kind}_val2017.json"
        for check in ("default", "lenient"):
            read = lambda w=wants, c=check: Coco(str(root), train="", wants=w, check=c)  # noqa: E731
            whole = file.read_bytes()
            yield f"{kind} {check}", Target(file, whole, read, json.loads(whole))


def _weights(folder: Path) -> Iterator[tuple[str, Target]]:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b.num": torch.tensor(3)}
    arrays = {k: pickles.array2(v.numpy()) for k, v in state.items()}
    kinds = {
        "zip": pickles.saved(state),
        "legacy": pickles.legacy(state),
        "safetensors": safetensors.torch.save(state),
        "caffe2": pickles.caffe2({"a": pickles.array2(np.ones((2, 3), "f4"))}),
        "pickle": pickles.protocol2(pickles.mapping(arrays, pickles.string)),
    }
    for name, whole in kinds.items():
        file = folder / f"{name}.pth"
        yield name, Target(file, whole, lambda file=file: read_weights(file))
    model = folder / "model.safetensors"
    save_model(create_model("resnet8_cifar10", width=2, num_classes=2), model)
    yield "model", Target(model, model.read_bytes(), lambda: load_model(model))


def damage(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: a byte, a piece put in or in place of others, taken out, doubled."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(changed), chance.choice([400, 10**9])) + 1)
        end = at + chance.randint(1, 20)
        match chance.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[at:at] = chance.choice(PIECES)
            case 2:
                changed[at:end] = chance.choice(PIECES)
            case 3:
                del changed[at:end]
            case 4:
                changed[at:at] = changed[at:end]
            case _ if chance.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def change(tree: Any, chance: random.Random) -> Any:
    """A copy with one value, anywhere in it, that is another one, is gone, or is there twice."""
    tree = deepcopy(tree)
    places = list(_places(tree))
    holder, key = chance.choice(places)
    match chance.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(holder[key])
        case _:
            other, at = chance.choice(places)
            holder[key] = chance.choice([*VALUES, deepcopy(other[at])])
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def main(seconds: float, seed: int) -> int:
    """Print what was tried and each new fault; their number."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    chance, tried, faults = random.Random(seed), Counter[str](), dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        there = targets(Path(folder))
        names = sorted(there)
        for target in there.values():
            target.file.write_bytes(target.whole)
            target.read()  # what is whole is read
            target.file.write_bytes(target.whole)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = chance.choice(names)
            target = there[name]
            data = damage(target.whole, chance)
            if target.tree and chance.random() < 0.6:
                data = json.dumps(change(target.tree, chance)).encode()
            target.file.write_bytes(data)
            faulthandler.dump_traceback_later(60, exit=True)  # one that does not end
            try:
                target.read()
                tried[f"{name}: read"] += 1
            except (ValueError, OSError) as error:
                tried[f"{name}: refused"] += 1
                if not one_line(error).strip():
                    faults.setdefault(name, f"no words: {data!r}")
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                key = f"{name}: {type(error).__name__} {where.filename}:{where.lineno}"
                if key not in faults:
                    faults[key] = f"{traceback.format_exc()}\n{data[:3000]!r}"
            faulthandler.cancel_dump_traceback_later()
            target.file.write_bytes(target.whole)
    for key, text in faults.items():
        sys.stdout.write(f"\n== {key}\n{text}\n")
    counts = ", ".join(f"{name} {count}" for name, count in sorted(tried.items()))
    sys.stdout.write(f"{tried.total()} files, {len(faults)} faults: {counts}\n")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0) > 0)
