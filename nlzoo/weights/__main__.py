"""`python -m nlzoo.weights PROGRAM`: do published weights compute what their own code does?"""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from nlzoo.program import make_parser, parse_options, run
from nlzoo.weights.golden import LIMIT, read_golden
from nlzoo.weights.verify import verify


def main(argv: Sequence[str]) -> None:
    """Compare each golden file; exit code 1 where one is too far."""
    options = parse_options(parser(), argv).verify
    worst = 0.0
    for path in options.goldens:
        error = verify(read_golden(path))
        worst = max(worst, error if error == error else float("inf"))
        sys.stdout.write(f"{path}: relative L2 {error:.2e}{'' if error <= LIMIT else ': WRONG'}\n")
    if not worst <= LIMIT:
        sys.exit(1)


def parser() -> ArgumentParser:
    """The subcommands and their options."""
    made = make_parser("python -m nlzoo.weights", "Weights of other implementations.")
    programs = made.add_subcommands()
    one = make_parser("", "run golden files: exit code 1 where an output is too far")
    one.add_argument("goldens", nargs="+", help="JSON files")
    programs.add_subcommand("verify", one, help=one.description)
    return made


if __name__ == "__main__":
    run(main)
