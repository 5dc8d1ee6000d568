"""The published weights: `zoo.csv`, one row a file, and what nlzoo makes of it."""

import csv
import re
import warnings
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nlzoo.names import class_list, nearest
from nlzoo.preprocessing import Preprocessing
from nlzoo.weights.recognise import Architecture

OPTIONS = ("arch", "non_local")
COMMERCIAL = ("Apache", "MIT", "BSD")


@dataclass(frozen=True)
class Entry:
    """A row of `zoo.csv`; empty where nothing is published.

    Attributes:
        name: `architecture.tag`.
        model: a name of `list_models()`; empty: nlzoo builds no such network.
        dialect: whose names its tensors have.
        arch: arguments of the network that differ from the model's own.
        non_local: arguments of its blocks.
        gives: whole; trunk (without a head); blocks (`load_block`); or nothing.
        reason: why it is not whole.
        url: of the file.
        file: its name in a cache or on a mirror.
        hash: SHA-256 (or SHA-1, of 40 digits) of the file, or the beginning of it.
        size: MB, where that is published.
        dataset: that it was trained on.
        classes: how many.
        labels: a built-in list of their names.
        clip: frames x stride.
        mean: one number, or one a channel.
        std: the same.
        channels: order and range.
        crop: at test.
        views: of the published accuracy.
        top1: published, percent; for detectors see the note.
        top5: the same.
        params_M: millions of parameters, published.
        gflops: of one view, published.
        licence: of the weights.
        note: what is doubtful.
    """

    name: str
    model: str
    dialect: str
    arch: dict[str, Any]
    non_local: dict[str, Any]
    gives: str
    reason: str
    url: str
    file: str
    hash: str
    size: str
    dataset: str
    classes: str
    labels: str
    clip: str
    mean: str
    std: str
    channels: str
    crop: str
    views: str
    top1: str
    top5: str
    params_M: str  # noqa: N815
    gflops: str
    licence: str
    note: str

    @property
    def num_classes(self) -> int:
        """Outputs; 0 without a head."""
        return int(self.classes) if self.gives == "whole" else 0

    @property
    def is_commercial(self) -> bool:
        """Whether the licence, as stated, allows commercial use."""
        return any(word in self.licence for word in COMMERCIAL) and "NC" not in self.licence

    def preprocessing(self) -> Preprocessing:
        """What the network was trained on."""
        frames, _, stride = self.clip.partition("x")
        sizes = [int(number) for number in re.findall(r"\d+", self.crop)]
        classes = tuple(class_list(self.labels)) if self.labels else ()
        many, coco = self.dataset == "Charades", self.dataset == "COCO"
        return Preprocessing(
            mean=_three(self.mean),
            std=_three(self.std),
            # PySlowFast plays every video at 30 frames a second
            fps=30.0 if "_pyslowfast" in self.name or self.name.endswith("_pysf") else 0.0,
            test_size=sizes[0],
            test_crop=sizes[1],
            frames=int(frames or 0),
            stride=int(stride or 0),
            classes=classes,
            multilabel=many,
            pool="max" if many else "mean",
            segments=many and "_lfb" in self.name,
            task="detection" if coco else "classification",
            category_ids=tuple(range(1, len(classes) + 1)) if coco else (),
        )


@cache
def read_zoo() -> dict[str, Entry]:
    """Every row, by name, in the order of the file."""
    text = (resources.files("nlzoo.weights") / "zoo.csv").read_text("utf-8")
    rows: dict[str, Entry] = {}
    for row in csv.DictReader(text.splitlines()):
        values: dict[str, Any] = {**row, **{key: _options(row[key]) for key in OPTIONS}}
        rows[row["name"]] = Entry(**values)
    return rows


def find(name: str) -> Entry:
    """The row of a name.

    Raises:
        ValueError: no such row (names the nearest).
    """
    if name not in (zoo := read_zoo()):
        raise ValueError(f"no published weights {name!r}{nearest(name, zoo)}")
    return zoo[name]


def search(filter: str = "*") -> list[Entry]:
    """Rows whose name, data set, dialect or licence matches a wildcard or holds a word."""
    pattern = filter if any(c in filter for c in "*?[") else f"*{filter}*"
    return [
        entry
        for entry in read_zoo().values()
        if any(
            fnmatch(text.lower(), pattern.lower())
            for text in (entry.name, entry.dataset, entry.labels, entry.dialect, entry.licence)
        )
    ]


def fetch_entry(entry: Entry) -> Path:
    """The file of a row, downloaded once; warns of licences that forbid commercial use.

    Raises:
        ValueError: nothing is published; what comes has another hash.
        FileNotFoundError: no source has it.
        OSError: the connection or the disk failed.
    """
    from nlzoo.weights.download import fetch  # brings requests and rich

    if not entry.url:
        raise ValueError(f"{entry.name} has no file to download: {entry.reason or entry.note}")
    if not entry.is_commercial:
        licence = f"{entry.licence}, not for commercial use" if entry.licence else "unknown"
        warnings.warn(f"{entry.name}: licence {licence}", stacklevel=4)
    return fetch(entry.url, entry.file, digest=entry.hash)


def like(model: str, dialect: str, seen: Architecture) -> Entry | None:
    """The row of a dialect that is nearest to a model, whose file is then read as that row's.

    None where no row is of its kind. The last resort is what most have: embedded Gaussian, with a
    norm.
    """
    kind, blocks = model.partition("_")[0], bool(seen.places)

    def nearness(entry: Entry) -> tuple[bool, ...]:
        return (
            entry.model == model,
            ("_nl" in entry.model) == blocks,
            not blocks or ("norm" not in entry.non_local) == seen.normed,
            not blocks or (entry.non_local.get("form") != "gaussian") == seen.embedded,
            int(entry.classes) == seen.num_classes,
            "form" not in entry.non_local and "norm" not in entry.non_local,
        )

    rows = (e for e in read_zoo().values() if e.gives == "whole" and e.dialect == dialect)
    return max((e for e in rows if e.model.startswith(f"{kind}_")), key=nearness, default=None)


def _three(numbers: str) -> tuple[float, ...]:
    found = tuple(map(float, numbers.split()))
    return found * 3 if len(found) == 1 else found


def _options(text: str) -> dict[str, Any]:
    """`norm=null; subsample=[2, 2, 2]` -> a dictionary; values are YAML."""
    pairs = (pair.partition("=") for pair in text.split("; ") if pair)
    return {key: yaml.safe_load(value) for key, _, value in pairs}
