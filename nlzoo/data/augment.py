"""Images to tensors in training: timm's augmentation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from nlzoo.data.loading import Sample
from nlzoo.data.pictures import Source, read_image
from nlzoo.preprocessing import Preprocessing


@dataclass(frozen=True)
class RandomView:
    """An augmented view (C, crop, crop) of an image."""

    transform: Any

    def __call__(self, source: Source, rng: np.random.Generator) -> Sample:
        """`rng` makes every draw."""
        image = read_image(source)
        with _drawing_from(rng):
            return self.transform(image), ""


def resized(
    pre: Preprocessing,
    scale: tuple[float, float],
    flip: float,
    color_jitter: float,
    auto_augment: str,
) -> Any:
    """ImageNet's: a crop of a random share of the area (`scale`), and timm's other words.

    Raises:
        ValueError: an `auto_augment` that timm does not know.
    """
    try:
        return transforms_imagenet_train(
            pre.crop,
            scale=scale,
            hflip=flip,
            color_jitter=color_jitter or None,  # type: ignore[arg-type]
            auto_augment=auto_augment or None,
            mean=pre.mean,
            normalize=False,
        )
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"auto_augment {auto_augment!r}: expected timm's words, as in rand-m9-mstd0.5"
        ) from error


def padded(pre: Preprocessing, flip: float) -> Any:
    """CIFAR's: an eighth of zeros on each side, a random crop (arXiv 1512.03385, section 4.2)."""
    return transforms.Compose(
        [
            transforms.Resize(pre.crop, InterpolationMode(pre.interpolation)),
            transforms.RandomCrop(pre.crop, pre.crop // 8, pad_if_needed=True),
            transforms.RandomHorizontalFlip(flip),
            transforms.PILToTensor(),
        ]
    )


def centred(pre: Preprocessing, flip: float) -> Any:
    """The view of a test, mirrored at random."""
    return transforms.Compose(
        [
            transforms.Resize(pre.test_size, InterpolationMode(pre.interpolation)),
            transforms.CenterCrop(pre.crop),
            transforms.RandomHorizontalFlip(flip),
            transforms.PILToTensor(),
        ]
    )


@contextmanager
def _drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """All that transforms draw from, seeded; afterwards as it was."""
    seed = int(rng.integers(2**32))
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what timm draws from
        torch.manual_seed(seed)
        yield
