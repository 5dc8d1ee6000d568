"""Video networks in 2D against themselves in 3D."""

from itertools import product

import onnx
import pytest
import torch
from test_export import FORMS, checkpoint, clips
from tiers import marked
from torch import nn

from nlzoo import insert_non_local
from nlzoo.export.graph import Graph
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import compare
from nlzoo.export.runtime import Runner
from nlzoo.networks.video import GEOMETRIES, KINDS, VideoResNet


def network(kind, depth, geometry):
    """With norms that do something, and residual branches that are not 0."""
    torch.manual_seed(0)
    model = VideoResNet(kind, depth, geometry, width=8, num_classes=3).eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm3d):
                norm.running_mean.normal_(0, 0.1)
                norm.weight.uniform_(0.3, 0.8)
    return model


def difference(model, clip):
    with torch.no_grad():
        wanted = model(clip)
        return float((Graph(model)(clip) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("depth", marked([18, 50], [18]))
def test_every_network(kind, geometry, depth):
    assert difference(network(kind, depth, geometry), torch.randn(2, 3, 9, 71, 64)) < 1e-5


BLOCKS = (
    {"subsample": 2},
    {"subsample": 2, "subsample_first": False},
    {"subsample": (2, 1, 1), "extent": "time"},
    {"extent": "space", "norm": None},
    {"groups": 2, "subsample": None},
)


@pytest.mark.parametrize(("form", "block"), product(FORMS, BLOCKS))
def test_every_block(form, block):
    model = network("i3d", 50, "8x8")
    insert_non_local(model, "res3:1", form=form, zero_init=False, **block)
    assert difference(model.eval(), torch.randn(2, 3, 8, 64, 64)) < 1e-5


@pytest.mark.every
@pytest.mark.parametrize(("layout", "rank"), [("frames", 4), ("clip", 5)])
def test_files_hold_2d_or_3d_convolutions(tmp_path, layout, rank):
    source, model = checkpoint(tmp_path / "c.ckpt", "i3d_r50_nl1")
    export_onnx(source, tmp_path / "m.onnx", layout=layout)
    graph = onnx.load(tmp_path / "m.onnx").graph
    ranks = {w.name: len(w.dims) for w in graph.initializer}
    assert {ranks[node.input[1]] for node in graph.node if node.op_type == "Conv"} == {rank}
    assert "BatchNormalization" not in {node.op_type for node in graph.node} or layout == "clip"
    with Runner(tmp_path / "m.onnx") as runner:
        assert compare(model, runner, [clips(3)]).relative_l2 < 1e-5
