"""A small set in COCO's format made on the spot: discs, boxes, triangles and figures.

Shapes are annotated as polygons, figures as run lengths and seven keypoints; category ids have gaps
as COCO's have. A figure faces us: its left hand and foot are to the right of it in the image.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image, ImageDraw

from nlzoo.files import cache_folder, whole_folder

CATEGORIES = {1: "disc", 3: "box", 7: "triangle", 18: "figure"}
COLOURS = {1: (200, 60, 60), 3: (60, 190, 80), 7: (70, 90, 210), 18: (220, 190, 70)}
SHARES = (0.2, 0.2, 0.2, 0.4)  # figures are what keypoints are learnt from
KEYPOINTS = ["head", "neck", "left_hand", "right_hand", "hip", "left_foot", "right_foot"]
LIMBS = [(0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6)]
TRIES = 20  # places for an object


def make_coco(folder: Path | None = None, train: int = 48, val: int = 16) -> Path:
    """The folder of the sample set, made if it is not there: PNG files in COCO's folders."""
    folder = folder or cache_folder() / "sample_coco_2"
    if folder.is_dir():
        return folder
    with whole_folder(folder) as part:
        (part / "annotations").mkdir()
        for seed, (split, count) in enumerate((("train2017", train), ("val2017", val))):
            (part / split).mkdir()
            _write_split(part, split, count, np.random.default_rng(seed))
    return folder


def _write_split(folder: Path, split: str, count: int, rng: np.random.Generator) -> None:
    images, found = [], list[dict[str, Any]]()
    for number in range(1, count + 1):
        picture, objects = draw_image(rng)
        name = f"{number:012d}.png"
        Image.fromarray(picture).save(folder / split / name)
        height, width = picture.shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for one in objects:
            found.append({**one, "image_id": number, "id": len(found) + 1})
    skeleton = [[a + 1, b + 1] for a, b in LIMBS]
    table = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    figure = {**table[-1], "keypoints": KEYPOINTS, "skeleton": skeleton}
    figures = [one for one in found if one["category_id"] == figure["id"]]
    shapes = [{k: v for k, v in one.items() if "keypoints" not in k} for one in found]
    for kind, annotations, categories in (
        ("instances", shapes, table),
        ("person_keypoints", figures, [figure]),
    ):
        whole = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(whole))


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image, uint8 (H, W, 3) with sides of 128 to 160, and its one to three objects."""
    width, height = (int(side) for side in rng.integers(128, 161, 2))
    coarse = Image.fromarray(rng.integers(60, 146, (6, 6, 3), dtype=np.uint8))
    canvas = coarse.resize((width, height), Image.Resampling.BICUBIC)
    taken = np.zeros((height, width), dtype=bool)
    objects = []
    for _ in range(rng.integers(1, 4)):
        category = int(rng.choice(list(CATEGORIES), p=SHARES))
        for _ in range(TRIES):
            outline = _figure(rng) if category == 18 else _polygon(category, rng)
            size = outline.max(0) + 1
            x, y = (int(rng.integers(0, max(free, 1))) for free in (width, height) - size)
            place = slice(y, y + int(size[1])), slice(x, x + int(size[0]))
            if (size < (width, height)).all() and not taken[place].any():
                taken[place] = True
                objects.append(_draw(canvas, category, outline + np.array([x, y]), rng))
                break
    noisy = np.asarray(canvas) + rng.normal(0, 6, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8), objects


def _polygon(category: int, rng: np.random.Generator) -> np.ndarray:
    """Corners (N, 2) of a shape of 28 to 64 pixels, from 0."""
    side = rng.uniform(28, 64)
    if category == 1:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return (side - 1) / 2 * (1 + np.stack([np.cos(angles), np.sin(angles)], 1))
    ratio = rng.uniform(0.6, 1)
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)] if category == 3 else [(0.5, 0), (1, 1), (0, 1)]
    return np.array(corners) * (side, side * ratio)


def _figure(rng: np.random.Generator) -> np.ndarray:
    """Keypoints (7, 2) of a figure of 48 to 90 pixels, with room around them for its limbs."""
    tall = rng.uniform(48, 90)
    hands, feet = rng.uniform((0.25, 0.15), (0.4, 0.65), (2, 2)), rng.uniform(0.08, 0.3, 2)
    x = [0, 0, hands[0, 0], -hands[1, 0], 0, feet[0], -feet[1]]
    y = [0.12, 0.26, hands[0, 1], hands[1, 1], 0.62, 1, 1]
    points = np.stack([x, y], 1) * tall
    return points - (points[:, 0].min() - 0.08 * tall, 0)


def _draw(
    canvas: Image.Image, category: int, outline: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Draw an object; its annotation."""
    colour = tuple(int(c) for c in COLOURS[category] + rng.integers(-25, 26, 3))
    shape = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(shape)
    points = [(float(x), float(y)) for x, y in outline.round(2)]
    if category == 18:
        tall = points[5][1] - points[0][1]
        thick, head = max(5, round(0.15 * tall)), 0.11 * tall
        for a, b in LIMBS:
            pen.line([points[a], points[b]], fill=1, width=thick)
        x, y = points[0]
        pen.ellipse([x - head, y - head, x + head, y + head], fill=1)
    else:
        pen.polygon(points, fill=1)
    drawn = np.asarray(shape)
    canvas.paste(colour, mask=Image.fromarray(drawn * 255))
    return _annotation(category, points, drawn)


def _annotation(
    category: int, points: list[tuple[float, float]], drawn: np.ndarray
) -> dict[str, Any]:
    flat = [value for point in points for value in point]
    found: dict[str, Any] = {"category_id": category, "iscrowd": 0, "area": int(drawn.sum())}
    if category != 18:
        low, high = np.min(points, 0), np.max(points, 0)
        return {**found, "segmentation": [flat], "bbox": [*low.tolist(), *(high - low).tolist()]}
    packed = rle.encode(np.asfortranarray(drawn))
    counts = packed["counts"]
    counts = counts.decode() if isinstance(counts, bytes) else counts
    keypoints = [value for x, y in points for value in (x, y, 2)]
    box = [float(x) for x in rle.toBbox(packed)]
    own = {"bbox": box, "keypoints": keypoints, "num_keypoints": len(points)}
    return {**found, **own, "segmentation": {"size": list(drawn.shape), "counts": counts}}
