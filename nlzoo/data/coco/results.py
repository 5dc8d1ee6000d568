"""A file of results in COCO's format: what is wrong with it before it is scored or sent in."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlzoo import shapes
from nlzoo.data.coco.check import Checked
from nlzoo.data.coco.records import is_whole

OF = ("bbox", "segmentation", "keypoints")  # a result has one of them at least


def check_results(path: Path, checked: Checked) -> None:
    """Report unknown ids, what is no box, mask or keypoints, and more detections than count."""
    report, found, table = checked.report, checked.found, checked.table
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        report.fail("json-missing", f"no {path}")
    except ValueError as error:
        report.fail("json-invalid", f"{path}: {error}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        report.fail("json-keys", f"{path} is no list of results")
    sizes = dict(zip(found.ids.tolist(), found.sizes.tolist(), strict=True))
    counts: Counter[tuple[int, int, int]] = Counter()
    for position, row in enumerate(rows):
        image, category = row.get("image_id"), row.get("category_id")
        where = f"{path.name}, result {position} of image {image!r}"
        known = is_whole(image) and image in sizes
        if not known:
            report.add("results-image", f"{where}: no such image")
        if not (is_whole(category) and category in table.labels):
            report.add("results-category", f"{where}: no category {category!r}")
        elif known:
            most = shapes.MOST["keypoint" if "keypoints" in row else "box"]
            counts[image, category, most] += 1
        size = sizes[image] if known else None
        for fault, words in _faults(row, size, len(table.keypoints)):
            report.add(fault, f"{where}: {words}")
    for (image, category, most), count in counts.items():
        if count > most:
            words = f"image {image} has {count} of category {category}, more than {most}"
            report.add("results-many", words)


def _faults(row: dict[str, Any], size: list[int] | None, points: int) -> Iterator[shapes.Fault]:
    """Of a result in an image of this size (h, w), if it is known, with that many keypoints."""
    there = {key: row[key] for key in OF if row.get(key, []) != []}
    if not there:
        yield "results-keys", f"none of {', '.join(OF)}"
    for key in there.keys() - {"segmentation"}:
        value, of_box = there[key], key == "bbox"
        if not isinstance(value, list):
            yield f"results-{key}", f"{key} {value!r}"
        elif not shapes.are_numbers(value):
            yield "results-nan", f"{key} {value!r}"
        elif (len(value) != 4 or min(value[2:]) < 0) if of_box else _odd(len(value), points):
            yield f"results-{key}", f"{key} {value!r}"
    if "segmentation" in there and size:
        yield from _mask_faults(there["segmentation"], *size)
    if not shapes.are_numbers([row.get("score")]):
        yield "results-nan", f"score {row.get('score')!r}"
    elif not 0 <= row["score"] <= 1:
        yield "results-score", f"score {row['score']}"


def _odd(length: int, points: int) -> bool:
    """Whether so many numbers are not x, y and visibility of each of `points`; 0: unknown."""
    return length != 3 * points if points else length % 3 > 0


def _mask_faults(given: Any, height: int, width: int) -> Iterator[shapes.Fault]:
    """COCO's code takes packed run lengths only."""
    if not isinstance(given, dict) or not isinstance(given.get("counts"), str):
        yield "results-segmentation", f"segmentation {str(given)[:80]} has no string of run lengths"
        return
    for _, words in shapes.faults(given, height, width):
        yield "results-segmentation", f"segmentation: {words}"
