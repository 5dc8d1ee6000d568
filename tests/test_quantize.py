"""int8 files: what is quantised, how, and what it costs."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from test_export import clips, lively
from tiers import marked
from torch import nn

from nlzoo import NonLocalBlock, fit
from nlzoo.data.encode import write_video
from nlzoo.data.sample import make_sample
from nlzoo.export import __main__ as program
from nlzoo.export.bench import top1
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import compare
from nlzoo.export.programs import labelled, validation
from nlzoo.export.quantize import block_convolutions, quantize
from nlzoo.export.runtime import Runner
from nlzoo.export.spec import read_onnx, spec_of
from nlzoo.export.tensorrt import build_engine
from nlzoo.program import run


@pytest.fixture(scope="module")
def files(exported, tmp_path_factory):
    """A network, its fp32 file, and that in int8."""
    _, model, path = exported
    made = tmp_path_factory.mktemp("quantize") / "q.onnx"
    quantize(path, made, (clips(2, seed) for seed in range(4)))
    return model, path, made


def test_every_convolution_outside_the_block_and_nothing_else(files):
    """In the form that TensorRT takes: symmetric, weights by channel, float biases."""
    graph = onnx.load(files[2]).graph
    own = block_convolutions(onnx.load(files[1]).graph)
    assert len(own) == 4  # theta, phi, g, W_z
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for conv in (node for node in graph.node if node.op_type == "Conv" and node.name not in own):
        x, weight = (makers[name] for name in conv.input[:2])
        assert (x.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        values, scales, zeros = (weights[name] for name in weight.input)
        assert values.dtype == zeros.dtype == "int8"
        assert scales.shape == values.shape[:1]
        assert not zeros.any()
        assert weights[x.input[2]] == 0
        assert all(weights[name].dtype == "float32" for name in conv.input[2:])
    for node in graph.node:
        if node.op_type in ("MatMul", "Softmax", "Gemm") or node.name in own:
            near = {makers[name].op_type for name in node.input if name in makers}
            assert "DequantizeLinear" not in near


def test_a_file_says_that_it_is_int8(files):
    before, after = (spec_of(read_onnx(path)) for path in files[1:])
    assert after == replace(before, precision="int8")
    assert [entry.key for entry in read_onnx(files[2]).metadata_props] == ["nlzoo"]


def test_scores_stay_close(files):
    model, _, path = files
    assert path.stat().st_size < 0.6 * files[1].stat().st_size
    with Runner(path) as runner:
        found = compare(model, runner, [clips(4, seed=9)])
    assert 0 < found.relative_l2 < 0.2


def test_tensorrt_takes_it(files, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    built = build_engine(files[2], tmp_path / "q.engine", capabilities=["8.9"])
    assert built["precisions"]["INT8"] > 0


@pytest.mark.parametrize(
    "form", marked(["embedded_gaussian", "concatenation"], slow=["concatenation"])
)
def test_blocks_have_no_convolution(tmp_path, form):
    block = NonLocalBlock(8, form=form, subsample=2, zero_init=False)
    export_onnx(block, tmp_path / "m.onnx", shape=(2, 8, 3, 6, 8))
    assert "Conv" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


class Textbook(nn.Module):
    """A convolution, and a block as others write it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3, padding=1)
        self.theta, self.phi, self.g = (nn.Conv3d(8, 4, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv3d(4, 8, 1), nn.BatchNorm3d(8))
        self.pool = nn.MaxPool3d((1, 2, 2))

    def forward(self, x):
        x = self.stem(x).relu()
        theta = self.theta(x).flatten(2).transpose(1, 2)
        phi = self.pool(self.phi(x)).flatten(2)
        g = self.pool(self.g(x)).flatten(2).transpose(1, 2)
        y = (theta @ phi * 0.5).softmax(-1) @ g
        return x + self.out(y.transpose(1, 2).reshape(x.shape[0], 4, *x.shape[2:]))


def test_blocks_of_others_stay_float32(tmp_path):
    torch.manual_seed(0)
    export_onnx(Textbook(), tmp_path / "m.onnx", shape=(2, 3, 4, 6, 8))
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", [torch.randn(2, 3, 4, 6, 8)])
    graph = onnx.load(tmp_path / "q.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    quantised = [conv for conv in convs if conv.input[1] in makers]
    assert len(convs) == 5
    (stem,) = quantised
    assert stem.input[2].endswith("stem.bias")


def test_raw_files(tmp_path):
    model = lively("resnet8_cifar10")
    export_onnx(model, tmp_path / "m.onnx", raw=True)
    pixels = clips(2, side=32)[:, :, 0]
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", [pixels])
    with Runner(tmp_path / "q.onnx") as runner:
        assert compare(model, runner, [pixels]).relative_l2 < 0.2


def test_wrong_files_and_clips_leave_nothing(files, tmp_path):
    shape = (2, 8, 3, 6, 8)
    export_onnx(NonLocalBlock(8), tmp_path / "half.onnx", precision="fp16", shape=shape)
    foreign = onnx.load(files[1])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for path, given, message in (
        (tmp_path / "half.onnx", [clips(1)], "half.onnx is fp16: int8 is made from an fp32 file"),
        (files[2], [clips(1)], "q.onnx is int8: int8 is made from an fp32 file"),
        (tmp_path / "foreign.onnx", [clips(1)], "foreign.onnx is no file of nlzoo.export"),
        (files[1], [], "no clips to calibrate on"),
        (files[1], [clips(1, side=32)], r"wanted \(batch, 3, 8, 64, 64\)"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(path, tmp_path / "new" / "q.onnx", given)
    assert not [*(tmp_path / "new").glob("*"), *(tmp_path / "new").glob(".*")]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Class folders of 6 + 4 videos, the second split with one that is damaged beyond use."""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 6), ("val", 4)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            film = torch.full((12, 64, 80, 3), 20 * i + 60, dtype=torch.uint8)
            write_video(path, film, 8)
    (root / "val" / "b" / "broken.mp4").write_bytes(b"not a video")
    return root


def test_program(files, videos, tmp_path, capsys):
    output = str(tmp_path / "q.onnx")
    options = ["--output", output, "--data", str(videos), "--clips", "5"]
    program.main(["quantize", str(files[1]), *options])
    said = capsys.readouterr().out
    assert "q.onnx: " in said
    assert "on 5 validation videos, 1 unreadable" in said
    with Runner(output) as runner:
        assert runner.spec.precision == "int8"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--data", "{videos}", "--val", "test"], "test"),
        (["--data", "{videos}", "--clips", "0"], "no clips to calibrate on"),
    ],
)
def test_program_refuses_in_one_line(files, videos, tmp_path, capsys, wish, message):
    wish = [word.format(videos=videos) for word in wish]
    with pytest.raises(SystemExit) as exit_:
        run(program.main, ["quantize", str(files[1]), "--output", str(tmp_path / "q.onnx"), *wish])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sample_run(tmp_path, monkeypatch):
    """What the README's first command leaves: where NLZOO_SAMPLE_RUN says, or trained here."""
    if there := os.environ.get("NLZOO_SAMPLE_RUN"):
        return Path(there)
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    options = ["--run", str(tmp_path / "run"), "--trainer.max_epochs", "2"]
    fit.main(["--recipe", "i3d_nl_kinetics", "--sample", *options])
    return tmp_path / "run"


@pytest.mark.slow
def test_a_trained_network(sample_run, tmp_path):
    """fp32 files give every validation clip the network's class; int8 costs 2 points at most."""
    source = str(sample_run / "checkpoints" / "best.ckpt")
    export_onnx(source, tmp_path / "m.onnx")
    with Runner(source) as network, Runner(tmp_path / "m.onnx") as runner:
        data = labelled(str(make_sample()), network, 8, "train", "val")
        given = (batch[0] for batch in islice(data.train_dataloader(), 8))
        quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", given)
        accuracy = top1(network, validation(data))
        assert accuracy > 0.9
        seen = (clip for clip, *_ in validation(data))
        assert compare(network, runner, seen).top1_agreement == 1
    with Runner(tmp_path / "q.onnx") as runner:
        assert abs(top1(runner, validation(data)) - accuracy) <= 0.02
