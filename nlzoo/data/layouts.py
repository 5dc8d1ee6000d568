"""Sets as people have them on disk: which files, their labels, and which are missing."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nlzoo.data.chunks import open_set
from nlzoo.data.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from nlzoo.data.pictures import SUFFIXES as PICTURES
from nlzoo.data.pictures import find_images
from nlzoo.files import read_text

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Row:
    """One file of a list: where it was listed, what it is called, its label as written."""

    where: str
    name: str
    label: str
    path: str | None  # None: missing
    listed: bool = True  # else the label is the name of a folder
    length: str = ""  # of the video, as written; Charades' lists have it


@dataclass(frozen=True)
class Kind:
    """What a set is made of."""

    noun: str
    layouts: str  # in words
    find: Callable[[Path], Iterable[Any]]  # all files under a folder; `str` names one
    packed: bool = False  # whether a tar file is a folder


class Files:
    """Every file of a kind under a folder, found by one scan: videos, if nothing else is said.

    A folder or URL of chunks (`nlzoo.data.stream`) is as good as the folder they were made of.
    """

    def __init__(
        self, root: str | Path, kind: "Kind | None" = None, splits: Iterable[str] = ()
    ) -> None:
        """Scan; where all of `splits` are folders, nothing but them."""
        self.kind = kind = kind or VIDEOS
        self.paths: Mapping[str, Any]
        if streamed := open_set(str(root)):
            if streamed.noun != kind.noun:
                raise ValueError(f"{root} is a set of {streamed.noun}s, not of {kind.noun}s")
            self.root, self.paths = streamed.root, streamed.files
            return
        root = Path(root)
        packed = kind.packed and root.suffix == ".tar" and root.is_file()
        if not (root.is_dir() or packed):
            raise FileNotFoundError(
                f"no data folder {str(root)!r}; --data PATH names it. Expected in it: "
                f"{kind.layouts}. --sample makes a small set"
            )
        root = Path(os.path.normpath(root))
        self.root = root.with_suffix("") if packed else root
        wanted = [] if packed else _split_folders(root, kind, splits)
        self.paths = {str(file): file for part in wanted or [root] for file in kind.find(part)}

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths by file name, with and without suffix."""
        by_stem: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths):
            name = os.path.basename(path)  # noqa: PTH119 - a quarter of a million strings
            by_stem[name].append(path)
            by_stem[os.path.splitext(name)[0]].append(path)  # noqa: PTH122
        return by_stem

    def sources(self, paths: Iterable[str]) -> tuple[Any, ...]:
        """What is to be read: paths, or files inside other files."""
        return tuple(self.paths.get(path, path) for path in paths)

    def under(self, folder: Path) -> Iterator[str]:
        """The paths in a folder."""
        return (path for path in self.paths if path.startswith(f"{folder}{os.sep}"))

    def at(self, path: str, base: Path) -> str | None:
        """The file of a listed path, which is relative to the root or to the list's folder."""
        for folder in (self.root, base):
            full = os.path.normpath(os.path.join(folder, path))  # noqa: PTH118
            outside = not full.startswith(f"{self.root}{os.sep}")
            if full in self.paths or (outside and Path(full).exists()):
                return full
        return None

    def named(self, stems: Sequence[str], label: str, split: str) -> str | None:
        """The file of one of these stems; the one in the label's or the split's folder first."""
        for stem in stems:
            if there := self.by_stem.get(stem):
                return max(there, key=lambda p: _closeness(p, label, split))
        return None


def find_videos(folder: Path, top: bool = True) -> Iterator[str]:
    """Paths of videos; a folder below the first that holds images only is one video."""
    folders, images, others = [], 0, 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # what a killed writer left, a Mac's resource forks
                continue
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if suffix in VIDEO_SUFFIXES:
                others += 1
                yield entry.path
            elif suffix in IMAGE_SUFFIXES:
                images += 1
                if images > 8 and not top and not others:  # enough seen
                    break
            elif entry.is_dir():
                others += 1
                folders.append(entry.path)
    if images and not top and not others:
        yield str(folder)
    for path in sorted(folders):
        yield from find_videos(Path(path), top=False)


