"""Clips of a video: which frames, read and transformed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from nlzoo.data.clips import centre_clip, step_of, test_clips, train_clip
from nlzoo.data.decode import Source, open_video
from nlzoo.data.loading import Sample
from nlzoo.data.transforms import EvalTransform, TrainTransform

Chooser = Callable[[int, int, float], list[int]]  # of length, frames, step


@dataclass(frozen=True)
class Sampling:
    """`frames` frames, `stride` apart, of the source or (`fps` not 0) resampled to that rate."""

    frames: int
    stride: int
    fps: float

    def read(self, video: Source, choose: Chooser) -> tuple[Tensor, str]:
        """Frames (T, C, H, W) at choose(length, frames, step), and what is damaged."""
        with open_video(video) as file:
            step = step_of(self.stride, file.fps, self.fps)
            frames = file.read(choose(file.frames, self.frames, step))
            return frames.permute(0, 3, 1, 2), file.damage


@dataclass(frozen=True)
class RandomClip:
    """A clip (C, T, crop, crop) from anywhere in a video."""

    sampling: Sampling
    transform: TrainTransform

    def __call__(self, video: Source, rng: np.random.Generator) -> Sample:
        """`rng` makes every draw."""
        frames, damage = self.sampling.read(video, partial(train_clip, rng=rng))
        return self.transform(frames, rng), damage


@dataclass(frozen=True)
class CentreClip:
    """The clip in the middle, in one crop: (C, T, crop, crop)."""

    sampling: Sampling
    transform: EvalTransform

    def __call__(self, video: Source, view: int = 0) -> Sample:
        """There is one view."""
        frames, damage = self.sampling.read(video, centre_clip)
        return self.transform(frames)[0], damage


@dataclass(frozen=True)
class SpreadClips:
    """One of `clips` evenly spread clips, in several crops: (crops, C, T, crop, crop)."""

    sampling: Sampling
    transform: EvalTransform
    clips: int

    def __call__(self, video: Source, view: int) -> Sample:
        """Clip number `view`."""

        def choose(length: int, frames: int, step: float) -> list[int]:
            return test_clips(length, frames, step, self.clips)[view]

        frames, damage = self.sampling.read(video, choose)
        return self.transform(frames), damage
