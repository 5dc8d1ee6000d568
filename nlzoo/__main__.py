"""`nlzoo PROGRAM`: the programs as subcommands; `nlzoo completion SHELL` completes their words."""

import importlib
import runpy
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from nlzoo.names import nearest
from nlzoo.program import add_subcommands, make_parser, parse_options, run
from nlzoo.version import __version__

PROGRAMS = {
    "fit": ("nlzoo.fit", "train a recipe"),
    "evaluate": ("nlzoo.evaluate", "test a checkpoint"),
    "predict": ("nlzoo.predict", "name what is in videos or images, show where a position looks"),
    "export": (
        "nlzoo.export.__main__",
        "ONNX files and engines: write, check, compare, run, measure",
    ),
    "weights": (
        "nlzoo.weights.__main__",
        "published weights: list, download, inspect, convert, verify",
    ),
    "prepare": ("nlzoo.data.prepare", "re-encode a video set for fast reading"),
    "stream": ("nlzoo.data.stream", "write a set in chunks, for an object store"),
    "coco": ("nlzoo.data.coco.__main__", "check a set in COCO's format"),
}
COMPLETE_RECIPE = {  # of each shell, a function: the words that --recipe takes
    "bash": """_nlzoo_recipe() {{ compgen -W "{0}" -- "$1"; compgen -f -- "$1"; }}""",
    "zsh": """_nlzoo_recipe() {{ _alternative 'names:recipe:({0})' 'files:file:_files' }}""",
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
        sys.stdout.write(overview())
    else:
        run(complete if name == "completion" else refuse)


def overview() -> str:
    """The programs, a line each."""
    lines = [f"  {name:<11} {about}" for name, (_, about) in PROGRAMS.items()]
    lines.append("  completion  complete all of it in bash or zsh")
    return (
        "usage: nlzoo PROGRAM [options]\n\n" + "\n".join(lines) + "\n\n"
        "nlzoo PROGRAM --help says more; python -m nlzoo.PROGRAM is the same.\n"
        "Example: nlzoo fit --recipe i3d_nl_kinetics --sample\n"
    )


def refuse(argv: Sequence[str]) -> None:
    """Say which programs there are."""
    close = nearest(argv[0], [*PROGRAMS, "completion"])
    raise ValueError(f"unknown program {argv[0]!r}{close}")


def complete(argv: Sequence[str]) -> None:
    """Print what makes a shell complete the words of all programs."""
    from nlzoo.cli import recipe_keys, recipe_names, shorten_help

    given = parse_options(completion_parser(), argv[1:])
    parser = make_parser("nlzoo", "")
    programs = parser.add_subcommands()
    for name, (module, about) in PROGRAMS.items():
        program = importlib.import_module(module)
        if hasattr(program, "PROGRAMS"):  # jsonargparse wants subcommands added after their parser
            made = programs.add_subcommand(name, make_parser("", about))
            add_subcommands(made, program.PROGRAMS)
        else:
            made = programs.add_subcommand(name, program.parser())
            shorten_help(made)
            for key in recipe_keys() if name in ("fit", "evaluate") else ():
                made.add_argument(f"--{key}")
        for action in made._actions:
            if action.dest == "recipe":
                words = dict.fromkeys(COMPLETE_RECIPE, "_nlzoo_recipe")
                action.complete = words  # type: ignore[attr-defined]  # of shtab
    programs.add_subcommand("completion", completion_parser())
    recipes = COMPLETE_RECIPE[given.shell].format(" ".join(recipe_names()))
    sys.stdout.write(parser.get_completion_script(f"shtab-{given.shell}", preambles=[recipes]))


def completion_parser() -> ArgumentParser:
    """Which shell."""
    about = "Print what makes a shell complete the words of all programs."
    made = make_parser("nlzoo completion", about, "nlzoo completion bash")
    made.add_argument("shell", choices=list(COMPLETE_RECIPE), help="bash or zsh")
    return made


if __name__ == "__main__":
    main()
