"""`nlzoo fit|evaluate|predict`: the programs as subcommands."""

import runpy
import sys

from nlzoo.program import nearest
from nlzoo.version import __version__

PROGRAMS = {
    "fit": "train a recipe",
    "evaluate": "test a checkpoint",
    "predict": "name what happens in videos, show where a position looks",
    "prepare": "re-encode a video set for fast reading",
}


def main() -> None:
    """Hand over to the program named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in PROGRAMS:
        module = f"nlzoo.data.{name}" if name == "prepare" else f"nlzoo.{name}"
        sys.argv = [f"nlzoo {name}", *sys.argv[2:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif name in ("--version", "-V"):
        sys.stdout.write(f"nlzoo {__version__}\n")
    elif name in ("--help", "-h"):
        lines = "\n".join(f"  {key:<9} {text}" for key, text in PROGRAMS.items())
        sys.stdout.write(
            f"usage: nlzoo PROGRAM [options]\n\n{lines}\n\nnlzoo PROGRAM --help says more.\n"
        )
    else:
        close = nearest(name, list(PROGRAMS))
        sys.stderr.write(
            f"nlzoo: unknown program {name!r}{close}; there are {', '.join(PROGRAMS)}\n"
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
