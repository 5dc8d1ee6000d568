"""A small video data set made on the spot: relations between far-apart moments.

Each clip shows one two-coloured square in its first quarter and one in its last, and darkness in
between. The four classes say whether the rims and whether the centres of the two squares have the
same colour. Every colour is equally likely in every class, so that no single frame, and no window
shorter than the gap, says anything about the class.
"""

import csv
from pathlib import Path

import numpy as np
import torch

from nlzoo.data.encode import write_video
from nlzoo.files import cache_folder, whole_folder

CLASSES = ("both same", "centre changes", "rim changes", "both change")
FRAMES, SIDE, EVENT, CENTRE = 32, 32, 16, 8  # frames, pixels
RIMS = np.array([(1, 0.1, 0.1), (0.1, 1, 0.1)])  # red, green
CENTRES = np.array([(1, 1, 0.1), (1, 0.1, 1)])  # yellow, magenta


def draw_clip(label: int, rng: np.random.Generator) -> np.ndarray:
    """One clip of class `label`: uint8 (32, 32, 32, 3), frames x height x width x RGB."""
    clip = np.full((FRAMES, SIDE, SIDE, 3), 0.1) + rng.normal(0, 0.05, (FRAMES, SIDE, SIDE, 1))
    rim, centre = rng.integers(0, 2, 2)
    for event, start in enumerate((0, FRAMES - FRAMES // 4)):
        colours = rim ^ (event & label >> 1), centre ^ (event & label)
        _draw_event(clip[start : start + FRAMES // 4], *colours, rng)
    return (clip.clip(0, 1) * 255).astype(np.uint8)


def _draw_event(frames: np.ndarray, rim: int, centre: int, rng: np.random.Generator) -> None:
    """A square at the left or right edge, drifting by -1, 0 or 1 pixels a frame; in place."""
    left = abs(rng.integers(2) * (SIDE - EVENT) - rng.integers(2))  # flush, or one pixel off
    top = rng.integers(0, SIDE - EVENT + 1) + rng.integers(-1, 2) * np.arange(len(frames))
    margin = (EVENT - CENTRE) // 2
    for frame, y in zip(frames, top.clip(0, SIDE - EVENT), strict=True):
        frame[y : y + EVENT, left : left + EVENT] = RIMS[rim]
        inner = slice(y + margin, y + margin + CENTRE), slice(left + margin, left + margin + CENTRE)
        frame[inner] = CENTRES[centre]


def make_sample(folder: Path | None = None, train: int = 800, val: int = 200) -> Path:
    """The folder of the sample set, made if it is not there: H.264 files, Kinetics-style CSVs."""
    folder = folder or cache_folder() / "sample_videos_1"
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(0)
    with whole_folder(folder) as part:
        for split, count in (("train", train), ("val", val)):
            _write_split(part, split, count, rng)
        (part / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def _write_split(folder: Path, split: str, count: int, rng: np.random.Generator) -> None:
    (folder / split).mkdir()
    with (folder / f"{split}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("label", "youtube_id", "time_start", "time_end", "split", "is_cc"))
        for i in range(count):
            label, name = i % len(CLASSES), f"{split:_<5}{i:06d}"
            rows.writerow((CLASSES[label], name, 0, 2, split, 0))
            path = folder / split / f"{name}_{0:06d}_{2:06d}.mp4"
            write_video(path, torch.from_numpy(draw_clip(label, rng)), fps=16)
