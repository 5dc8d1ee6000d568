"""Sets in COCO's format as a Lightning data module."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from nlzoo.data.classes import Split
from nlzoo.data.coco.check import Checked, Rules, check_overlap, check_split, for_training
from nlzoo.data.coco.faults import Faulty, Mode, Report
from nlzoo.data.coco.instances import Wants
from nlzoo.data.coco.keypoints import COCO_KEYPOINTS, COCO_SIGMAS
from nlzoo.data.coco.layout import COCO_IMAGES, find_annotations
from nlzoo.data.coco.records import check_same
from nlzoo.data.coco.sampler import GroupedSampler, collate_detections
from nlzoo.data.coco.views import Picture, TrainView, View
from nlzoo.data.labelled import Labelled, check_least
from nlzoo.data.loading import TrainItems, TrainLoader

SIGMA = 0.05  # of keypoints that are not COCO's


class Coco(Labelled):
    """Images with boxes, masks or keypoints, in COCO's format.

    Batches are (images, targets), two lists; see `View` and `TrainView`. Images of training come
    resized and flipped, with masks; the others as they are.
    """

    kind = COCO_IMAGES

    def __init__(
        self,
        path: str,
        train: str = "train",
        val: str = "val",
        test: str = "",
        images: str = "",
        wants: Wants = "masks",
        classes: Sequence[str] = (),
        scales: Sequence[int] = (800,),
        max_size: int = 1333,
        flip: float = 0.5,
        flip_pairs: Sequence[Sequence[str]] = (),
        sigmas: Sequence[float] = (),
        empty: bool = False,
        min_keypoints: int = 1,
        exif: bool = False,
        check: Mode = "default",
        batch_size: int = 2,
        workers: int = -1,
        seed: int = 0,
        bad_share: float = 0.01,
        bad_files: str = "",
    ) -> None:
        """Read and check all annotations, and the header of each image.

        Args:
            path: the data folder; see docs/data.md for the layouts.
            train: name of the training split (train2017, train, ...), or its JSON file.
            val: the same for validation. An empty name is no split.
            test: the same for testing; empty: the validation split.
            images: folder of all images, where it is not found by the split's name.
            wants: boxes, masks (and boxes), or keypoints (and boxes).
            classes: names in the order of labels; empty: all categories, by their ids.
            scales: short sides in training, pixels, one of which is drawn; none: as they are.
            max_size: of the long side, pixels.
            flip: share of mirrored training images.
            flip_pairs: keypoints that change places then; empty: those named left and right.
            sigmas: how far each keypoint may lie for its score, of the object's size; empty: COCO's
                of its 17, 0.05 of others.
            empty: train on images without annotations, too.
            min_keypoints: labelled ones that a training image has at least.
            exif: turn images upright by their tag; COCO's are annotated as they are stored.
            check: default; strict: what would be mended is an error; lenient: images that cannot be
                read, and annotations of unknown images, are left out.
            batch_size: training images a device; they are scored one by one.
            workers: reading processes a device; -1: one a core, up to 8.
            seed: of order, scales and flips.
            bad_share: training stops when a larger share of its images is unreadable.
            bad_files: file that names images that cannot be read; empty: none.

        Raises:
            Faulty: a fault of `nlzoo.data.coco.faults` that is an error.
            ValueError: a number out of range.
            FileNotFoundError: no such folder, or no split in it.
        """
        super().__init__(batch_size, workers, seed, bad_share, bad_files)
        check_least(1, max_size=max_size, **{f"scales[{i}]": s for i, s in enumerate(scales)})
        if not 0 <= flip <= 1:
            raise ValueError(f"flip = {flip}: expected a share between 0 and 1")
        self.wants, self._exif = wants, exif
        names = {"train": train, "val": val, "test": test or val}
        rules = Rules(wants, check, exif, list(classes), [list(p) for p in flip_pairs])
        folder = Path(path) / images if images else None
        self._checked = _check_all(Path(path), names, folder, rules)
        self._found = {split: some.found for split, some in self._checked.items()}
        if "train" in self._found:
            self._found["train"] = for_training(self._checked["train"], empty, min_keypoints)
        self._options = tuple(scales), max_size, flip
        self._finish()
        there = {split: self._pictures(split) for split in self._found}
        self._keep(there, names, path)
        self.wishes = self._wishes(sigmas)
        self.classes = self.wishes["classes"]

    def _finish(self) -> None:
        """Stop at errors, tell of the rest."""
        both = [self._checked.get(split) for split in ("train", "val")]
        if both[0] and both[1]:
            ours, theirs = (list(one.table.names) for one in both if one)
            check_same("train", ours, "val", theirs, both[1].report)
            check_overlap(both[0].found.names, both[0].folder, both[1])
        reports = {id(some.report): some for some in self._checked.values()}
        for some in reports.values():
            try:
                some.report.stop()
            except Faulty as error:
                command = f"python -m nlzoo.data.coco check {some.annotations} {some.folder}"
                raise Faulty(f"{error} ({command} shows all of it)") from error
        for some in reports.values():
            for line in some.report.lines(errors=False):
                rank_zero_warn(f"{some.annotations.name}: {line}")

    def _pictures(self, split: str) -> Split:
        checked, found = self._checked[split], self._found[split]
        files = (Picture(checked.folder / name, i) for i, name in enumerate(found.names))
        return Split(tuple(files), (), tuple(checked.bad))

    def _wishes(self, sigmas: Sequence[float]) -> dict[str, Any]:
        """What the network and the metric have to know of the set."""
        first = next(iter(self._checked.values()))
        table, count = first.table, len(first.table.keypoints)
        if count and not sigmas:
            sigmas = COCO_SIGMAS if table.keypoints == COCO_KEYPOINTS else [SIGMA] * count
            if table.keypoints != COCO_KEYPOINTS:
                rank_zero_warn(f"data.sigmas: {SIGMA} for each keypoint, which are not COCO's")
        if len(sigmas) != count:
            raise ValueError(f"data.sigmas has {len(sigmas)} numbers for {count} keypoints")
        return {
            "task": "detection",
            "frames": 0,
            "classes": list(table.names),
            "category_ids": list(table.ids),
            "keypoints": list(table.keypoints),
            "skeleton": [list(pair) for pair in table.skeleton],
            "sigmas": list(sigmas),
        }

    def annotations(self, split: str) -> Path:
        """The JSON file of a split, by which it is scored."""
        self._split(split)
        return self._checked[split].annotations

    def setup(self, stage: str) -> None:
        """Check that the splits of the stage are there; name the images left out. For Lightning."""
        if self.trainer is None or self.trainer.is_global_zero:
            for checked in self._checked.values():
                self._list(checked.bad)
        super().setup(stage)

    # -- loaders ----------------------------------------------------------------------------

    def train_dataloader(self) -> TrainLoader:
        """Batches of images that are all wide, or all upright; the last incomplete one is left."""
        found, (scales, longest, flip) = self._found["train"], self._options
        pairs = self._checked["train"].pairs
        read = TrainView(found, self._exif, scales, longest, flip, pairs)
        items = TrainItems(self._split("train").files, (), read, self.seed)
        wide = found.sizes[:, 1] >= found.sizes[:, 0]
        sampler = GroupedSampler(items, self.batch_size, self.trainer, wide)
        workers = self._count_workers()
        return TrainLoader(items, self.batch_size, workers, sampler, collate_detections)

    def val_dataloader(self) -> DataLoader[Any]:
        """The images as they are, in order, one by one."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The images as they are, in order, one by one."""
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader[Any]:
        """One image a batch: what another one adds as padding would change its scores."""
        items = Pictures(self._split(split).files, View(self._found[split], self._exif))
        return DataLoader(
            items,
            batch_size=1,
            num_workers=self._count_workers(),
            collate_fn=collate_detections,
            pin_memory=torch.cuda.is_available(),
        )


@dataclass
class Pictures(Dataset[Any]):
    """Images of a split; one that cannot be read raises Unreadable: it would be scored wrongly."""

    files: Sequence[Picture]
    read: View

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, _, target = self.read(self.files[index])
        return image, target, index, []


def _check_all(
    root: Path, names: dict[str, str], folder: Path | None, rules: Rules
) -> dict[str, Checked]:
    """Every split that is there, each file once."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"no data folder {str(root)!r}; --data PATH names it. Expected in it: "
            f"{COCO_IMAGES.layouts}. --sample makes a small set"
        )
    keypoints = rules.wants == "keypoints"
    found = {s: find_annotations(root, name, keypoints) for s, name in names.items() if name}
    files = {split: file for split, file in found.items() if file}
    if not files:
        raise FileNotFoundError(
            f"json-missing: none of the annotations of {sorted(set(names.values()))} is in {root}: "
            f"expected {COCO_IMAGES.layouts}"
        )
    done = {
        file: check_split(file, root, folder, rules, Report(str(file), rules.mode))
        for file in dict.fromkeys(files.values())
    }
    return {split: done[file] for split, file in files.items()}
