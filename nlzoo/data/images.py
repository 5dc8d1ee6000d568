"""ImageNet, CIFAR and any other set of labelled images, as a Lightning data module."""

import hashlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100

from nlzoo.data.augment import RandomView, centred, padded, resized
from nlzoo.data.classes import Split, read_classes, to_split
from nlzoo.data.labelled import Labelled, check_least
from nlzoo.data.layouts import IMAGES, Files, Row, folder_rows, read_splits
from nlzoo.data.loading import TrainLoader
from nlzoo.data.pictures import CentreView, Pixels
from nlzoo.preprocessing import Preprocessing

CIFAR: dict[str, Any] = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}
Names = dict[str, str]  # of the splits: what the user calls each; empty: there is none


class Images(Labelled):
    """Images from class folders, tar files, CIFAR's own files, or `path label` lists.

    Training and validation batches hold images (B, C, H, W), test batches (B, 1, C, H, W).
    """

    kind = IMAGES

    def __init__(
        self,
        path: str,
        train: str = "train",
        val: str = "val",
        test: str = "",
        val_share: float = 0.2,
        classes: str | list[str] = "",
        crop: int = 0,
        test_size: int = 0,
        test_crop: int = 0,
        augment: Literal["resized", "padded", "none"] = "resized",
        scale: Sequence[float] = (0.08, 1.0),
        flip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str = "",
        batch_size: int = 32,
        workers: int = -1,
        seed: int = 0,
        bad_share: float = 0.01,
        bad_files: str = "",
    ) -> None:
        """Read lists and class names and scan the folder once; no image is opened.

        Args:
            path: the data folder, or one tar file of it; see docs/data.md for the layouts.
            train: name of the training split (train/, train.tar, train.txt), or a list or folder.
            val: the same for validation (also validation). An empty name is no split.
            test: the same for testing; empty: the validation split.
            val_share: of each class for validation, where the folder is not split; which images
                depends on their names only.
            classes: a file of one name a line, or the names; empty: classes.txt of the folder, else
                the names that occur, sorted.
            crop: side of training crops, pixels; 0: that of the network's weights.
            test_size: short side in validation and test, pixels; 0: that of the weights.
            test_crop: side of their crops, pixels; 0: that of the weights.
            augment: resized (a random share of the area, ImageNet's), padded (CIFAR's), none.
            scale: range of that share.
            flip: share of mirrored training images.
            color_jitter: of brightness, contrast, saturation (resized, without auto_augment).
            auto_augment: timm's words, rand-m9-mstd0.5 (with resized); empty: none.
            batch_size: images a device.
            workers: reading processes a device; -1: one a core, up to 8.
            seed: of order and augmentation.
            bad_share: training stops when a larger share of its images is unreadable.
            bad_files: file that names missing and damaged images; empty: none.

        Raises:
            FileNotFoundError: no such folder, list or class list.
            ValueError: a class without images, other classes in train than in val, a label outside
                the classes, an empty list, or a number that is out of range.
        """
        super().__init__(batch_size, workers, seed, bad_share, bad_files)
        if not 0 < val_share < 1:
            raise ValueError(f"val_share = {val_share}: expected a share between 0 and 1")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale = {list(scale)}: expected two shares of the area, up to 1")
        self._augment, self._flip = augment, flip
        self._resized = (scale[0], scale[1]), flip, color_jitter, auto_augment
        names = {"train": train, "val": val, "test": test or val}
        packed = _cifar(Path(path), names, classes)
        self.classes, there = packed or self._splits_of(path, names, classes, val_share)
        self._keep(there, names, path)
        sizes = {"crop": crop, "test_size": test_size, "test_crop": test_crop}
        check_least(0, **sizes)
        given = {name: size for name, size in sizes.items() if size}
        self.wishes = {"frames": 0, "classes": self.classes, **given}
        self.preprocessing = Preprocessing()  # the network's, once it is built

    def _splits_of(
        self, path: str, names: Names, classes: str | list[str], val_share: float
    ) -> tuple[list[str], dict[str, Split]]:
        files = Files(path, IMAGES, names.values())
        try:
            rows = read_splits(files, names)
        except FileNotFoundError:
            rows = _parts(files, names, val_share)
            if not any(rows.values()):
                raise
            self.views = (
                f"the centre, of the {val_share:.0%} kept for validation (--data.test . : all)"
            )
        _check_folders(rows)
        found = read_classes(files.root, classes, next(iter(rows.values())))
        splits = {split: to_split(some, found) for split, some in rows.items()}
        if not classes and (files.root / "classes.txt").is_file():
            _warn_of_unused(files.root, found, splits.values())
        return found, {
            split: replace(some, files=files.sources(some.files)) for split, some in splits.items()
        }

    def train_dataloader(self) -> TrainLoader:
        """An augmented view of each image, shuffled."""
        pre = self.preprocessing
        if self._augment == "resized":
            return self._train_loader(RandomView(resized(pre, *self._resized)))
        augment = padded if self._augment == "padded" else centred
        return self._train_loader(RandomView(augment(pre, self._flip)))

    def val_dataloader(self) -> DataLoader[Any]:
        """The centre of each image, in order."""
        side = self.preprocessing.test_crop
        return self._eval_loader("val", CentreView(self.preprocessing), (3, side, side))

    def test_dataloader(self) -> DataLoader[Any]:
        """The centre of each image, in order."""
        side = self.preprocessing.test_crop
        read = CentreView(self.preprocessing, crops=True)
        return self._eval_loader("test", read, (1, 3, side, side))


