"""Clips of a video: which frames, read and transformed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nlzoo.data.clips import centre_clip, segment_clips, step_of, test_clips, train_clip
from nlzoo.data.decode import Source, open_video
from nlzoo.data.loading import Sample
from nlzoo.data.transforms import EvalTransform, TrainTransform

Chooser = Callable[[int, int, float], list[int]]  # of length, frames, step


class Clip(NamedTuple):
    """What was read of a video."""

    frames: Tensor  # uint8 (T, C, H, W)
    damage: str  # "": none
    positions: list[int]  # of the frames, in the video
    length: int  # of the video, frames
    fps: float  # of the video; 0: unknown


@dataclass(frozen=True)
class Sampling:
    """`frames` frames, `stride` apart, of the source or (`fps` not 0) resampled to that rate."""

    frames: int
    stride: int
    fps: float

    def read(self, video: Source, choose: Chooser) -> Clip:
        """The frames at choose(length, frames, step)."""
        with open_video(video) as file:
            step = step_of(self.stride, file.fps, self.fps)
            positions = choose(file.frames, self.frames, step)
            frames = file.read(positions).permute(0, 3, 1, 2)
            return Clip(frames, file.damage, positions, file.frames, file.fps)


@dataclass(frozen=True)
class RandomClip:
    """A clip (C, T, crop, crop) from anywhere in a video."""

    sampling: Sampling
    transform: TrainTransform

    def __call__(self, video: Source, rng: np.random.Generator) -> Sample:
        """`rng` makes every draw."""
        clip = self.sampling.read(video, partial(train_clip, rng=rng))
        return self.transform(clip.frames, rng), clip.damage


@dataclass(frozen=True)
class CentreClip:
    """The clip in the middle, in one crop: (C, T, crop, crop)."""

    sampling: Sampling
    transform: EvalTransform

    def __call__(self, video: Source, view: int = 0) -> Sample:
        """There is one view."""
        clip = self.sampling.read(video, centre_clip)
        return self.transform(clip.frames)[0], clip.damage


@dataclass(frozen=True)
class SpreadClips:
    """One of `clips` evenly spread clips, in several crops: (crops, C, T, crop, crop)."""

    sampling: Sampling
    transform: EvalTransform
    clips: int
    segments: bool = False  # see `segment_clips`

    def __call__(self, video: Source, view: int) -> Sample:
        """Clip number `view`."""

        def choose(length: int, frames: int, step: float) -> list[int]:
            spread = segment_clips if self.segments else test_clips
            return spread(length, frames, step, self.clips)[view]

        clip = self.sampling.read(video, choose)
        return self.transform(clip.frames), clip.damage
