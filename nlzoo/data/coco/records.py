"""COCO's JSON file: its three lists, and what can be said of images and categories."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlzoo.data.coco.faults import Report
from nlzoo.shapes import FAR

NEEDED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
KINDS = {"caption": "captions", "segments_info": "panoptic segments"}
ABSENT = "N/A"  # a class that no category has, as in torchvision's list of 91


@dataclass(frozen=True)
class Categories:
    """Classes in the order of their labels, from 1.

    Attributes:
        ids: of the file; -1: `ABSENT`.
        keypoints: their names; empty: none.
        skeleton: pairs of them, from 0.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    @property
    def labels(self) -> dict[int, int]:
        """Label by category id."""
        return {number: label for label, number in enumerate(self.ids, 1) if number >= 0}


def read_json(path: Path, report: Report) -> dict[str, Any]:
    """The file, if its lists are there and their entries have what they need."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.json")) or "no JSON file"
        report.fail("json-missing", f"no {path}; in its folder: {there}")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        report.fail("json-invalid", f"{path} is packed by gzip")
    try:
        made = json.loads(content)
    except ValueError as error:
        report.fail("json-invalid", f"{path}: {error}")
    for name in NEEDED:
        if not isinstance(made, dict) or not isinstance(made.get(name), list):
            keys = sorted(made) if isinstance(made, dict) else f"a {type(made).__name__}"
            report.fail("json-keys", f"no list {name!r} in {path}, which has {keys}")
    if not made["categories"]:
        report.fail("category-empty", f"{path} has no category")
    for name, needed in NEEDED.items():
        _check_entries(path, name, made[name], needed, report)
    return made


def is_whole(value: object) -> bool:
    """Whether it is a whole number of 64 bits, which all that comes after can hold."""
    return type(value) is int and -(2**63) <= value < 2**63


def _check_entries(
    path: Path, name: str, entries: list[Any], keys: dict[str, type], report: Report
) -> None:
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    for key, words in KINDS.items():
        if key in first:
            report.fail("json-keys", f"{path} holds {words}, not instances")
    for position, entry in enumerate(entries):
        for key, kind in keys.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not (is_whole(value) if kind is int else isinstance(value, kind)):
                words = f"{name}[{position}] has {key} {value!r}, not {kind.__name__}"
                report.fail("json-keys", f"{path}: {words}")


def check_images(images: list[dict[str, Any]], report: Report) -> None:
    """Sizes that are none; numbers and names that are there twice."""
    by_id: dict[int, str] = {}
    names: dict[str, int] = {}
    for image in images:
        number, name = image["id"], image["file_name"]
        for key in ("width", "height"):
            if not 1 <= image[key] <= FAR:
                report.fail("json-keys", f"image {number} ({name}) has {key} {image[key]}")
        if number in by_id:
            words = f"image {number} is {by_id[number]!r} and {name!r}"
            report.add("image-id-duplicate", words)
        if name in names:
            report.add("file-name-duplicate", f"images {names[name]} and {number} are {name!r}")
        by_id.setdefault(number, name)
        names.setdefault(name, number)


def read_categories(
    table: list[dict[str, Any]], keypoints: bool, classes: Sequence[str], report: Report
) -> Categories:
    """Sorted by id; where `classes` are given, in their order, by name.

    With `keypoints`, those of the categories that have some, which must agree.
    """
    for key in ("id", "name"):
        values = [category[key] for category in table]
        for value in dict.fromkeys(v for v in values if values.count(v) > 1):
            report.add(
                "category-duplicate", f"{key} {value!r} is there {values.count(value)} times"
            )
    report.stop()
    found = {c["name"]: c["id"] for c in sorted(table, key=lambda c: c["id"])}
    names = tuple(classes) or tuple(found)
    check_same("the classes", [n for n in names if n != ABSENT], "the file", list(found), report)
    ids = tuple(found.get(name, -1) for name in names)
    if not keypoints:
        return Categories(ids, names)
    for category in table:
        if category.get("keypoints"):
            _check_skeleton(category, report)
    points = {tuple(c["keypoints"]): c for c in table if c.get("keypoints")}
    if len(points) != 1:
        there = "different keypoints" if points else "no keypoints"
        hint = "" if points else "; COCO's person_keypoints_* have"
        report.fail("wrong-task", f"keypoints are asked for, its categories have {there}{hint}")
    ((names_of, category),) = points.items()
    limbs = tuple((a - 1, b - 1) for a, b in category.get("skeleton") or ())
    return Categories(ids, names, names_of, limbs)


def _check_skeleton(category: dict[str, Any], report: Report) -> None:
    names, limbs = category["keypoints"], category.get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        report.fail("json-keys", f"category {category['id']} has keypoints {names!r}, not names")
    known = range(1, len(names) + 1)
    for limb in limbs if isinstance(limbs, list) else [limbs]:
        if not isinstance(limb, list) or len(limb) != 2 or any(end not in known for end in limb):
            words = (
                f"category {category['id']} has {limb!r} in its skeleton, no two of its keypoints"
            )
            report.fail("json-keys", words)


def check_same(
    one: str, ours: Sequence[str], other: str, theirs: Sequence[str], report: Report
) -> None:
    """Whether two tables have the same categories."""
    if sorted(ours) != sorted(theirs):
        differ = [
            f"only in {where}: {sorted(set(a) - set(b))}"
            for where, a, b in ((one, ours, theirs), (other, theirs, ours))
            if set(a) - set(b)
        ]
        report.fail("category-mismatch", "; ".join(differ))
