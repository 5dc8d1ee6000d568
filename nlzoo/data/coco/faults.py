"""What may be wrong with a set in COCO's format: names, how bad it is, what is done about it."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal, NoReturn

Mode = Literal["default", "strict", "lenient"]
SHOWN = 5  # of each fault


@dataclass(frozen=True)
class Rule:
    """What is done; whether it is an error, and whether that can be lived with in lenient mode."""

    action: str
    error: bool = True
    lenient: str = ""  # what is done then


def _warning(action: str) -> Rule:
    return Rule(action, error=False)


_OR = "or drop them: --lenient, or data.check lenient"
_DROPPED = "left out"
RULES = {
    "json-missing": Rule("give the JSON file of COCO's instances or person_keypoints"),
    "json-invalid": Rule("give COCO's JSON, unpacked"),
    "json-keys": Rule("give a file of instances or person_keypoints"),
    "wrong-task": Rule("give the file that has them, or another data.wants"),
    "image-id-duplicate": Rule("give each image a number of its own"),
    "file-name-duplicate": _warning("kept"),
    "annotation-id-duplicate": Rule(
        "number them anew: COCO's code counts one of them only", lenient="numbered anew"
    ),
    "annotation-id-zero": _warning("numbered anew, for COCO's code takes 0 for no match"),
    "annotation-image-unknown": Rule(f"remove them, {_OR}", lenient=_DROPPED),
    "category-unknown": Rule("add the category, or remove the annotations"),
    "category-duplicate": Rule("give each category a number and a name of its own"),
    "category-empty": Rule("list the categories"),
    "category-mismatch": Rule("use one table of categories"),
    "image-missing": Rule(f"name the folder of images, {_OR}", lenient=_DROPPED),
    "image-unreadable": Rule(f"mend or remove them, {_OR}", lenient=_DROPPED),
    "image-truncated": Rule(f"mend or remove them, {_OR}", lenient=_DROPPED),
    "image-size-mismatch": Rule("annotate the images that are there"),
    "image-size-swapped": Rule(
        "if the upright image was annotated, data.exif true turns images by their tag"
    ),
    "image-mode": _warning("made RGB"),
    "image-empty": _warning("kept in validation; in training only with data.empty true"),
    "bbox-format": Rule("give [x, y, width, height] in pixels"),
    "bbox-degenerate": _warning(_DROPPED),
    "bbox-outside": _warning(_DROPPED),
    "bbox-clipped": _warning("clipped to the image"),
    "segmentation-missing": _warning(_DROPPED),
    "segmentation-empty": _warning(_DROPPED),
    "polygon-short": _warning("the polygon is left out; the annotation, where no other is left"),
    "polygon-odd": _warning("the polygon is left out; the annotation, where no other is left"),
    "polygon-nan": _warning("the polygon is left out; the annotation, where no other is left"),
    "rle-size": Rule("give the size of the image, [h, w]"),
    "rle-counts": Rule("give counts of all of the image's pixels"),
    "rle-type": Rule("give polygons, or run lengths as a list or COCO's string"),
    "mask-empty": _warning("left out of training"),
    "mask-box-disagree": _warning("kept"),
    "area-missing": _warning("that of the mask, or of the box"),
    "iscrowd-missing": _warning("taken for 0"),
    "iscrowd-value": Rule("give 0 or 1"),
    "crowd-polygon": _warning("accepted"),
    "keypoints-length": Rule("give x, y and visibility of each keypoint"),
    "keypoints-visibility": Rule("give 0 (not labelled), 1 (hidden) or 2 (visible)"),
    "keypoints-count": _warning("counted anew"),
    "keypoints-outside": _warning("kept"),
    "keypoints-flip": Rule("name the pairs in data.flip_pairs, or switch data.flip off"),
    "split-overlap": _warning("kept: scores of validation are too good"),
    "results-image": Rule("give results of these images"),
    "results-category": Rule("give the category ids of the annotations"),
    "results-keys": Rule("give a box, run lengths or keypoints"),
    "results-bbox": Rule("give [x, y, width, height] in pixels"),
    "results-segmentation": Rule("give the image's size and COCO's string of run lengths"),
    "results-keypoints": Rule("give x, y and visibility of each keypoint"),
    "results-nan": Rule("mend what wrote them"),
    "results-score": Rule("give scores from 0 to 1"),
    "results-many": Rule("keep the best: those beyond count for nothing"),
    "set-empty": Rule("nothing is left to train on or to score"),
}


class Faulty(ValueError):  # noqa: N818
    """A set cannot be used; all its errors in one line."""


class Report:
    """Faults of one annotation file and its images, counted, with the first of each in words."""

    def __init__(self, source: str, mode: Mode = "default") -> None:
        """`source` is what is checked, in words."""
        self.source, self.mode = source, mode
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # annotations, by why
        self._notes: list[str] = []
        self._first: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, fault: str, words: str) -> None:
        """One more; `words` are where and the value."""
        self.counts[fault] += 1
        if len(self._first[fault]) < SHOWN:
            self._first[fault].append(words)

    def note(self, words: str) -> None:
        """A total."""
        self._notes.append(words)

    def summary(self) -> str:
        """What is left, and why the rest is not."""
        why = ", ".join(f"{fault} {count}" for fault, count in self.dropped.items())
        return ", ".join(self._notes) + (f"; annotations left out: {why}" if why else "")

    def fail(self, fault: str, words: str) -> NoReturn:
        """One with which nothing more can be read.

        Raises:
            Faulty: always, with all errors.
        """
        self.add(fault, words)
        raise Faulty(self._errors())

    def is_error(self, fault: str) -> bool:
        """Whether it stops, in this mode."""
        rule = RULES[fault]
        if self.mode == "strict":
            return True
        return rule.error and not (self.mode == "lenient" and rule.lenient)

    def line(self, fault: str) -> str:
        """How often, the first ones, and what is done or to be done."""
        rule, count = RULES[fault], self.counts[fault]
        more = f"; and {count - SHOWN} more" if count > SHOWN else ""
        action = rule.lenient if rule.error and not self.is_error(fault) else rule.action
        times = f", {count} times" if count > 1 else ""
        return f"{fault}{times}: {'; '.join(self._first[fault])}{more}: {action}"

    def lines(self, errors: bool) -> list[str]:
        """Of all errors, or of all warnings."""
        return [self.line(f) for f in RULES if f in self.counts and self.is_error(f) == errors]

    def stop(self) -> None:
        """Raise Faulty with all errors in one line, if there are any."""
        if self.lines(errors=True):
            raise Faulty(self._errors())

    def _errors(self) -> str:
        return f"{self.source}: {' | '.join(self.lines(errors=True))}"
