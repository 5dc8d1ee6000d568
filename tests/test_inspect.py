"""`inspect`, `convert`, `list` and `download`, as a user runs them."""

import json
from pathlib import Path

import pytest
import torch
from shared import SHARED
from spoken import speak
from tiers import marked

from nlzoo.models import create_model, load_model, save_model
from nlzoo.program import run
from nlzoo.weights import __main__ as program
from nlzoo.weights.golden import read_golden
from nlzoo.weights.inspect import inspect
from nlzoo.weights.load import spec_of
from nlzoo.weights.zoo import find, read_zoo

GOLDENS = sorted((SHARED / "goldens").glob("*.json"))
DIALECTS = {  # of golden files, and what inspect calls them where that is another word
    "video-nonlocal-net": "caffe2 (video-nonlocal-net,",
    "video-long-term-feature-banks": "video-long-term-feature-banks",
    "slowfast-caffe2": "slowfast-caffe2",
    "gluoncv_torch": "gluoncv_torch",
    "tushar-n": "tushar-n",
    "pytorchvideo-block": "pytorchvideo",
}


def bare(path, shapes):
    """A file of these names and shapes, without much in it."""
    torch.save({k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}, path)
    return path


def architecture(config, state):
    """What a golden's configuration says."""
    words = " ".join(
        map(str, (config.get(k, "") for k in ("cls", "host", "model", "kind", "arch")))
    )
    if "BatNonLocal" in words:
        return "BatNonLocalAttn"
    kinds = {"TSM": "tsm", "Slow": "slow", "slow": "slow", "c2d": "c2d"}
    kind = next((own for word, own in kinds.items() if word in words), "i3d")
    blocks = any("theta" in name or "non_local" in name or "nonlocal" in name for name in state)
    return f"{kind}_r50" + ("_nl5" if blocks else "")


@pytest.mark.skipif(not GOLDENS, reason="no golden files")
@pytest.mark.parametrize("path", marked(GOLDENS, GOLDENS[::4]), ids=lambda path: path.stem)
def test_every_golden_is_recognised(path, tmp_path):
    golden = read_golden(path)
    shapes = {entry[0]: entry[1] for entry in golden["state_dict"]}
    found = inspect(bare(tmp_path / "bare.pth", shapes))
    assert DIALECTS.get(golden["dialect"], golden["dialect"]) in found["dialect"]
    assert "does not fit" not in found
    dims = len(golden["input"]["shape"]) - 2
    if golden["config"].get("cls", "").startswith("Bat"):
        assert "BatNonLocalAttn" in found["architecture"]
    elif "classes" not in golden["config"]:
        assert f"a {dims}D block, {golden['input']['shape'][1]} channels" in found["architecture"]
        concatenates = "concatenation" in str(golden["config"])
        assert ("concatenation" in found["architecture"]) == concatenates
    else:
        assert found["architecture"] == architecture(golden["config"], shapes)
        assert found["classes"] == str(golden["config"]["classes"])


@pytest.mark.parametrize(
    "name",
    [
        "slowfast_r50_nl5.k400_8x8_pyslowfast",
        "i3d_r101_nl10.k400_32x2_gluoncv",
        "tsm_r50.k400_1x1x8_mmaction2",
    ],
)
def test_rows_that_a_file_may_be_are_named(name, tmp_path):
    entry = read_zoo()[name]
    with torch.device("meta"):
        state = create_model(name).state_dict()
    state = {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}
    raw = speak(entry.dialect, state, shifted=entry.model.startswith("tsm"))
    raw = {k: v for k, v in raw.items() if k != "optimizer"}
    inner = raw.get("state_dict", raw.get("model_state", raw))
    shapes = {k: v.shape for k, v in inner.items()} | {"backbone.odd.weight": (3,)}
    found = inspect(bare(tmp_path / "x.pth", shapes))
    assert name in found["may be"]
    assert found["does not fit"] == "unknown names: backbone.odd.weight"


