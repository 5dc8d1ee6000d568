"""What the README and the pages of docs/ say can be done: commands, options, names, links, code."""

import ast
import importlib
import importlib.util
import pydoc
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nlzoo
from benchmarks import reproduce
from nlzoo import __main__, cli, fit
from nlzoo.program import parse_options
from nlzoo.weights.zoo import find

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
OTHERS = {  # programs that are not ours, and need not be here
    *("aws", "cd", "cp", "docker", "export", "git", "hadolint", "mkdocs"),
    *("pre-commit", "source", ".", "tritonserver"),
}
OTHERS_OPTIONS = {"--ntasks-per-node"}  # SLURM's
SUITES = ("nlzoo.export", "nlzoo.weights", "nlzoo.data.coco")  # packages with subcommands


class ParsedError(Exception):
    """A benchmark's parser took its arguments."""


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The code blocks of a page in these languages; "" is of fenced ones that name none."""
    for language, text in FENCED.findall(page.read_text("utf-8")):
        if language in languages:
            yield text


def inline(page: Path) -> list[str]:
    """Code inside sentences."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text("utf-8")))


def commands(page: Path) -> Iterator[str]:
    """Lines of blocks without a language or of a shell, indented ones, and those in sentences."""
    text = FENCED.sub("", page.read_text("utf-8"))
    indented = re.findall(r"^    (?=python |nlzoo |torchrun )(?:.*\\\n)*.*$", text, re.MULTILINE)
    for block in [*blocks(page, "", "bash", "sh"), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split(r" && |; ", line)
    for block in blocks(page, "console"):
        yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))
    yield from (s for s in inline(page) if re.match(r"(python -m|nlzoo) [a-z][a-z0-9_.]*( |$)", s))


ALL = sorted({c.strip() for page in PAGES for c in commands(page) if shlex.split(c, comments=True)})
SPANS = sorted({s for p in PAGES for s in inline(p)})
SNIPPETS = [(p.name, i, s) for p in PAGES for i, s in enumerate(blocks(p, "python"))]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, tmp_path):
    """Where the commands are given; samples are not made."""
    monkeypatch.chdir(ROOT)
    for name in ("make_sample", "make_actions", "make_coco", "make_images"):
        monkeypatch.setattr(cli, name, lambda: tmp_path)


@pytest.mark.parametrize("command", ALL)
def test_command(command, monkeypatch, pytestconfig):
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*|srun", words[0]):
        words.pop(0)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
        words.remove("--")
    if words[0] == "nlzoo" and words[1] != "completion":
        module = __main__.PROGRAMS[words[1]][0].removesuffix(".__main__")
        words = ["python", "-m", module, *words[2:]]
    if words[:2] == ["nlzoo", "completion"]:
        parse_options(__main__.completion_parser(), words[2:])
    elif words[0] == "pip":
        check_install(words)
    elif words[0] == "bash" or "/" in words[0]:
        assert Path(words["bash" in words]).is_file(), command
    elif words[0] not in ("python", "python3"):
        assert words[0] in OTHERS, f"{command!r}: no command; say ```text where it is none"
    elif words[1] == "-m":
        check_module(words[2], words[3:], monkeypatch, pytestconfig)
    else:
        assert Path(words[1]).is_file(), command


def check_install(words: list[str]) -> None:
    """Extras are those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:nlzoo|\.)\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), words


def check_module(module: str, given: list[str], monkeypatch, pytestconfig) -> None:
    """The module exists, and its own parser takes the words; nothing is run."""
    package, _, name = module.partition(".")
    if package == "benchmarks":
        given = [word.strip("[]") for word in given]
        check_benchmark(module, given, monkeypatch)
    elif module == "pytest":
        pytestconfig._parser.parse(given)
    elif package != "nlzoo":
        assert importlib.util.find_spec(module), module
    elif name in ("fit", "evaluate"):
        check_recipe(importlib.import_module(module), given)
    else:
        found = importlib.import_module(f"{module}.__main__" if module in SUITES else module)
        if given:
            options = parse_options(found.parser(), given)
            if module == "nlzoo.weights" and options.subcommand == "download":
                assert all(map(find, options.download.names))
        else:
            assert callable(found.main)


def check_recipe(program, given: list[str]) -> None:
    """Recipes exist, and each key and value is one of theirs; of a checkpoint by its run."""
    given = ["videos_finetune" if word in ("NAME", "RECIPE") else word for word in given]
    base = None
    if "--recipe" not in given:
        checkpoint = Path(given[given.index("--checkpoint") + 1])
        base = cli.read_recipe(recipe_of(str(checkpoint.parents[1])))
    cli.parse(given, program.parser(), base)


def recipe_of(run: str) -> str:
    """That of the command that fills the run folder, or else the folder's name."""
    for words in (shlex.split(command, comments=True) for command in ALL):
        if "--run" in words and words[words.index("--run") + 1] == run:
            name = words[words.index("--recipe") + 1]
            return "videos_finetune" if name == "RECIPE" else name
    return Path(run).name.removesuffix("-sample")


def check_benchmark(module: str, given: list[str], monkeypatch) -> None:
    """Its `main`, up to the end of its parser, if it takes any."""
    found = importlib.import_module(module)
    if not given and not hasattr(found, "parse_options"):
        assert callable(found.main)
        return

    def stop(parser, argv):
        parse_options(parser, argv)
        raise ParsedError

    monkeypatch.setattr(found, "parse_options", stop)
    monkeypatch.setattr(sys, "argv", [module, *given])
    with pytest.raises(ParsedError):
        found.main()


