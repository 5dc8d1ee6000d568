"""A model repository against Triton's own schema."""

import json

import onnx
import pytest
from test_export import checkpoint, clips
from torch import nn

from nlzoo.export import __main__ as program
from nlzoo.export.onnx import export_onnx
from nlzoo.export.runtime import Runner
from nlzoo.export.triton import write_repository
from nlzoo.program import run

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
text_format = pytest.importorskip("google.protobuf.text_format")


def config(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.mark.every
def test_a_video_network(tmp_path, capsys):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "walk.onnx", raw=True)
    program.main(["triton", str(tmp_path / "walk.onnx"), str(tmp_path / "models")])
    assert "models/walk" in capsys.readouterr().out
    folder = tmp_path / "models" / "walk"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert (folder / "labels.txt").read_text() == "a\nb\n"
    found = config(folder)
    assert (found.name, found.backend, found.max_batch_size) == ("walk", "onnxruntime", 8)
    assert found.HasField("dynamic_batching")
    (one,), (out,) = found.input, found.output
    assert (one.name, schema.DataType.Name(one.data_type)) == ("input", "TYPE_UINT8")
    assert list(one.dims) == [3, 8, 64, 64]
    assert (out.name, list(out.dims), out.label_filename) == ("output", [2], "labels.txt")
    with Runner(folder / "1" / "model.onnx") as runner:
        assert runner(clips(2)).shape == (2, 2)
        assert json.loads(runner.spec.to_json())["model"] == "i3d_r18_nl1"


def test_fixed_batches_and_free_sizes(tmp_path):
    export_onnx(nn.ReLU(), tmp_path / "m.onnx", shape=(2, 3, 8, 9), dynamic=("height",))
    found = config(write_repository(tmp_path / "m.onnx", tmp_path))
    assert found.max_batch_size == 0
    assert not found.HasField("dynamic_batching")
    assert list(found.input[0].dims) == list(found.output[0].dims) == [2, 3, -1, 9]


def test_nothing_is_overwritten_or_left_half_done(tmp_path, capsys):
    export_onnx(nn.ReLU(), tmp_path / "m.onnx", shape=(2, 3, 8))
    write_repository(tmp_path / "m.onnx", tmp_path / "models")
    before = sorted(tmp_path.rglob("*"))
    for argv in (["m.onnx", "models"], ["none.onnx", "models"], ["m.onnx", "new", "--batch", "0"]):
        file, dest, *rest = argv
        with pytest.raises(SystemExit) as exit_:
            run(program.main, ["triton", str(tmp_path / file), str(tmp_path / dest), *rest])
        assert exit_.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert onnx.load(tmp_path / "models/m/1/model.onnx").graph.node
