"""Name what happens in videos: `python -m nlzoo.predict --checkpoint C VIDEO|FOLDER...`."""

import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from nlzoo.data.decode import UnreadableVideo
from nlzoo.data.layouts import find_videos
from nlzoo.models import load_model
from nlzoo.program import make_parser, parse_options, run
from nlzoo.watch import At, watch_video


def main(argv: Sequence[str]) -> None:
    """Load, read, predict, look; one table or one JSON document."""
    options = parse(argv)
    model = load_model(options.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    videos, results, bad = options.videos, [], []
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    for video in track(videos, "videos", console=console, transient=True, disable=quiet):
        try:
            results.append(
                watch_video(model, video, options.clips, options.crops, options.look, options.at)
            )
        except UnreadableVideo as error:  # one bad file does not end the list
            bad.append(str(error))
    if not results:
        raise UnreadableVideo(bad[0] + (f" (and {len(bad) - 1} more)" if bad[1:] else ""))
    sys.stderr.writelines(f"nlzoo: {error}\n" for error in bad)
    if options.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    else:
        show(results)


def parser() -> ArgumentParser:
    """What to watch, how, and what to make of it."""
    made = make_parser("python -m nlzoo.predict", "Name what happens in videos.")
    made.add_argument("videos", nargs="+", help="files, or folders of them or of frames")
    made.add_argument("--checkpoint", required=True, help="a checkpoint of nlzoo.fit")
    made.add_argument("--clips", type=int, default=10, help="evenly spread clips a video")
    made.add_argument("--crops", type=int, default=1, help="of a clip: 1 (the centre) or 3")
    made.add_argument("--json", action="store_true", help="print JSON in place of a table")
    made.add_argument("--look", default="", help="picture to draw: where a position looks")
    made.add_argument("--at", default="", help="the position in the video: FRAME,X,Y")
    return made


def parse(argv: Sequence[str]) -> Namespace:
    """The options, with the videos of folders in their place."""
    options = parse_options(parser(), argv)
    options.at = position(options.at)
    given = [Path(video) for video in options.videos]
    found = (sorted(find_videos(p, top=False)) if p.is_dir() else [str(p)] for p in given)
    options.videos = list(chain.from_iterable(found))
    if not options.videos:
        raise FileNotFoundError(f"no video in {', '.join(map(str, given))}")
    if options.at and not options.look:
        raise ValueError("--at needs --look PICTURE")
    if options.look and len(options.videos) > 1:
        raise ValueError(f"--look draws one video, not {len(options.videos)}")
    return options


def position(text: str) -> At | None:
    """FRAME,X,Y as numbers; None where empty."""
    numbers = text.split(",")
    if text and (len(numbers) != 3 or not all(n.strip().isdecimal() for n in numbers)):
        raise ValueError(f"--at {text!r}: expected FRAME,X,Y, three whole numbers")
    return (int(numbers[0]), int(numbers[1]), int(numbers[2])) if text else None


def show(results: list[dict[str, Any]]) -> None:
    """A row a class; below, what is damaged and what was drawn."""
    table = Table(Column("video", overflow="fold"), "class", "score")
    for result in results:
        for i, one in enumerate(result["top"]):
            table.add_row("" if i else result["video"], one["class"], f"{one['score']:.3f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for result in results:
        if "damage" in result:
            console.print(result["damage"])
        if at := result.get("look"):
            console.print(f"{at['picture']}: where {at['frame']},{at['x']},{at['y']} looks")


if __name__ == "__main__":
    run(main)