def known_options() -> set[str]:
    """Options of every program; of keys the section and the key."""
    found = set(OTHERS_OPTIONS)
    queue = [importlib.import_module(f"nlzoo.{name}").parser() for name in ("fit", "evaluate")]
    names = ("predict", "data.prepare", "data.stream", *(f"{s[6:]}.__main__" for s in SUITES))
    queue += [importlib.import_module(f"nlzoo.{name}").parser() for name in names]
    for parser in queue:
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action.choices, dict):  # subcommands
                queue += action.choices.values()
    for section, classes in {
        "task": (cli.Classification, cli.Detection),
        "data": (cli.Kinetics, cli.Charades, cli.Images, cli.Coco),
    }.items():
        for one in classes:
            found |= {f"--{section}.{key}" for key in one.__init__.__annotations__}
    return found


def test_options_in_sentences():
    known, seen = known_options(), set()
    for span in SPANS:
        if span.startswith("--") or " --" in span:
            seen |= set(re.findall(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z]\w*)?", span))
    assert len(seen) > 20
    assert not seen - known - benchmark_options()


def benchmark_options() -> set[str]:
    """Those that their sources name."""
    sources = " ".join(path.read_text("utf-8") for path in ROOT.glob("benchmarks/*.py"))
    return set(re.findall(r'add_argument\("(--[\w-]+)"', sources))


@pytest.mark.parametrize("name", sorted({s for s in SPANS if re.fullmatch(r"nlzoo(\.\w+)+", s)}))
def test_dotted_name(name):
    assert pydoc.locate(name) is not None


@pytest.mark.parametrize(("page", "number", "code"), SNIPPETS)
def test_snippet(page, number, code):
    """It compiles; what it imports, takes from nlzoo and names as a network is there."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            check_imports({alias.name: () for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            check_imports({node.module: [alias.name for alias in node.names]})
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("nlzoo."):
            assert pydoc.locate(ast.unparse(node)) is not None, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "nlzoo.create_model":
            network = ast.literal_eval(node.args[0])
            assert network in nlzoo.list_models() or find(network), network


def check_imports(wanted: dict[str, list[str]]) -> None:
    for module, names in wanted.items():
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            pytest.skip(f"{module} is not installed")
        found = importlib.import_module(module)
        for name in names:
            assert hasattr(found, name) or pydoc.locate(f"{module}.{name}"), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
        there = (page.parent / target).resolve()
        assert there.exists(), target
        assert page.parent == ROOT or there.is_relative_to(ROOT / "docs"), "not on the site"


def test_own_model_runs(tmp_path, monkeypatch, capsys):
    """The page from its first block to its last: a program."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in blocks(ROOT / "docs" / "own-model.md", "python"):
        exec(compile(code, "own-model.md", "exec"), names)
    assert names["accuracy"] > 0.95
    assert names["without"] < 0.65
    assert (tmp_path / "look.png").stat().st_size > 10_000
    look = names["looks"][0]
    assert look.weights[look.boxes[:, 2] >= 24].sum() > 0.4  # on the right quarter


# -- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "text"), reproduce.documents().items(), ids=lambda p: "")
def test_rendered_pages_are_up_to_date(path, text):
    assert path.read_text("utf-8") == text, "python -m benchmarks.reproduce writes it"


def test_heads_and_tables_agree():
    """A recipe that is a row of the paper's tables expects what the paper has."""
    heads = reproduce.heads()
    assert sorted(heads) == cli.recipe_names()
    rows = [row for row in reproduce.paper() if not row["options"]]
    assert len(rows) >= 10
    for row in rows:
        expected = heads[row["recipe"]]["Expected"]
        assert row["published"].partition("/")[0] in expected, row


@pytest.mark.slow
@pytest.mark.parametrize("row", reproduce.paper(), ids=lambda row: row["run"])
def test_a_row_of_the_paper_is_a_command(row):
    """Of a network that is there, in a run folder of its own."""
    command = reproduce.command(row, reproduce.heads()[row["recipe"]]["Command"])
    words = shlex.split(command)[3:]
    config = cli.parse(words, fit.parser())
    assert config.task.init_args.model in nlzoo.list_models()
    assert config.run == f"runs/{row['run']}"


@pytest.mark.slow
@pytest.mark.parametrize("row", reproduce.paper(), ids=lambda row: row["run"])
def test_a_row_of_the_paper_can_be_built(row):
    command = reproduce.command(row, reproduce.heads()[row["recipe"]]["Command"])
    with torch.device("meta"):
        cli.dry_build(cli.parse(shlex.split(command)[3:], fit.parser()))


def test_an_evaluation_fills_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    row = next(row for row in reproduce.paper() if row["run"] == "i3d_r50_nl5")
    assert reproduce.measured(row) == ""
    (tmp_path / "paper_i3d_r50_nl5.json").write_text('{"top1": 0.7494, "top5": 0.916}')
    assert reproduce.measured(row) == "74.9/91.6"
    assert "| 74.9/91.6 | 74.9/91.6 |" in reproduce.results()


def test_the_list_has_every_row(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--list"])
    reproduce.main()
    listed = capsys.readouterr().out
    for row in reproduce.paper():
        assert f"--run runs/{row['run']} " in listed.replace("\n", " ")
    assert listed.count("hardware: ") == len(cli.recipe_names())
