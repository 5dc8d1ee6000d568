"""Engines from ONNX files: by TensorRT-RTX, which needs no GPU, and by a recorded TensorRT."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import recorded_tensorrt
from onnx import TensorProto, helper, numpy_helper
from recorded_tensorrt import need_rtx, relu
from tiers import marked

from nlzoo import NonLocalBlock
from nlzoo.export import __main__ as program
from nlzoo.export.onnx import export_onnx
from nlzoo.export.profiles import choose_profiles
from nlzoo.export.spec import KEY, Spec
from nlzoo.export.tensorrt import build_engine
from nlzoo.program import run


def text_of(capsys, *argv):
    """What a failing program prints."""
    with pytest.raises(SystemExit) as exit_:
        run(program.main, list(map(str, argv)))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


# -- profiles -----------------------------------------------------------------------------------


def test_the_default_profile_is_batches_of_1_to_8(tmp_path):
    model = onnx.load(relu(tmp_path / "m.onnx", ("batch", 3, 9)))
    assert choose_profiles(model) == [{"input": ((1, 3, 9), (1, 3, 9), (8, 3, 9))}]
    assert choose_profiles(onnx.load(relu(tmp_path / "m.onnx", (2, 3, 9)))) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"width of input \(batch, 3, width\) may be of any size.*--shape input=MIN:OPT:MAX"),
        ("input=1x3x9", "expected input=MIN:OPT:MAX, as in input=1x3x8x224x224"),
        ("1x3x9:1x3x9:1x3x9", "expected input="),
        ("input=1x3xW:1x3x9:1x3x9", "expected input="),
        ("inptu=1x3x9:1x3x9:1x3x9", "no input 'inptu'; did you mean 'input'"),
        ("input=1x3:1x3:1x3", r"the file has 3 axes, \(batch, 3, width\)"),
        ("input=4x3x9:2x3x9:8x3x9", "4, 2, 8 are not 1 <= MIN <= OPT <= MAX"),
        ("input=0x3x9:2x3x9:8x3x9", "0, 2, 8 are not 1 <= MIN"),
        ("input=1x3x9:1x4x9:1x4x9", "4 where the file has 3"),
    ],
)
def test_profiles_that_the_file_does_not_allow(tmp_path, given, message):
    model = onnx.load(relu(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=message):
        choose_profiles(model, [given] if given else [])


def test_every_dynamic_input_has_a_range(tmp_path):
    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "abc"]
    node = helper.make_node("Add", ["a", "b"], ["c"])
    model = helper.make_model(helper.make_graph([node], "g", shape[:2], shape[2:]))
    with pytest.raises(ValueError, match=r"input b \(n, 2\) is missing"):
        choose_profiles(model, ["a=1x2:1x2:3x2"])
    profile = dict.fromkeys("ab", ((1, 2), (1, 2), (3, 2)))
    assert choose_profiles(model, ["a=1x2:1x2:3x2,b=1x2:1x2:3x2"]) == [profile]


def test_clips_of_any_size_have_a_least_one(tmp_path):
    path = relu(tmp_path / "m.onnx", ("batch", 3, 8, "height", "width"))
    file, shape = onnx.load(path), (2, 3, 8, 224, 224)
    spec = Spec("m", "", "", "", "0", "fp32", True, shape, ("height",), None, "log-probabilities")
    file.metadata_props.add(key=KEY, value=spec.to_json())
    with pytest.raises(ValueError, match="heights and widths of this file start at 224 pixels"):
        choose_profiles(file, ["input=1x3x8x64x224:1x3x8x224x224:1x3x8x224x224"])


# -- TensorRT-RTX -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "form", "precision"),
    [
        (1, "gaussian", "fp32"),
        pytest.param(2, "concatenation", "fp32", marks=pytest.mark.every),
        pytest.param(3, "dot_product", "fp16", marks=pytest.mark.every),
        (3, "embedded_gaussian", "fp16"),
        pytest.param(2, "embedded_gaussian", "bf16", marks=pytest.mark.every),
    ],
)
def test_blocks_build(tmp_path, dims, form, precision):
    """It builds for 8.6, 8.9, 12.0 in one engine, for any batch."""
    need_rtx()
    block = NonLocalBlock(32, dims=dims, form=form, subsample=2, zero_init=False)
    shape, path = (2, 32, 4, 6, 8)[: dims + 2], tmp_path / "m.onnx"
    export_onnx(block, path, precision=precision, shape=shape)
    built = build_engine(path, tmp_path / "m.engine")
    assert built["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert built["profiles"][0].startswith("input=1x32")
    assert built["flags"] == []  # no TF32
    share = built["precisions"]
    assert sum(share.values()) == pytest.approx(1, abs=1e-3)
    kind = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[precision]
    assert share[kind] > 0.4
    if precision != "fp32" and form != "dot_product":
        assert share["FLOAT"] > 0.15  # scores and softmax
    # A few compiled kernels, 0.4 to 1 MB whatever the weights are: here those are 30 kB.
    assert built["engine"]["bytes"] < 1.1 * built["onnx"]["bytes"] + 1.1e6


@pytest.mark.parametrize("precision", marked(["fp32", "fp16"], slow=["fp32"]))
def test_the_whole_network_builds(tmp_path, precision):
    """The paper's, any batch, three cards in one file that is as large as the ONNX file."""
    need_rtx()
    path = tmp_path / "m.onnx"
    export_onnx("i3d_r50_nl5", path, precision=precision, shape=(2, 3, 8, 224, 224))
    built = build_engine(path, tmp_path / "m.engine")
    assert 1 <= built["engine"]["bytes"] / built["onnx"]["bytes"] <= 1.1