def _closeness(path: str, label: str, split: str) -> tuple[bool, bool]:
    parts = Path(path).parts[:-1]
    return plain(parts[-1]) == plain(label), bool(set(parts) & set(ALIASES.get(split, (split,))))


def plain(name: str) -> str:
    """A class name without quotes, underscores and case."""
    return " ".join(name.replace('"', "").replace("_", " ").split()).casefold()


VIDEOS = Kind(
    "video",
    "train.csv and val.csv (Kinetics' own lists), train.txt and val.txt (`path label` lines), "
    "or train/CLASS/*.mp4 and val/CLASS/*.mp4",
    find_videos,
)
IMAGES = Kind(
    "image",
    "train/CLASS/*.jpg and val/CLASS/*.jpg, CLASS/*.jpg (a part is kept for validation), the same "
    "in tar files (train.tar, train/CLASS.tar), cifar-10-batches-py or cifar-100-python, or "
    "train.txt and val.txt (`path label` lines)",
    find_images,
    packed=True,
)


# -- splits ---------------------------------------------------------------------------------


def read_splits(
    files: Files, names: Mapping[str, str], multilabel: bool = False
) -> dict[str, list[Row]]:
    """The rows of the splits that are there; `names` says what each is called, "" that it is not.

    The label of a row is as written, several where `multilabel` lists have several.

    Raises:
        FileNotFoundError: none of them.
    """
    rows = {split: read_rows(files, name, multilabel) for split, name in names.items() if name}
    if there := {split: some for split, some in rows.items() if some is not None}:
        return there
    raise FileNotFoundError(
        f"nothing to read in {str(files.root)!r}: expected {files.kind.layouts}"
    )


def read_rows(files: Files, split: str, multilabel: bool = False) -> list[Row] | None:
    """The rows of a split: of the list or folder that `split` names; None if there is neither.

    Raises:
        ValueError: the list is empty, or has no labels; or several lists may be meant.
    """
    where = _find_split(files, split)
    if where is None:
        return None
    of_list = where.is_file()
    rows = list(
        _list_rows(files, where, split, multilabel) if of_list else folder_rows(files, where)
    )
    if not rows:
        raise ValueError(f"{where} lists no {files.kind.noun}: expected {files.kind.layouts}")
    return rows


def _find_split(files: Files, split: str) -> Path | None:
    """A list, else the folder SPLIT."""
    folders = _folders_of(files.root, split)
    found = (f for f in folders if f.is_dir() or any(files.under(f)))
    return _find_list(files.root, split) or next(found, None)


def _folders_of(root: Path, split: str) -> list[Path]:
    return [root / name for name in (split, *ALIASES.get(split, ()))]


def _split_folders(root: Path, kind: Kind, splits: Iterable[str]) -> list[Path]:
    """The folders and tar files of all these splits; empty: one has a list, or is not there."""
    wanted = []
    for split in filter(None, splits):
        folders = [] if _find_list(root, split) else _folders_of(root, split)
        tars = [(f, f.with_name(f"{f.name}.tar")) for f in folders]
        there = [[p for p in some if p.is_dir() or (kind.packed and p.is_file())] for some in tars]
        if not any(there):
            return []
        wanted += next(filter(None, there))
    return wanted


def _find_list(root: Path, split: str) -> Path | None:
    """A path as given, else a list SPLIT or *_SPLIT (.csv, .txt)."""
    for path in (root / split, Path(split)):
        if path.is_file():
            return path
    names = ALIASES.get(split, (split,))
    lists = [
        path
        for folder in (root, root / "annotations", root / "Charades")
        for suffix in (".csv", ".txt")
        for path in sorted(folder.glob(f"*{suffix}"))
        if path.stem in names or re.split("[-_.]", path.stem)[-1] in names
    ]
    lists = [path for path in lists if path.stem in names] or lists
    if len({path.stem for path in lists}) > 1:
        found = ", ".join(str(path) for path in lists)
        raise ValueError(
            f"{found}: more than one list for {split!r}; name one (data.{split}: FILE)"
        )
    return lists[0] if lists else None


