"""Resizing, cropping and flipping of uint8 clips (T, C, H, W).

Clips keep channels last in memory until they are cropped: that is how frames are decoded, and
twice as fast to resize. Crops leave as contiguous (C, T, H, W).
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, from_numpy, stack


def resize_short(clip: Tensor, size: int) -> Tensor:
    """Scale (T, C, H, W) so that the short side is `size` pixels; the aspect ratio is kept.

    Bilinear without smoothing, the long side rounded down, as in the authors' released code.
    """
    height, width = clip.shape[-2:]
    short = min(height, width)
    if short == size:
        return clip
    return F.interpolate(clip, (height * size // short, width * size // short), mode="bilinear")


def crop_at(clip: Tensor, top: int, left: int, size: int) -> Tensor:
    """Cut a square out of (T, C, H, W): contiguous (C, T, size, size)."""
    cut = clip[:, :, top : top + size, left : left + size].transpose(0, 1)
    return from_numpy(np.ascontiguousarray(cut.numpy()))  # three times as fast as contiguous()


def crops_of(clip: Tensor, size: int, crops: int = 3) -> Tensor:
    """Squares along the longer side: (crops, C, T, size, size).

    One crop is the centre; three have offsets 0, m and 2m with m = floor((long - size) / 2), and
    are centred along the short side.
    """
    height, width = clip.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    if crops == 1:
        return crop_at(clip, top, left, size)[None]
    cuts = [(top * k, left) if height > width else (top, left * k) for k in range(crops)]
    return stack([crop_at(clip, *cut, size) for cut in cuts])


def check_crop(crop: int, short_side: int, name: str) -> None:
    """Raise ValueError where a crop does not fit."""
    if not 0 < crop <= short_side:
        raise ValueError(
            f"{name} = {crop} does not fit a short side of {short_side} pixels; "
            f"make the crop smaller or the short side larger"
        )


@dataclass(frozen=True)
class TrainTransform:
    """Short side uniform in `scale` (both included), random square crop, horizontal flip."""

    crop: int = 224
    scale: tuple[int, int] = (256, 320)
    flip: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError where the crop can be larger than the picture."""
        if not self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale = {list(self.scale)}: the first must not exceed the second")
        check_crop(self.crop, self.scale[0], "crop")

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """(T, C, H, W) to (C, T, crop, crop); `rng` makes every draw."""
        clip = resize_short(clip, int(rng.integers(self.scale[0], self.scale[1] + 1)))
        top, left = (int(rng.integers(side - self.crop + 1)) for side in clip.shape[-2:])
        cut = crop_at(clip, top, left, self.crop)
        return cut.flip(-1) if self.flip and rng.random() < 0.5 else cut


@dataclass(frozen=True)
class EvalTransform:
    """A fixed short side, then one centre crop or three along the longer side."""

    size: int = 256
    crop: int = 256
    crops: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError for a crop that does not fit or a number of crops that is not 1 or 3."""
        check_crop(self.crop, self.size, "test crop")
        if self.crops not in (1, 3):
            raise ValueError(f"crops = {self.crops}: one (the centre) or three")

    def __call__(self, clip: Tensor) -> Tensor:
        """(T, C, H, W) to (crops, C, T, crop, crop)."""
        return crops_of(resize_short(clip, self.size), self.crop, self.crops)
