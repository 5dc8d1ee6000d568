"""A file of results in COCO's format: what is wrong with it before it is scored or sent in."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nlzoo.data.coco.faults import Report
from nlzoo.shapes import MOST, are_numbers


def check_results(
    path: Path, images: Collection[int], categories: Collection[int], report: Report
) -> None:
    """Report unknown ids, numbers that are none, and more detections than count."""
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        report.fail("json-missing", f"no {path}")
    except ValueError as error:
        report.fail("json-invalid", f"{path}: {error}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        report.fail("json-keys", f"{path} is no list of results")
    counts: Counter[tuple[Any, Any, int]] = Counter()
    for position, row in enumerate(rows):
        where = f"result {position} of image {row.get('image_id')}"
        if row.get("image_id") not in images:
            report.add("results-image", f"{where}: no such image")
        if row.get("category_id") not in categories:
            report.add("results-category", f"{where}: no category {row.get('category_id')}")
        _check_numbers(row, where, report)
        most = MOST["keypoint" if "keypoints" in row else "box"]
        counts[row.get("image_id"), row.get("category_id"), most] += 1
    for (image, category, most), count in counts.items():
        if count > most:
            words = f"image {image} has {count} of category {category}, more than {most}"
            report.add("results-many", words)


def _check_numbers(row: dict[str, Any], where: str, report: Report) -> None:
    for key in ("bbox", "keypoints"):
        if key in row and not (isinstance(row[key], list) and are_numbers(row[key])):
            report.add("results-nan", f"{where}: {key} {row[key]!r}")
    if not are_numbers([row.get("score")]):
        report.add("results-nan", f"{where}: score {row.get('score')!r}")
    elif not 0 <= row["score"] <= 1:
        report.add("results-score", f"{where}: score {row['score']}")
