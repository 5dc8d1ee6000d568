"""A small image data set made on the spot: are two far-apart squares of the same colour?

Each image shows one square flush left and one flush right, 32 pixels of noise between them. Each of
the four colours is equally likely on each side in both classes, so that no part of an image, and no
window narrower than the gap, says anything about the class.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from nlzoo.files import cache_folder, whole_folder

CLASSES = ("different", "same")
SIDE, SQUARE = 64, 16  # pixels
COLOURS = np.array([(1, 0.1, 0.1), (0.1, 1, 0.1), (0.1, 0.1, 1), (1, 1, 0.1)])


def draw_image(label: int, rng: np.random.Generator) -> np.ndarray:
    """One image of class `label`: uint8 (64, 64, 3)."""
    image = np.full((SIDE, SIDE, 3), 0.2) + rng.normal(0, 0.05, (SIDE, SIDE, 1))
    left = rng.integers(len(COLOURS))
    right = left if label else (left + rng.integers(1, len(COLOURS))) % len(COLOURS)
    for colour, x in ((left, 0), (right, SIDE - SQUARE)):
        y = rng.integers(SIDE - SQUARE + 1)
        image[y : y + SQUARE, x : x + SQUARE] = COLOURS[colour]
    return (image.clip(0, 1) * 255).astype(np.uint8)


def make_images(folder: Path | None = None, train: int = 2000, val: int = 400) -> Path:
    """The folder of the sample set, made if it is not there: PNG files in class folders."""
    folder = folder or cache_folder() / "sample_images_1"
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(0)
    with whole_folder(folder) as part:
        for split, count in (("train", train), ("val", val)):
            for name in CLASSES:
                (part / split / name).mkdir(parents=True)
            for i in range(count):
                label = i % len(CLASSES)
                image = Image.fromarray(draw_image(label, rng))
                image.save(part / split / CLASSES[label] / f"{i:06d}.png")
    return folder
