"""Name what is in videos or images: `python -m nlzoo.predict --checkpoint C FILE|FOLDER...`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nlzoo.answer import Answer, answer, find_all
from nlzoo.detect import CocoFile, detect, draw_objects, look_at_objects
from nlzoo.models import load_model
from nlzoo.program import make_parser, parse_options, run
from nlzoo.watch import At, watch


def main(argv: Sequence[str]) -> None:
    """Load, read, predict, look; one table or one JSON document."""
    options = parse_options(parser(), argv)
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
        tell_objects(model, files, options, at)
    else:
        answer(files, lambda file: watch(model, file, *views, options.look, at), options.json)


def tell_objects(model: Any, files: Sequence[Any], options: Namespace, at: Any) -> None:
    """What a detector finds: the answers, pictures of them, and COCO's JSON."""
    pre = model.preprocessing
    coco, names = CocoFile(pre), Counter[str]()

    def watch_one(file: Any) -> Answer:
        found = detect(model, file, options.threshold)
        coco.add(found)
        result = found.answer(pre)
        if options.draw:
            stem = Path(str(file)).stem
            names[stem] += 1
            more = f"_{names[stem]}" if names[stem] > 1 else ""
            picture = Path(options.draw) / f"{stem}{more}.png"
            draw_objects(found, pre, picture)
            result["picture"] = str(picture)
        if options.look:
            x, y = look_at_objects(model, found, Path(options.look), at)
            result["look"] = {"picture": options.look, "x": x, "y": y}
        return result

    try:
        answer(files, watch_one, options.json)
    finally:
        if options.coco and coco.images:
            coco.write(Path(options.coco))


def parser() -> ArgumentParser:
    """What to watch, how, and what to make of it."""
    made = make_parser("python -m nlzoo.predict", "Name what is in videos or images.")
    made.add_argument("files", nargs="+", help="videos or images, or folders of them or of frames")
    made.add_argument("--checkpoint", required=True, help="a checkpoint of nlzoo.fit")
    made.add_argument("--clips", type=int, default=10, help="of videos: evenly spread clips")
    made.add_argument("--crops", type=int, default=1, help="of a clip: 1 (the centre) or 3")
    made.add_argument("--json", action="store_true", help="print JSON, with the files that failed")
    made.add_argument("--threshold", type=float, default=0.5, help="of detectors: least score")
    made.add_argument("--draw", default="", help="of detectors: folder for pictures of the objects")
    made.add_argument(
        "--coco", default="", help="of detectors: file for the objects, as COCO's JSON"
    )
    made.add_argument("--look", default="", help="picture to draw: where a position looks")
    made.add_argument(
        "--at", default="", help="the position: FRAME,X,Y in a video, X,Y in an image"
    )
    return made


def position(text: str) -> At | None:
    """FRAME,X,Y or X,Y as numbers; None where empty."""
    numbers = text.split(",")
    if text and (len(numbers) not in (2, 3) or not all(n.strip().isdecimal() for n in numbers)):
        raise ValueError(f"--at {text!r}: expected FRAME,X,Y or X,Y, whole numbers")
    return tuple(map(int, numbers)) if text else None


if __name__ == "__main__":
    run(main)
