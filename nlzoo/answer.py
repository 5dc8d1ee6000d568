"""What is in many videos: folders searched, bad files named, one table or one JSON document."""

import json
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from nlzoo.data.decode import UnreadableVideo
from nlzoo.data.layouts import find_videos

Answer = dict[str, Any]  # of `watch_video`


def find_all(given: Sequence[str]) -> list[str]:
    """The files, with the videos of a folder in its place; a folder of frames is one video.

    Raises:
        FileNotFoundError: no video in any of them.
    """
    paths = map(Path, given)
    found = (sorted(find_videos(p, top=False)) if p.is_dir() else [str(p)] for p in paths)
    if videos := list(chain.from_iterable(found)):
        return videos
    raise FileNotFoundError(f"no video in {', '.join(given)}")


def answer(videos: Sequence[str], watch: Callable[[str], Answer], as_json: bool) -> None:
    """Watch each video and print the answers. One bad file does not end the list.

    Raises:
        UnreadableVideo: none of them can be read.
    """
    answers, bad = [], []
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    for video in track(videos, "videos", console=console, transient=True, disable=quiet):
        try:
            answers.append(watch(video))
        except UnreadableVideo as error:
            bad.append(str(error))
    if not answers:
        raise UnreadableVideo(bad[0] + (f" (and {len(bad) - 1} more)" if bad[1:] else ""))
    sys.stderr.writelines(f"nlzoo: {error}\n" for error in bad)
    if as_json:
        sys.stdout.write(json.dumps(answers, indent=2) + "\n")
    else:
        show(answers)


def show(answers: Sequence[Answer]) -> None:
    """A row a class; below, what is damaged and what was drawn."""
    table = Table(Column("video", overflow="fold"), "class", "score")
    for one in answers:
        for i, top in enumerate(one["top"]):
            table.add_row("" if i else one["video"], top["class"], f"{top['score']:.3f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for one in answers:
        if "damage" in one:
            console.print(one["damage"])
        if at := one.get("look"):
            console.print(f"{at['picture']}: where {at['frame']},{at['x']},{at['y']} looks")
