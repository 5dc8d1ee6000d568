"""Exported files against the networks that they came from."""

import json

import onnx
import pytest
import torch
from nlzoo.export import __main__ as program
from nlzoo.export.graph import Graph
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import compare
from nlzoo.export.runtime import Runner
from nlzoo.export.spec import KEY, Spec
from onnx import numpy_helper

from nlzoo import create_model
from nlzoo.preprocessing import Preprocessing
from nlzoo.program import run
from nlzoo.tasks.video import VideoClassification

SEEN = Preprocessing(frames=8, stride=1, crop=64, test_size=64, test_crop=64, classes=("a", "b"))


def checkpoint(path, model="i3d_r18_nl1", **options):
    """A small network, whose blocks do something."""
    torch.manual_seed(0)
    options.setdefault("arch", {"width": 8, "geometry": "8x8", "zero_init_residual": False})
    options["non_local"] = {"zero_init": False, **options.get("non_local", {})}
    task = VideoClassification(model, preprocessing=SEEN.to_dict(), **options)
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    torch.save(content, path)
    return str(path), task.model.eval()


def clips(batch, seed=0, side=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 8, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
def test_every_form(tmp_path, form, precision):
    source, model = checkpoint(tmp_path / "c.ckpt", non_local={"form": form})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parity = export_onnx(source, tmp_path / "m.onnx", precision=precision)
    assert parity.top1_agreement == 1
    runner = Runner(tmp_path / "m.onnx", threads=1)
    for batch in (1, 5, 8):
        result = compare(model, runner, [clips(batch, batch)])
        assert result.relative_l2 <= {"fp32": 1e-5, "fp16": 5e-3}[precision]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_attention_scores_stay_float32_in_a_16_bit_file(tmp_path):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx", precision="fp16")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx")).graph
    types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    assert types[softmax.input[0]] == types[softmax.output[0]] == onnx.TensorProto.FLOAT
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert {types[node.output[0]] for node in convs} == {onnx.TensorProto.FLOAT16}


def test_logits_beyond_float16_survive(tmp_path):
    """Scores of 1e5 are not numbers in float16: the product has to be taken in float32."""
    model = create_model("i3d_r18_nl1", width=8, geometry="8x8", num_classes=2).eval()
    block = model.res4[0].non_local
    with torch.no_grad():
        for conv in (block.theta, block.phi):
            conv.weight.mul_(300)
    graph = Graph(model, "fp16")
    seen = []
    graph.model.res4[0].non_local.register_forward_hook(lambda m, i, o: seen.append(o))
    assert graph(clips(1)).isfinite().all()
    assert seen[0].isfinite().all()


def test_sizes_not_seen_at_export(tmp_path):
    source, model = checkpoint(tmp_path / "c.ckpt")
    axes = ("batch", "frames", "height", "width")
    export_onnx(source, tmp_path / "m.onnx", dynamic=axes, size=224, raw=True)
    runner = Runner(tmp_path / "m.onnx", threads=1)
    for shape in ((1, 3, 9, 231, 260), (2, 3, 16, 224, 224)):
        clip = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            wanted = model(clip).log_softmax(1)
        torch.testing.assert_close(runner(clip), wanted, rtol=1e-4, atol=1e-5)


def test_raw_files_normalise_themselves(tmp_path):
    source, model = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx", raw=True)
    runner = Runner(tmp_path / "m.onnx")
    assert compare(model, runner, [clips(3)]).relative_l2 < 1e-5
    with pytest.raises(ValueError, match=r"dtype torch.float32, wanted torch.uint8"):
        runner(clips(1).float())


def test_a_file_says_all_that_is_needed(tmp_path):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx")
    spec = Runner(tmp_path / "m.onnx").spec
    assert spec.preprocessing == SEEN
    assert (spec.model, spec.precision, spec.shape) == ("i3d_r18_nl1", "fp32", (2, 3, 8, 64, 64))
    assert Spec.from_json(spec.to_json()) == spec
    assert spec.wanted() == "(batch, 3, 8, 64, 64)"


@pytest.mark.parametrize("part", ["Conv", "channels", "scale"])
def test_sabotage_is_found(tmp_path, part):
    source, model = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx")
    file = onnx.load(tmp_path / "m.onnx")
    weights = {w.name: w for w in file.graph.initializer}
    (softmax,) = (n for n in file.graph.node if n.op_type == "Softmax")
    if part == "scale":  # of the logits
        node = next(n for n in file.graph.node if softmax.input[0] in n.output)
        name = next(i for i in node.input if i in weights)
        array = numpy_helper.to_array(weights[name]) * 4
    else:
        name = next(n for n in file.graph.node if n.op_type == "Conv").input[1]
        array = numpy_helper.to_array(weights[name]).copy()
        if part == "Conv":
            array[0, 0, 0, 0, 0] += 0.5
        else:
            array = array[:, ::-1].copy()
    weights[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(file, tmp_path / "bad.onnx")
    parity = compare(model, Runner(tmp_path / "bad.onnx"), [clips(2)])
    with pytest.raises(ValueError, match="out of tolerance"):
        parity.check(1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "opset 16: give 17 to 23"),
        ({"precision": "fp61"}, "unknown precision 'fp61'; did you mean 'fp16'"),
        ({"dynamic": ["hieght"]}, "unknown axis 'hieght'; did you mean 'height'"),
        ({"dynamic": ["height"]}, "size 64: dynamic heights and widths start at 224 pixels"),
        ({"source": "i3d_r50_nl6"}, "unknown model or checkpoint 'i3d_r50_nl6'; did you mean"),
    ],
)
def test_wrong_wishes_leave_no_file(tmp_path, options, message):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match=message):
        export_onnx(**{"source": source, "path": tmp_path / "m.onnx"} | options)
    assert [p.name for p in tmp_path.iterdir()] == ["c.ckpt"]


def test_wrong_files_and_clips(tmp_path, capsys):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 32, 32\), wanted \(batch, 3, 8, 64, 64\)"):
        Runner(tmp_path / "m.onnx")(clips(1, side=32))
    (tmp_path / "text.onnx").write_text("hello")
    file = onnx.load(tmp_path / "m.onnx")
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "foreign.onnx")
    for name in ("none.onnx", "text.onnx", "foreign.onnx"):
        with pytest.raises(SystemExit) as exit_:
            run(program.main, ["run", str(tmp_path / name), "a.mp4"])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1


def test_program_from_checkpoint_to_answer(tmp_path, capsys):
    from nlzoo.data.decode import write_video

    source, model = checkpoint(tmp_path / "c.ckpt")
    write_video(tmp_path / "v.mp4", torch.randint(0, 256, (20, 64, 80, 3), dtype=torch.uint8), 10)
    program.main(["onnx", source, "--output", str(tmp_path / "m.onnx")])
    assert "top-1 agreement 100.0%" in capsys.readouterr().out
    program.main(["run", str(tmp_path / "m.onnx"), str(tmp_path / "v.mp4"), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    from nlzoo.watch import score_video

    scores, _ = score_video(model, tmp_path / "v.mp4", 10, 1)
    for top in answer["top"]:
        assert top["score"] == pytest.approx(scores["ab".index(top["class"])].item(), abs=1e-5)


def test_key_is_in_the_metadata(tmp_path):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx", opset=20)
    file = onnx.load(tmp_path / "m.onnx")
    assert [o.version for o in file.opset_import if o.domain == ""] == [20]
    assert KEY in {p.key for p in file.metadata_props}
