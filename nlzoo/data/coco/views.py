"""An image with its boxes, masks and keypoints: read, resized, flipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from nlzoo import shapes
from nlzoo.data.coco.instances import Instances
from nlzoo.data.pictures import read_image

Target = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """One image of a set."""

    path: Path
    position: int

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class View:
    """Images as they are: uint8 (3, H, W), and what is annotated.

    A target holds boxes float32 (N, 4) xyxy in pixels, labels int64 (N,) from 1, area float32 (N,),
    iscrowd int64 (N,), keypoints float32 (N, K, 3) where the set has some, and image_id, index (of
    the image in its split), orig_size (h, w) as numbers.
    """

    found: Instances
    exif: bool = False

    def __call__(self, picture: Picture, view: int = 0) -> tuple[Tensor, str, Target]:
        """There is one view."""
        image = self.read(picture)
        return image, "", self.target(picture.position)

    def read(self, picture: Picture) -> Tensor:
        """The image; raises Unreadable."""
        return pil_to_tensor(read_image(picture.path, upright=self.exif))

    def target(self, position: int) -> Target:
        """What is annotated, in pixels of the original."""
        found, rows = self.found, self.found.of(position)
        made: Target = {
            "boxes": torch.from_numpy(found.boxes[rows]),
            "labels": torch.from_numpy(found.labels[rows]),
            "area": torch.from_numpy(found.areas[rows]),
            "iscrowd": torch.from_numpy(found.crowds[rows].astype(np.int64)),
            "image_id": int(found.ids[position]),
            "index": position,
            "orig_size": tuple(map(int, found.sizes[position])),
        }
        if found.points.shape[1]:
            made["keypoints"] = torch.from_numpy(found.points[rows])
        return made


@dataclass(frozen=True)
class TrainView(View):
    """Images resized and flipped at random, with masks uint8 (N, H, W) where the set has some.

    Attributes:
        scales: short sides in pixels, one of which is drawn; empty: the image's own.
        longest: of the long side, pixels.
        flip: share of mirrored images.
        pairs: keypoints that then change places.
    """

    scales: Sequence[int] = ()
    longest: int = 1333
    flip: float = 0.5
    pairs: Sequence[tuple[int, int]] = ()

    def __call__(  # type: ignore[override]
        self, picture: Picture, rng: np.random.Generator
    ) -> tuple[Tensor, str, Target]:
        """`rng` makes every draw."""
        image, target = self.read(picture), self.target(picture.position)
        scale, mirror = int(rng.integers(len(self.scales) or 1)), rng.random() < self.flip
        height, width = target["orig_size"]
        size = (height, width)
        if self.scales:
            size = resized(height, width, self.scales[scale], self.longest)
            image = resize(image, size)
        resize_target(target, size)
        if len(self.found.shapes):
            self._add_masks(target, size)
        if mirror:
            image = flip(image, target, self.pairs)
        return image, "", target

    def _add_masks(self, target: Target, size: tuple[int, int]) -> None:
        """Drawn at this size; what has no pixel left is left out."""
        rows = self.found.of(target["index"])
        drawn = [shapes.draw(self.found.shape(i), target["orig_size"], size) for i in rows]
        masks = torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, *size).byte()
        there = (masks > 0).flatten(1).any(1)
        for name, value in target.items():
            if isinstance(value, Tensor):
                target[name] = value[there]
        target["masks"] = masks[there]


def resized(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Height and width with this short side, or less where the long one would be too long.

    As torchvision's GeneralizedRCNNTransform has them.
    """
    scale = min(short / min(height, width), longest / max(height, width))
    return int(height * scale), int(width * scale)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear without antialiasing, as torchvision's detectors resize: uint8 (C, H, W)."""
    return F.interpolate(image[None], size, mode="bilinear")[0]


def resize_target(target: Target, size: tuple[int, int]) -> None:
    """Boxes, areas and keypoints at another size (h, w) of the image; in place."""
    height, width = target["orig_size"]
    y, x = size[0] / height, size[1] / width
    target["boxes"] = target["boxes"] * torch.tensor([x, y, x, y])
    target["area"] = target["area"] * (x * y)
    if "keypoints" in target:
        target["keypoints"] = target["keypoints"] * torch.tensor([x, y, 1])


def flip(image: Tensor, target: Target, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The image mirrored left to right; boxes, masks and keypoints with it, in place.

    x becomes W - x for boxes and keypoints alike: they are measured from the edge of the image, not
    from the centre of its first pixel. Keypoints of `pairs` change places; those that are not
    labelled stay at 0.
    """
    width = image.shape[-1]
    target["boxes"] = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
    target["boxes"] += torch.tensor([width, 0, width, 0])
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        points = target["keypoints"].clone()
        order = torch.arange(points.shape[1])
        for a, b in pairs:
            order[[a, b]] = order[[b, a]]
        points = points[:, order]
        points[..., 0] = (width - points[..., 0]) * (points[..., 2] > 0)
        target["keypoints"] = points
    return image.flip(-1)
