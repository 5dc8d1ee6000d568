"""Blocks in networks of others: no key and no output bit changes, and no failure leaves a trace."""

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import timm
import torch
from tiers import marked
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from nlzoo import NonLocalBlock, insert_non_local
from nlzoo.networks.video import VideoResNet


class Sequence1d(nn.Module):
    """A network of one dimension, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 3, padding=1)
        self.stage = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, stride=2))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.stage(self.conv(x)).mean(2))


class Odd(nn.Module):
    """Everything that cannot be a place, and two convolutions that can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.stages = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.stages[1].weight = self.stages[0].weight
        self.alias = self.stages[1]
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveMaxPool2d(2, return_indices=True)
        self.unused = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        for stage in self.stages:
            x = self.relu(stage(x))
        return self.head(self.pool(x)[0].mean((2, 3)))


def video() -> VideoResNet:
    return VideoResNet("i3d", 18, "8x8", width=8, num_classes=5, zero_init_residual=False)


HOSTS: dict[str, tuple[Any, str, tuple[int, ...], list[str]]] = {
    "sequence": (Sequence1d, "conv stage", (3, 2, 20), ["conv", "stage"]),
    "image": (
        resnet18,
        "layer2:0,1 layer3:1",
        (2, 3, 64, 64),
        ["layer2.0", "layer2.1", "layer3.1"],
    ),
    "video": (video, "res3:1 res4:0,1", (2, 3, 4, 32, 32), ["res3.1", "res4.0", "res4.1"]),
}


def host(name: str) -> tuple[nn.Module, str, Tensor]:
    torch.manual_seed(0)
    build, places, shape, _ = HOSTS[name]
    return build(), places, torch.randn(shape)


def snapshot(model: nn.Module) -> list[Any]:
    """All that an insertion could change."""
    modules = [
        (name, id(m), type(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks))
        for name, m in model.named_modules(remove_duplicate=False)
    ]
    tensors = model.state_dict().items()
    return modules + [(k, v.dtype, v.numpy().tobytes()) for k, v in tensors]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", HOSTS)
def test_no_key_and_no_bit_changes(name: str, training: bool) -> None:
    model, places, x = host(name)
    model.train(training)
    before = copy.deepcopy(model)
    report = insert_non_local(model, places)
    assert [b.place for b in report.blocks] == HOSTS[name][3]
    for key, value in model.state_dict().items():
        assert (".non_local." in key) == (key not in before.state_dict())
        assert ".non_local." in key or torch.equal(value, before.state_dict()[key])
    outputs = []
    for network in (before, model):
        torch.manual_seed(1)  # dropout
        output = network(x)
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    own = {k: v for k, v in model.state_dict().items() if ".non_local." not in k}
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in own.items())  # running means
    for key, parameter in before.named_parameters():
        assert torch.equal(parameter.grad, model.get_parameter(key).grad), key


@pytest.mark.parametrize("name", HOSTS)
def test_check_passes_until_the_blocks_do_something(name: str) -> None:
    model, places, x = host(name)
    report = insert_non_local(model, places)
    before = snapshot(model)
    report.check(x)
    assert snapshot(model) == before
    with torch.no_grad():
        model.get_submodule(f"{report.blocks[-1].place}.non_local.norm").weight.fill_(0.1)
    with pytest.raises(ValueError, match=r"change the output by up to .*trained"):
        report.check(x)
    model, places, x = host(name)
    with pytest.raises(ValueError, match="zero_init=False"):
        insert_non_local(model, places, zero_init=False).check((x,))


def test_the_hook_applies_the_block_to_the_output_of_its_place() -> None:
    model, _, x = host("sequence")
    model.eval()
    stage = model.conv(x)
    insert_non_local(model, "conv stage", zero_init=False)
    assert not torch.equal(model.conv(x), stage)
    stage = model.conv.non_local(stage)
    torch.testing.assert_close(model.conv(x), stage)
    for layer in list(model.stage)[:3]:
        stage = layer(stage)
    torch.testing.assert_close(model(x), model.stage.non_local(stage).mean(2))


def test_report_of_a_resnet() -> None:
    """At 224 x 224, layer2 is 28 x 28 and layer3 14 x 14; 2 C^2 + 4.5 C parameters a block."""
    report = insert_non_local(resnet18(), "layer2:1 layer3:1")
    figures = [(b.channels, b.queries, b.keys, b.parameters) for b in report.blocks]
    assert figures == [(128, 784, 196, 33_344), (256, 196, 49, 132_224)]
    assert report.blocks[0].shape == (1, 128, 28, 28)
    assert report.blocks[0].megabytes == pytest.approx(784 * 196 * 4 / 1e6)
    header, first, _ = str(report).splitlines()
    assert header.split() == ["place", "channels", "map", "N", "M", "MB", "GMACs", "parameters"]
    size = ["28x28", "784", "196", "0.615", "0.0357", "33,344"]
    assert first.split() == ["layer2.1", "128", *size]


