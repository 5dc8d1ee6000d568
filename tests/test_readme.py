"""What the README says is so; its commands and links are in test_docs.py."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_first_two_commands():
    first = next(text for language, text in BLOCKS if not language)
    install, tests = first.splitlines()
    assert install.endswith("python -m nlzoo.fit --recipe recipes/i3d_nl_kinetics.yaml --sample")
    assert tests == "python -m pytest -n auto"
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -q -e ".[dev]"' in ci
    assert 'pip install -e ".[dev]"' in install


def test_snippets_run(capsys):
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(ast.parse(text), "README.md", "exec"), {})
    assert "layer3.5" in capsys.readouterr().out
