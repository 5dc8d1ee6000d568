"""Kinetics-400, -600, -700 and any other set of labelled videos, as a Lightning data module."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from nlzoo.data.classes import Split, read_classes, to_split
from nlzoo.data.layouts import LAYOUTS, Files, read_rows
from nlzoo.data.loading import EvalClips, Note, TrainClips, TrainLoader, eval_loader
from nlzoo.data.transforms import EvalTransform, TrainTransform
from nlzoo.preprocessing import Preprocessing


class Kinetics(LightningDataModule):
    """Videos from Kinetics' CSVs, `path label` lists, class folders, or folders of frames.

    Training and validation batches are (clip uint8 (B, C, T, H, W), label int64 (B,), index int64
    (B,)); test batches hold (B, crops, C, T, H, W), one row a temporal clip, with
    index = video * clips + clip.

    Attributes:
        classes: names in the order of their labels.
        expected, found: number of videos listed, and there, by split ("train", "val", "test").
        unreadable: reason by path of the files met so far that cannot be read at all.
    """

    def __init__(
        self,
        path: str,
        train: str = "train",
        val: str = "val",
        test: str = "",
        classes: str | list[str] = "",
        frames: int = 32,
        stride: int = 2,
        fps: float = 0.0,
        crop: int = 224,
        scale: Sequence[int] = (256, 320),
        flip: bool = True,
        test_size: int = 256,
        test_crop: int = 256,
        clips: int = 10,
        crops: int = 3,
        batch_size: int = 8,
        workers: int = -1,
        seed: int = 0,
        bad_share: float = 0.01,
        bad_files: str = "",
    ) -> None:
        """Read lists and class names and scan the folder once; no video is opened.

        Args:
            path: the data folder; paths in lists are relative to it or to the list.
            train: name of the training split (train.csv, *_train.csv, train.txt, train/), or a
                list or folder.
            val: the same for validation (also validate, validation). An empty name is no split.
            test: the same for testing; empty: the validation split.
            classes: kinetics400, kinetics600, kinetics700, a file of one name a line, or the
                names; empty: classes.txt of the folder, else the names that occur, sorted.
            frames: of one clip.
            stride: source frames from one to the next.
            fps: sample by time: stride counts frames at this rate; 0: by frame.
            crop: side of training and validation crops, pixels.
            scale: range of the short side in training, pixels.
            flip: mirror half of the training clips.
            test_size: short side in validation and test, pixels.
            test_crop: side of test crops, pixels.
            clips: evenly spread clips of a test video.
            crops: of a test clip along its longer side: 3, or 1 (centre).
            batch_size: clips a device (in tests: temporal clips, each of several crops).
            workers: reading processes a device; -1: one a core, up to 8.
            seed: of order and augmentation.
            bad_share: training stops when a larger share of its videos is unreadable.
            bad_files: file that names missing and damaged videos; empty: none.

        Raises:
            FileNotFoundError: no such folder, list or class list.
            ValueError: an empty list, no labels, a label outside the classes, classes other than
                those of classes.txt, a crop that does not fit, or a number that is too
                small.
        """
        super().__init__()
        _check_least(1, frames=frames, stride=stride, clips=clips, batch_size=batch_size)
        _check_least(0, fps=fps)
        _check_least(-1, workers=workers)
        self._sampling: tuple[int, int, float] = frames, stride, fps
        if len(scale) != 2:
            raise ValueError(f"scale = {list(scale)}: expected two short sides in pixels")
        self._train_transform = TrainTransform(crop, (scale[0], scale[1]), flip)
        self._val_transform = EvalTransform(test_size, crop, 1)
        self._test_transform = EvalTransform(test_size, test_crop, crops)
        self.clips, self.crops, self.batch_size, self.seed = clips, crops, batch_size, seed
        self._workers, self._bad_share = workers, bad_share
        self._bad_files = Path(bad_files) if bad_files else None
        self.unreadable: dict[str, str] = {}
        self._listed: dict[str, str] = {}  # lines of bad_files, of every process
        self._read(path, {"train": train, "val": val, "test": test or val}, classes)
        self.preprocessing = Preprocessing(
            frames=frames,
            stride=stride,
            fps=fps,
            crop=crop,
            test_size=test_size,
            test_crop=test_crop,
            classes=tuple(self.classes),
        )

    def _read(self, path: str, names: dict[str, str], classes: str | list[str]) -> None:
        files = Files(Path(path))
        rows = {split: read_rows(files, name) for split, name in names.items() if name}
        there = {split: some for split, some in rows.items() if some is not None}
        if not there:
            raise FileNotFoundError(f"nothing to read in {path!r}: expected {LAYOUTS}")
        first = next(iter(there.values()))
        self.classes = read_classes(files.root, classes, first)
        self._splits = {split: to_split(some, self.classes) for split, some in there.items()}
        self._names, self._path = names, path
        self.expected = {s: len(x.videos) + len(x.missing) for s, x in self._splits.items()}
        self.found = {s: len(x.videos) for s, x in self._splits.items()}
        for split, some in self._splits.items():
            if not some.videos:
                raise ValueError(
                    f"none of the {self.expected[split]} videos of {names[split]!r} is in "
                    f"{path!r}; the first is {some.missing[0]!r}"
                )

    def videos(self, split: str) -> Sequence[str]:
        """Paths of the videos of a split that are there, in the order of their indices."""
        return self._split(split).videos

    def _split(self, split: str) -> Split:
        if split not in self._splits:
            raise FileNotFoundError(
                f"no {self._names[split]!r} list or folder in {self._path!r}: expected {LAYOUTS}"
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
                f"{self.found['train']} training videos cannot fill a batch of "
                f"{world} x {self.batch_size}; lower batch_size"
            )

    def train_dataloader(self) -> TrainLoader:
        """Shuffled; batches hold a fourth element that `on_before_batch_transfer` takes away."""
        split = self._split("train")
        dataset = TrainClips(
            split.videos, split.labels, *self._sampling, self._train_transform, self.seed
        )
        return TrainLoader(dataset, self.batch_size, self._count_workers(), self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """The centre clip of each video, in order."""
        return self._eval_loader("val", self._val_transform, clips=0)

    def test_dataloader(self) -> DataLoader[Any]:
        """Every clip of every video, in order."""
        return self._eval_loader("test", self._test_transform, self.clips)

    def _eval_loader(self, name: str, transform: EvalTransform, clips: int) -> DataLoader[Any]:
        split = self._split(name)
        dataset = EvalClips(split.videos, split.labels, *self._sampling, transform, clips)
        return eval_loader(dataset, self.batch_size, self._count_workers())

    def _count_workers(self) -> int:
        if self._workers >= 0:
            return self._workers
        devices = self.trainer.num_devices if self.trainer else 1
        return min(8, max(1, (os.cpu_count() or 1) // devices))

    # -- bad files --------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count and name bad files, stop where there are too many; (clip, label, index) is left."""
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
        train = set(self._splits["train"].videos if "train" in self._splits else ())
        others = {path for path, kind in self._listed.items() if kind.startswith("unreadable")}
        bad = len((self.unreadable.keys() | others) & train)
        if bad > self._bad_share * len(train) and note.path in train:
            raise RuntimeError(
                f"{bad} of {len(train)} training videos cannot be read, more than bad_share = "
                f"{self._bad_share:g} of them; the last: {note.path}: {reason}"
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


def _check_least(least: int, **numbers: float) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} = {number}: expected {least} or more")