@pytest.mark.parametrize(
    ("build", "places", "shape"),
    [
        (timm.models.resnet50, "layer2:1,3 layer3:1,3,5", (224, 224)),
        (partial(VideoResNet, "i3d", 50, "8x8"), "res3:1,3 res4:1,3,5", (8, 224, 224)),
    ],
    ids=["resnet50", "i3d_r50"],
)
@pytest.mark.parametrize("form", ["embedded_gaussian", "dot_product", "concatenation"])
def test_five_blocks_cost_what_the_report_says(
    build: Any, places: str, shape: tuple[int, ...], form: str
) -> None:
    with torch.device("meta"):
        model, x = build().eval(), torch.empty(1, 3, *shape)
    before = flops(model, x)
    report = insert_non_local(model, places, form=form)
    assert 2 * sum(b.multiply_adds for b in report.blocks) == flops(model, x) - before


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops())


def test_report_of_other_dimensions() -> None:
    clip = insert_non_local(video(), "res4:1", form="gaussian").blocks[0]
    assert (clip.shape, clip.queries, clip.keys) == ((1, 32, 4, 14, 14), 784, 196)  # crop 224
    time = insert_non_local(video(), "res4:1", extent="time").blocks[0]
    assert (time.queries, time.keys) == (784, 4)
    sequence = insert_non_local(Sequence1d(), "conv", example=torch.zeros(1, 2, 30)).blocks[0]
    assert (sequence.shape, sequence.queries, sequence.keys) == ((1, 8, 30), 30, 30)
    small = insert_non_local(resnet18(), "layer4:1", example=torch.zeros(1, 3, 32, 32)).blocks[0]
    assert (small.queries, small.keys) == (1, 1)
    assert small.note == "map too small to sub-sample"


def test_places_by_list_and_block_arguments() -> None:
    model = Odd()
    report = insert_non_local(model, ["conv", "stages:1"], form="dot_product", inner=3)
    assert [b.place for b in report.blocks] == ["conv", "stages.1"]
    blocks = [m for m in model.modules() if isinstance(m, NonLocalBlock)]
    assert [(b.form, b.inner, b.subsample, b.dims) for b in blocks] == [
        ("dot_product", 3, (2, 2), 2)
    ] * 2
    assert model.stages[0].weight is model.stages[1].weight
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_indices_do_not_count_blocks() -> None:
    model = Sequence1d()
    insert_non_local(model, "stage")
    assert len(model.stage) == 4
    with pytest.raises(ValueError, match="'stage' has blocks 0 to 2"):
        insert_non_local(model, "stage:3")
    assert insert_non_local(model, "stage:2").blocks[0].place == "stage.2"


@pytest.mark.parametrize(
    ("places", "options", "message"),
    [
        ("", {}, "no places given"),
        ([], {}, "no places given"),
        ("stagse:1", {}, "Odd has no place 'stagse'; did you mean 'stages'"),
        ("cnov", {}, "no place 'cnov'; did you mean 'conv'"),
        ("stages:0,2", {}, "'stages:2' does not exist: 'stages' has blocks 0 to 1"),
        ("stages:-1", {}, "'stages:-1' does not exist"),
        ("stages:x", {}, "'stages:x' does not exist"),
        ("stages:0,0", {}, "'stages.0' is listed twice"),
        (["stages.0", "stages:0"], {}, "'stages.0' is listed twice"),
        ("stages:1 alias", {}, "are one and the same module"),
        ("stages:0 norm", {}, "'norm' has a non-local block already"),
        ("conv stages", {}, "'stages' is a container; name one of its children"),
        ("conv unused", {}, "'unused' is not on the path of the example"),
        ("conv relu", {}, "'relu' is called 3 times a pass"),
        ("conv pool", {}, "'pool' must return one tensor .* tuple"),
        ("conv head", {}, r"'head' must return one tensor .* shape \(1, 5\)"),
        ("conv", {"form": "gausian"}, "did you mean 'gaussian'"),
        ("conv stages:0", {"subsample": 300}, "smaller than the pooling kernel"),
        ("conv", {"extent": "time"}, "use dims=3"),
        ("conv", {"subsampel": 2}, "unknown block argument 'subsampel'; did you mean 'subsample'"),
        ("conv", {"dims": 2}, "unknown block argument 'dims'"),
    ],
    ids=str,
)
def test_errors_leave_the_model_as_it_was(places: Any, options: Any, message: str) -> None:
    model = Odd()
    insert_non_local(model, "norm")
    model.stages[0].eval()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        insert_non_local(model, places, **options)
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before


