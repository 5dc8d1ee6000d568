"""Keypoints: which change places in a mirror, and what is wrong with an annotation's."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from nlzoo.shapes import FAR, Fault, are_numbers

_PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_KEYPOINTS = ("nose", *(f"{side}_{part}" for part in _PARTS for side in ("left", "right")))
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
OUTSIDE = 0.1  # of the box's side

_SIDE = re.compile(
    "(?<![a-z])(?:left|right)|Left|Right|LEFT|RIGHT|(?<![a-zA-Z])(?:[lr](?![a-zA-Z])|[LR](?![a-z]))"
)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def mirrored(name: str) -> str:
    """The name with left for right: left_eye, leftEye, eyeLeft, LEFT_EYE, LEye, eye_l."""
    if not (found := _SIDE.search(name)):
        return name
    side = found[0]
    other = _OTHER[side.lower()]
    other = other.upper() if side.isupper() else other.title() if side[0].isupper() else other
    return name[: found.start()] + other + name[found.end() :]


def flip_pairs(names: Sequence[str], given: Sequence[Sequence[str]] = ()) -> list[tuple[int, int]]:
    """Positions of the keypoints that change places: `given` by names, or those of left and right.

    Raises:
        ValueError: a name without its other side, in two pairs, or unknown.
    """
    sides = (sorted((name, mirrored(name)), key=[*names, mirrored(name)].index) for name in names)
    derived = dict.fromkeys(tuple(pair) for pair in sides if pair[0] != pair[1])
    places = {name: place for place, name in enumerate(names)}
    used: set[str] = set()
    for pair in given or derived:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"{list(pair)} is no pair of keypoints")
        for name, other in (pair, pair[::-1]):
            if name not in places:
                raise ValueError(f"no keypoint {name!r} to change places with {other!r}")
            if name in used:
                raise ValueError(f"keypoint {name!r} is in two pairs")
            used.add(name)
    return [(places[a], places[b]) for a, b in given or derived]


def faults(found: dict[str, Any], count: int, height: int, width: int) -> Iterator[Fault]:
    """Everything wrong with the keypoints of an annotation that has some."""
    flat = found["keypoints"]
    if not isinstance(flat, list) or len(flat) != 3 * count or not are_numbers(flat):
        size = len(flat) if isinstance(flat, list) else type(flat).__name__
        yield "keypoints-length", f"{size} where {count} keypoints are 3 x {count} finite numbers"
        return
    if max(map(abs, flat)) > FAR:
        yield "keypoints-length", f"a coordinate of {max(flat, key=abs):g} pixels"
        return
    seen = flat[2::3]
    if wrong := [v for v in seen if v not in (0, 1, 2)]:
        yield "keypoints-visibility", f"visibility {wrong[0]}"
        return
    labelled = sum(v > 0 for v in seen)
    if found.get("num_keypoints", labelled) != labelled:
        yield "keypoints-count", f"num_keypoints {found['num_keypoints']}, labelled {labelled}"
    x, y, w, h = found["bbox"]
    for px, py, v in zip(flat[::3], flat[1::3], seen, strict=True):
        out = not (0 <= px <= width and 0 <= py <= height)
        far = max((x - px) / w, (px - x) / w - 1, (y - py) / h, (py - y) / h - 1) > OUTSIDE
        if v > 0 and (out or far):
            where = "image" if out else "box"
            yield "keypoints-outside", f"({px:g}, {py:g}) is outside its {where}"
            return
