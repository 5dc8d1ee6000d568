"""What stops a file on a target, and which attention is fused there."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from recorded_tensorrt import need_rtx, relu

from nlzoo import NonLocalBlock
from nlzoo.export import __main__ as program
from nlzoo.export import check as checking
from nlzoo.export.check import check
from nlzoo.export.onnx import export_onnx
from nlzoo.export.spec import KEY, spec_of
from nlzoo.preprocessing import Preprocessing

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def save(path, node, inputs, outputs, weights=(), opset=18):
    """A file of one node; (name, type, shape) of what goes in and out."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def nonzero(path):
    node = helper.make_node("NonZero", ["x"], ["y"], name="bad")
    return save(path, node, [("x", FLOAT, [1, 8])], [("y", INT64, [2, None])])


def top_k(path):
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], name="bad")
    outputs = [("v", FLOAT, [1, 5000]), ("i", INT64, [1, 5000])]
    return save(path, node, [("x", FLOAT, [1, 6000])], outputs, [("k", np.array([5000]))])


def suppression(path):
    node = helper.make_node("NonMaxSuppression", ["b", "s", "n"], ["y"], name="bad")
    inputs = [("b", FLOAT, [1, 100, 4]), ("s", FLOAT, [1, 1, 100])]
    return save(path, node, inputs, [("y", INT64, [None, 3])], [("n", np.array([10]))])


def roi_align(path):
    node = helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], name="bad", output_height=7)
    inputs = [("x", FLOAT, [1, 8, 32, 32]), ("r", FLOAT, [4, 4])]
    return save(path, node, inputs, [("y", FLOAT, [4, 8, 7, 1])], [("b", np.zeros(4, np.int64))])


def attention(path, kind=HALF, batch=2, head=64, **more):
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="bad", **more)
    shapes = [(name, kind, [batch, 1, 64, head]) for name in "qkvy"]
    return save(path, node, shapes[:3], shapes[3:], opset=23)


def dequantize(path, kind=np.int32, zero=0):
    node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], name="bad")
    weights = [("s", np.float32(1)), ("z", kind(zero)), ("x", np.ones(4, kind))]
    return save(path, node, [], [("y", FLOAT, [4])], weights)


BAD = {
    dequantize: "a bias in int32",
    lambda path: dequantize(path, np.int8, 3): "a zero point that is not 0",
    nonzero: "its plugin is not in the package",
    top_k: "K is over 3840",
    suppression: "no kernel does it",
    roi_align: "its plugin needs a GPU",
    lambda path: attention(path, FLOAT): "no kernel for float32",
    lambda path: attention(path, head=512): "no kernel for head sizes over 256",
    lambda path: attention(path, batch=1): "no kernel for one head of one sample",
}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(("make", "why"), BAD.items())
def test_rtx_is_known_as_it_is(tmp_path, monkeypatch, make, why, asked):
    """The real builder refuses what is known to be refused, and the same is said without it."""
    if asked:
        need_rtx()
    else:
        monkeypatch.setattr(checking, "find_spec", lambda name: None)
    verdict, finding = check(make(tmp_path / "m.onnx"))
    assert verdict.what.startswith("does not build")
    assert ("was asked" in verdict.what) == asked
    assert (finding.node, finding.stops) == ("bad", True)
    assert why in finding.what
    assert finding.remedy


def test_rtx_builds_what_it_is_known_to_build(tmp_path):
    need_rtx()
    verdict, *findings = check(attention(tmp_path / "m.onnx"))
    assert verdict.what.startswith("builds; TensorRT-RTX")
    assert not findings


def test_every_node_that_is_known_to_stop_it_is_listed(tmp_path):
    need_rtx()
    nodes = [
        helper.make_node("NonZero", ["x"], ["y"], name="one"),
        helper.make_node("TopK", ["x", "k"], ["v", "i"], name="two"),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, [1, 6000])
    outputs = [helper.make_tensor_value_info(n, INT64, [None, None]) for n in "yi"]
    weights = [numpy_helper.from_array(np.array([5000]), "k")]
    graph = helper.make_graph(nodes, "g", [x], outputs, weights)
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "m.onnx")
    assert [f.node for f in check(tmp_path / "m.onnx")] == ["", "one", "two"]


def test_tensorrt_is_told_about_outputs_of_unknown_size(tmp_path):
    for target in ("trt10", "trt11"):
        verdict, finding = check(nonzero(tmp_path / "m.onnx"), target)
        assert verdict.what == f"builds, by what is known of TensorRT {target[3:]}"
        assert not finding.stops
        assert "depends on the data" in finding.what
        assert check(top_k(tmp_path / "m.onnx"), target)[1].stops


