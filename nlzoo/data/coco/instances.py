"""The annotations of a COCO file as arrays: what is left when each has been looked at.

A worker of the loader gets a few arrays, not a million dictionaries.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval.core import mask

from nlzoo import shapes
from nlzoo.data.coco import keypoints
from nlzoo.data.coco.faults import Report
from nlzoo.data.coco.records import Categories, is_whole

Wants = Literal["boxes", "masks", "keypoints"]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2
THIN = 1e-3  # pixels: no box
OF_ROWS = ("numbers", "boxes", "labels", "areas", "crowds", "points")
STOPPING = ("segmentation-missing", "segmentation-empty", "rle-size", "rle-counts", "rle-type")


@dataclass(frozen=True)
class Instances:
    """Images, and the annotations of each in a row.

    Attributes:
        ids, sizes, names: of the images: int64 (I,), (I, 2) as (h, w), file names.
        numbers: int64 (N,): of the annotations, in the file.
        starts: int64 (I + 1,): those of image i are starts[i] to starts[i + 1].
        boxes: float32 (N, 4) xyxy, pixels, inside the image.
        labels: int64 (N,) from 1.
        areas, crowds: float32 (N,) and bool (N,).
        points: float32 (N, K, 3): x, y, and 0 not labelled, 1 hidden, 2 visible.
        shapes, ends: JSON of the segmentations, uint8, and where they end, int64 (N + 1,) from 0.
    """

    ids: np.ndarray
    sizes: np.ndarray
    names: Sequence[str]
    numbers: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    points: np.ndarray
    shapes: np.ndarray
    ends: np.ndarray

    def of(self, image: int) -> np.ndarray:
        """The positions of an image's annotations."""
        return np.arange(self.starts[image], self.starts[image + 1])

    def shape(self, position: int) -> Any:
        """The segmentation of an annotation."""
        start, end = self.ends[position : position + 2]
        return json.loads(self.shapes[start:end].tobytes())

    def only(self, images: np.ndarray, rows: np.ndarray) -> "Instances":
        """What is left of some images, bool (I,), with some annotations, bool (N,)."""
        image_of = np.repeat(np.arange(len(self.ids)), np.diff(self.starts))
        rows = rows & images[image_of]
        counts = np.bincount(image_of[rows], minlength=len(self.ids))[images]
        lengths = np.diff(self.ends)
        return Instances(
            ids=self.ids[images],
            sizes=self.sizes[images],
            names=[name for name, kept in zip(self.names, images, strict=True) if kept],
            starts=_ends(counts),
            shapes=self.shapes[np.repeat(rows, lengths)],
            ends=_ends(lengths[rows]),
            **{name: getattr(self, name)[rows] for name in OF_ROWS},
        )


@dataclass(slots=True)
class Row:
    """One annotation as it is kept."""

    image: int  # position
    number: int
    label: int
    box: Box
    area: float
    crowd: bool
    points: Sequence[float]
    shape: bytes


def read_instances(
    made: dict[str, Any], table: Categories, wants: Wants, decode: bool, report: Report
) -> Instances:
    """Look at each annotation; `decode` draws its mask, too."""
    images = made["images"]
    reader = Reader(made, table, wants, decode, report)
    rows = [row for found in made["annotations"] if (row := reader.read(found))]
    _check_task(made["annotations"], wants, report)
    reader.check_boxes()
    rows.sort(key=lambda row: row.image)  # stable: the file's order inside an image
    counts = np.bincount([row.image for row in rows], minlength=len(images))
    for position in np.flatnonzero(counts == 0):
        image = images[position]
        report.add("image-empty", f"image {image['id']} ({image['file_name']})")
    joined = b"".join(row.shape for row in rows)
    return Instances(
        ids=np.array([image["id"] for image in images], dtype=np.int64),
        sizes=np.array([(image["height"], image["width"]) for image in images]).reshape(-1, 2),
        names=[image["file_name"] for image in images],
        numbers=np.array([row.number for row in rows], dtype=np.int64),
        starts=_ends(counts),
        boxes=np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        areas=np.array([row.area for row in rows], dtype=np.float32),
        crowds=np.array([row.crowd for row in rows], dtype=bool),
        points=np.array([row.points for row in rows], dtype=np.float32).reshape(
            len(rows), len(table.keypoints), 3
        ),
        shapes=np.frombuffer(joined, dtype=np.uint8),
        ends=_ends(np.array([len(row.shape) for row in rows])),
    )


