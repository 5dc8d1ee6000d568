"""Labelled files as a Lightning data module: splits, loaders, and files that cannot be read."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from nlzoo.data.classes import Split
from nlzoo.data.layouts import Kind
from nlzoo.data.loading import EpochSampler, EvalItems, Note, TrainItems, TrainLoader, eval_loader


class Labelled(LightningDataModule):
    """What sets of videos and of images have in common.

    Training and validation batches are (sample uint8 (B, C, *S), label int64 (B,), index int64
    (B,)); where a file has many labels, label is int8 (B, K). Test batches hold several crops of
    each view, (B, crops, C, *S), one row a view, with index = file * clips + view.

    Attributes:
        kind: what a file is.
        classes: names in the order of their labels.
        expected, found: number of files listed, and there, by split ("train", "val", "test").
        unreadable: reason by path of the files met so far that cannot be read at all.
        wishes: what the network's `preprocessing` has to say, as plain values.
        clips: views of a file in a test.
        views: they and their crops, in words.
    """

    kind: Kind
    classes: list[str]
    wishes: dict[str, Any]
    clips = 1
    views = "the centre"

    def __init__(
        self, batch_size: int, workers: int, seed: int, bad_share: float, bad_files: str
    ) -> None:
        """Checks; the splits are given by `_keep`."""
        super().__init__()
        check_least(1, batch_size=batch_size)
        check_least(-1, workers=workers)
        self.batch_size, self.seed = batch_size, seed
        self._workers, self._bad_share = workers, bad_share
        self._bad_files = Path(bad_files) if bad_files else None
        self.unreadable: dict[str, str] = {}
        self._listed: dict[str, str] = {}  # lines of bad_files, of every process

    def _keep(self, splits: Mapping[str, Split], names: Mapping[str, str], path: str) -> None:
        """Take the splits that are there; `names` are what the user calls them."""
        self._splits, self._names, self._path = splits, names, path
        self.expected = {s: len(x.files) + len(x.missing) for s, x in splits.items()}
        self.found = {s: len(x.files) for s, x in splits.items()}
        for split, some in splits.items():
            if not some.files:
                raise ValueError(
                    f"none of the {self.expected[split]} {self.kind.noun}s of {names[split]!r} "
                    f"is in {path!r}; the first is {some.missing[0]!r}"
                )

    @cached_property
    def _train_names(self) -> frozenset[str]:
        return frozenset(map(str, self._splits["train"].files if "train" in self._splits else ()))

    def files(self, split: str) -> Sequence[Any]:
        """The files of a split that are there, in the order of their indices; `str` names one."""
        return self._split(split).files

    def _split(self, split: str) -> Split:
        if split not in self._splits:
            raise FileNotFoundError(
                f"no {self._names[split]!r} list or folder in {self._path!r}: expected "
                f"{self.kind.layouts}"
            )
        return self._splits[split]

    # -- loaders ----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the splits of this stage are there; name missing files. For Lightning."""
        stages = {"fit": ("train", "val"), "validate": ("val",)}
        for split in stages.get(stage, ("test",)):
            missing = dict.fromkeys(self._split(split).missing, "missing")
            if self.trainer is None or self.trainer.is_global_zero:
                self._list(missing)
        world = self.trainer.world_size if self.trainer else 1
        if stage == "fit" and self.found["train"] < world * self.batch_size:
            raise ValueError(
                f"{self.found['train']} training {self.kind.noun}s cannot fill a batch of "
                f"{world} x {self.batch_size}; lower batch_size"
            )

    def _train_loader(self, read: Any) -> TrainLoader:
        """Shuffled; batches hold a fourth element that `on_before_batch_transfer` takes away."""
        split = self._split("train")
        items = TrainItems(split.files, split.labels, read, self.seed)
        sampler = EpochSampler(items, self.batch_size, self.trainer)
        return TrainLoader(items, self.batch_size, self._count_workers(), sampler)

    def _eval_loader(
        self, name: str, read: Any, shape: tuple[int, ...], views: int = 1
    ) -> DataLoader[Any]:
        """Every view of every file, in order."""
        split = self._split(name)
        items = EvalItems(split.files, split.labels, read, shape, views)
        return eval_loader(items, self.batch_size, self._count_workers())

    def _count_workers(self) -> int:
        if self._workers >= 0:
            return self._workers
        devices = self.trainer.num_devices if self.trainer else 1
        return min(8, max(1, (os.cpu_count() or 1) // devices))

    # -- bad files --------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count and name bad files, stop where there are too many; leaves a `Batch`'s tensors."""
        *tensors, notes = batch
        if isinstance(notes, Tensor):  # not a batch of these loaders
            return batch
        for note in notes:
            self._note(note)
        return tuple(tensors)

    def _note(self, note: Note) -> None:
        reason = note.reason.removeprefix(f"{note.path}: ").replace(f"{note.path}{os.sep}", "")
        reason = " ".join(reason.split())
        self._list({note.path: f"{'damaged' if note.used else 'unreadable'}: {reason}"})
        if note.used or note.path in self.unreadable:
            return
        self.unreadable[note.path] = reason
        train = self._train_names
        others = {path for path, kind in self._listed.items() if kind.startswith("unreadable")}
        bad = len((self.unreadable.keys() | others) & train)
        if bad > self._bad_share * len(train) and note.path in train:
            raise RuntimeError(
                f"{bad} of {len(train)} training {self.kind.noun}s cannot be read, more than "
                f"data.bad_share = {self._bad_share:g} of them: mend or remove them, or give a "
                f"larger share; the last: {note.path}: {reason}"
            )

    def _list(self, found: dict[str, str]) -> None:
        """Append to bad_files what no process or earlier run has listed: one line a file."""
        if self._bad_files is None or found.keys() <= self._listed.keys():
            return
        if self._bad_files.exists():
            for line in self._bad_files.read_text("utf-8").splitlines():
                path, _, reason = line.partition("\t")
                self._listed[path] = reason
        new = {path: reason for path, reason in found.items() if path not in self._listed}
        self._listed |= new
        if new:
            self._bad_files.parent.mkdir(parents=True, exist_ok=True)
            with self._bad_files.open("a", encoding="utf-8") as file:
                file.writelines(f"{path}\t{reason}\n" for path, reason in new.items())


def check_least(least: int, **numbers: float) -> None:
    """Raise ValueError where one of the numbers is below the least."""
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} = {number}: expected {least} or more")
