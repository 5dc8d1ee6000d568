"""Every --help fits a screen, has an example, and the shells complete what it lists."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from nlzoo import __main__ as nlzoo
from nlzoo import cli, program

ROWS, COLUMNS = 40, 100
MODULES = {name: importlib.import_module(module) for name, (module, _) in nlzoo.PROGRAMS.items()}
PARENTS = {name: module for name, module in MODULES.items() if hasattr(module, "PROGRAMS")}
COMMANDS = [(name,) for name in MODULES]
COMMANDS += [(name, inner) for name, module in PARENTS.items() for inner in module.PROGRAMS]
LEAVES = [command for command in COMMANDS if command[1:] or command[0] not in PARENTS]
OPTION = re.compile(r"^  (?:-\w(?: VALUE)?, )?(--[\w.-]+)", re.MULTILINE)
BENCHMARKS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py")
    if "__main__" in path.read_text()
)


def check(text, command):
    """It fits, and its example knows its options."""
    lines = text.splitlines()
    assert len(lines) <= ROWS
    assert max(map(len, lines)) <= COLUMNS
    example = text.partition("Example: ")[2].splitlines()[0]
    assert example.startswith(command)
    for option in re.findall(r"--[\w.-]+", example):
        assert re.search(rf"{option}\b", text) or option.startswith(("--task.", "--data.")), option


@pytest.fixture
def help_of(capsys, monkeypatch):
    """The text of a program's --help, on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))

    def text(command):
        with pytest.raises(SystemExit, match="0"):
            MODULES[command[0]].main([*command[1:], "--help"])
        return capsys.readouterr().out

    return text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_screen(command, help_of):
    name, *inner = command
    module = nlzoo.PROGRAMS[name][0].removesuffix(".__main__")
    check(help_of(command), " ".join(["python -m", module, *inner]))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_of_benchmarks(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    module = importlib.import_module(f"benchmarks.{name}")
    for argument, code in (("--help", 0), ("--rnder", 2)):
        monkeypatch.setattr("sys.argv", [name, argument])
        with pytest.raises(SystemExit, match=str(code)):
            program.run(lambda _: module.main())
    text, error = capsys.readouterr()
    assert len(text.splitlines()) <= ROWS
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert f"python -m benchmarks.{name}" in text
    assert error.count("\n") == 1
    assert "unknown key 'rnder'" in error


def test_the_overview_has_every_program():
    text = nlzoo.overview()
    check(text, "nlzoo fit")
    assert {*nlzoo.PROGRAMS, "completion"} <= set(text.split())
    package = Path(program.__file__).parent
    files = [*package.rglob("*.py"), *package.parent.glob("export/*.py")]
    tests = (
        ast.unparse(node.test)
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.If)
    )
    runs = sum("__main__" in test for test in tests)
    assert runs == len(nlzoo.PROGRAMS) + 1  # `nlzoo` itself


def parsed(command, argv):
    """What the program makes of its arguments, before it looks at any file."""
    name, *inner = command
    parser = MODULES[name].parser()
    parse = cli.parse if name in ("fit", "evaluate") else lambda a, p: program.parse_options(p, a)
    return parse([*inner, *argv], parser)


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_unknown_options_name_the_nearest(command, help_of):
    text = help_of(command)
    known = max(OPTION.findall(text), key=len).strip("-")
    example = shlex.split(text.partition("Example: ")[2].splitlines()[0])
    arguments = example[len(["python", "-m", *command]) :]
    if command[0] == "evaluate":
        arguments += ["--recipe", "i3d_kinetics"]
    near = known.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"unknown key '{known[:-1]}'; did you mean .*'{near}'"):
        parsed(command, [*arguments, f"--{known[:-1]}", "1"])


@pytest.mark.parametrize("name", PARENTS)
def test_unknown_subcommands_name_the_nearest(name):
    known = next(iter(PARENTS[name].PROGRAMS))
    with pytest.raises(ValueError, match=f"unknown PROGRAM '{known[:-1]}'; did you mean '{known}'"):
        parsed((name, known[:-1]), [])
    with pytest.raises(ValueError, match=f"missing: .*{known}"):
        parsed((name,), [])


def test_a_missing_word_is_named_with_its_choices():
    with pytest.raises(ValueError, match="missing: SHELL, one of bash, zsh; --help has an example"):
        program.parse_options(nlzoo.completion_parser(), [])
    with pytest.raises(ValueError, match="missing: FILES, --checkpoint; --help has an example"):
        parsed(("predict",), [])
    with pytest.raises(ValueError, match="missing: --output; --help has an example"):
        parsed(("export", "onnx"), ["m.ckpt"])


def script(shell, path, capsys):
    """What `nlzoo completion` prints, in a file."""
    nlzoo.complete(["completion", shell])
    path.write_text(capsys.readouterr().out)
    return path


def words(file, *line):
    """What bash offers for the last word of a line."""
    code = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); set -- $(complete -p nlzoo);'
    code += 'while [ "$1" != -F ]; do shift; done; "$2"; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, file, *line], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_every_program(tmp_path, capsys, help_of):
    file = script("bash", tmp_path / "nlzoo.bash", capsys)
    assert {*nlzoo.PROGRAMS, "completion"} <= {*words(file, "nlzoo", "")}
    assert words(file, "nlzoo", "comp") == ["completion"]
    assert words(file, "nlzoo", "completion", "z") == ["zsh"]
    assert words(file, "nlzoo", "fit", "--recipe", "i3d_nl_k")[0] == "i3d_nl_kinetics"
    assert str(file) in words(file, "nlzoo", "evaluate", "--recipe", str(file)[:-2])
    assert words(file, "nlzoo", "fit", "--task.lay") == ["--task.layer_decay"]
    assert "--data.batch_size" in words(file, "nlzoo", "evaluate", "--data.b")
    for command in COMMANDS:
        listed = {*OPTION.findall(help_of(command))}
        assert listed <= {*words(file, "nlzoo", *command, "--")}, command
    for name, module in PARENTS.items():
        assert {*module.PROGRAMS} <= {*words(file, "nlzoo", name, "")}


def test_zsh_reads_the_completion(tmp_path, capsys):
    file = script("zsh", tmp_path / "_nlzoo", capsys)
    for command in COMMANDS:
        assert "_".join(["_shtab_nlzoo", *command]) in file.read_text()
    assert "_nlzoo_recipe() { _alternative 'names:recipe:(" in file.read_text()
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    assert not subprocess.run(["zsh", "-n", file], capture_output=True, check=True).stderr