def _ends(lengths: np.ndarray) -> np.ndarray:
    """Where parts of these lengths end, from 0: int64, one more than there are parts."""
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int64)


def _check_task(found: list[dict[str, Any]], wants: Wants, report: Report) -> None:
    key, hint = {
        "masks": ("segmentation", ""),
        "keypoints": ("keypoints", "; COCO's person_keypoints_* have"),
    }.get(wants, ("bbox", ""))
    if found and not any(one.get(key) for one in found):
        report.add("wrong-task", f"{wants} are asked for, no annotation has any{hint}")


class Reader:
    """Looks at annotations one by one."""

    def __init__(
        self,
        made: dict[str, Any],
        table: Categories,
        wants: Wants,
        decode: bool,
        report: Report,
    ) -> None:
        self._images = {image["id"]: i for i, image in enumerate(made["images"])}
        self._sizes = [(image["height"], image["width"]) for image in made["images"]]
        self._names = [image["file_name"] for image in made["images"]]
        self._table, self._labels = table, table.labels
        self._wants, self._decode, self._report = wants, decode, report
        self._ids: set[Any] = set()
        self._boxes: list[tuple[list[float], int, int]] = []  # as written, height, width

    def read(self, found: dict[str, Any]) -> Row | None:
        """The annotation as it is kept; None, and why is in the report: it is left out."""
        number = found["id"] if is_whole(found.get("id")) else -1
        if number in self._ids and number != -1:
            self._report.add("annotation-id-duplicate", f"annotation {number}")
        if number == 0:
            self._report.add("annotation-id-zero", self._where(found))
        self._ids.add(number)
        for fault, words in self._unknown(found):
            self._drop(fault, f"{self._where(found)}: {words}")
            return None
        image = self._images[found["image_id"]]
        box = self._box(found, *self._sizes[image])
        shape = self._shape(found, *self._sizes[image]) if box else None
        if box is None or shape is None:
            return None
        points = self._points(found, *self._sizes[image])
        area = self._area(found, *self._sizes[image])
        label = self._labels[found["category_id"]]
        crowd = self._crowd(found)
        return Row(image, number, label, box, area, crowd, points, shape)

    def _where(self, found: dict[str, Any]) -> str:
        image = self._images.get(found["image_id"])
        name = f" ({self._names[image]})" if image is not None else ""
        return f"annotation {found.get('id')} of image {found['image_id']}{name}"

    def _drop(self, fault: str, words: str) -> None:
        self._report.add(fault, words)
        self._report.dropped[fault] += 1

    def _unknown(self, found: dict[str, Any]) -> Iterator[shapes.Fault]:
        if found["image_id"] not in self._images:
            yield "annotation-image-unknown", "no such image"
        elif found["category_id"] not in self._labels:
            yield "category-unknown", f"no category {found['category_id']}"

    def _box(self, found: dict[str, Any], height: int, width: int) -> Box | None:
        """Clipped to the image."""
        box, where = found.get("bbox"), self._where(found)
        if not isinstance(box, list) or len(box) != 4 or not shapes.are_numbers(box):
            self._drop("bbox-format", f"{where}: {box!r} is no box of 4 finite numbers")
            return None
        x, y, w, h = box
        self._boxes.append((box, height, width))
        if w <= 0 or h <= 0:
            self._drop("bbox-degenerate", f"{where}: {box}")
            return None
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x1 >= x2 or y1 >= y2:
            self._drop("bbox-outside", f"{where}: {box} in {width} x {height}")
            return None
        if x2 - x1 < THIN or y2 - y1 < THIN:
            self._drop("bbox-degenerate", f"{where}: {box} in {width} x {height}")
            return None
        if max(-x, -y, x + w - width, y + h - height) > 1:
            self._report.add("bbox-clipped", f"{where}: {box} in {width} x {height}")
        return x1, y1, x2, y2

    def _shape(self, found: dict[str, Any], height: int, width: int) -> bytes | None:
        """The segmentation as JSON; empty where none is wanted, None where nothing can be drawn."""
        if self._wants != "masks":
            return b""
        given, where = found.get("segmentation"), self._where(found)
        wrong = list(shapes.faults(given, height, width))
        for fault, words in wrong:
            self._report.add(fault, f"{where}: {words}")
        if any(fault in STOPPING for fault, _ in wrong):
            self._report.dropped[wrong[0][0]] += 1
            return None
        if isinstance(given, list):
            if found.get("iscrowd") == 1:
                self._report.add("crowd-polygon", where)
            given = shapes.polygons(given) if wrong else given
            if not given:
                self._report.dropped[wrong[0][0]] += 1
                return None
        if self._decode and not self._drawn(given, found["bbox"], where, height, width):
            return None
        return json.dumps(given).encode()

    def _drawn(self, shape: Any, box: list[float], where: str, height: int, width: int) -> bool:
        """Whether the mask has a pixel; where it is not where its box is, that is reported."""
        packed = shapes.to_rle(shape, height, width)
        if not mask.area(packed):
            self._drop("mask-empty", where)
            return False
        overlap = mask.iou([mask.toBbox(packed)], [box], [0])
        if overlap.item() < 0.5:
            words = f"{where}: the mask's box overlaps {box} by {overlap.item():.2f}"
            self._report.add("mask-box-disagree", words)
        return True

    def _crowd(self, found: dict[str, Any]) -> bool:
        if "iscrowd" not in found:
            self._report.add("iscrowd-missing", self._where(found))
        elif found["iscrowd"] not in (0, 1):
            self._report.add("iscrowd-value", f"{self._where(found)}: {found['iscrowd']!r}")
        return found.get("iscrowd") == 1

    def _area(self, found: dict[str, Any], height: int, width: int) -> float:
        if shapes.are_numbers([found.get("area")]):
            return found["area"]
        self._report.add("area-missing", self._where(found))
        given = found.get("segmentation")
        fine = not any(fault in STOPPING for fault, _ in shapes.faults(given, height, width))
        packed = shapes.to_rle(given, height, width) if fine else None
        return float(mask.area(packed)) if packed else found["bbox"][2] * found["bbox"][3]

    def _points(self, found: dict[str, Any], height: int, width: int) -> Sequence[float]:
        count = len(self._table.keypoints)
        if not count or found.get("keypoints") in (None, []):
            return [0] * 3 * count
        wrong = list(keypoints.faults(found, count, height, width))
        for fault, words in wrong:
            self._report.add(fault, f"{self._where(found)}: {words}")
        stops = any(fault in ("keypoints-length", "keypoints-visibility") for fault, _ in wrong)
        return [0] * 3 * count if stops else found["keypoints"]

    def check_boxes(self) -> None:
        """What only all of them together show."""
        boxes = np.array([box for box, _, _ in self._boxes]).reshape(-1, 4)
        if not len(boxes):
            return
        high, wide = np.array([size for _, *size in self._boxes]).T
        beyond = (boxes[:, 0] + boxes[:, 2] > wide + 1) | (boxes[:, 1] + boxes[:, 3] > high + 1)
        corners = (boxes[:, 2:] > boxes[:, :2]).all()
        if (boxes <= 1).all():
            words = f"all {len(boxes)} boxes are of numbers up to 1: normalised?"
            self._report.add("bbox-format", words)
        elif corners and beyond.sum() >= max(5, len(boxes) / 5):
            words = (
                f"{beyond.sum()} of {len(boxes)} boxes reach out of their images: x1, y1, x2, y2?"
            )
            self._report.add("bbox-format", words)
