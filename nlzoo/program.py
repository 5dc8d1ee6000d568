"""What every program does with bad input: one line, exit code 2, no traceback."""

import errno
import os
import re
import sys
import warnings
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from nlzoo.names import nearest

Subcommands = Mapping[str, tuple[Callable[[], ArgumentParser], Callable[[Namespace], None]]]
REMEDIES = {  # of what a system says
    errno.ENOENT: "; check the path",
    errno.EEXIST: "; it is a file: name a folder",
    errno.ENOTDIR: "; a file is where a folder is needed",
    errno.EACCES: "; name another place, or ask for the right to it",
    errno.EROFS: "; name another place",
    errno.ENOSPC: "; free some space, or name another place",
}
EXPECTED = ValueError, OSError, RuntimeError, TypeError, FloatingPointError, ArgumentError


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call `main(argv)`; errors end in one line and exit code 2, Ctrl-C in exit code 130.

    `NLZOO_DEBUG=1` shows the traceback.
    """
    warnings.formatwarning = lambda message, *_: f"nlzoo: {message}\n"
    try:
        main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        sys.stderr.write("nlzoo: interrupted\n")
        sys.exit(130)
    except EXPECTED as error:
        if os.environ.get("NLZOO_DEBUG"):
            raise
        sys.stderr.write(f"nlzoo: {one_line(error)}\n")
        sys.exit(2)
    except Exception as error:  # input that nobody thought of, or a fault of ours
        if os.environ.get("NLZOO_DEBUG"):
            raise
        text = f"{type(error).__name__}: {one_line(error)}"
        sys.stderr.write(f"nlzoo: unexpected {text}; NLZOO_DEBUG=1 shows where\n")
        sys.exit(2)


class ShortHelp(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Options with their defaults, without the types that jsonargparse lists; a short usage."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if getattr(action, "_jsonargparse_preexpanded_help", False):
            return text
        shown = action.option_strings and isinstance(action.default, int | float | str | Path)
        if shown and not isinstance(action.default, bool) and action.default not in ("", SUPPRESS):
            text += f" ({action.default})"
        return text

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return "VALUE"

    def _format_usage(
        self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any
    ) -> str:
        needed = [a for a in actions if a.required or not a.option_strings]
        text = super()._format_usage(usage, needed, *args, **kwargs)
        return text if usage else text.replace(self._prog, f"{self._prog} [options]", 1)


def make_parser(prog: str, description: str, example: str = "") -> ArgumentParser:
    """A parser whose help ends with an example, for `parse_options`."""
    return ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"Example: {example}" if example else None,
        formatter_class=ShortHelp,
        exit_on_error=False,
        allow_abbrev=False,
    )


def add_subcommands(parser: ArgumentParser, subcommands: Subcommands) -> None:
    """Give a parser those of each subcommand."""
    found = parser.add_subcommands(metavar="PROGRAM")
    for name, (make, _) in subcommands.items():
        one = make()
        found.add_subcommand(name, one, help=one.description)
        one.prog = f"{parser.prog} {name}"  # which has the parser's options in it


def add_answer_options(parser: ArgumentParser) -> None:
    """Those of the programs that name what is in files."""
    views = parser.add_argument_group("views of a video")
    views.add_argument("--clips", type=int, default=10, help="evenly spread clips")
    views.add_argument("--crops", type=int, default=1, help="of a clip: 1 (the centre) or 3")
    objects = parser.add_argument_group("objects that a detector finds")
    objects.add_argument("--threshold", type=float, default=0.5, help="least score")
    objects.add_argument("--draw", default="", help="folder for pictures of them")
    objects.add_argument("--coco", default="", help="file for them, as COCO's JSON")


def check_answer_options(options: Namespace) -> None:
    """Raise ValueError for what no file can be answered with, before a network is loaded."""
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold {options.threshold:g}: expected a score from 0 to 1")
    if options.coco and Path(options.coco).is_dir():
        raise ValueError(f"--coco {options.coco} is a folder: name a file, as in found.json")
    if options.draw and Path(options.draw).is_file():
        raise ValueError(f"--draw {options.draw} is a file: name a folder")


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the answer is a text about the program."""
    return any(a in ("-h", "--help") or a.endswith(".help") for a in argv)


