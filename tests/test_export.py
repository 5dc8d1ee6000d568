"""Exported files against the networks that they came from."""

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import onnx
import pytest
import torch
import torch.nn.functional as F
from tiers import marked
from torch import nn

from nlzoo import NonLocalBlock, create_model, list_models
from nlzoo.export.graph import Graph, largest_logit
from nlzoo.export.onnx import _check_axes, _write, export_onnx
from nlzoo.export.parity import compare
from nlzoo.export.programs import labelled
from nlzoo.export.runtime import Runner
from nlzoo.export.source import load_network
from nlzoo.export.spec import AXES, KEY, Spec
from nlzoo.models import save_model
from nlzoo.preprocessing import Preprocessing
from nlzoo.program import one_line
from nlzoo.registry import MODELS
from nlzoo.tasks.classification import Classification

FORMS = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
POOLS = ["before", "none", "after"]
MARKS = {
    ("embedded_gaussian", 1, "none"): (),
    ("gaussian", 2, "before"): pytest.mark.slow,
    ("dot_product", 3, "after"): pytest.mark.slow,
    ("concatenation", 2, "after"): pytest.mark.slow,
}
PROFILE = ((1, -1), (2, 0), (8, 5))  # batch, and what is added to each size
SEEN = Preprocessing(frames=8, stride=1, crop=64, test_size=64, test_crop=64, classes=("a", "b"))


def checkpoint(path, model="i3d_r18_nl1", seen=SEEN, **options):
    """A small network in which every branch and block does something, none of them too much.

    (With gammas of 1 features grow from block to block, and scores until a softmax is a choice of
    one key, which any rounding can change.)
    """
    torch.manual_seed(0)
    options.setdefault("arch", {"width": 8, "geometry": "8x8"})
    task = Classification(model, preprocessing=seen.to_dict(), **options)
    with torch.no_grad():
        for norm in task.model.modules():
            if isinstance(norm, nn.BatchNorm3d) and not norm.weight.any():
                norm.weight.fill_(0.3)
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    torch.save(content, path)
    return str(path), task.model.eval()