def _cifar(
    root: Path, names: Names, classes: str | list[str]
) -> tuple[list[str], dict[str, Split]] | None:
    """CIFAR-10 or -100 as its authors pack them; validation and test are its test part."""
    for folder, dataset in CIFAR.items():
        if not (root / folder).is_dir():
            continue
        try:
            parts = {train: dataset(root, train=train) for train in (True, False)}
        except RuntimeError as error:
            raise ValueError(
                f"{root / folder} is not whole: its files have other checksums than published"
            ) from error
        splits = {train: _arrays(part, folder) for train, part in parts.items()}
        if classes and list(classes) != parts[True].classes:  # a checkpoint gives them again
            raise ValueError(
                f"{root / folder} has its own class names, others than data.classes or the "
                "checkpoint"
            )
        return parts[True].classes, {s: splits[s == "train"] for s, name in names.items() if name}
    return None


def _arrays(part: Any, folder: str) -> Split:
    name = f"{folder}/{'train' if part.train else 'test'}"
    images = (Pixels(f"{name} {i}", array) for i, array in enumerate(part.data))
    return Split(tuple(images), tuple(part.targets), ())


def _parts(files: Files, names: Names, val_share: float) -> dict[str, list[Row]]:
    """One folder of classes in two parts: of each class the images with the lowest hashes."""
    by_class: dict[str, list[Row]] = {}
    for row in folder_rows(files, files.root):
        by_class.setdefault(row.label, []).append(row)
    _check_filled(files.root, by_class)
    train, val = [], []
    for name, rows in by_class.items():
        if len(rows) < 2:
            raise ValueError(
                f"class folder {files.root / name} has one image for two parts: add one"
            )
        rows.sort(key=lambda row: hashlib.sha256(Path(row.name).name.encode()).digest())
        count = min(max(round(val_share * len(rows)), 1), len(rows) - 1)
        val += rows[:count]
        train += rows[count:]
    parts = {"train": train, "val": val, "test": val}
    return {split: parts[split] for split, name in names.items() if name}


def _check_folders(rows: dict[str, list[Row]]) -> None:
    """Raise ValueError for a class folder without images, and for splits of other classes."""
    folders = {split: some for split, some in rows.items() if not any(r.listed for r in some)}
    labels = {split: {row.label for row in some} for split, some in folders.items()}
    for split, some in folders.items():
        _check_filled(Path(some[0].where), labels[split])
        train = labels.get("train", labels[split])
        if train != labels[split]:
            only = [("train", train - labels[split]), (split, labels[split] - train)]
            words = (f"only in {name}: {_few(some)}" for name, some in only if some)
            raise ValueError(f"train and {split} have different classes; {'; '.join(words)}")


def _check_filled(folder: Path, classes: Collection[str]) -> None:
    for one in sorted(folder.iterdir()) if folder.is_dir() else ():
        if one.is_dir() and one.name not in classes and not one.name.startswith("."):
            raise ValueError(f"class folder {one} has no image; fill it, or remove it")


def _warn_of_unused(root: Path, classes: list[str], splits: Collection[Split]) -> None:
    """Say which names of classes.txt no image has."""
    used = {int(label) for split in splits for label in split.labels}
    if unused := [name for i, name in enumerate(classes) if i not in used]:
        warnings.warn(f"{root / 'classes.txt'}: no image of {_few(unused)}", stacklevel=2)


def _few(names: Collection[str]) -> str:
    first = sorted(names)[:8]
    return ", ".join(first) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
