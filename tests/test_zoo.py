"""The table of published weights, and the pages that are rendered from it."""

import csv
import re

import pytest
import torchvision
from shared import SHARED
from torchvision.models import get_model_weights, list_models

from benchmarks import zoo as render
from nlzoo.registry import DETECTORS, MODELS
from nlzoo.weights.zoo import find, read_zoo, search

ZOO = list(read_zoo().values())
BUILDABLE = [entry for entry in ZOO if entry.model]
REFERENCE = 215  # rows of the two lists of checkpoints; torchvision's follow


def test_the_page_has_each_row_once():
    names = re.findall(r"^\| `([^`]+)` \|", render.page(), re.MULTILINE)
    assert sorted(names) == sorted(read_zoo())


def test_the_page_has_no_empty_column_and_whole_rows():
    for table in re.findall(r"(?:^\|.*\n)+", render.page(), re.MULTILINE):
        rows = [line.strip("|\n").split("|") for line in table.splitlines()]
        assert len({len(row) for row in rows}) == 1
        for column in zip(*rows, strict=True):
            assert any(cell.strip() for cell in column[2:]), column[0]


def test_numbers_lead_to_notes():
    for section in re.split(r"^###? ", render.page(), flags=re.MULTILINE)[1:]:
        if "| notes |" in section:
            rows = re.findall(r"^\| `.* \| ([\d, ]*) \|$", section, re.MULTILINE)
            used = {number for row in rows for number in row.split(", ") if number}
            assert used == set(re.findall(r"^(\d+)\. ", section, re.MULTILINE))


@pytest.mark.parametrize(
    "name", ["i3d_r50_nl5.charades_32x4_lfb", "slow_r50.charades_8x8_pytorchvideo"]
)
def test_networks_of_charades_say_that_labels_are_many(name):
    seen = find(name).preprocessing()
    assert (seen.multilabel, seen.pool, seen.segments) == (True, "max", "_lfb" in name)
    assert (len(seen.classes), seen.classes[0]) == (157, "c000 Holding some clothes")
    assert not find("i3d_r50_nl5.k400_32x2_official").preprocessing().multilabel


def test_licences_warn():
    above = render.page().split("`i3d_r50_nl5.k400_32x2_official` |")[0]
    assert "* **not for commercial use**: CC-BY-NC-4.0\n" in above.rpartition("###")[2]
    for entry in ZOO:
        assert entry.is_commercial == (not re.search("NC|unknown|^$", entry.licence)), entry.name


def test_the_readme_has_whole_networks_with_a_figure():
    for name in render.BEST:
        entry = find(name)
        assert (entry.gives, bool(entry.url), bool(entry.top1)) == ("whole", True, True), name
        assert "DOUBT" not in entry.note, name


# -- rows -------------------------------------------------------------------------------------


def test_names_and_files_are_unique():
    with (render.ROOT / "nlzoo" / "weights" / "zoo.csv").open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == len(set(names)) == len(ZOO) == REFERENCE + 6
    files = [entry.file for entry in ZOO if entry.url]
    assert len(files) == len(set(files))
    for entry in ZOO:
        assert re.fullmatch(r"\w+\.[a-z0-9_]+", entry.name)
        assert bool(entry.file) == bool(entry.url)
        assert not entry.url or entry.file.startswith(entry.name)
        assert entry.url.startswith("https://") or not entry.url


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_a_row_says_what_it_gives(entry):
    assert entry.gives in ("whole", "trunk", "blocks", "")
    assert entry.gives == "whole" or entry.reason
    assert entry.url or entry.reason or entry.note  # why it cannot be downloaded
    assert bool(entry.model) == (entry.gives in ("whole", "trunk"))
    assert entry.dialect or not entry.gives
    assert re.fullmatch(r"|[0-9a-f]{8,40}|[0-9a-f]{64}", entry.hash)
    assert "blob/" not in entry.url  # a page
    assert "browser" in entry.note or "drive.google.com" not in entry.url


@pytest.mark.parametrize("entry", BUILDABLE, ids=lambda entry: entry.name)
def test_a_network_has_its_preprocessing(entry):
    assert entry.model in MODELS | DETECTORS
    assert entry.name.startswith(f"{entry.model}.")
    pre = entry.preprocessing()
    assert len(pre.mean) == len(pre.std) == 3
    assert entry.clip == (f"{pre.frames}x{pre.stride}" if entry.model in MODELS else "")
    assert (pre.task == "detection") == (entry.model in DETECTORS)
    assert entry.channels == "RGB 0..1"
    assert len(pre.classes) in (0, int(entry.classes))
    assert pre.classes or not (entry.gives == "whole" and entry.dataset.startswith("Kinetics"))


def test_torchvision_says_the_same_of_its_files():
    detection = torchvision.models.detection
    weights = [get_model_weights(n) for n in list_models(module=detection)]
    theirs = {w.url: w.meta["_file_size"] for group in weights for w in group}
    ours = {e.url: float(e.size) for e in ZOO if e.dialect == "torchvision"}
    assert len(ours) == 6
    assert ours.items() <= theirs.items()


def test_unknown_names_are_answered_by_the_nearest():
    wanted = r"no published weights 'i3d_r50_nl5\.k400_32x2_oficial'; did you mean 'i3d_r50_nl5\.k4"
    with pytest.raises(ValueError, match=wanted):
        find("i3d_r50_nl5.k400_32x2_oficial")


@pytest.mark.parametrize(
    ("filter", "count"),
    [("*_nl10.*", 4), ("NC-4", 22), ("charades", 10), ("mit_tsm", 3), ("*", 221), ("x3d", 0)],
)
def test_filters_are_words_and_wildcards(filter, count):
    assert len(search(filter)) == count


def test_the_reference_lists_are_in_the_table():
    rows = []
    for name in ("fair", "other"):
        path = SHARED / "reference" / f"checkpoints_{name}.csv"
        if not path.exists():
            pytest.skip(f"no {path}: set NLZOO_SHARED")
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    page = "https://github.com/AlexHex7/Non-local_pytorch/blob/"
    raw = "https://raw.githubusercontent.com/AlexHex7/Non-local_pytorch/"
    assert len(rows) == REFERENCE
    for entry, row in zip(ZOO[:REFERENCE], rows, strict=True):
        assert entry.url == row["url"].replace(page, raw)
        for key in ("hash", "classes", "views", "top1", "top5", "params_M", "gflops"):
            assert getattr(entry, key) == row[key], f"{entry.name}: {key}"
        assert entry.licence.lower() == row["licence"].lower()
    assert {entry.dialect for entry in ZOO[REFERENCE:]} == {"torchvision"}
