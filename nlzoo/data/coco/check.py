"""A split, looked at before anything is done with it: the same for the program and for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlzoo.data.coco.faults import Mode, Report
from nlzoo.data.coco.instances import Instances, Wants, read_instances
from nlzoo.data.coco.keypoints import flip_pairs
from nlzoo.data.coco.layout import find_folder
from nlzoo.data.coco.pictures import check_pictures
from nlzoo.data.coco.records import Categories, check_images, read_categories, read_json


@dataclass(frozen=True)
class Rules:
    """How a set is to be looked at.

    Attributes:
        wants: what its annotations are for.
        mode: strict: what is only counted is an error, too; lenient: what is broken is left out.
        exif: whether images are turned upright by their tag.
        classes: names in the order of labels; empty: the file's.
        pairs: names of keypoints that change places in a mirror; empty: left and right.
        decode: all pixels and masks, not only headers and numbers.
    """

    wants: Wants = "masks"
    mode: Mode = "default"
    exif: bool = False
    classes: Sequence[str] = ()
    pairs: Sequence[Sequence[str]] = ()
    decode: bool = False


@dataclass(frozen=True)
class Checked:
    """A split that can be used, and what was found in it."""

    annotations: Path
    folder: Path  # of its images
    table: Categories
    pairs: list[tuple[int, int]]  # of keypoints that change places in a mirror
    found: Instances
    bad: dict[str, str]  # why, by the path of an image that is left out
    report: Report


def check_split(
    annotations: Path, root: Path, folder: Path | None, rules: Rules, report: Report
) -> Checked:
    """Read and check annotations and images; the folder is looked for under `root` if not named.

    Raises:
        Faulty: an error with which nothing more can be read. Others are in the report.
    """
    made = read_json(annotations, report)
    check_images(made["images"], report)
    keypoints = rules.wants == "keypoints"
    table = read_categories(made["categories"], keypoints, rules.classes, report)
    pairs = _pairs(table, rules, report)
    found = read_instances(made, table, rules.wants, rules.decode, report)
    folder = folder or find_folder(root, annotations, made["images"])
    bad = check_pictures(found, folder, rules.exif, rules.decode, report)
    if bad:
        good = np.array([str(folder / name) not in bad for name in found.names])
        found = found.only(good, np.full(len(found.labels), True))
    report.note(f"{len(found.ids)} of {len(made['images'])} images")
    report.note(f"{len(found.labels)} of {len(made['annotations'])} annotations")
    report.note(f"{int(found.crowds.sum())} of them crowds")
    if not len(found.labels):
        report.add("set-empty", report.summary())
    return Checked(annotations, folder, table, pairs, found, bad, report)


def _pairs(table: Categories, rules: Rules, report: Report) -> list[tuple[int, int]]:
    try:
        return flip_pairs(table.keypoints, rules.pairs)
    except ValueError as error:
        report.add("keypoints-flip", str(error))
        return []


def check_overlap(names: Sequence[str], folder: Path, val: Checked) -> None:
    """Report training images, by name and folder, that are in `val`: of one name and file size."""
    for name in sorted(set(names) & set(val.found.names)):
        one, other = folder / name, val.folder / name
        there = one.is_file() and other.is_file()
        if one == other or not there or one.stat().st_size == other.stat().st_size:
            val.report.add("split-overlap", name)


def for_training(checked: Checked, empty: bool, min_keypoints: int) -> Instances:
    """What is learnt from: no crowds, and images with something in them.

    Args:
        checked: the split.
        empty: whether images with nothing in them stay.
        min_keypoints: labelled ones that an image has at least, where the set is of keypoints.

    Raises:
        Faulty: nothing is left.
    """
    found, report = checked.found, checked.report
    kept, count = ~found.crowds, len(found.ids)
    image_of = np.repeat(np.arange(count), np.diff(found.starts))
    images = np.full(count, True)
    if not empty:
        wide = (found.boxes[:, 2:] - found.boxes[:, :2] > 1).all(1)
        images = np.bincount(image_of, kept & wide, minlength=count) > 0
        if found.points.shape[1]:
            labelled = kept * (found.points[..., 2] > 0).sum(1)
            images &= np.bincount(image_of, labelled, minlength=count) >= min_keypoints
    if not images.any():
        few = f", or fewer than {min_keypoints} keypoints" if found.points.shape[1] else ""
        words = f"no image is left of {len(images)}: without a box of more than a pixel{few}"
        report.fail("set-empty", words)
    return found.only(images, kept)
