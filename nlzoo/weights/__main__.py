"""`python -m nlzoo.weights PROGRAM`: published weights, and those of other implementations."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace
from rich.table import Column, Table

from nlzoo.console import table_console
from nlzoo.names import nearest
from nlzoo.program import Subcommands, add_subcommands, make_parser, parse_options, run

GIVES = (
    "gives: whole, a network; trunk, one without a classifier; blocks, for load_block; nothing "
    "that nlzoo can build, `list NAME` says why"
)


def main(argv: Sequence[str]) -> None:
    """Hand over to the subcommand."""
    options = parse_options(parser(), argv)
    PROGRAMS[options.subcommand][1](options[options.subcommand])


def parser() -> ArgumentParser:
    """The subcommands."""
    about = "Weights that others published."
    made = make_parser("python -m nlzoo.weights", about, 'python -m nlzoo.weights list "*_nl5*"')
    add_subcommands(made, PROGRAMS)
    return made


# -- list -----------------------------------------------------------------------------------


def list_parser() -> ArgumentParser:
    """Which rows."""
    about = "the published weights that there are, and what nlzoo makes of them"
    made = make_parser("", about, 'python -m nlzoo.weights list "*_nl5.k400*"')
    made.add_argument("filter", nargs="?", default="*", help="a word, or a wildcard as '*_nl5.*'")
    made.add_argument("--json", action="store_true", help="all that is known, as JSON")
    return made


def show_list(options: Namespace) -> None:
    """A line a row; all of it where there is one."""
    from nlzoo.weights.zoo import read_zoo, search

    found = search(options.filter)
    if not found:
        near = nearest(options.filter, read_zoo())
        raise ValueError(f"no published weights are like {options.filter!r}{near}")
    if options.json:
        sys.stdout.write(json.dumps([asdict(entry) for entry in found], indent=2) + "\n")
        return
    if len(found) == 1:
        known = {field: value for field, value in asdict(found[0]).items() if value}
        sys.stdout.writelines(f"{field}: {value}\n" for field, value in known.items())
        return
    columns = Column("name", overflow="fold"), "top-1", "clip", "gives", "licence"
    table = Table(*columns, caption=GIVES, caption_justify="left")
    for entry in found:
        licence = entry.licence.partition(" (")[0]
        table.add_row(entry.name, entry.top1, entry.clip, entry.gives or "nothing", licence)
    table_console().print(table)


# -- download -------------------------------------------------------------------------------


def download_parser() -> ArgumentParser:
    """Which files."""
    about = "fetch files once, checked, into $NLZOO_CACHE (~/.cache/nlzoo)"
    made = make_parser("", about, "python -m nlzoo.weights download i3d_r50.k400_8x8_pyslowfast")
    made.add_argument("names", nargs="*", help="as `list` shows them")
    made.add_argument("--all", default="", help="a word or wildcard: all that match")
    return made


def download(options: Namespace) -> None:
    """The rows' files; a path a line. One that fails does not end the list."""
    from nlzoo.weights.zoo import fetch_entry, find, search

    entries = [find(name) for name in options.names]
    entries += [entry for entry in search(options.all) if entry.url] if options.all else []
    if not entries:
        raise ValueError("nothing to download: give a NAME, or --all FILTER with published files")
    failed = 0
    for entry in {entry.name: entry for entry in entries}.values():
        try:
            sys.stdout.write(f"{fetch_entry(entry)}\n")
        except (ValueError, OSError) as error:
            if len(entries) == 1:
                raise
            failed += 1
            sys.stderr.write(f"nlzoo: {entry.name}: {error}\n")
    if failed:
        raise OSError(f"{failed} of {len(entries)} files could not be fetched")


# -- inspect --------------------------------------------------------------------------------


def inspect_parser() -> ArgumentParser:
    """Which file."""
    about = "whose names a file has, which network and blocks it is"
    made = make_parser("", about, "python -m nlzoo.weights inspect theirs.pth")
    made.add_argument("file", help="safetensors, what torch.save wrote, or a Caffe2 pickle")
    return made


def show_inspection(options: Namespace) -> None:
    """A topic a line."""
    from nlzoo.weights.inspect import inspect

    for topic, text in inspect(options.file).items():
        sys.stdout.write(f"{topic}: {text}\n")


# -- convert --------------------------------------------------------------------------------


def convert_parser() -> ArgumentParser:
    """From which file, as what, to which file."""
    about = "write weights under nlzoo's names, with preprocessing and class names"
    made = make_parser(
        "",
        about,
        "python -m nlzoo.weights convert theirs.pth --as i3d_r50_nl5 -o nl.safetensors",
    )
    made.add_argument("file", help="of another implementation, or a checkpoint of nlzoo.fit")
    made.add_argument("--as", dest="name", required=True, help="NAME: its row, or a model")
    made.add_argument("-o", "--output", required=True, help="file to write, NAME.safetensors")
    return made


def convert(options: Namespace) -> None:
    """A file that `load_model` reads."""
    from nlzoo.models import create_model, save_model

    model = create_model(options.name, pretrained=options.file)
    save_model(model, options.output)
    sys.stdout.write(f"{options.output}: {model.spec['name']}, {model.num_classes} classes\n")


# -- verify ---------------------------------------------------------------------------------


def verify_parser() -> ArgumentParser:
    """Which golden files."""
    about = "run golden files: exit code 1 where an output is too far"
    made = make_parser("", about, "python -m nlzoo.weights verify golden.json")
    made.add_argument("goldens", nargs="+", help="JSON files")
    return made


def show_verification(options: Namespace) -> None:
    """Compare each golden file; exit code 1 where one is too far."""
    from nlzoo.weights.golden import LIMIT, read_golden
    from nlzoo.weights.verify import verify

    errors, failed = [], ""
    for path in options.goldens:
        try:
            errors.append(verify(read_golden(path)))
        except ValueError as error:
            failed = str(error) if path in str(error) else f"{path}: {error}"
            sys.stderr.write(f"nlzoo: {failed}\n" if options.goldens[1:] else "")
            continue
        verdict = "" if errors[-1] <= LIMIT else ": WRONG"
        sys.stdout.write(f"{path}: relative L2 {errors[-1]:.2e}{verdict}\n")
    if failed:
        raise ValueError("not all could be run" if options.goldens[1:] else failed)
    if not all(error <= LIMIT for error in errors):
        sys.exit(1)


PROGRAMS: Subcommands = {
    "list": (list_parser, show_list),
    "download": (download_parser, download),
    "inspect": (inspect_parser, show_inspection),
    "convert": (convert_parser, convert),
    "verify": (verify_parser, show_verification),
}


if __name__ == "__main__":
    run(main)
