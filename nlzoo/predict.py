"""Name what is in videos or images: `python -m nlzoo.predict --checkpoint C FILE|FOLDER...`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nlzoo.answers.files import answer, answer_objects, find_all
from nlzoo.answers.watch import At, watch
from nlzoo.models import load_model
from nlzoo.program import (
    add_answer_options,
    check_answer_options,
    make_parser,
    parse_options,
    run,
)


def main(argv: Sequence[str]) -> None:
    """Load, read, predict, look; one table or one JSON document."""
    options = parse_options(parser(), argv)
    check_answer_options(options)
    filetypes = FigureCanvasAgg.get_supported_filetypes()
    at = position(options.at)
    if at and not options.look:
        raise ValueError("--at needs --look PICTURE")
    if options.look and Path(options.look).suffix[1:].lower() not in filetypes:
        raise ValueError(f"--look {options.look}: expected a picture's name, such as look.png")
    model = load_model(options.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    videos = bool(model.preprocessing.frames)
    if at and len(at) != 2 + videos:
        raise ValueError(
            f"--at {options.at!r}: "
            + ("a video wants FRAME,X,Y" if videos else "an image wants X,Y")
        )
    detector = model.preprocessing.task == "detection"
    if not detector and (options.draw or options.coco):
        raise ValueError("--draw and --coco are of detectors")
    files = find_all(options.files, images=not videos)
    if options.look and len(files) > 1:
        raise ValueError(f"--look draws one file, not {len(files)}")
    views = options.clips, options.crops
    if detector:
        pictures = options.draw, options.coco, options.look, at
        answer_objects(model, files, options.json, options.threshold, *pictures)
    else:
        answer(files, lambda file: watch(model, file, *views, options.look, at), options.json)


def parser() -> ArgumentParser:
    """What to watch, how, and what to make of it."""
    example = "python -m nlzoo.predict --checkpoint best.ckpt video.mp4 --look where.png"
    made = make_parser("python -m nlzoo.predict", "Name what is in videos or images.", example)
    made.add_argument("files", nargs="+", help="videos or images, or folders of them or of frames")
    made.add_argument("--checkpoint", required=True, help="a checkpoint of nlzoo.fit")
    made.add_argument("--json", action="store_true", help="print JSON, with the files that failed")
    add_answer_options(made)
    look = made.add_argument_group("where a position looks")
    look.add_argument("--look", default="", help="picture to draw")
    look.add_argument("--at", default="", help="FRAME,X,Y in a video, X,Y in an image")
    return made


def position(text: str) -> At | None:
    """FRAME,X,Y or X,Y as numbers; None where empty."""
    numbers = text.split(",")
    if text and (len(numbers) not in (2, 3) or not all(n.strip().isdecimal() for n in numbers)):
        raise ValueError(f"--at {text!r}: expected FRAME,X,Y or X,Y, whole numbers")
    return tuple(map(int, numbers)) if text else None


if __name__ == "__main__":
    run(main)
