"""What is shipped: the wheel has the programs, recipes, lists and licences, and nothing else."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.zoo import SOURCES

ROOT = Path(__file__).parents[1]
SHIPPED = ("nlzoo", "export", "recipes")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """An sdist of the checkout, and the wheel that is made of the sdist."""
    source = tmp_path_factory.mktemp("package") / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*SHIPPED, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    sdist = build("sdist", source)
    with tarfile.open(sdist) as file:
        file.extractall(source.parent / "sdist")  # our own; filters came with Python 3.11.4
    (inside,) = (source.parent / "sdist").iterdir()
    return sdist, build("wheel", inside)


def build(kind, folder):
    """The path of what setuptools makes there."""
    code = f"from setuptools import build_meta as made; made.build_{kind}('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    (made,) = (folder / "dist").iterdir()
    return made


def test_the_wheel_holds_the_package_only(dist):
    names = zipfile.ZipFile(dist[1]).namelist()
    tops = {name.partition("/")[0] for name in names}
    (info,) = tops - {"nlzoo"}
    assert re.fullmatch(r"nlzoo-[\d.]+\.dist-info", info)
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= {*names}
    homes = {"nlzoo": "nlzoo", "export": "nlzoo/export", "recipes": "nlzoo/recipes"}
    wanted = {
        f"{homes[top]}/{path.relative_to(ROOT / top)}"
        for top in SHIPPED
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("nlzoo/")} == wanted


def test_the_sdist_holds_what_the_wheel_needs(dist):
    with tarfile.open(dist[0]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_notice_names_every_source():
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    for repository in SOURCES.values():
        assert repository in notice
    for path in (ROOT / "nlzoo/data/labels").iterdir():
        assert path.name in notice


def test_importing_nlzoo_imports_nothing_of_others():
    code = "import sys; before = {*sys.modules}; import nlzoo; print(*({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert tops - {*sys.stdlib_module_names} == {"nlzoo"}
