"""COCO's `segmentation`: polygons and run lengths, what is wrong with them, and as masks.

A segmentation is a list of polygons [x1, y1, x2, y2, ...] in pixels, or run lengths
{"size": [h, w], "counts": ...}, down the columns, of zeros first: a list, or a string as COCO packs
it. COCO's own code reads past the end of run lengths that do not fit, and takes a first polygon of
four numbers for a box; here both are known before.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from faster_coco_eval.core import mask

MOST = {"box": 100, "mask": 100, "keypoint": 20}  # scored: of a class, in an image
FAR = 1e5  # pixels: in no image, and COCO's code needs gigabytes to walk there
Fault = tuple[str, str]  # its name, as `nlzoo.data.coco` reports it, and the value


def are_numbers(values: list[Any]) -> bool:
    """Whether all are finite numbers, and none a bool."""
    try:
        return set(map(type, values)) <= {int, float} and math.isfinite(sum(values))
    except OverflowError:  # an integer that no float holds
        return False


def faults(segmentation: Any, height: int, width: int) -> Iterator[Fault]:
    """Everything wrong with a segmentation of an image of this size."""
    if isinstance(segmentation, dict):
        yield from _rle_faults(segmentation, height, width)
    elif segmentation is None:
        yield "segmentation-missing", "none"
    elif not isinstance(segmentation, list):
        yield "rle-type", f"a {type(segmentation).__name__}, neither polygons nor run lengths"
    elif not any(segmentation):
        yield "segmentation-empty", repr(segmentation)
    elif are_numbers(segmentation):
        yield "polygon-short", f"a flat list of {len(segmentation)} numbers, not a list of polygons"
    else:
        for part in segmentation:
            if fault := _polygon_fault(part):
                yield fault


def _polygon_fault(polygon: Any) -> Fault | None:
    if not isinstance(polygon, list):
        return "polygon-nan", f"{polygon!r} in place of a polygon"
    if not are_numbers(polygon):
        return "polygon-nan", "a coordinate that is no finite number"
    if max(map(abs, polygon), default=0) > FAR:
        return "polygon-nan", f"a coordinate of {max(polygon, key=abs):g} pixels"
    if len(polygon) < 6:
        words = ", a box?" if len(polygon) == 4 else ""
        return "polygon-short", f"{len(polygon)} numbers{words}"
    return ("polygon-odd", f"{len(polygon)} numbers") if len(polygon) % 2 else None


def polygons(segmentation: list[Any]) -> list[list[float]]:
    """The polygons that can be drawn."""
    return [part for part in segmentation if part and not _polygon_fault(part)]


def _rle_faults(rle: dict[str, Any], height: int, width: int) -> Iterator[Fault]:
    size = rle.get("size")
    if size != [height, width]:
        yield "rle-size", f"size {size} where the image has [{height}, {width}]"
        return
    try:
        counts = _counts(rle.get("counts"))
    except (TypeError, ValueError) as error:
        yield "rle-type", str(error)
        return
    if (counts < 0).any():
        yield "rle-counts", f"a negative count {int(counts.min())}"
    elif (counts > height * width).any():  # their sum may be beyond 64 bits
        yield "rle-counts", f"a count of {int(counts.max())} in {height * width} pixels"
    elif counts.sum() != height * width:
        yield "rle-counts", f"counts of {int(counts.sum())} pixels where there are {height * width}"


def _counts(counts: Any) -> np.ndarray:
    """Run lengths as numbers: int64 (R,).

    Raises:
        TypeError: neither a list of integers nor a string.
        ValueError: a string that is none of COCO's, or a number beyond 64 bits.
    """
    if isinstance(counts, list) and all(type(n) is int for n in counts):
        if max(map(abs, counts), default=0) >= 2**63:
            raise ValueError("counts hold a number beyond 64 bits")
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str | bytes):
        raise TypeError(f"counts are a {type(counts).__name__}, not integers or a string")
    text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("counts are no string of COCO's")
    last = np.flatnonzero(codes & 32 == 0)  # of each number: five bits a letter, low ones first
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 8:
        raise ValueError("counts are no string of COCO's")
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((codes & 31) << 5 * place, first)
    values -= np.where(codes[last] & 16, np.int64(1) << 5 * (last - first + 1), 0)
    for start in (1, 2):  # from the fourth on, the difference to the one before the last
        values[start::2] = values[start::2].cumsum()
    return values


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """One packed mask of what can be drawn, in an image of this size; None: nothing can be."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask.frPyObjects(segmentation, height, width)
        return segmentation
    parts = polygons(segmentation) if isinstance(segmentation, list) else []
    return mask.merge(mask.frPyObjects(parts, height, width)) if parts else None


def draw(segmentation: Any, native: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The mask at another size (h, w) than the image's own: uint8 (h, w) of 0 and 1.

    Polygons are scaled before they are drawn; run lengths take the nearest pixel.
    """
    if not isinstance(segmentation, dict):
        scale = np.array([size[1] / native[1], size[0] / native[0]])
        parts = [np.reshape(part, (-1, 2)) * scale for part in polygons(segmentation)]
        return mask.decode(to_rle([part.ravel().tolist() for part in parts], *size))
    drawn = mask.decode(to_rle(segmentation, *native))
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, native, strict=True))
    return drawn[rows[:, None], columns]
