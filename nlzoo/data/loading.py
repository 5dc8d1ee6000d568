"""Videos to batches: data sets of clips, the sampler of training, and a loader that resumes.

What an item looks like is a function of (seed, epoch, index), never of worker, rank or history.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from nlzoo.data.clips import centre_clip, generator, step_of, test_clips, train_clip
from nlzoo.data.decode import Source, UnreadableVideo, open_video
from nlzoo.data.transforms import EvalTransform, TrainTransform
from nlzoo.preprocessing import UNREADABLE

if TYPE_CHECKING:
    from lightning import Trainer

TRIES = 10  # videos tried in place of an unreadable one


@dataclass(frozen=True)
class Note:
    """Something wrong with a file."""

    path: str
    reason: str
    used: bool  # its good frames were used


Item = tuple[Tensor, int, int, list[Note]]
Batch = tuple[Tensor, Tensor, Tensor, list[Note]]
Chooser = Callable[[int, int, float], list[int]]  # of length, frames, step


@dataclass
class Clips(Dataset[Item]):
    """Videos with labels, and how a clip is sampled.

    An item is (clip uint8, label, index, notes); a clip has `frames` frames, `stride` apart, of
    the source or (`fps` not 0) of the source resampled to that rate.
    """

    videos: Sequence[Source]
    labels: Sequence[int]
    frames: int
    stride: int
    fps: float

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, video: int, choose: Chooser) -> tuple[Tensor, list[Note]]:
        """Frames (T, C, H, W) at the positions choose(length, frames, step), and notes."""
        with open_video(self.videos[video]) as file:
            step = step_of(self.stride, file.fps, self.fps)
            frames = file.read(choose(file.frames, self.frames, step))
            notes = [Note(self.name(video), file.damage, used=True)] if file.damage else []
        return frames.permute(0, 3, 1, 2), notes

    def name(self, video: int) -> str:
        """The path, or a number for bytes."""
        source = self.videos[video]
        return f"video {video}" if isinstance(source, bytes) else str(source)


@dataclass
class TrainClips(Clips):
    """One random clip a video, (C, T, crop, crop). The key of an item is (epoch, index).

    An unreadable video is replaced by another one, which depends on (seed, epoch, index) only.
    """

    transform: TrainTransform
    seed: int

    def __getitem__(self, key: tuple[int, int] | int) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = generator(self.seed, epoch, index)
        notes: list[Note] = []
        for _ in range(TRIES):
            try:
                clip, found = self.read(index, partial(train_clip, rng=rng))
                return self.transform(clip, rng), self.labels[index], index, notes + found
            except UnreadableVideo as error:
                notes.append(Note(self.name(index), str(error), used=False))
                index = int(rng.integers(len(self)))
        raise UnreadableVideo(
            f"{TRIES} videos in a row cannot be read; the last: {notes[-1].reason}"
        )


@dataclass
class EvalClips(Clips):
    """`clips` evenly spread clips a video, each in several crops: (crops, C, T, crop, crop).

    The index of an item is video * clips + clip. With `clips` 0, the centre clip of each video in
    one crop: (C, T, crop, crop). An unreadable video gives zeros and the label -1.
    """

    transform: EvalTransform
    clips: int

    def __len__(self) -> int:
        return len(self.videos) * max(self.clips, 1)

    def __getitem__(self, index: int) -> Item:
        video, k = divmod(index, max(self.clips, 1))
        try:
            clip, notes = self.read(video, partial(self._positions, k))
            crops, label = self.transform(clip), self.labels[video]
        except UnreadableVideo as error:
            crops, label = self._nothing(), UNREADABLE
            notes = [Note(self.name(video), str(error), used=False)]
        return crops if self.clips else crops[0], label, index, notes

    def _positions(self, k: int, length: int, frames: int, step: float) -> list[int]:
        if not self.clips:
            return centre_clip(length, frames, step)
        return test_clips(length, frames, step, self.clips)[k]

    def _nothing(self) -> Tensor:
        side = self.transform.crop
        return torch.zeros(self.transform.crops, 3, self.frames, side, side, dtype=torch.uint8)


def collate(items: Sequence[Item]) -> Batch:
    """(clips, labels int64, indices int64, all notes)."""
    clips, labels, indices, notes = zip(*items, strict=True)
    return (
        default_collate(list(clips)),
        torch.tensor(labels),
        torch.tensor(indices),
        [note for some in notes for note in some],
    )


class EpochSampler(DistributedSampler[Any]):
    """A shuffled share of the videos for each rank; yields (epoch, index).

    Epoch and position are those of the trainer's count of batches, which checkpoints restore: an
    iteration begins where training stands, inside an epoch too. The length is a whole epoch's.
    """

    def __init__(self, data: TrainClips, batch_size: int, trainer: "Trainer | None") -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        super().__init__(data, world, rank, shuffle=True, seed=data.seed, drop_last=True)
        self._batch_size, self._trainer = batch_size, trainer

    def _position(self) -> tuple[int, int]:
        """(epoch, batches of it that are done: trained on, not read ahead)."""
        if self._trainer is None:
            return self.epoch, 0
        batches, limit = len(self) // self._batch_size, self._trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress
        return divmod(progress.total.processed, max(batches, 1))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done = self._position()
        self.set_epoch(epoch)
        order = list(super().__iter__())
        yield from ((epoch, i) for i in order[done * self._batch_size :])


class TrainLoader(DataLoader[Any]):
    """Batches of training clips; the state that Lightning asks for is its own count of batches."""

    def __init__(
        self, data: TrainClips, batch_size: int, workers: int, trainer: "Trainer | None"
    ) -> None:
        super().__init__(
            data,
            batch_size,
            sampler=EpochSampler(data, batch_size, trainer),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            persistent_workers=workers > 0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: having the method tells Lightning that resuming inside an epoch is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the sampler asks the trainer."""


def eval_loader(dataset: EvalClips, batch_size: int, workers: int) -> DataLoader[Any]:
    """Batches in order; Lightning deals them to ranks."""
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
