import os
import subprocess
import sys

import pytest
from rich.table import Table

from nlzoo import program
from nlzoo.console import table_console
from nlzoo.weights.__main__ import parser


def test_errors_are_one_line_and_exit_2(capsys):
    def main(argv):
        raise ValueError("label 7 in list.txt line 3\n  is outside the 2 classes")

    with pytest.raises(SystemExit) as exit_:
        program.run(main, [])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "nlzoo: label 7 in list.txt line 3 is outside the 2 classes\n"


def test_debug_shows_the_traceback(monkeypatch):
    def main(argv):
        raise ValueError("wrong")

    monkeypatch.setenv("NLZOO_DEBUG", "1")
    with pytest.raises(ValueError, match="wrong"):
        program.run(main, [])


def test_os_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "none").read_text()
    text = f"No such file or directory: {tmp_path / 'none'}; check the path"
    assert program.one_line(error.value) == text
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as error:
        (tmp_path / "file").mkdir(exist_ok=True)
    assert program.one_line(error.value).endswith("file; it is a file: name a folder")


def test_help_shows_defaults():
    made = program.make_parser("x", "")
    made.add_argument("--precision", default="fp32", help="of the file")
    made.add_argument("--run", default="", help="folder")
    text = made.format_help()
    assert "of the file (fp32)" in text
    assert "folder\n" in text
    assert "SUPPRESS" not in text


def test_a_workers_traceback_is_left_out():
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent):\n"
        '  File "x.py", line 1, in f\nValueError: video a.mp4 is empty'
    )
    assert program.one_line(ValueError(text)) == "video a.mp4 is empty"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("DataLoader worker (pid 3) is killed by signal: Killed. ", True),
        ("DataLoader worker (pid 3) is killed by signal: Terminated. ", True),
        ("DataLoader worker (pid(s) 3, 4) exited unexpectedly", True),
        ("DataLoader worker (pid 3) is killed by signal: Bus error. Raise its limit.", False),
    ],
)
def test_a_worker_that_was_ended_has_a_remedy(text, told):
    said = program.one_line(RuntimeError(text))
    assert ("give fewer data.workers" in said) == told
    assert told or said == text


def test_names_stay_whole_in_a_pipe(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("file", "class")
    table.add_row("a" * 200, "b")
    table_console().print(table)
    assert f" {'a' * 200} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "near"),
    [("list --jsn", "did you mean 'json'"), ("convert x --as y --outptu z", "'output'")],
)
def test_near_options_are_those_of_the_subcommand(line, near):
    with pytest.raises(ValueError, match="unknown key") as caught:
        program.parse_options(parser(), line.split())
    assert near in str(caught.value)
    assert "subcommand" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [(["--version"], 0, "nlzoo "), (["--help"], 0, "evaluate"), (["fitt"], 2, "unknown program")],
)
def test_console_script(arguments, code, word):
    done = subprocess.run(
        [sys.executable, "-m", "nlzoo", *arguments], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == code
    assert word in done.stdout + done.stderr