def parse_options(
    parser: ArgumentParser, argv: Sequence[str], keys: Sequence[str] = ()
) -> Namespace:
    """What `argv` says; `keys` are names, beside the options, that an unknown one may have meant.

    Raises:
        ValueError: one sentence that names the option and the nearest known one.
    """
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        programs = next((a.choices for a in parser._actions if isinstance(a.choices, dict)), {})
        asked = programs.get(next(iter(argv), ""), parser)
        options = [option for action in asked._actions for option in action.option_strings]
        known = [o.rpartition(".")[2].lstrip("-") for o in options if o.startswith("--")]
        said = parser_message(str(error), [*known, *keys])
        if programs and not argv:
            said = f"missing: PROGRAM, one of {', '.join(programs)}"
        elif said.startswith("missing: "):
            said = _missing(said.removeprefix("missing: ").split(", "), asked)
        raise ValueError(said) from error


def _missing(names: Sequence[str], parser: ArgumentParser) -> str:
    """Options with their dashes, words in capitals, and what they may be."""
    words = []
    for name in names:
        action = next((a for a in parser._actions if a.dest == name), None)
        options = action.option_strings if action else []
        among = f", one of {', '.join(action.choices)}" if action and action.choices else ""
        words.append(f"{options[-1] if options else name.upper()}{among}")
    return f"missing: {', '.join(words)}; --help has an example"


def numbers(option: str, text: str, separator: str = ",") -> list[int]:
    """`1,2,3` as numbers from 1; a ValueError that names the option where it is something else."""
    parts = [part.strip() for part in text.split(separator) if part]
    if not all(part.isdecimal() and int(part) for part in parts):
        example = separator.join("123")
        raise ValueError(f"--{option} {text!r}: expected numbers from 1, as in {example}")
    return [int(part) for part in parts]


def one_line(error: BaseException) -> str:
    """What is wrong, without a worker's traceback or a parser's list of union types."""
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:  # a DataLoader worker's error, raised again
        text = text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    if re.match(r"DataLoader worker .*(by signal: (Killed|Terminated)|exited unexpectedly)", text):
        text = "a process that reads data was ended; where memory is short give fewer data.workers"
    if isinstance(error, OSError) and error.strerror and error.filename:
        remedy = REMEDIES.get(error.errno or 0, "")
        text = f"{error.strerror}: {error.filename}{remedy}"
    return " ".join(text.split())


def parser_message(text: str, keys: Sequence[str]) -> str:
    """jsonargparse's report as one sentence; `keys` are the names an unknown key may have meant."""
    unknown = re.search(
        r"Option '(\w+)[\w.]*' is not accepted|does not accept option '([\w.]+)'"
        r"|unrecognized arguments: --([\w.-]+)|Key '(\w+)[\w.]*' is not expected",
        text,
    )
    if unknown:
        key = next(group for group in unknown.groups() if group)
        if (name := key.rpartition(".")[2]) in keys:
            return f"unknown key {key!r} here: it is of another section, or of other data"
        return f"unknown key {key!r}{nearest(name, keys)}"
    choice = re.search(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", text)
    if choice:
        name, value, known = choice.groups()
        close = nearest(value, known.replace("'", "").split(", "))
        return f"unknown {name} {value!r}{close}"
    if wrong := _wrong_value(text):
        return wrong
    if missing := re.search(r"the following arguments are required: ([^\n]*)", text):
        return "missing: " + re.sub(r"\w+\.(?=\w)", "", missing[1])  # of a subcommand
    if path := re.search(r"Expected a dot import path string: ([^\n]*)", text):
        return f"unknown class {path[1]!r}"
    if text.startswith(("argument ", "unrecognized ")):
        return f"{text}; --help shows what there is"
    return text


def _wrong_value(text: str) -> str:
    """`task.lr: expected float, got 'fast'`; empty where the report is about something else."""
    *outer, last = re.split(r'Parser key "([\w.]+)":', text)
    expected = re.findall(r"Expected a (<class '.+?'>|typing\.Literal\[.+?\])", last)
    value = re.search(r"(?:Got|Given) value: (.*)", last)
    if not expected or not value:
        return ""
    kinds = dict.fromkeys(
        re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+)\]", r"\1\2", kind)
        for kind in expected
        if "NoneType" not in kind
    )
    if not kinds:
        return ""
    return f"{'.'.join(outer[1::2])}: expected {' or '.join(kinds)}, got {value[1]!r}"
