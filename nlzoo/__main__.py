"""`nlzoo fit|evaluate|predict|export|prepare|stream`: the programs as subcommands."""

import importlib
import runpy
import sys
from collections.abc import Sequence

from nlzoo.program import make_parser, nearest, run
from nlzoo.version import __version__

PROGRAMS = {
    "fit": ("nlzoo.fit", "train a recipe"),
    "evaluate": ("nlzoo.evaluate", "test a checkpoint"),
    "predict": ("nlzoo.predict", "name what happens in videos, show where a position looks"),
    "export": (
        "nlzoo.export.__main__",
        "ONNX files and engines: write, check, compare, run, measure",
    ),
    "prepare": ("nlzoo.data.prepare", "re-encode a video set for fast reading"),
    "stream": ("nlzoo.data.stream", "write a set in chunks, for an object store"),
}


def main() -> None:
    """Hand over to the program named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in PROGRAMS:
        sys.argv = [f"nlzoo {name}", *sys.argv[2:]]
        runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=True)
    elif name in ("--version", "-V"):
        sys.stdout.write(f"nlzoo {__version__}\n")
    elif name in ("--help", "-h"):
        lines = "\n".join(f"  {key:<9} {text}" for key, (_, text) in PROGRAMS.items())
        sys.stdout.write(
            f"usage: nlzoo PROGRAM [options]\n\n{lines}\n\nnlzoo PROGRAM --help says more; "
            "nlzoo --print_completion shtab-bash|shtab-zsh completes it all.\n"
        )
    else:
        run(complete if name.startswith("--print_completion") else refuse)


def refuse(argv: Sequence[str]) -> None:
    """Say which programs there are."""
    close = nearest(argv[0], list(PROGRAMS))
    raise ValueError(f"unknown program {argv[0]!r}{close}; there are {', '.join(PROGRAMS)}")


def complete(argv: Sequence[str]) -> None:
    """Print a completion script of all programs."""
    from nlzoo.cli import shorten_help

    parser = make_parser("nlzoo", "")
    programs = parser.add_subcommands()
    for name, (module, about) in PROGRAMS.items():
        program = importlib.import_module(module)
        if name == "export":  # jsonargparse wants its subcommands added after itself
            made = make_parser("", about)
            programs.add_subcommand(name, made)
            program.add_programs(made)
        else:
            made = program.parser()
            shorten_help(made)
            programs.add_subcommand(name, made)
    parser.parse_args(list(argv))


if __name__ == "__main__":
    main()
