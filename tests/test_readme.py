"""What the README says is so."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from benchmarks import worth
from nlzoo import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"python -m (nlzoo\.[\w.]+) ([^`\n]*)", README)))


def test_the_first_two_commands():
    first = next(text for language, text in BLOCKS if not language)
    install, tests = first.splitlines()
    assert install.endswith("python -m nlzoo.fit --recipe recipes/i3d_nl_kinetics.yaml --sample")
    assert tests == "python -m pytest -n auto"
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -q -e ".[dev]"' in ci
    assert 'pip install -e ".[dev]"' in install


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_commands_exist_and_know_their_options(module, arguments, capsys):
    package = module in ("nlzoo.export", "nlzoo.weights")
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    with pytest.raises(SystemExit):
        main([arguments.split()[0], "--help"] if package else ["--help"])
    text = capsys.readouterr().out
    for option in re.findall(r"--[\w.]+", arguments):
        assert option in text, option


def test_snippets_run(capsys):
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(ast.parse(text), "README.md", "exec"), {})
    assert "layer3.5" in capsys.readouterr().out


def test_the_table_is_that_of_the_results():
    assert worth.table(json.loads(worth.RESULT.read_text())) in README


def test_every_recipe_is_listed():
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted(listed) == cli.recipe_names()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