def test_an_example_is_asked_for_where_none_can_be_guessed() -> None:
    model = nn.Sequential(nn.PReLU())
    with pytest.raises(ValueError, match="pass example=, an input tensor"):
        insert_non_local(model, "0")
    insert_non_local(model, "0", example=torch.zeros(1, 2, 4))
    assert model[0].non_local.channels == 2


def test_a_network_that_needs_data_is_measured_without_a_trace() -> None:
    class Branch(Odd):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum().item() < 1e9 else -y

    model = Branch().train()
    buffers = copy.deepcopy(dict(model.named_buffers()))
    report = insert_non_local(model, "conv")
    assert report.blocks[0].shape == (1, 8, 224, 224)
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers() if k in buffers)
    assert model.norm.training
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("first", ["compile", "insert"])
@pytest.mark.parametrize("name", marked(HOSTS, ["sequence"], HOSTS))
def test_compiled_code_runs_the_blocks(name: str, first: str) -> None:
    model, places, x = host(name)
    model.eval()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = model(x)
        if first == "compile":
            torch.testing.assert_close(compiled(x), plain)
            report = insert_non_local(compiled, places, zero_init=False)
        else:
            report = insert_non_local(model, places, zero_init=False)
        wanted = model(x)
        assert not torch.allclose(wanted, plain)
        torch.testing.assert_close(compiled(x), wanted)
    with pytest.raises(ValueError, match="change the output"):
        report.check(x)


def test_model_compiled_in_place() -> None:
    model, places, x = host("image")
    model.eval().compile(backend="eager")
    with torch.no_grad():
        plain = model(x)
        report = insert_non_local(model, places)
        report.check(x)
        torch.testing.assert_close(model(x), plain)
        model.layer2[0].non_local.norm.weight.fill_(1.0)
        assert not torch.allclose(model(x), plain)


@pytest.mark.parametrize("name", HOSTS)
def test_copies_and_files(name: str) -> None:
    model, places, x = host(name)
    report = insert_non_local(model, places, zero_init=False)
    model.eval()
    wanted = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = HOSTS[name][0]().eval()
    insert_non_local(fresh, places)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twins = {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}
    for how, twin in (twins | {"state_dict": fresh}).items():
        assert torch.equal(twin(x), wanted), how
    for twin in twins.values():  # each runs its own blocks
        nn.init.zeros_(twin.get_submodule(f"{report.blocks[0].place}.non_local.out").weight)
        assert not torch.equal(twin(x), wanted)
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", HOSTS)
def test_blocks_follow_dtype_and_mode(name: str, dtype: torch.dtype) -> None:
    model, places, x = host(name)
    model.to(dtype).eval()
    model.get_submodule(HOSTS[name][3][0]).train()
    report = insert_non_local(model, places)
    blocks = [model.get_submodule(f"{b.place}.non_local") for b in report.blocks]
    assert {p.dtype for b in blocks for p in b.parameters()} == {dtype}
    assert [b.training for b in blocks] == [True] + [False] * (len(blocks) - 1)
    assert model(x.to(dtype)).dtype == dtype
    report.check(x.to(dtype))


def test_blocks_follow_the_device() -> None:
    with torch.device("meta"):
        model = resnet18()
    insert_non_local(model, "layer3:1")
    insert_non_local(model, "layer3:0")  # measured through the block that is there
    assert all(t.is_meta for t in model.state_dict().values())
    real = resnet18()
    insert_non_local(real, "layer3:1", example=torch.zeros(1, 3, 64, 64, device="meta"))
    assert not any(t.is_meta for t in real.state_dict().values())


def test_tokens_are_not_taken_for_maps() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens = torch.zeros(1, 5, 8)
    with pytest.raises(ValueError, match=r"place '1' returns tokens \(B, N, C\).*\(1, 5, 8\)"):
        insert_non_local(nn.Sequential(nn.Identity(), layer), ["1"], example=tokens)
    mixed = nn.Sequential(nn.Conv1d(5, 5, 1), nn.Linear(8, 8))  # maps, though a layer is as long
    insert_non_local(nn.Sequential(nn.Identity(), mixed), ["1"], example=tokens)