def test_beside_an_engine_is_what_it_is(tmp_path, capsys):
    need_rtx()
    path = tmp_path / "m.onnx"
    export_onnx("torch.nn:ReLU", path, shape=(2, 8, 4))
    shape = ["--shape", "input=1x8x4:2x8x4:4x8x4", "--shape", "input=8x8x4:8x8x4:9x8x4"]
    argv = ["tensorrt", path, "--output", tmp_path / "e/m.engine", *shape]
    program.main([*map(str, argv), "--compute-capability", "8.9", "--optimization-level", "1"])
    output = capsys.readouterr()
    assert "for 8.9; 1 layers, 100% FLOAT" in output.out
    assert output.err == ""
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["m.engine", "m.engine.json"]
    beside = json.loads((tmp_path / "e/m.engine.json").read_text())
    for kind, file in (("engine", tmp_path / "e/m.engine"), ("onnx", path)):
        content = file.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert beside[kind] == {"file": file.name, "bytes": len(content), "sha256": sha256}
    assert beside["profiles"] == shape[1::2]
    assert (beside["backend"], beside["optimization_level"]) == ("tensorrt_rtx", 1)
    assert Spec.from_json(beside[KEY]).shape == (2, 8, 4)


def test_what_the_builder_refuses_is_one_line(tmp_path, capfd):
    need_rtx()
    path = relu(tmp_path / "m.onnx", (1, 8, 16), op="Foo")
    error = text_of(capfd, "tensorrt", path, "--output", tmp_path / "m.engine")
    assert "does not build: node 'the_node' (Foo): TensorRT-RTX" in error
    assert "write that part with other operators" in error
    assert "Plugin not found" in error
    assert not list(tmp_path.glob("*engine*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capabilities": ["9.0"]}, "no compute capability '9.0'; there are 7.5, 8.0, 8.6, 8.9"),
        ({"timing_cache": "t"}, "no --timing-cache: it compiles kernels where the engine runs"),
        ({"hardware_compatible": True}, "no --hardware-compatible"),
        ({"version_compatible": True}, "no --version-compatible"),
        ({"optimization_level": 6}, "optimization level 6: give 0 to 5"),
        ({"workspace": 0}, "workspace 0 MB: give 1 or more"),
        ({"backend": "tensorrtx"}, "unknown backend 'tensorrtx'; did you mean 'tensorrt' or"),
        ({"output": "m.plan"}, "m.plan: an engine is called NAME.engine"),
    ],
)
def test_wishes_that_rtx_does_not_have(tmp_path, options, message):
    need_rtx()
    path = relu(tmp_path / "m.onnx", (1, 8, 16))
    wishes = {"output": tmp_path / "m.engine", "backend": "tensorrt_rtx"} | options
    with pytest.raises(ValueError, match=message):
        build_engine(path, **wishes)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_files_that_are_no_onnx_files(tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("hello")
    relu(tmp_path / "m.onnx", (1, 8, 16))
    weights = numpy_helper.from_array(np.ones(1), "w")
    relu(tmp_path / "apart.onnx", (1, 8, 16), initializer=[weights])
    file = onnx.load(tmp_path / "apart.onnx")
    options = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save(file, tmp_path / "apart.onnx", **options)
    (tmp_path / "w.data").unlink()
    for name in ("none.onnx", "text.onnx", "apart.onnx"):
        output = tmp_path / "m.engine"
        assert name in text_of(capsys, "tensorrt", tmp_path / name, "--output", output)
    assert not list(tmp_path.glob("*engine*"))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    need_rtx()

    def full(self, content):
        raise OSError(28, "No space left on device")

    path = relu(tmp_path / "m.onnx", (1, 8, 16))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*m.engine'"):
        build_engine(path, tmp_path / "m.engine")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


# -- TensorRT 10 and 11 -------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    return recorded_tensorrt.install(monkeypatch)


def test_tensorrt_takes_the_wishes_that_rtx_does_not(tmp_path, recorded):
    path, cache = relu(tmp_path / "m.onnx", ("batch", 3, 4)), tmp_path / "kernels"
    cache.write_bytes(b"seen")
    built = build_engine(
        path,
        tmp_path / "m.engine",
        workspace=64,
        optimization_level=5,
        timing_cache=cache,
        hardware_compatible=True,
        version_compatible=True,
    )
    assert (built["backend"], built["version"]) == ("tensorrt", recorded.__version__)
    assert (built["compute_capabilities"], built["flags"]) == ([], ["VERSION_COMPATIBLE"])
    told = json.loads((tmp_path / "m.engine").read_bytes())
    assert told["limits"] == {"WORKSPACE": 64 << 20}
    assert told["hardware"] == "AMPERE_PLUS"
    assert told["profiles"] == [{"input": [[1, 3, 4], [1, 3, 4], [8, 3, 4]]}]
    assert cache.read_bytes() == b"seen!"
    cache.write_bytes(b"foreign")
    with pytest.raises(ValueError, match="of another card or release; delete it"):
        build_engine(path, tmp_path / "m.engine", timing_cache=cache)


def test_tensorrt_builds_for_the_card_at_hand(tmp_path, recorded):
    path = relu(tmp_path / "m.onnx", (1, 8, 16))
    with pytest.raises(ValueError, match="needs TensorRT-RTX: pip install 'nlzoo"):
        build_engine(path, tmp_path / "m.engine", capabilities=["8.9"], backend="tensorrt")


def test_no_driver_is_one_line(tmp_path, recorded, monkeypatch):
    def builder(log):
        log.log(recorded.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(recorded, "Builder", builder)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU and driver: CUDA initialization"):
        build_engine(relu(tmp_path / "m.onnx", (1, 8, 16)), tmp_path / "m.engine")