def clips(batch, seed=0, side=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 8, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("form", marked(FORMS, slow=["concatenation"]))
def test_every_form(tmp_path, form):
    precision = "fp16" if form in ("gaussian", "concatenation") else "fp32"
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
    model = lively("resnet8_cifar10", "layer3:0")
    export_onnx(model, tmp_path / "m.onnx", precision="fp16")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx")).graph
    types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    assert types[softmax.input[0]] == types[softmax.output[0]] == onnx.TensorProto.FLOAT
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert {types[node.output[0]] for node in convs} == {onnx.TensorProto.FLOAT16}


def large_scores():
    """A network whose block has scores of more than 1e5, which float16 does not have."""
    torch.manual_seed(0)
    model = create_model("i3d_r18_nl1", width=8, geometry="8x8", num_classes=2).eval()
    with torch.no_grad():
        for conv in (model.res4[0].non_local.theta, model.res4[0].non_local.phi):
            conv.weight.mul_(300)
    return model


OF_MANY = replace(SEEN, multilabel=True, pool="max")


@pytest.mark.parametrize("head", ["softmax", "logits"])
def test_networks_of_many_labels_have_sigmoids(tmp_path, head):
    arch = {"width": 8, "geometry": "8x8", "head": head}
    _, model = checkpoint(tmp_path / "c.ckpt", seen=OF_MANY, arch=arch)
    graph = Graph(model, any_size=True)
    for side in (224, 290):
        with torch.no_grad():
            wanted = model(clips(1, side=side)).sigmoid()
            found = OF_MANY.scores(graph(clips(1, side=side)))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.every
def test_files_of_many_labels(tmp_path):
    source, model = checkpoint(tmp_path / "c.ckpt", seen=OF_MANY)
    axes = ("height", "width")
    export_onnx(source, tmp_path / "m.onnx", dynamic=axes, shape=(1, 3, 8, 224, 224))
    with Runner(tmp_path / "m.onnx", threads=1) as runner:
        assert (runner.preprocessing.multilabel, runner.preprocessing.pool) == (True, "max")
        with torch.no_grad():
            wanted = model(clips(1, side=290)).sigmoid()
        found = runner.preprocessing.scores(runner(clips(1, side=290)))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_no_top_1_of_many_labels():
    runner = SimpleNamespace(preprocessing=replace(SEEN, multilabel=True))
    with pytest.raises(ValueError, match="top-1 is of one: leave --data out"):
        labelled("videos", runner, 1, "", "val")


@pytest.mark.parametrize("islands", [True, False])
def test_scores_beyond_float16_need_islands(islands):
    graph, seen = Graph(large_scores(), islands=islands).narrow("fp16", clips(1)), []
    graph.model.res4[0].non_local.register_forward_hook(lambda m, i, o: seen.append(o))
    graph(clips(1))
    assert bool(seen[0].isfinite().all()) == islands


@pytest.mark.every
def test_sizes_not_seen_at_export(tmp_path):
    """Of pixels: the file normalises them itself."""
    source, model = checkpoint(tmp_path / "c.ckpt")
    axes = ("batch", "frames", "height", "width")
    export_onnx(source, tmp_path / "m.onnx", dynamic=axes, shape=(2, 3, 8, 224, 224), raw=True)
    runner = Runner(tmp_path / "m.onnx", threads=1)
    with pytest.raises(ValueError, match="clips of any size have sides of 224 pixels or more"):
        runner(clips(1, side=192))
    with pytest.raises(ValueError, match=r"dtype torch.float32, wanted torch.uint8"):
        runner(clips(1, side=224).float())
    assert compare(model, runner, [clips(3, side=224)], True).relative_l2 < 1e-5
    for shape in ((1, 3, 9, 231, 260), (2, 3, 16, 224, 224)):
        clip = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            wanted = model(clip).log_softmax(1)
        torch.testing.assert_close(runner(clip), wanted, rtol=1e-4, atol=1e-5)


PAIRS = [  # each form, number of dimensions and pooling with each other
    (form, dims, POOLS[(i + dims) % 3]) for i, form in enumerate(FORMS) for dims in (1, 2, 3)
]


@pytest.mark.parametrize(
    ("form", "dims", "pool"),
    [pytest.param(*case, marks=MARKS.get(case, pytest.mark.every)) for case in PAIRS],
)
def test_blocks_alone(tmp_path, form, dims, pool):
    """Every axis is dynamic; odd sizes come, too."""
    block = NonLocalBlock(
        8,
        dims=dims,
        form=form,
        subsample=None if pool == "none" else 2,
        subsample_first=pool == "before",
        zero_init=False,
    ).eval()
    shape = (2, 8, *(6, 10, 12)[3 - dims :])
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        path = tmp_path / f"{precision}.onnx"
        axes = tuple(AXES[dims + 2])
        parity = export_onnx(block, path, dynamic=axes, precision=precision, shape=shape)
        assert parity.relative_l2 <= tolerance
        for batch in (1, 8):
            other = torch.randn(batch, 8, *(s + 5 for s in shape[2:]))
            assert compare(block, Runner(path), [other]).relative_l2 <= tolerance
        sizes = ["x".join(map(str, (b, 8, *(s + d for s in shape[2:])))) for b, d in PROFILE]
        assert_engine(path, [f"input={':'.join(sizes)}"])


def assert_engine(path, profiles=()):
    """It builds for three cards, with no GPU, where TensorRT-RTX is installed.

    It is as large as the file, a tenth, and the cards' kernels: as many in the published width as
    here, where they outweigh the weights, so they are counted by node (10 to 25 kB).
    """
    if not find_spec("tensorrt_rtx"):
        return
    from nlzoo.export.tensorrt import build_engine

    engine = path.with_suffix(".engine")
    build_engine(path, engine, profiles=profiles)
    size, nodes = path.stat().st_size, len(onnx.load(path).graph.node)
    assert size <= engine.stat().st_size <= 1.1 * size + 1_000_000 + 30_000 * nodes


class Silent(nn.Module):
    """Networks that the exporter takes without a word, and whose files are wrong elsewhere."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(3 * 4 * 12 * 16, 2)

    def forward(self, x):
        if self.kind == "int batch":
            return x.reshape(int(x.shape[0]), -1) * 1.0
        if self.kind == "int frames":
            return x.reshape(-1, int(x.shape[2])) * 1.0
        if self.kind == "branch":
            return x * 2.0 if x.shape[3] > 8 else x * 3.0
        if self.kind == "branch on batch":
            return x * 2.0 if x.shape[0] > 1 else x * 3.0
        if self.kind == "linear":
            return self.linear(x.flatten(1))
        if self.kind == "window":
            return F.avg_pool3d(x, (4, 6, 8)).flatten(1)
        if self.kind == "stride":
            return x[..., ::2] + x[..., 1::2]
        return x @ x.mT.contiguous() @ x + x @ x  # "square"


EXAMPLE = (2, 3, 4, 12, 16)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("int batch", "are not free"),
        ("int frames", "are not free"),
        ("branch", "out of tolerance"),
        ("branch on batch", "out of tolerance"),
        ("linear", "itself refuses an input"),
        ("window", "the number of outputs, .*, depends on the input's size"),
        ("stride", "itself refuses an input"),
        ("square", "itself refuses an input"),
    ],
)
def test_what_the_exporter_does_not_say_is_found(tmp_path, kind, message):
    shape = (2, 3, 4, 16, 16) if kind == "square" else EXAMPLE
    axes = ("batch", "frames", "height", "width")
    with pytest.raises(ValueError, match=message):
        export_onnx(Silent(kind), tmp_path / "m.onnx", shape=shape, dynamic=axes)
    assert not list(tmp_path.iterdir())


def test_axes_that_the_exporter_merges_are_found(tmp_path):
    network, spec = load_network(Silent("square"), (2, 3, 4, 16, 16))
    _write(Graph(network), spec, 18, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"are not free; the network uses .* two as if"):
        _check_axes(tmp_path / "m.onnx", spec)


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Picky(nn.Module):
    def forward(self, x):
        assert x.shape[0] < 3
        return x


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branch(), "Branch cannot be exported: "),
        (Picky(), "Picky itself refuses an input .* not free in batch: assert"),
        (Pair(), "the output is a tuple: a network of one tensor is needed"),
    ],
)
def test_networks_that_cannot_be_exported_say_why_in_a_line(tmp_path, network, message):
    with pytest.raises(ValueError, match=message) as error:
        export_onnx(network, tmp_path / "m.onnx", shape=(2, 3, 8))
    assert len(one_line(error.value)) < 400
    assert not list(tmp_path.iterdir())


class Norms(nn.Module):
    """Norms that are not merged: after another layer, without statistics, of a shared output."""

    def __init__(self):
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 4, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.last = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.conv(self.norms[0](self.up(x)))
        return self.last(self.norms[1](x) + x)


def test_norms_are_merged_only_where_that_changes_nothing(tmp_path):
    network = Norms()
    with torch.no_grad():
        for norm in network.norms:
            norm.running_mean.uniform_(-1, 1)
    path = tmp_path / "m.onnx"
    assert export_onnx(network, path, shape=(2, 3, 8, 9), precision="fp16").relative_l2 < 5e-3
    assert network.training  # it is a copy that is exported


@pytest.mark.slow
def test_clips_of_another_size_than_trained_for_can_be_run(tmp_path):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    export_onnx(source, tmp_path / "m.onnx", shape=(1, 3, 6, 96, 96), dynamic=())
    with Runner(tmp_path / "m.onnx") as runner:
        pre = runner.preprocessing
        assert (pre.frames, pre.test_crop, pre.test_size) == (6, 96, 96)
        assert runner.spec.wanted() == "(1, 3, 6, 96, 96)"
    with pytest.raises(ValueError, match="an input of 96 x 64 pixels: give a square"):
        export_onnx(source, tmp_path / "n.onnx", shape=(1, 3, 8, 96, 64))
    export_onnx("resnet8_cifar10", tmp_path / "o.onnx", dynamic=())
    assert Runner(tmp_path / "o.onnx").spec.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("at", marked([0, 2], [0]))
def test_examples_of_size_one_stay_dynamic(tmp_path, at):
    shape = [1 if i == at else s for i, s in enumerate((2, 8, 4, 6, 10))]
    block = NonLocalBlock(8, zero_init=False).eval()
    axes = ("batch", "frames", "height", "width")
    assert export_onnx(block, tmp_path / "m.onnx", shape=shape, dynamic=axes).relative_l2 <= 1e-5
    other = torch.randn(3, 8, 5, 7, 9)
    assert compare(block, Runner(tmp_path / "m.onnx"), [other]).relative_l2 <= 1e-5


@pytest.mark.every
def test_bfloat16_files_are_checked_in_float32(tmp_path):
    """With weights that bfloat16 has, widening changes nothing at all."""
    source, model = checkpoint(tmp_path / "c.ckpt")
    assert 1e-4 < export_onnx(source, tmp_path / "m.onnx", precision="bf16").relative_l2 < 5e-2
    weights = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert {w.data_type for w in weights if len(w.dims) == 4} == {onnx.TensorProto.BFLOAT16}
    with Runner(tmp_path / "m.onnx") as runner:
        assert compare(model, runner, [clips(1)]).relative_l2 < 5e-2
    with pytest.raises(ValueError, match="there are none in fp32"):
        export_onnx(source, tmp_path / "n.onnx", islands=False)
    block = NonLocalBlock(8, norm=None, zero_init=False).bfloat16().float()
    parity = export_onnx(block, tmp_path / "b.onnx", precision="bf16", shape=(2, 8, 2, 5, 6))
    assert parity.relative_l2 <= 1e-6


@pytest.mark.slow
def test_islands_go_only_where_scores_are_small(tmp_path):
    small = lively("resnet8_cifar10", "layer3:0")
    export_onnx(small, tmp_path / "m.onnx", precision="fp16", islands=False)
    file = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx"))
    types = {v.name: v.type.tensor_type.elem_type for v in file.graph.value_info}
    (softmax,) = (node for node in file.graph.node if node.op_type == "Softmax")
    assert types[softmax.input[0]] == onnx.TensorProto.FLOAT16
    model = large_scores()
    assert largest_logit(model, [clips(1)]) > 1e5
    with pytest.raises(ValueError, match=r"islands off: scores reach .*, more than 80"):
        export_onnx(model, tmp_path / "n.onnx", precision="fp16", islands=False)
    assert not (tmp_path / "n.onnx").exists()


def test_networks_of_users_by_name(tmp_path):
    source = "nlzoo.blocks:NonLocalBlock"
    with pytest.raises(ValueError, match="nosuch"):
        export_onnx("nlzoo.blocks:nosuch", tmp_path / "m.onnx", shape=(1, 8, 4))
    with pytest.raises(ValueError, match="channels"):
        export_onnx(source, tmp_path / "m.onnx", shape=(1, 8, 4))
    with pytest.raises(ValueError, match="give 3 to 5 numbers"):
        export_onnx("torch.nn:ReLU", tmp_path / "m.onnx")
    assert export_onnx("torch.nn:ReLU", tmp_path / "m.onnx", shape=(2, 8, 4)).max_abs == 0


def test_a_file_says_all_that_is_needed(exported):
    spec = Runner(exported[2]).spec
    assert spec.preprocessing == SEEN
    assert (spec.model, spec.precision, spec.shape) == ("i3d_r18_nl1", "fp32", (2, 3, 8, 64, 64))
    assert Spec.from_json(spec.to_json()) == spec
    assert spec.wanted() == "(batch, 3, 8, 64, 64)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "opset 16 with fp32: give 17 to 23"),
        ({"opset": 18, "precision": "bf16"}, "opset 18 with bf16: give 22 to 23"),
        ({"precision": "fp61"}, "unknown precision 'fp61'; did you mean 'fp16'"),
        ({"dynamic": ["hieght"]}, "unknown axis 'hieght'; did you mean 'height'"),
        ({"dynamic": ["height"]}, "clips of any size have sides of 224 pixels or more"),
        ({"path": "m.txt"}, "an ONNX file is called NAME.onnx"),
        ({"source": "i3d_r50_nl6"}, "no checkpoint or model 'i3d_r50_nl6'; did you mean"),
        ({"source": "timm/resnet51"}, "timm has no model 'resnet51'; did you mean"),
        ({"source": "c2d/resnet51"}, "timm has no model 'resnet51'; did you mean"),
        ({"source": "resnet8_cifar10", "shape": (2, 3, 8, 32, 32)}, r"give \(batch, 3, height, wi"),
        ({"source": "c2d/resnet18", "shape": (2, 3, 32, 32)}, r"give \(batch, 3, frames, height"),
        ({"source": "resnet8_cifar10", "shape": (2, 3, 32, 40)}, "of 32 x 40 pixels: give a squa"),
        (
            {"source": "timm/tf_efficientnet_lite0", "dynamic": ["height"]},
            r"leave height and width fixed, they decide its padding \(Conv2dSame conv_stem\)",
        ),
    ],
)
def test_wrong_wishes_leave_no_file(tmp_path, options, message):
    source, _ = checkpoint(tmp_path / "c.ckpt")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_onnx(**{"source": source, "path": tmp_path / "m.onnx"} | options)
    assert [p.name for p in tmp_path.iterdir()] == ["c.ckpt"]


def test_key_is_in_the_metadata(tmp_path):
    block = NonLocalBlock(8, dims=1)
    export_onnx(block, tmp_path / "m.onnx", opset=20, shape=(2, 8, 4))
    file = onnx.load(tmp_path / "m.onnx")
    assert [o.version for o in file.opset_import if o.domain == ""] == [20]
    assert KEY in {p.key for p in file.metadata_props}


# The others have no node that these and CLIPS lack, but for the second path of SlowFast.
VIDEOS = ["i3d_r18", "slow_r18_nl10"]


@pytest.mark.parametrize("name", marked(list_models("*_r[0-9]*"), slow=VIDEOS))
def test_every_video_network(tmp_path, name):
    source, _ = checkpoint(tmp_path / "c.ckpt", name, arch={"width": 8})
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        path = tmp_path / f"{precision}.onnx"
        assert export_onnx(source, path, precision=precision).relative_l2 <= tolerance
        assert_engine(path)


IMAGES = {  # name: shape
    **dict.fromkeys(["resnet8_cifar10", "resnet56_cifar10_nl2"], (2, 3, 32, 32)),
    **dict.fromkeys(["resnet18_nl5", "resnet50_nl5"], (2, 3, 64, 64)),
    "timm/convnext_atto": (2, 3, 64, 64),
}
CLIPS = {
    "c2d/resnet18": (2, 3, 4, 64, 64),
    "tsm/resnet18": (2, 3, 4, 64, 64),
    "tsm/tf_efficientnet_lite0": (2, 3, 4, 64, 64),
}
SHAPES = IMAGES | CLIPS


def lively(name, places=None):
    """Blocks and branches do something, none of them too much, as in `checkpoint`."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, non_local=places).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.constant_(norm.weight, 0.3)
    return model


@pytest.mark.parametrize("name", marked(SHAPES, slow=["tsm/tf_efficientnet_lite0"]))
def test_every_kind_of_image_network(tmp_path, name):
    shape = SHAPES[name]
    model = lively(name, None if name in MODELS else "nl5")
    path = tmp_path / "m.onnx"
    assert export_onnx(model, path, shape=shape).relative_l2 <= 1e-5
    assert_engine(path)
    if "resnet" in name:  # depthwise convolutions of random weights are worse in 16 bits
        assert export_onnx(model, path, shape=shape, precision="fp16").relative_l2 <= 5e-3


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("resnet8_cifar10", ("batch",)),
        pytest.param("tsm/test_resnet", ("batch", "frames"), marks=pytest.mark.slow),
        pytest.param("timm/resnet18", tuple(AXES[4]), marks=pytest.mark.every),
        pytest.param("c2d/resnet18", tuple(AXES[5]), marks=pytest.mark.every),
    ],
)
def test_images_and_folded_clips(tmp_path, name, axes):
    """From a file, of pixels: there are no windows to score, so the output is logits."""
    model = lively(name, "layer2:0 layer3:0")
    own = model.preprocessing
    frames = 4 if own.frames else 0
    model.preprocessing = replace(own, frames=frames, crop=64, test_size=64, test_crop=64)
    save_model(model, tmp_path / "m.safetensors")
    export_onnx(tmp_path / "m.safetensors", tmp_path / "m.onnx", dynamic=axes, raw=True)
    with Runner(tmp_path / "m.onnx", threads=1) as runner:
        assert runner.spec.shape == (2, 3, *([frames] if frames else []), 64, 64)
        assert (runner.spec.output, runner.preprocessing) == ("logits", model.preprocessing)
        shape = list(runner.spec.shape)
        for axis, at in runner.spec.axes.items():
            shape[at] = {"batch": 3, "frames": 5, "height": 40, "width": 56}[axis]
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert compare(model, runner, [pixels]).relative_l2 <= 1e-5


@pytest.mark.parametrize("source", ["math:pi", "fractions:Fraction"])
def test_objects_that_are_no_network(source):
    with pytest.raises(ValueError, match=f"{source} gives a [fF]\\w+, not a network"):
        load_network(source)


@pytest.mark.every
def test_pools_that_round_up_fix_sizes(tmp_path):
    """Those of ResNet-D's shortcuts: the exporter takes even sizes for granted."""
    model = lively("timm/test_resnet", "layer2:0")
    with pytest.raises(ValueError, match=r"at some sizes only, .* leave some of batch, height"):
        export_onnx(model, tmp_path / "m.onnx", dynamic=AXES[4], shape=(2, 3, 64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.every
def test_the_full_network(tmp_path):
    parity = export_onnx("i3d_r50_nl5", tmp_path / "m.onnx", shape=(1, 3, 8, 224, 224))
    assert parity.relative_l2 <= 1e-5
