"""Batches of images that are all upright or all wide, so that little of them is padding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nlzoo.data.loading import EpochSampler, Note, TrainItems

if TYPE_CHECKING:
    from lightning import Trainer


class GroupedSampler(EpochSampler):
    """Images in the order of batches, each of one group; ranks take whole batches in turn.

    The batches are a function of (seed, epoch). The images that fill no batch are drawn first, then
    what is left of the groups is mixed into batches, so that no image is in no epoch. (Detectron's
    groups: width >= height, or not.)
    """

    def __init__(
        self, data: TrainItems, batch_size: int, trainer: "Trainer | None", groups: np.ndarray
    ) -> None:
        """`groups`: bool or int (I,), of the images."""
        super().__init__(data, batch_size, trainer)
        self._groups = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
        batches = len(groups) // batch_size // self.num_replicas
        self.num_samples = batches * batch_size

    def order(self, epoch: int) -> list[int]:
        """Of this rank: every `batch_size` of them are a batch."""
        rng = torch.Generator().manual_seed(self.seed + epoch)
        count = len(self._groups) // self._batch_size * self._batch_size
        shuffled = torch.randperm(len(self._groups), generator=rng)[:count]
        whole, rest = [], []
        for group in self._groups.unique():
            part = shuffled[self._groups[shuffled] == group]
            full = len(part) // self._batch_size * self._batch_size
            whole.append(part[:full])
            rest.append(part[full:])
        mixed = torch.cat(rest)
        mixed = mixed[torch.randperm(len(mixed), generator=rng)]
        batches = torch.cat([*whole, mixed]).view(-1, self._batch_size)
        batches = batches[torch.randperm(len(batches), generator=rng)]
        per_rank = self.num_samples // self._batch_size
        mine = batches[: per_rank * self.num_replicas][self.rank :: self.num_replicas]
        return mine.flatten().tolist()


def collate_detections(
    items: Sequence[tuple[Any, ...]],
) -> tuple[list[Any], list[Any], list[Note]]:
    """(images, targets, all notes): images differ in size, so that they stay lists."""
    images, targets, _, notes = zip(*items, strict=True)
    return list(images), list(targets), [note for some in notes for note in some]
