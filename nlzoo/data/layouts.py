"""Video sets as people have them on disk: which videos, their labels, and which are missing."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlzoo.data.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from nlzoo.files import read_text

LAYOUTS = (
    "train.csv and val.csv (Kinetics' own lists), train.txt and val.txt (`path label` lines), "
    "or train/CLASS/*.mp4 and val/CLASS/*.mp4"
)
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Row:
    """One video of a list: where it was listed, what it is called, its label as written."""

    where: str
    name: str
    label: str
    path: str | None  # None: missing
    listed: bool = True  # else the label is the name of a folder


class Files:
    """Every video under a folder, found by one scan: files, and folders of frames."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(
                f"no data folder {str(root)!r}; --data PATH names it. Expected in it: {LAYOUTS}. "
                "--sample makes a small set"
            )
        self.root = root = Path(os.path.normpath(root))
        self.paths = frozenset(find_videos(root))
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths):
            name = os.path.basename(path)  # noqa: PTH119 - a quarter of a million strings
            self.by_stem[name].append(path)
            self.by_stem[os.path.splitext(name)[0]].append(path)  # noqa: PTH122

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


# -- splits ---------------------------------------------------------------------------------


def read_rows(files: Files, split: str) -> list[Row] | None:
    """The rows of a split: of the list or folder that `split` names; None if there is neither.

    Raises:
        ValueError: the list is empty, or has no labels; or several lists may be meant.
    """
    where = _find_split(files.root, split)
    if where is None:
        return None
    rows = list(_folder_rows(files, where) if where.is_dir() else _list_rows(files, where, split))
    if not rows:
        raise ValueError(f"{where} lists no video: expected {LAYOUTS}")
    return rows


def _find_split(root: Path, split: str) -> Path | None:
    """A path as given, else a list SPLIT or *_SPLIT (.csv, .txt), else the folder SPLIT."""
    for path in (root / split, Path(split)):
        if path.is_file():
            return path
    names = ALIASES.get(split, (split,))
    lists = [
        path
        for folder in (root, root / "annotations")
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
    if lists:
        return lists[0]
    folders = [root / name for name in (split, *names)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _folder_rows(files: Files, folder: Path) -> Iterator[Row]:
    """FOLDER/CLASS/**/video."""
    for path in sorted(files.paths):
        inside = Path(path).relative_to(folder).parts if _is_in(path, folder) else ()
        if len(inside) > 1:
            yield Row(str(folder), path, inside[0], path, listed=False)


def _is_in(path: str, folder: Path) -> bool:
    return path.startswith(f"{folder}{os.sep}")


def _list_rows(files: Files, path: Path, split: str) -> Iterator[Row]:
    """Kinetics' own CSV where the header has youtube_id, else `path label` lines."""
    text = read_text(path)
    lines = io.StringIO(text)
    if "youtube_id" in text.partition("\n")[0]:
        yield from _official_rows(files, path, csv.DictReader(lines), split)
    else:
        yield from _plain_rows(files, path, lines)


def _official_rows(
    files: Files, path: Path, rows: "csv.DictReader[str]", split: str
) -> Iterator[Row]:
    needed = {"label", "youtube_id", "time_start", "time_end"}
    if absent := needed - set(rows.fieldnames or ()):
        raise ValueError(
            f"{path} has no column {', '.join(sorted(absent))}: videos need labels "
            f"(Kinetics' test lists have none; use the validation list)"
        )
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        try:
            start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: time_start and time_end must be numbers") from error
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        found = files.named((name, row["youtube_id"]), row["label"], split)
        yield Row(where, name, row["label"], found)


SUFFIXES = "|".join(suffix[1:] for suffix in sorted(VIDEO_SUFFIXES))
_HEADER = re.compile(r"(class|label|category|target)(es|s)?( ?(id|index|name|label))?")
_LINE = (
    re.compile(rf"""["']?(.+\.(?:{SUFFIXES}))["']?\s*[\s,]\s*(.+)""", re.IGNORECASE),
    re.compile(r"""["'](.+)["']\s*[\s,]\s*(.+)"""),
    re.compile(r"(.+)\t\s*(.+)"),
    re.compile(r"(.+),\s*(.+)"),
    re.compile(r"(.+)\s+(\S+)"),
)


def _plain_rows(files: Files, path: Path, lines: Iterable[str]) -> Iterator[Row]:
    labels: dict[str, str] = {}  # by video
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        matches = (pattern.fullmatch(line) for pattern in _LINE)
        match = next((m for m in matches if m), None)
        where = f"{path}, line {number}"
        if match is None:
            raise ValueError(f"{where}: expected `path label`, found {line[:80]!r}")
        name, label = match[1].strip(), match[2].strip().strip("\"'")
        if number == 1 and _HEADER.fullmatch(plain(label)):
            continue
        if not label or (re.fullmatch(r"[-+.\s\d]*\d[.\s\d]*", label) and not label.isdecimal()):
            raise ValueError(f"{where}: label {label!r} is neither a class index nor a name")
        if (other := labels.setdefault(name, label)) != label:
            raise ValueError(f"{where}: {name!r} has label {label!r} here, {other!r} before")
        yield Row(where, name, label, files.at(name, path.parent))
