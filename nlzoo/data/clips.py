"""Which frames make a clip: arithmetic only.

A clip of `frames` frames, `step` apart, is taken from a video of `length` frames; positions run on
from the first frame where the video ends (modulo `length`), as in the authors' released code.
`step` is the stride, or, by time, the stride in frames of the wanted rate (`step_of`).
"""

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """The random numbers of one item: a function of its key, such as (seed, epoch, index)."""
    return np.random.default_rng(key)


def step_of(stride: int, fps: float, wanted_fps: float) -> float:
    """Source frames from one clip frame to the next.

    With `wanted_fps`, `stride` counts frames of a video resampled to that rate (PySlowFast's
    TARGET_FPS); with 0, or where the source's rate is unknown (0), frames of the source.
    """
    return stride * fps / wanted_fps if fps and wanted_fps else stride


def clip_at(start: int, length: int, frames: int, step: float) -> list[int]:
    """Positions floor(start + i * step) modulo length, for i < frames."""
    return [int(start + i * step) % length for i in range(frames)]


def last_start(length: int, frames: int, step: float) -> int:
    """The latest start from which a clip does not wrap: max(length - frames * step, 0)."""
    return max(int(length - frames * step), 0)


def train_clip(length: int, frames: int, step: float, rng: np.random.Generator) -> list[int]:
    """A clip whose start is uniform in 0..last_start, both included (paper 3.1)."""
    start = int(rng.integers(last_start(length, frames, step) + 1))
    return clip_at(start, length, frames, step)


def centre_clip(length: int, frames: int, step: float) -> list[int]:
    """The clip in the middle of the video."""
    return clip_at(last_start(length, frames, step) // 2, length, frames, step)


def segment_clips(length: int, frames: int, step: float, clips: int) -> list[list[int]]:
    """`clips` clips in the middle of as many equal parts of the video, as released for Charades.

    Clip k is centred at round(length / clips * (k + 0.5)); its positions stop at the video's first
    and last frame.
    """
    centres = (round(length / clips * (k + 0.5)) for k in range(clips))
    starts = (centre - int(frames * step) // 2 for centre in centres)
    return [[min(max(int(s + i * step), 0), length - 1) for i in range(frames)] for s in starts]


def test_clips(length: int, frames: int, step: float, clips: int) -> list[list[int]]:
    """`clips` evenly spread clips (the paper: 10); clip k starts at floor(k * length / clips)."""
    return [clip_at(k * length // clips, length, frames, step) for k in range(clips)]