def folder_rows(files: Files, folder: Path) -> Iterator[Row]:
    """FOLDER/CLASS/**/file."""
    for path in sorted(files.under(folder)):
        label, inside, _ = path[len(str(folder)) + 1 :].partition(os.sep)
        if inside:
            yield Row(str(folder), path, label, path, listed=False)


def _list_rows(files: Files, path: Path, split: str, multilabel: bool) -> Iterator[Row]:
    """Kinetics' own CSV where the header has youtube_id, Charades' actions; else `path label`."""
    text = read_text(path)
    lines = io.StringIO(text)
    first = text.partition("\n")[0][: csv.field_size_limit()]
    head = {*next(csv.reader([first]), ())}
    if "youtube_id" in head:
        yield from _official_rows(files, path, head, lines, split)
    elif {"id", "actions", "length"} <= head:
        for where, row in _records(path, lines, "id"):
            found = files.named([row["id"]], "", split)
            yield Row(where, row["id"], row["actions"], found, length=row["length"])
    else:
        yield from _plain_rows(files, path, lines, multilabel)


def _records(
    path: Path, lines: Iterable[str], *needed: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a CSV is, and its cells by the header; one that is not there is empty."""
    table, start = csv.DictReader(lines, restval="", strict=True), 2
    try:
        for row in table:
            where, start = f"{path}, line {table.line_num}", table.line_num + 1
            if empty := [key for key in needed if not row[key]]:
                raise ValueError(f"{where}: no {empty[0]}; give it, or remove the line")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: {error}; is a quote not closed?") from error


def _official_rows(
    files: Files, path: Path, head: set[str], lines: Iterable[str], split: str
) -> Iterator[Row]:
    if absent := {"label", "youtube_id", "time_start", "time_end"} - head:
        raise ValueError(
            f"{path} has no column {', '.join(sorted(absent))}: videos need labels "
            f"(Kinetics' test lists have none; use the validation list)"
        )
    for where, row in _records(path, lines, "label", "youtube_id"):
        try:
            start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
        except (OverflowError, ValueError) as error:
            raise ValueError(f"{where}: time_start and time_end must be numbers") from error
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        found = files.named((name, row["youtube_id"]), row["label"], split)
        yield Row(where, name, row["label"], found)


SUFFIXES = "|".join(suffix[1:] for suffix in sorted(VIDEO_SUFFIXES | PICTURES))
_HEADER = re.compile(r"(class|label|category|target)(es|s)?( ?(id|index|name|label))?")
_LINE = (
    re.compile(rf"""["']?(.+\.(?:{SUFFIXES}))["']?\s*[\s,]\s*(.+)""", re.IGNORECASE),
    re.compile(r"""["'](.+)["']\s*[\s,]\s*(.+)"""),
    re.compile(r"(.+)\t\s*(.+)"),
    re.compile(r"(.+),\s*(.+)"),
    re.compile(r"(.+)\s+(\S+)"),
)
_LINE_OF_MANY = (*_LINE[:3], re.compile(r"([^\s,]+)\s+(.+)"), re.compile(r"([^,]+),\s*(.+)"))


def _plain_rows(files: Files, path: Path, lines: Iterable[str], multilabel: bool) -> Iterator[Row]:
    labels: dict[str, str] = {}  # by video
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        patterns = _LINE_OF_MANY if multilabel else _LINE
        matches = (pattern.fullmatch(line) for pattern in patterns)
        match = next((m for m in matches if m), None)
        where = f"{path}, line {number}"
        if match is None:
            raise ValueError(f"{where}: expected `path label`, found {line[:80]!r}")
        name, label = match[1].strip(), match[2].strip()
        label = label if multilabel else label.strip("\"'")
        if number == 1 and _HEADER.fullmatch(plain(label)):
            continue
        if not label or (re.fullmatch(r"[-+.\s\d]*\d[.\s\d]*", label) and not label.isdecimal()):
            raise ValueError(f"{where}: label {label!r} is neither a class index nor a name")
        if (other := labels.setdefault(name, label)) != label:
            raise ValueError(f"{where}: {name!r} has label {label!r} here, {other!r} before")
        yield Row(where, name, label, files.at(name, path.parent))
