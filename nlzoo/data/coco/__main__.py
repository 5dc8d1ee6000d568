"""Is a set in COCO's format fit to train on? `python -m nlzoo.data.coco check ANNOTATIONS IMAGES`.

Every fault is named, counted, and shown with the first of its kind. Exit code 2: there are errors.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nlzoo.data.coco.check import Rules, check_overlap, check_split
from nlzoo.data.coco.faults import Faulty, Mode, Report
from nlzoo.data.coco.layout import find_folder
from nlzoo.data.coco.records import check_same, read_json
from nlzoo.data.coco.results import check_results
from nlzoo.program import Subcommands, add_subcommands, make_parser, parse_options, run

EXAMPLE = "python -m nlzoo.data.coco check coco/annotations/instances_val2017.json coco/val2017"


def parser() -> ArgumentParser:
    """One subcommand: check."""
    made = make_parser("python -m nlzoo.data.coco", "Sets in COCO's format.", EXAMPLE)
    add_subcommands(made, PROGRAMS)
    return made


def main(argv: Sequence[str]) -> None:
    """Hand over to the subcommand."""
    check(parse_options(parser(), argv).check)


def check_parser() -> ArgumentParser:
    """Which set, how strictly."""
    made = make_parser("", "name every fault of a set; exit code 2 if there are errors", EXAMPLE)
    made.add_argument("annotations", type=Path, help="COCO's JSON file")
    made.add_argument("images", type=Path, help="folder of its images")
    wants = ("boxes", "masks", "keypoints")
    made.add_argument("--wants", choices=wants, default="masks", help=", ".join(wants))
    made.add_argument("--strict", action="store_true", help="warnings are errors, too")
    made.add_argument("--lenient", action="store_true", help="what is broken is left out")
    made.add_argument("--exif", action="store_true", help="images are turned by their tag")
    made.add_argument("--train", default="", help="annotations trained on, to compare with")
    made.add_argument("--results", default="", help="results to be scored by these annotations")
    return made


def check(given: Namespace) -> None:
    """Warnings and totals on standard output, errors on the other."""
    if given.strict and given.lenient:
        raise ValueError("--strict or --lenient, not both")
    if not given.images.is_dir():
        raise FileNotFoundError(f"no folder of images {str(given.images)!r}")
    mode: Mode = "strict" if given.strict else "lenient" if given.lenient else "default"
    rules = Rules(given.wants, mode, given.exif, decode=True)
    report = Report(str(given.annotations), mode)
    try:
        _check(given, rules, report)
    except Faulty:
        if not report.lines(errors=True):  # it is the other file's
            raise
    sys.stdout.writelines(f"warning: {line}\n" for line in report.lines(errors=False))
    sys.stdout.write(f"{given.annotations}: {report.summary()}\n")
    errors = report.lines(errors=True)
    sys.stderr.writelines(f"error: {line}\n" for line in errors)
    sys.exit(2 if errors else 0)


def _check(given: Namespace, rules: Rules, report: Report) -> None:
    checked = check_split(given.annotations, given.images, given.images, rules, report)
    if given.train:
        train = Path(given.train)
        root = train.parent.parent if train.parent.name == "annotations" else train.parent
        made = read_json(train, Report(given.train))
        classes = [category["name"] for category in made["categories"]]
        check_same("train", classes, "val", checked.table.names, report)
        names = [image["file_name"] for image in made["images"]]
        check_overlap(names, find_folder(root, train, made["images"]), checked)
    if given.results:
        check_results(Path(given.results), checked)


PROGRAMS: Subcommands = {"check": (check_parser, check)}


if __name__ == "__main__":
    run(main)