def test_blocks_inside_other_networks_are_found(tmp_path):
    block = {
        f"{n}.conv.{k}": (8, 8, 1, 1) if k == "weight" else (8,)
        for n in ("g", "theta", "phi", "conv_out")
        for k in ("weight", "bias")
    }
    shapes = {f"neck.1.refine.{k}": v for k, v in block.items()} | {
        "backbone.conv1.weight": (8, 3, 7, 7)
    }
    found = inspect(bare(tmp_path / "x.pth", shapes))
    assert found["block at neck.1.refine."].startswith("a 2D block, 8 channels, 8 inside")
    assert "mmcv" in found["block at neck.1.refine."]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tsm_r50_nl5", {"width": 8}),
        ("c2d/resnet18", {"non_local": "nl1"}),
        ("faster_rcnn_resnet18_fpn_nl1", {"channels": 32, "hidden": 64}),
    ],
)
def test_a_file_of_ours_says_what_it_is(name, options, tmp_path):
    save_model(create_model(name, num_classes=3, **options), path := tmp_path / "m.safetensors")
    found = inspect(path)
    arch = "".join(f", {key} {value}" for key, value in options.items() if key != "non_local")
    assert (found["dialect"], found["architecture"]) == ("nlzoo", name + arch)
    assert found["classes"] == "3"
    blocks = [value for key, value in found.items() if key.startswith("block at ")]
    assert len(blocks) == (5 if "nl5" in name else 1)
    assert all("form='embedded_gaussian'" in block for block in blocks)
    state = load_model(path).state_dict()
    gone = next(key for key in state if key.endswith("bias"))
    said = spec_of({}, path)
    torch.save({"nlzoo": said, "state_dict": {**state, gone: state[gone][:1]}}, tmp_path / "m.pth")
    assert gone in inspect(tmp_path / "m.pth")["does not fit"]


@pytest.mark.parametrize("name", ["keypoint_rcnn_resnet18_fpn", "mask_rcnn_resnet50_fpn_v2"])
def test_detectors_are_found_by_their_tensors(name, tmp_path):
    with torch.device("meta"):
        model = create_model(f"{name}_nl1", num_classes=7)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = inspect(bare(tmp_path / "x.pth", shapes))
    assert (found["dialect"], found["architecture"]) == ("torchvision", name)
    assert found["classes"] == "7"
    assert ("may be" in found) == ("resnet50" in name)
    assert "block at backbone.body.layer3." in " ".join(found)
    shapes["roi_heads.box_head.fc7.bias"] = (9,)
    other = inspect(bare(tmp_path / "y.pth", shapes))["architecture"]
    assert other == f"{name.partition('_')[0]}_rcnn of other sizes than the names of nlzoo have"


def test_a_file_of_something_else(tmp_path):
    found = inspect(bare(tmp_path / "x.pth", {"encoder.weight": (3, 3)}))
    assert found["dialect"] == "unknown; names: encoder.weight"


def test_convert(tmp_path, capsys):
    name = "i3d_r50_nl5.k400_32x2_mmaction2_gaussian"
    model = create_model(name)
    torch.save(speak("mmaction2", model.state_dict()), tmp_path / "theirs.pth")
    out = tmp_path / "ours.safetensors"
    run(program.main, ["convert", str(tmp_path / "theirs.pth"), "--as", name, "-o", str(out)])
    loaded = load_model(out)
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
    assert loaded.preprocessing.classes[0] == "abseiling"
    assert [b.form for b in loaded.modules() if hasattr(b, "form")] == ["gaussian"] * 5
    state = model.state_dict()
    assert all(
        torch.equal(v, state[k]) for k, v in loaded.state_dict().items() if "out.bias" not in k
    )
    assert inspect(out)["dialect"] == "nlzoo"
    with pytest.raises(SystemExit):
        run(
            program.main,
            ["convert", str(tmp_path / "theirs.pth"), "--as", "i3d_r50_nl10", "-o", str(out)],
        )
    assert "is of another architecture: res3.0.non_local" in capsys.readouterr().err


def test_list(capsys):
    run(program.main, ["list", "tsm_*", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 10
    assert all(row["name"].startswith("tsm_") for row in rows)
    run(program.main, ["list", "i3d_r50_nl5.k400_128x1_official"])
    assert "non_local: {'norm': None, 'res3': {'groups': 4}}" in capsys.readouterr().out
    run(program.main, ["list", "charades"])
    assert "i3d_r101_nl5.charades_32x4_lfb" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(program.main, ["list", "nothing_like_it"])
    assert (
        "nlzoo: no published weights are like 'nothing_like_it'; there are"
        in capsys.readouterr().err
    )


def test_download(tmp_path, monkeypatch, capsys):
    """From a mirror; one that is missing does not end the list."""
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NLZOO_MIRROR", str(tmp_path))
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    entry = find("c2d_r50.k400_8x8_official")
    (tmp_path / entry.file).write_bytes(b"\x80weights")
    with pytest.warns(UserWarning, match="licence CC-BY-NC-4.0"):
        run(program.main, ["download", entry.name])
    assert Path(capsys.readouterr().out.strip()).read_bytes() == b"\x80weights"
    with pytest.raises(SystemExit) as exit_, pytest.warns(UserWarning, match="licence"):
        run(program.main, ["download", entry.name, "--all", "c2d_r50_nl5.*official"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "nlzoo: c2d_r50_nl5.k400_32x2_official: " in error
    assert error.endswith("2 of 3 files could not be fetched\n")
    with pytest.raises(SystemExit):
        run(program.main, ["download"])
    assert "give a NAME, or --all FILTER" in capsys.readouterr().err
