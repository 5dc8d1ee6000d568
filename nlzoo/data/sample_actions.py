"""A small multi-label video data set made on the spot, in the form of Charades.

Each clip shows up to four coloured marks on noise, each in a place and a time of its own; its
actions are the colours of its marks, from the second where a mark comes to that where it goes.
"""

import csv
from pathlib import Path

import numpy as np
import torch

from nlzoo.data.encode import write_video
from nlzoo.files import cache_folder, whole_folder

COLOURS = {
    "red": (1, 0.1, 0.1),
    "green": (0.1, 1, 0.1),
    "blue": (0.1, 0.1, 1),
    "yellow": (1, 1, 0.1),
    "magenta": (1, 0.1, 1),
    "cyan": (0.1, 1, 1),
}
CLASSES = tuple(f"c{i:03d} A {name} mark" for i, name in enumerate(COLOURS))
FRAMES, SIDE, MARK, SHORTEST = 32, 32, 10, 12  # frames and pixels
FPS = 16


def draw_clip(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """A clip, uint8 (32, 32, 32, 3), and its marks: class, first frame, frame after the last."""
    clip = np.full((FRAMES, SIDE, SIDE, 3), 0.3) + rng.normal(0, 0.05, (FRAMES, SIDE, SIDE, 1))
    marks = []
    corners = rng.permutation(4)
    chosen = rng.permutation(len(CLASSES))[: rng.integers(5)]
    for label, corner in zip(chosen.tolist(), corners, strict=False):  # no mark hides another
        start = int(rng.integers(FRAMES - SHORTEST + 1))
        end = int(rng.integers(start + SHORTEST, FRAMES + 1))
        y, x = (SIDE // 2 * part + rng.integers(SIDE // 2 - MARK) for part in divmod(corner, 2))
        clip[start:end, y : y + MARK, x : x + MARK] = tuple(COLOURS.values())[label]
        marks.append((label, start, end))
    return (clip.clip(0, 1) * 255).astype(np.uint8), marks


def make_actions(folder: Path | None = None, train: int = 600, val: int = 200) -> Path:
    """The folder of the sample set, made if it is not there: H.264 files, Charades' CSVs."""
    folder = folder or cache_folder() / "sample_actions_1"
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(0)
    with whole_folder(folder) as part:
        (part / "Charades_v1_480").mkdir()
        for split, count in (("train", train), ("test", val)):
            _write_split(part, split, count, rng)
        (part / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def _write_split(folder: Path, split: str, count: int, rng: np.random.Generator) -> None:
    with (folder / f"Charades_v1_{split}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "subject", "script", "actions", "length"))
        for i in range(count):
            clip, marks = draw_clip(rng)
            name = f"{split[:2].upper()}{i:03d}"
            actions = (f"c{k:03d} {start / FPS:.2f} {end / FPS:.2f}" for k, start, end in marks)
            script = "Marks come, and go."
            rows.writerow((name, "", script, ";".join(actions), f"{FRAMES / FPS:.2f}"))
            write_video(folder / "Charades_v1_480" / f"{name}.mp4", torch.from_numpy(clip), FPS)
