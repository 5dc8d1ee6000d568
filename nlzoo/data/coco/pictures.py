"""Image files of a set: there, readable, and of the size that the annotations are of."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from nlzoo.data.coco.faults import Report
from nlzoo.data.coco.instances import Instances
from nlzoo.data.pictures import FORMATS, read_image
from nlzoo.preprocessing import Unreadable
from nlzoo.shapes import Fault

ORIENTATION = 0x0112  # EXIF's tag
SWAPPED = (5, 6, 7, 8)  # its values that turn an image by a right angle
LAST = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # near the end of a whole file
TAIL = 64  # bytes


def check_pictures(
    found: Instances, folder: Path, exif: bool, decode: bool, report: Report
) -> dict[str, str]:
    """Which images cannot be used: why, by path.

    Headers and the ends of files are read; with `decode` all pixels.
    """

    def look(position: int) -> list[Fault]:
        size = (int(found.sizes[position, 1]), int(found.sizes[position, 0]))
        return faults(folder / found.names[position], size, exif, decode)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(look, range(len(found.ids))))
    bad = {}
    for position, wrong in enumerate(results):
        for fault, words in wrong:
            numbers = found.numbers[found.of(position)]
            own = f" of annotation {numbers[0]}" if len(numbers) else ""
            report.add(fault, f"image {found.ids[position]}{own} ({words})")
            if fault != "image-mode":
                path = str(folder / found.names[position])
                bad[path] = "missing" if fault == "image-missing" else f"unreadable: {words}"
                report.dropped[fault] += len(numbers)
    return bad


def faults(path: Path, size: tuple[int, int], exif: bool, decode: bool) -> list[Fault]:
    """What is wrong with an image that should be of this width and height."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            wrong = _of_header(image, path, size, exif)
            sure = not decode and _ends(path, image.format or "")
    except FileNotFoundError:
        return [("image-missing", f"no {path}")]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return [("image-unreadable", f"{path}: {_reason(error)}")]
    if sure:
        return wrong
    try:
        read_image(path, upright=exif)
    except Unreadable as error:
        cut = "truncated" in str(error) or "Truncated" in str(error)
        return [("image-truncated" if cut else "image-unreadable", str(error))]
    return wrong


def _reason(error: Exception) -> str:
    text = str(error)
    return "not an image" if "cannot identify" in text else text


def _ends(path: Path, kind: str) -> bool:
    """Whether a file ends as a whole one of its kind does; other kinds are read to know."""
    if kind not in LAST:
        return False
    with path.open("rb") as file:
        file.seek(-min(TAIL, path.stat().st_size), os.SEEK_END)
        return LAST[kind] in file.read()


def _of_header(image: Image.Image, path: Path, size: tuple[int, int], exif: bool) -> list[Fault]:
    tag = image.getexif().get(ORIENTATION, 1)
    turned = tag in SWAPPED
    found = image.size[::-1] if exif and turned else image.size
    sizes = f"{path}: {found[0]} x {found[1]}, annotated {size[0]} x {size[1]}"
    if found != size:
        if found[::-1] == size:
            return [("image-size-swapped", f"{sizes}; EXIF orientation {tag}")]
        return [("image-size-mismatch", sizes)]
    return [] if image.mode == "RGB" else [("image-mode", f"{path}: {image.mode}")]
