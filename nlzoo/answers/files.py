"""What is in many files: folders searched, bad files named, one table or one JSON document."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from nlzoo.answers.detect import CocoFile, detect, draw_objects, look_at_objects
from nlzoo.console import table_console
from nlzoo.data.decode import VIDEO_SUFFIXES
from nlzoo.data.layouts import find_videos
from nlzoo.data.pictures import SUFFIXES, find_images
from nlzoo.preprocessing import Unreadable

Answer = dict[str, Any]  # of `watch`


def find_all(given: Sequence[str], images: bool) -> list[Any]:
    """The files, with the videos of a folder in its place, or its images; `str` names one.

    A folder of frames is one video; a tar file of images is a folder.

    Raises:
        FileNotFoundError: nothing in any of them.
        ValueError: one is of the other kind, by its suffix, or has no name.
    """
    if "" in given:
        raise ValueError("an empty path, as of a variable that is not set: name files or folders")
    wants, other = ("sees images", "a video") if images else ("watches videos", "an image")
    others = VIDEO_SUFFIXES - SUFFIXES if images else {".tar", *SUFFIXES} - VIDEO_SUFFIXES
    for path in map(Path, given):
        if path.suffix.lower() in others and not path.is_dir():
            what = "a tar file of images" if path.suffix == ".tar" else other
            raise ValueError(f"this network {wants}, {path} is {what}")
    inside: Callable[[Path], Iterable[Any]] = (
        find_images if images else partial(find_videos, top=False)
    )
    paths = map(Path, given)
    found = (
        sorted(inside(p), key=str) if p.is_dir() or (images and p.suffix == ".tar") else [str(p)]
        for p in paths
    )
    if files := list(chain.from_iterable(found)):
        return files
    kind = "image" if images else "video"
    raise FileNotFoundError(f"no {kind} in {', '.join(given)}, and this network {wants}")


def answer(files: Sequence[Any], watch: Callable[[Any], Answer], as_json: bool) -> None:
    """Watch each file and print the answers. One bad file does not end the list.

    Raises:
        Unreadable: none of them can be read.
        SystemExit: 1, after the answers: some of them cannot.
    """
    answers: list[Answer] = []
    bad: dict[str, str] = {}
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    for file in track(files, "files", console=console, transient=True, disable=quiet):
        try:
            answers.append(watch(file))
        except Unreadable as error:
            bad[str(file)] = str(error)
    if not answers:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise Unreadable(next(iter(bad.values())) + more)
    sys.stderr.writelines(f"nlzoo: {error}\n" for error in bad.values())
    if as_json:
        answers += [{"file": f, "error": e.removeprefix(f"{f}: ")} for f, e in bad.items()]
        sys.stdout.write(json.dumps(answers, indent=2) + "\n")
    else:
        show(answers)
    if bad:
        sys.exit(1)


def answer_objects(
    model: Any,
    files: Sequence[Any],
    as_json: bool,
    threshold: float = 0.5,
    draw: str = "",
    coco: str = "",
    look: str = "",
    at: Any = None,
) -> None:
    """What a detector finds in each file.

    Args:
        model: as `nlzoo.answers.detect.detect` takes it.
        files: images.
        as_json: print JSON.
        threshold: least score.
        draw: folder for pictures of the objects.
        coco: file for them, as COCO's JSON.
        look: file for a picture of where position `at`, (x, y), looks.

    Raises as `answer` and `look_at_objects`.
    """
    pre = model.preprocessing
    found_all, names = CocoFile(pre), set[str]()

    def watch_one(file: Any) -> Answer:
        found = detect(model, file, threshold)
        found_all.add(found)
        result = found.answer(pre)
        if draw:
            picture = Path(draw) / f"{own_name(Path(str(file)).stem, names)}.png"
            draw_objects(found, pre, picture)
            result["picture"] = str(picture)
        if look:
            x, y = look_at_objects(model, found, Path(look), at)
            result["look"] = {"picture": look, "x": x, "y": y}
        return result

    try:
        answer(files, watch_one, as_json)
    finally:
        if coco and found_all.images:
            found_all.write(Path(coco))


def own_name(stem: str, taken: set[str]) -> str:
    """The stem, or STEM_2, STEM_3, ..., whichever is the first not yet taken; now it is."""
    names = chain([stem], (f"{stem}_{number}" for number in count(2)))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def show(answers: Sequence[Answer]) -> None:
    """A row a class; below, what is damaged and what was drawn."""
    table = Table(Column("file", overflow="fold"), "class", "score")
    for one in answers:
        if not one["top"]:
            table.add_row(one["file"], "nothing", "")
        for i, top in enumerate(one["top"]):
            table.add_row("" if i else one["file"], top["class"], f"{top['score']:.3f}")
    console = table_console()
    console.print(table)
    for one in answers:
        if "damage" in one:
            console.print(f"{one['file']}: {one['damage']}")
        if at := one.get("look"):
            where = ", ".join(f"{key} {at[key]}" for key in ("frame", "x", "y") if key in at)
            console.print(f"{at['picture']}: where {where} looks (--at for another)")
