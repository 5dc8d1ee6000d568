"""Labelled files to batches: data sets, the sampler of training, and a loader that resumes.

What an item looks like is a function of (seed, epoch, index), never of worker, rank or history.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from nlzoo.data.clips import generator
from nlzoo.preprocessing import UNREADABLE, Unreadable

if TYPE_CHECKING:
    from lightning import Trainer

TRIES = 10  # files tried in place of an unreadable one


@dataclass(frozen=True)
class Note:
    """Something wrong with a file."""

    path: str
    reason: str
    used: bool  # its good part was used


# uint8; what is damaged in its file ("": nothing); its own label, where the file's is not
Sample = tuple[Tensor, str] | tuple[Tensor, str, Any]
Label = int | Tensor  # a class, or int8 (K,): 1 for each class that is there
Item = tuple[Tensor, Label, int, list[Note]]  # sample, label, index
Batch = tuple[Tensor, Tensor, Tensor, list[Note]]


@dataclass
class Items(Dataset[Item]):
    """Files with labels, and how one is read; `read` raises `Unreadable`."""

    files: Sequence[Any]  # paths, bytes, or whatever `read` takes
    labels: Sequence[Label] | Tensor  # (N, K) of many labels
    read: Callable[[Any, Any], Sample]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, file: int) -> str:
        """The path, or a number for bytes."""
        source = self.files[file]
        return f"file {file}" if isinstance(source, bytes) else str(source)


@dataclass
class TrainItems(Items):
    """One random sample a file: read(file, rng). The key of an item is (epoch, index).

    An unreadable file is replaced by another one, which depends on (seed, epoch, index) only.
    """

    seed: int

    def __getitem__(self, key: tuple[int, int] | int) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng: np.random.Generator = generator(self.seed, epoch, index)
        notes: list[Note] = []
        for _ in range(TRIES):
            try:
                sample, damage, *own = self.read(self.files[index], rng)
            except Unreadable as error:
                notes.append(Note(self.name(index), str(error), used=False))
                index = int(rng.integers(len(self)))
            else:
                notes += [Note(self.name(index), damage, used=True)] if damage else []
                return sample, own[0] if own else self.labels[index], index, notes
        raise Unreadable(f"{TRIES} files in a row cannot be read; the last: {notes[-1].reason}")


@dataclass
class EvalItems(Items):
    """`views` samples a file: read(file, view). The index of an item is file * views + view.

    An unreadable file gives zeros of `shape` and the label -1, or a row of -1.
    """

    shape: tuple[int, ...]
    views: int = 1

    def __len__(self) -> int:
        return len(self.files) * self.views

    def __getitem__(self, index: int) -> Item:
        file, view = divmod(index, self.views)
        label = self.labels[file]
        try:
            sample, damage, *_ = self.read(self.files[file], view)
        except Unreadable as error:
            nothing = torch.zeros(self.shape, dtype=torch.uint8)
            row = torch.full_like(label, UNREADABLE) if isinstance(label, Tensor) else UNREADABLE
            return nothing, row, index, [Note(self.name(file), str(error), used=False)]
        notes = [Note(self.name(file), damage, used=True)] if damage else []
        return sample, label, index, notes


def collate(items: Sequence[Item]) -> Batch:
    """(samples, labels int64 (B,) or int8 (B, K), indices int64, all notes)."""
    samples, labels, indices, notes = zip(*items, strict=True)
    return (
        default_collate(list(samples)),
        default_collate(list(labels)),
        torch.tensor(indices),
        [note for some in notes for note in some],
    )


class EpochSampler(DistributedSampler[Any]):
    """A shuffled share of the files for each rank; yields (epoch, index).

    Epoch and position are those of the trainer's count of batches, which checkpoints restore: an
    iteration begins where training stands, inside an epoch too. The length is a whole epoch's.
    """

    def __init__(self, data: TrainItems, batch_size: int, trainer: "Trainer | None") -> None:
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
        yield from ((epoch, i) for i in self.order(epoch)[done * self._batch_size :])

    def order(self, epoch: int) -> list[int]:
        """This rank's files in an epoch."""
        self.set_epoch(epoch)
        return list(super().__iter__())


class TrainLoader(DataLoader[Any]):
    """Batches of training items; the state that Lightning asks for is its own count of batches."""

    def __init__(
        self,
        data: TrainItems,
        batch_size: int,
        workers: int,
        sampler: EpochSampler,
        collate_fn: Callable[..., Any] = collate,
    ) -> None:
        super().__init__(
            data,
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate_fn,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Workers read ahead once the first batch is asked for.

        (Lightning makes the iterator before it restores the count of batches, where a schedule
        asks for the number of iterations.)
        """
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: having the method tells Lightning that resuming inside an epoch is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the sampler asks the trainer."""


def eval_loader(dataset: EvalItems, batch_size: int, workers: int) -> DataLoader[Any]:
    """Batches in order; Lightning deals them to ranks."""
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
