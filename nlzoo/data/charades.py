"""Charades (arXiv 1604.01753): videos of many actions, each from one second to another."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from nlzoo.data.classes import Split, many_hot, read_classes
from nlzoo.data.clips import train_clip
from nlzoo.data.decode import Source
from nlzoo.data.kinetics import Kinetics
from nlzoo.data.layouts import Files, Kind, Row, find_videos, read_splits
from nlzoo.data.loading import Sample, TrainLoader
from nlzoo.data.sampling import Sampling
from nlzoo.data.transforms import TrainTransform


class Action(NamedTuple):
    """One of a film; seconds, within it."""

    label: int
    start: float
    end: float


class Film(NamedTuple):
    """What the list says of a video."""

    seconds: float
    actions: Sequence[Action]


class Charades(Kinetics):
    """Videos or folders of frames (ID.mp4, ID/ID-000001.jpg), and Charades' own CSVs.

    As in the code released with long-term feature banks (arXiv 1812.05038), a training clip has the
    labels of all actions that it touches, the clips of validation and test have those of the whole
    video, a test takes clips in the middle of equal parts, and a class's score is its highest.
    """

    kind = Kind(
        "video",
        "Charades_v1_train.csv and Charades_v1_test.csv (id, length, actions), and ID.mp4 or "
        "ID/ID-000001.jpg in any folder",
        find_videos,
    )
    segments = True

    def __init__(self, path: str, pool: Literal["mean", "max"] = "max", **videos: Any) -> None:
        """As `Kinetics`; without `classes`, and classes.txt, the 157 of Charades.

        Args:
            path: the data folder.
            pool: of the scores of a test video's views: max, as released, or mean.
            **videos: as of `Kinetics`.

        Raises:
            FileNotFoundError: as of `Kinetics`.
            ValueError: the same; an action outside the classes, or that is not `cNNN start end`; a
                length that is not above 0; actions of which all end before they start.
        """
        super().__init__(path, multilabel=True, pool=pool, **videos)

    def _read(
        self, files: Files, names: Mapping[str, str], classes: str | list[str]
    ) -> dict[str, Split]:
        rows = read_splits(files, names)
        own = (files.root / "classes.txt").is_file()
        self.classes = read_classes(files.root, classes or ("" if own else "charades"), ())
        codes = {name.partition(" ")[0]: i for i, name in enumerate(self.classes)}
        films = {split: read_films(some, codes) for split, some in rows.items()}
        there = [(row, film) for s in films for row, film in zip(rows[s], films[s], strict=True)]
        self._films = {  # by what names a file that is read
            str(files.sources([row.path])[0]): film for row, film in there if row.path
        }
        return {split: _split(rows[split], films[split], len(codes)) for split in rows}

    def train_dataloader(self) -> TrainLoader:
        """A random clip of each video, shuffled."""
        parts = self._sampling, self._train_transform, self._films
        return self._train_loader(ActionClip(*parts, len(self.classes)))


def read_films(rows: Sequence[Row], codes: Mapping[str, int]) -> list[Film]:
    """What the rows of a list say; what is after a film's end is cut off.

    Actions that end before they start are left out, with a warning.

    Raises:
        ValueError: see `Charades`.
    """
    films, reversed_ = [], []
    for row in rows:
        seconds = _number(row.length)
        if not 0 < seconds < math.inf:
            raise ValueError(
                f"{row.where}: length {row.length!r} of video {row.name}: expected seconds, above 0"
            )
        actions = []
        for text in filter(None, (part.strip() for part in row.label.split(";"))):
            code, *times = text.split()
            start, end = map(_number, times) if len(times) == 2 else (math.nan, math.nan)
            if not (math.isfinite(start) and math.isfinite(end)):
                raise ValueError(f"{row.where}: action {text!r}: expected `cNNN start end`")
            if code not in codes:
                span = f"{min(codes)} to {max(codes)}"
                raise ValueError(
                    f"{row.where}: action {text!r} is outside the {len(codes)} classes, {span}"
                )
            if start < end:
                actions.append(Action(codes[code], *(min(time, seconds) for time in (start, end))))
            else:
                reversed_.append(f"{row.where}: {text}")
        films.append(Film(seconds, actions))
    if reversed_:
        left = sum(len(film.actions) for film in films)
        said = f"{len(reversed_)} of {left + len(reversed_)} actions end before they start"
        if not left:
            raise ValueError(f"{said}; the first: {reversed_[0]}; expected `cNNN start end`")
        warnings.warn(f"{said} and are left out; the first: {reversed_[0]}", stacklevel=2)
    return films


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _split(rows: Sequence[Row], films: Sequence[Film], classes: int) -> Split:
    there = [(r.path, [a.label for a in f.actions]) for r, f in zip(rows, films, strict=True)]
    return Split(
        files=tuple(path for path, _ in there if path),
        labels=many_hot([labels for path, labels in there if path], classes),
        missing=tuple(row.name for row in rows if row.path is None),
    )


@dataclass(frozen=True)
class ActionClip:
    """A clip (C, T, crop, crop) from anywhere in a video, with the actions that it touches."""

    sampling: Sampling
    transform: TrainTransform
    films: Mapping[str, Film]  # by what `str` calls a video
    classes: int

    def __call__(self, video: Source, rng: np.random.Generator) -> Sample:
        """`rng` makes every draw."""
        clip = self.sampling.read(video, partial(train_clip, rng=rng))
        film = self.films[str(video)]
        rate = clip.fps or clip.length / film.seconds
        times = min(clip.positions) / rate, (max(clip.positions) + 1) / rate
        return self.transform(clip.frames, rng), clip.damage, touched(film, *times, self.classes)


def touched(film: Film, start: float, end: float, classes: int) -> Tensor:
    """The actions that are under way between two seconds: int8 (K,)."""
    return many_hot([[a.label for a in film.actions if a.start < end and start < a.end]], classes)[
        0
    ]
