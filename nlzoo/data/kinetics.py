"""Kinetics-400, -600, -700 and any other set of labelled videos, as a Lightning data module."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch.utils.data import DataLoader

from nlzoo.data.classes import Split, read_classes, single_labels, to_split
from nlzoo.data.labelled import Labelled, check_least
from nlzoo.data.layouts import VIDEOS, Files, read_splits
from nlzoo.data.loading import TrainLoader
from nlzoo.data.sampling import CentreClip, RandomClip, Sampling, SpreadClips
from nlzoo.data.transforms import EvalTransform, TrainTransform
from nlzoo.names import counted


class Kinetics(Labelled):
    """Videos from Kinetics' CSVs, `path label` lists, class folders, or folders of frames.

    Training and validation batches hold clips (B, C, T, H, W), test batches (B, crops, C, T, H, W).
    """

    kind = VIDEOS
    segments = False  # see `SpreadClips`

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
        pool: Literal["mean", "max"] = "mean",
        multilabel: bool = False,
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
            pool: of the scores of a test video's views: mean, or max.
            multilabel: a video has any number of labels; lists have lines of `path label,label`.
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
        super().__init__(batch_size, workers, seed, bad_share, bad_files)
        check_least(1, frames=frames, stride=stride, clips=clips)
        check_least(0, fps=fps)
        if len(scale) != 2:
            raise ValueError(f"scale = {list(scale)}: expected two short sides in pixels")
        self._sampling = Sampling(frames, stride, fps)
        self._train_transform = TrainTransform(crop, (scale[0], scale[1]), flip)
        self._val_transform = EvalTransform(test_size, crop, 1)
        self._test_transform = EvalTransform(test_size, test_crop, crops)
        self.clips, self.views = clips, f"{counted(clips, 'clip')} x {counted(crops, 'crop')}"
        self.views += ", maximum" if pool == "max" else ""
        names = {"train": train, "val": val, "test": test or val}
        files = Files(path, splits=names.values())
        self._multilabel = multilabel
        splits = self._read(files, names, classes)
        there = {s: replace(split, files=files.sources(split.files)) for s, split in splits.items()}
        self._keep(there, names, path)
        clip = {"frames": frames, "stride": stride, "fps": fps}
        sizes = {"crop": crop, "test_size": test_size, "test_crop": test_crop}
        scores = {"multilabel": multilabel, "pool": pool, "segments": self.segments}
        self.wishes = {**clip, **sizes, **scores, "classes": self.classes}

    def _read(
        self, files: Files, names: Mapping[str, str], classes: str | list[str]
    ) -> dict[str, Split]:
        """The splits that are there; sets `classes`."""
        many = self._multilabel
        rows = read_splits(files, names, many)
        first = next(iter(rows.values()))
        self.classes = read_classes(files.root, classes, single_labels(first) if many else first)
        return {split: to_split(some, self.classes, many) for split, some in rows.items()}

    def train_dataloader(self) -> TrainLoader:
        """A random clip of each video, shuffled."""
        return self._train_loader(RandomClip(self._sampling, self._train_transform))

    def val_dataloader(self) -> DataLoader[Any]:
        """The centre clip of each video, in order."""
        read = CentreClip(self._sampling, self._val_transform)
        return self._eval_loader("val", read, self._shape(self._val_transform))

    def test_dataloader(self) -> DataLoader[Any]:
        """Every clip of every video, in order."""
        read = SpreadClips(self._sampling, self._test_transform, self.clips, self.segments)
        shape = self._test_transform.crops, *self._shape(self._test_transform)
        return self._eval_loader("test", read, shape, self.clips)

    def _shape(self, transform: EvalTransform) -> tuple[int, ...]:
        return 3, self._sampling.frames, transform.crop, transform.crop
