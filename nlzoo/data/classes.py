"""Class lists, and labels as indices into them."""

import csv
import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlzoo.data.layouts import Row, plain
from nlzoo.files import read_text
from nlzoo.names import class_list

MOST = 100_000  # classes that numbers alone may stand for; above, it is a typing error
BUILT_IN = ("kinetics400", "kinetics600", "kinetics700", "charades")


@dataclass(frozen=True)
class Split:
    """The files of one split that are there, their labels, and the names of those missing."""

    files: tuple[Any, ...]  # paths, or what else `str` names
    labels: tuple[int, ...] | Tensor  # of many labels int8 (N, K), 1 for each that is there
    missing: tuple[str, ...]


def read_classes(root: Path, classes: str | Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Class names in the order of their indices.

    `classes` is the name of a built-in list, a file of one name a line, or the names; where it is
    empty, ROOT/classes.txt, or else the names that `rows` have, sorted (numbers by value).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a list without names, with the same name twice, or other than classes.txt; rows
            with indices and names.
    """
    own = root / "classes.txt"
    beside = _class_file(own) if own.is_file() else []
    if classes:
        given = classes if isinstance(classes, str) else "data.classes"
        names = _named_list(root, classes) if isinstance(classes, str) else _checked(classes, given)
        if beside:
            _check_same(given, names, own, beside)
        return names
    if beside:
        return beside
    labels = {row.label for row in rows}
    if all(label.isdecimal() for label in labels):
        if any(row.listed for row in rows):
            last = max(rows, key=lambda row: int(row.label))
            if int(last.label) >= MOST:
                raise ValueError(f"{last.where}: label {last.label} is no class index below {MOST}")
            return [str(i) for i in range(int(last.label) + 1)]
        return sorted(labels, key=lambda label: (int(label), label))
    numbers = [row for row in rows if row.listed and row.label.isdecimal()]
    named = [row for row in rows if row.listed and not row.label.isdecimal()]
    if numbers and named:
        odd, others = sorted((numbers, named), key=len)
        raise ValueError(
            f"{odd[0].where}: label {odd[0].label!r} beside {others[0].label!r}: "
            "indices or names, not both; classes.txt gives names to indices"
        )
    return sorted({plain(label): label.strip('"') for label in sorted(labels)}.values())


def _check_same(given: str, names: Sequence[str], own: Path, beside: Sequence[str]) -> None:
    """Numbers in lists would mean other classes."""
    if len(beside) != len(names):
        raise ValueError(
            f"{given} has {len(names)} classes, {names[0]!r} and so on, {own} has {len(beside)}, "
            f"{beside[0]!r} and so on: a checkpoint goes with the classes it was trained on"
        )
    for i, (name, other) in enumerate(zip(names, beside, strict=True)):
        if plain(name) != plain(other):
            raise ValueError(f"class {i} is {name!r} in {given}, but {other!r} in {own}")


def _named_list(root: Path, classes: str) -> list[str]:
    if classes in BUILT_IN:
        return class_list(classes)
    for file in (root / classes, Path(classes)):
        if file.is_file():
            return _class_file(file)
    raise FileNotFoundError(f"no class list {classes!r}; built in: {', '.join(BUILT_IN)}")


def _class_file(file: Path) -> list[str]:
    names = [line.strip().strip('"') for line in read_text(file).splitlines()]
    return _checked([name for name in names if name], file)


def _checked(names: Sequence[str], where: str | Path) -> list[str]:
    twice = [name for name, n in _counts(names).items() if n > 1]
    if not names or twice:
        raise ValueError(f"{where}: {f'{twice[0]!r} is there twice' if twice else 'no class name'}")
    return list(names)


def _counts(names: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[plain(name)] += 1
    return counts


def to_split(rows: Sequence[Row], classes: Sequence[str], multilabel: bool = False) -> Split:
    """Labels as indices into `classes`; missing files set aside.

    Raises:
        ValueError: a label that is neither an index nor a name of the list, with its line.
    """
    index = {plain(name): i for i, name in enumerate(classes)}
    labels = [
        [_label(one, classes, index) for one in (single_labels([row]) if multilabel else [row])]
        for row in rows
    ]
    there = [(row.path, label) for row, label in zip(rows, labels, strict=True) if row.path]
    found = [label for _, label in there]
    return Split(
        files=tuple(path for path, _ in there),
        labels=many_hot(found, len(classes)) if multilabel else tuple(i for (i,) in found),
        missing=tuple(row.name for row in rows if row.path is None),
    )


def single_labels(rows: Iterable[Row]) -> list[Row]:
    """Rows of lists whose label is several, `1,2` or `washing,"salt, pepper"`, a label each."""
    return [
        replace(row, label=label.strip())
        for row in rows
        for field in (
            csv.reader([row.label], skipinitialspace=True) if row.listed else [[row.label]]
        )
        for part in field
        for label in (part.split(",") if re.fullmatch(r"[\d,\s]+", part) else [part])
        if label.strip()
    ]


def many_hot(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Indices of each file -> int8 (N, K): 1 for each class that is there."""
    hot = torch.zeros(len(labels), classes, dtype=torch.int8)
    for row, some in zip(hot, labels, strict=True):
        row[list(some)] = 1
    return hot


def _label(row: Row, classes: Sequence[str], index: dict[str, int]) -> int:
    if (found := index.get(plain(row.label))) is not None:
        return found
    if row.label.isdecimal() and int(row.label) < len(classes):
        return int(row.label)
    near = difflib.get_close_matches(plain(row.label), index, 1)
    hint = f"; did you mean {classes[index[near[0]]]!r}?" if near else ""
    span = f"{classes[0]!r} (0) to {classes[-1]!r} ({len(classes) - 1})"
    several = len(single_labels([row])) > 1
    hint = "; several labels of one file: data.multilabel: true" if several else hint
    raise ValueError(
        f"{row.where}: label {row.label!r} is outside the {len(classes)} classes, {span}{hint}"
    )