def bf16_conv(path):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="bad")
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3, 1], [1.0] * 12)
    sizes = (("x", [1, 3, 8]), ("y", [1, 4, 8]))
    x, y = (helper.make_tensor_value_info(n, TensorProto.BFLOAT16, s) for n, s in sizes)
    graph = helper.make_graph([node], "g", [x], [y], [weights])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.mark.parametrize("asked", [True, False])
def test_bfloat16_on_onnx_runtime(tmp_path, monkeypatch, asked):
    if not asked:
        monkeypatch.setattr(checking, "find_spec", lambda name: None)
    verdict, finding = check(bf16_conv(tmp_path / "m.onnx"), "ort")
    assert verdict.stops
    assert (finding.node, finding.operator) == ("bad", "Conv")
    assert "bfloat16 has no kernel on a CPU" in finding.what


@pytest.mark.parametrize("target", ["ort", "openvino", "rtx"])
def test_an_operator_that_nobody_knows(tmp_path, target):
    pytest.importorskip(checking.TARGETS[target][1])
    verdict, finding = check(relu(tmp_path / "m.onnx", (1, 8), op="Foo"), target)
    assert verdict.stops
    assert "Foo" in finding.operator + finding.what


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """One attention of head size 32, in float32, and with a float32 island in float16."""
    made = NonLocalBlock(64, dims=2, subsample=2, zero_init=False)
    folder = tmp_path_factory.mktemp("block")
    for precision in ("fp32", "fp16"):
        path = folder / f"{precision}.onnx"
        export_onnx(made, path, precision=precision, shape=(2, 64, 6, 8))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["rtx", "trt10", "trt11", "ort", "openvino"])
def test_float32_scores_are_fused_by_openvino_only(block, target, precision):
    if module := checking.TARGETS[target][1]:
        pytest.importorskip(module)
    verdict, finding = check(block / f"{precision}.onnx", target)
    assert not verdict.stops
    assert not finding.stops
    assert finding.operator == "attention"
    wanted = "one kernel" if target == "openvino" else "not fused"
    assert f"head size 32, 48 x 12 float32 scores: {wanted}" in finding.what
    assert bool(finding.remedy) == (target in ("rtx", "trt10", "trt11"))


def test_islands_are_no_remedy_for_a_detector(block, tmp_path):
    file = onnx.load(block / "fp16.onnx")
    pre = Preprocessing(task="detection", frames=0)
    told = replace(spec_of(file), preprocessing=pre).to_json()
    next(entry for entry in file.metadata_props if entry.key == KEY).value = told
    onnx.save(file, tmp_path / "detector.onnx")
    _, finding = check(tmp_path / "detector.onnx", "trt10")
    assert (finding.operator, finding.remedy) == ("attention", "")


@pytest.mark.parametrize(("head", "verdict"), [(64, "fusable"), (512, "kernels end at 256")])
def test_float16_scores_are_fusable_up_to_a_head_size(tmp_path, head, verdict):
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Mul", ["s", "c"], ["t"]),
        helper.make_node("Softmax", ["t"], ["w"], axis=-1, name="weights"),
        helper.make_node("MatMul", ["w", "v"], ["y"]),
    ]
    sizes = {"q": [2, 9, head], "k": [2, head, 4], "v": [2, 4, head], "y": [2, 9, head]}
    values = [helper.make_tensor_value_info(name, HALF, size) for name, size in sizes.items()]
    weights = [numpy_helper.from_array(np.float16([0.125]), "c")]
    graph = helper.make_graph(nodes, "g", values[:3], values[3:], weights)
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "m.onnx")
    (_, finding) = check(tmp_path / "m.onnx", "trt11")
    assert (finding.node, finding.operator) == ("weights", "attention")
    assert f"9 x 4 float16 scores: {verdict}" in finding.what.replace("not fused, ", "")


def test_program_prints_a_table_and_exits_with_1(tmp_path, capsys, block):
    argv = ["check", str(top_k(tmp_path / "m.onnx")), "--target", "trt10"]
    with pytest.raises(SystemExit) as exit_:
        program.main(argv)
    assert exit_.value.code == 1
    output = capsys.readouterr().out
    assert "m.onnx does not build, by what is known of TensorRT 10" in output
    assert "│ bad  │ TopK     │ yes   │ K is over 3840 │" in output
    program.main(["check", str(block / "fp32.onnx"), "--target", "trt10"])
    assert "fp32.onnx builds" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown target 'trt12'; did you mean"):
        program.main(["check", str(block / "fp32.onnx"), "--target", "trt12"])
