"""The block against independent forms of itself, and everything its arguments promise."""

import copy
import io
import itertools
import json
import pickle
import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import SHARED
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nlzoo import NonLocalBlock, ops

FORMS = tuple(ops.ROUTES)
SIZES = {1: (9,), 2: (6, 5), 3: (4, 6, 5)}


def block(channels: int = 8, **options: Any) -> NonLocalBlock:
    """A block in float64 whose branch does something, deterministic in its arguments."""
    torch.manual_seed(0)
    made = NonLocalBlock(channels, **{"zero_init": False, **options}).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made.eval()


def clip(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(b: NonLocalBlock, x: Tensor, seen: slice = slice(None)) -> Tensor:
    """Equations (1) to (6) through the submodules themselves, in channels-first, pair by pair."""
    pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[b.dims](b.subsample, b.subsample)
    gaussian = b.form == "gaussian"
    theta = x if gaussian else b.theta(x)
    if b.subsample_first:
        phi, g = pool(x) if gaussian else b.phi(pool(x)), b.g(pool(x))
    else:
        phi, g = pool(x if gaussian else b.phi(x)), pool(b.g(x))
    theta, phi, g = (t.flatten(2) for t in (theta, phi, g))
    n, m = theta.shape[2], phi.shape[2]
    if b.form == "concatenation":
        pairs = torch.cat(
            [theta.unsqueeze(3).expand(-1, -1, n, m), phi.unsqueeze(2).expand(-1, -1, n, m)], 1
        )
        f = torch.einsum("bdnm,d->bnm", pairs, b.w_f).relu() / m
    else:
        f = torch.einsum("bdn,bdm->bnm", theta, phi)
        f = f / m if b.form == "dot_product" else torch.softmax(f * b.scale, dim=2)
    y = torch.einsum("bnm,bdm->bdn", f, g).unflatten(2, x.shape[2:])
    z = b.out(y)
    return x + (z if b.norm is None else b.norm(z))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("subsample", [None, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_equations(form: str, dims: int, subsample: int | None, first: bool) -> None:
    x = clip(2, 8, *SIZES[dims])
    for route in ops.ROUTES[form]:
        b = block(form=form, dims=dims, subsample=subsample, subsample_first=first, route=route)
        torch.testing.assert_close(b(x), by_hand(b, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form: str) -> None:
    x = clip(2, 8, 4, 6, 5).requires_grad_()
    for options in ({}, {"subsample": 2, "subsample_first": False}, {"norm": None, "bias": False}):
        b = block(form=form, route="fast", **options).train()
        leaves = [x, *b.parameters()]
        wanted = torch.autograd.grad(by_hand(b, x).square().sum(), leaves)
        got = torch.autograd.grad(b(x).square().sum(), leaves)
        for a, e in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@given(
    st.sampled_from(FORMS),
    st.tuples(*[st.integers(1, 6)] * 5),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_size(
    form: str, shape: tuple[int, ...], kernel: tuple[int, int, int], first: bool
) -> None:
    batch, _, *size = shape
    b = block(6, form=form, subsample=kernel, subsample_first=first, route="fast")
    x = clip(batch, 6, *size)
    if any(s < k for s, k in zip(size, kernel, strict=True)):
        with pytest.raises(ValueError, match="smaller than the pooling kernel"):
            b(x)
    else:
        torch.testing.assert_close(b(x), by_hand(b, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_space_is_the_image_block_frame_by_frame(form: str) -> None:
    x = clip(2, 8, 3, 4, 5)
    b = block(form=form, subsample=2, extent="space")
    for t in range(3):
        frame = x[:, :, t : t + 1]
        torch.testing.assert_close(b(x)[:, :, t : t + 1], by_hand(b, frame))


@pytest.mark.parametrize("kernel", [None, (2, 1, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_time_is_the_block_place_by_place(form: str, kernel: tuple[int, ...] | None) -> None:
    x = clip(2, 8, 4, 2, 3)
    b = block(form=form, subsample=kernel, extent="time")
    for h, w in itertools.product(range(2), range(3)):
        place = x[..., h : h + 1, w : w + 1]
        torch.testing.assert_close(b(x)[..., h : h + 1, w : w + 1], by_hand(b, place))


@pytest.mark.parametrize("extent", ["spacetime", "time"])
def test_groups_are_separate_clips(extent: str) -> None:
    x = clip(2, 8, 6, 4, 5)
    b = block(groups=3, extent=extent, subsample=2 if extent == "spacetime" else None)
    whole = copy.deepcopy(b)
    whole.groups = None
    wanted = torch.cat([whole(part) for part in x.split(2, dim=2)], dim=2)
    torch.testing.assert_close(b(x), wanted)


def test_extents_have_the_same_parameters() -> None:
    shapes = [
        [(k, p.shape) for k, p in NonLocalBlock(8, extent=e).state_dict().items()]
        for e in ("spacetime", "space", "time")
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("form", FORMS)
def test_permuted_positions_give_the_permuted_output(form: str) -> None:
    """No position is encoded, distance never enters (section 3.1)."""
    b = block(form=form, route="fast")
    x = clip(2, 8, 3, 4, 5)
    order = torch.randperm(60)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    wanted = b(x).flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(b(shuffled), wanted)


def test_multihead_attention_with_one_head() -> None:
    x = clip(2, 8, 3, 4, 5)
    reference = nn.MultiheadAttention(8, 1, batch_first=True).double()
    nn.init.normal_(reference.in_proj_bias)
    nn.init.normal_(reference.out_proj.bias)
    for route in ops.ROUTES["embedded_gaussian"]:
        b = block(inner=8, norm=None, route=route)
        weights, biases = reference.in_proj_weight.chunk(3), reference.in_proj_bias.chunk(3)
        state = {"out.weight": reference.out_proj.weight, "out.bias": reference.out_proj.bias}
        for name, w, c in zip(("theta", "phi", "g"), weights, biases, strict=True):
            state |= {f"{name}.weight": w, f"{name}.bias": c}
        b.load_state_dict({k: v.view(*v.shape, *[1] * 3 * (v.ndim > 1)) for k, v in state.items()})
        tokens = x.flatten(2).mT
        y = reference(tokens, tokens, tokens)[0].mT.view_as(x)
        torch.testing.assert_close(b(x), x + y, rtol=1e-11, atol=1e-11)


def test_gaussian_on_unit_patches_is_non_local_means() -> None:
    """|p - q|^2 = 2 - 2 p . q: exp(-|p - q|^2 / h^2) is exp(2 p . q / h^2) up to a constant."""
    image, h = clip(1, 1, 12, 10), 0.7
    patches = F.normalize(F.unfold(image, 3, padding=1), dim=1)  # (1, 9, 120)
    distance = torch.cdist(patches.mT, patches.mT)
    means = torch.softmax(-(distance**2) / h**2, dim=-1)
    x = patches.view(1, 9, 12, 10)
    b = block(9, dims=2, form="gaussian", scale=2 / h**2, norm=None)
    for query in (0, 57, 119):
        torch.testing.assert_close(b.attention(x, query), means[0, query])


@pytest.mark.parametrize("name", ["dotproduct", "softmax_pool"])
@pytest.mark.parametrize("route", ["auto", "definition", "fast"])
def test_public_implementation(name: str, route: ops.Route) -> None:
    path = SHARED / "goldens" / f"fair_pytorchvideo_nonlocal_{name}.json"
    if not path.exists():
        pytest.skip(f"no {path}: set NLZOO_SHARED")
    spec = json.loads(path.read_text())
    config = spec["config"]
    form = {"softmax": "embedded_gaussian"}.get(config["instantiation"], config["instantiation"])
    b = NonLocalBlock(
        config["dim_in"],
        inner=config["dim_inner"],
        form=form,
        subsample=tuple(config["pool_size"]),
        route=route,
    )
    b.load_state_dict({e[0].removeprefix("conv_"): golden(e) for e in spec["state_dict"]})
    rng = np.random.RandomState(spec["input"]["seed"])
    x = torch.as_tensor(rng.standard_normal(spec["input"]["shape"])).float()
    wanted = torch.tensor(spec["output"])
    off = (b.eval()(x).flatten() - wanted).norm() / wanted.norm()
    assert off < 2e-5


def golden(entry: list[Any]) -> Tensor:
    """One tensor of a golden file, from its name, shape and kind (kernel gain 2)."""
    key, shape, kind = entry
    n = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    made = {
        "kernel": lambda: n * np.sqrt(2.0 / np.prod(shape[1:])),
        "scale": lambda: 0.5 + 0.1 * n,
        "shift": lambda: 0.1 * n,
        "var": lambda: 1 + 0.1 * np.abs(n),
        "count": lambda: np.zeros(shape),
    }[kind]()
    return torch.as_tensor(made, dtype=torch.float32)


@pytest.mark.parametrize(
    ("form", "c512", "c1024"),
    [
        ("embedded_gaussian", 526_592, 2_101_760),
        ("dot_product", 526_592, 2_101_760),
        ("gaussian", 263_936, 1_052_160),
        ("concatenation", 527_104, 2_102_784),
    ],
)
def test_parameters(form: Any, c512: int, c1024: int) -> None:
    """2 C^2 + 4.5 C with biases and batch norm; C^2 + 3.5 C; 2 C^2 + 5.5 C. Without norm - 2 C."""
    for channels, wanted in ((512, c512), (1024, c1024)):
        with torch.device("meta"):
            for norm, missing in (("batch", 0), (None, 2 * channels)):
                b = NonLocalBlock(channels, form=form, norm=norm)  # type: ignore[arg-type]
                assert sum(p.numel() for p in b.parameters()) == wanted - missing


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("form", FORMS)
def test_starts_as_the_identity_to_the_bit(form: Any, norm: Any, training: bool) -> None:
    b = NonLocalBlock(8, form=form, norm=norm, subsample=2).train(training)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 8, 4, 6, 5).relu().to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            y = b(x)
        assert y.dtype == dtype
        assert torch.equal(y, x)


@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("form", FORMS)
def test_the_identity_can_be_left(form: Any, norm: Any) -> None:
    b = NonLocalBlock(8, form=form, norm=norm)
    optimizer = torch.optim.SGD(b.parameters(), lr=0.1)
    before = copy.deepcopy(b.state_dict())
    x, target = torch.randn(2, 8, 2, 3, 3), torch.randn(2, 8, 2, 3, 3)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(b(x), target).backward()
        optimizer.step()
    assert not torch.equal(b(x), x)
    moved = {k for k, p in b.named_parameters() if not torch.equal(p, before[k])}
    # a bias before batch norm, or one that shifts every logit of a row alike, has no gradient
    assert {k for k, _ in b.named_parameters()} - moved <= {"out.bias", "g.bias", "phi.bias"}


def test_autocast_keeps_the_residual_in_the_dtype_of_x() -> None:
    for form in FORMS:
        b = NonLocalBlock(8, form=form, subsample=2, zero_init=False)  # type: ignore[arg-type]
        x = torch.randn(2, 8, 4, 6, 5)
        with torch.autocast("cpu", torch.bfloat16):
            y = b(x)
            half = b(x.bfloat16())
        assert y.dtype == torch.float32
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(y, b(x), rtol=0.1, atol=0.1)
        assert b.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dims", "layout"),
    [
        (1, torch.contiguous_format),
        (2, torch.contiguous_format),
        (2, torch.channels_last),
        (3, torch.contiguous_format),
        (3, torch.channels_last_3d),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_memory_format_is_kept(form: str, dims: int, layout: torch.memory_format) -> None:
    for extent in ("spacetime", "space", "time") if dims == 3 else ("spacetime",):
        b = block(form=form, dims=dims, extent=extent)
        x = clip(2, 8, *SIZES[dims])
        y = b(x.contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y, b(x))
        strided = clip(2, 8, *SIZES[dims], 2)[..., 0]
        torch.testing.assert_close(b(strided), b(strided.contiguous()))


@pytest.mark.parametrize(
    "options",
    [
        {"route": "fast"},
        *(
            pytest.param({"form": form, "route": "fast"}, marks=pytest.mark.slow)
            for form in FORMS
            if form != "embedded_gaussian"
        ),
        pytest.param({"extent": "space", "subsample": 2}, marks=pytest.mark.slow),
        {"extent": "time", "groups": 2},
        pytest.param(
            {"form": "gaussian", "subsample": 2, "subsample_first": False, "groups": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_compiles_as_one_graph(options: dict[str, Any]) -> None:
    b = block(**options).train()
    x = clip(2, 8, 4, 6, 5).requires_grad_()
    leaves = [x, *b.parameters()]
    torch.compiler.reset()  # it counts compilations of one source line
    compiled = torch.compile(b, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(b(x).square().sum(), leaves)
    got = torch.autograd.grad(compiled(x).square().sum(), leaves)
    for a, e in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_exports(form: str) -> None:
    b = block(form=form, subsample=2, route="definition")
    x = clip(1, 8, 4, 6, 5)
    program = torch.export.export(b, (x,))
    torch.testing.assert_close(program.module()(x), b(x))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("autocast" in name or "sort" in name for name in names)


@pytest.mark.parametrize("form", FORMS)
def test_copies_and_files(form: str) -> None:
    b = block(form=form, subsample=2)
    x = clip(1, 8, 4, 6, 5)
    wanted = b(x)
    assert torch.equal(copy.deepcopy(b)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(b))(x), wanted)
    file = io.BytesIO()
    torch.save(b.state_dict(), file)
    file.seek(0)
    fresh = NonLocalBlock(8, form=form, subsample=2).double().eval()  # type: ignore[arg-type]
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), wanted)


def test_state_dict_has_the_shapes_of_convolutions() -> None:
    shapes = {
        k: tuple(v.shape) for k, v in NonLocalBlock(8, form="concatenation").state_dict().items()
    }
    kernel = {f"{k}.weight": (4, 8, 1, 1, 1) for k in ("theta", "phi", "g")}
    biases = {f"{k}.bias": (4,) for k in ("theta", "phi", "g")} | {"out.bias": (8,)}
    norm = {f"norm.{k}": (8,) for k in ("weight", "bias", "running_mean", "running_var")}
    assert shapes == {
        **kernel,
        **biases,
        **norm,
        "out.weight": (8, 4, 1, 1, 1),
        "w_f": (8,),
        "norm.num_batches_tracked": (),
    }
    assert {k.split(".")[0] for k in NonLocalBlock(8, form="gaussian").state_dict()} == {
        *("g", "out", "norm")
    }


def test_sync_batch_norm() -> None:
    b = nn.SyncBatchNorm.convert_sync_batchnorm(block())
    assert isinstance(b.norm, nn.SyncBatchNorm)
    x = clip(2, 8, 3, 4, 5)
    torch.testing.assert_close(b(x), block()(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsample": 2},
        {"subsample": (2, 2, 2), "subsample_first": False},
        {"extent": "space", "subsample": 2},
        {"extent": "time", "subsample": (2, 1, 1)},
        {"groups": 2, "subsample": 2},
        {"extent": "time", "groups": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_attention_says_what_the_block_computes(form: str, options: dict[str, Any]) -> None:
    """sum_j weight_j g_j of one query, put through W_z, is that position of the output."""
    b = block(form=form, norm=None, **options)
    x = clip(2, 8, 4, 5, 6)
    g = b.g(x)
    for query in ((0, 0, 0), (3, 4, 5), (1, 2, 3)):
        weights, where = b.attention(x, query, sample=1), b.key_grid(x.shape, query)
        assert where.shape == (*weights.shape, 3)
        assert weights.numel() == b.positions(x.shape)[1]
        values = []
        for start in where.tolist():
            ends = (p + k for p, k in zip(start, b.subsample, strict=True))
            t, h, w = map(slice, start, ends)
            if b.subsample_first:
                values.append(b.g(x[1:, :, t, h, w].amax((2, 3, 4), keepdim=True)).flatten())
            else:
                values.append(g[1, :, t, h, w].amax((1, 2, 3)))
        y = weights @ torch.stack(values)
        z = b.out(y.view(1, 4, 1, 1, 1)).flatten() + x[(1, slice(None), *query)]
        torch.testing.assert_close(b(x)[(1, slice(None), *query)], z)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("subsample", [None, 2])
@pytest.mark.parametrize("form", FORMS)
def test_keys_that_are_padding_take_no_attention(
    form: str, subsample: int | None, dtype: torch.dtype
) -> None:
    b = block(dims=2, form=form, subsample=subsample, norm=None).to(dtype)
    x = clip(2, 8, 10, 16).to(dtype)
    x[0, :, :, 11:] = 0  # an odd column is pooled with one of padding
    inside = torch.ones(2, 10, 16, dtype=torch.bool)
    inside[0, :, 11:] = False
    same, padded = b(x, inside), b(x)
    wanted = b(x[:1, :, :, : 12 if subsample else 11])[..., :11]
    near = (1e-9 if dtype == torch.float64 else 0.006) * wanted.abs().max()
    assert (same[:1, ..., :11] - wanted).abs().max() < near
    assert (same[1] - padded[1]).abs().max() < near
    assert (padded[:1, ..., :11] - wanted).abs().max() > near


def test_a_grid_may_be_one_position_wide_and_starts_at_the_first() -> None:
    grid = [[t, y, 0] for t in range(4) for y in range(5)]
    assert block().key_grid((2, 8, 4, 5, 1)).tolist() == grid
    b, shape = block(extent="time"), (2, 8, 4, 5, 1)
    assert b.key_grid(shape).tolist() == [[t, 0, 0] for t in range(4)]
    assert b.key_grid(shape, (1, 3, 0)).tolist() == [[t, 3, 0] for t in range(4)]


def test_attention_takes_flat_queries_and_refuses_others() -> None:
    b, x = block(subsample=2), clip(1, 8, 4, 5, 6)
    assert torch.equal(b.attention(x, (1, 2, 3)), b.attention(x, 45))
    for query in (120, -1, (4, 0, 0), (0, 0)):
        with pytest.raises(ValueError, match=r"is no position of a grid of \(4, 5, 6\)"):
            b.attention(x, query)


def test_attention_keeps_float32_at_16_bit() -> None:
    for form in FORMS:
        b = block(form=form).bfloat16()
        x = clip(1, 8, 2, 5, 6).bfloat16()
        assert b.attention(x, 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "size", "wanted"),
    [
        ({"subsample": 2}, (4, 28, 28), (3136, 784)),
        ({"subsample": 2}, (4, 7, 7), (196, 36)),
        ({"subsample": 2, "groups": 4}, (16, 28, 28), (12544, 784)),
        ({"subsample": 2, "extent": "space"}, (4, 28, 28), (3136, 196)),
        ({"extent": "time"}, (4, 28, 28), (3136, 4)),
        ({"dims": 2}, (5, 6), (30, 30)),
        ({"dims": 1, "subsample": 3}, (10,), (10, 3)),
    ],
    ids=str,
)
def test_positions(options: dict[str, Any], size: tuple[int, ...], wanted: tuple[int, int]) -> None:
    assert NonLocalBlock(8, **options).positions((2, 8, *size)) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "embeded_gaussian"}, "did you mean 'embedded_gaussian'"),
        ({"extent": "spacetim"}, "did you mean 'spacetime'"),
        ({"route": "quick"}, "unknown route 'quick'; there are auto"),
        ({"form": "dot_product", "route": "sdpa"}, "unknown route 'sdpa'"),
        ({"norm": "layer"}, "give 'batch' or None"),
        ({"dims": 4}, "dims is 4: give 1 "),
        ({"channels": 1}, "inner is 0"),
        ({"form": "concatenation", "scale": 1.0}, "leave it out"),
        ({"subsample": 0}, "subsample is 0"),
        ({"subsample": (2, 2)}, "give None, k or 3 numbers"),
        ({"dims": 2, "extent": "space"}, "use dims=3"),
        ({"dims": 1, "groups": 2}, "use dims=3"),
        ({"groups": 0}, "groups is 0"),
        ({"extent": "space", "groups": 2}, "none for 'space'"),
        ({"extent": "time", "subsample": 2}, r"give None or \(k, 1, 1\)"),
        ({"extent": "space", "subsample": (2, 2, 2)}, "pool no frames together"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        NonLocalBlock(**{"channels": 8, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 8, 6, 5), r"shape \(1, 8, 6, 5\), wanted \(B, 8, T, H, W\)"),
        ({"dims": 2}, (1, 8, 4, 6, 5), r"wanted \(B, 8, H, W\)"),
        ({"dims": 1}, (1, 9, 4), r"wanted \(B, 8, L\)"),
        ({}, (1, 4, 4, 6, 5), r"shape \(1, 4, 4, 6, 5\)"),
        ({"subsample": 2}, (1, 8, 4, 1, 5), r"\(1, 8, 4, 1, 5\) is smaller"),
        ({"groups": 3}, (1, 8, 4, 6, 5), r"4 frames \(input \(1, 8, 4, 6, 5\)\) in 3 groups"),
        ({}, (1, 8, 0, 6, 5), r"\(1, 8, 0, 6, 5\)"),
    ],
    ids=str,
)
def test_wrong_input(options: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NonLocalBlock(8, **options)(torch.zeros(shape))


def test_repr_tells_every_choice() -> None:
    made = NonLocalBlock(8, form="dot_product", subsample=2, groups=2)
    assert made.extra_repr() == (
        "8, dims=3, form='dot_product', inner=4, scale=1.0, subsample=(1, 2, 2), "
        "subsample_first=True, extent='spacetime', groups=2, route='auto'"
    )


COSTS = [
    {"dims": 1, "subsample": 2},
    {"dims": 2, "subsample": 2},
    {"dims": 2, "subsample": 2, "subsample_first": False},
    {"dims": 2, "inner": 5, "norm": None},
    {"subsample": (1, 2, 2)},
    {"subsample": (2, 1, 1), "extent": "time"},
    {"subsample": 2, "extent": "space"},
    {"subsample": 2, "groups": 2, "subsample_first": False, "bias": False},
]


@pytest.mark.parametrize("options", COSTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_multiply_adds_are_those_counted(form: Any, options: dict[str, Any]) -> None:
    for route in ops.ROUTES[form]:
        with torch.device("meta"):
            made = NonLocalBlock(8, form=form, route=route, **options)
            x = torch.empty(1, 8, *(8, 9, 10)[-made.dims :])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(x)
        cost = made.multiply_adds(x.shape)
        assert 2 * cost == counter.get_total_flops(), route
        assert isinstance(cost, int)


@pytest.mark.parametrize("options", COSTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_multiply_adds_are_of_the_route_that_is_taken(
    form: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, asked = ops.choose_route, []

    def ask(name: str, *given: Any) -> ops.Route:
        asked.append(given)
        return choose(name, *given)

    monkeypatch.setattr(ops, "choose_route", ask)
    for route in ops.ROUTES[form]:
        made = block(form=form, route=route, **options)
        x = clip(1, 8, *(8, 9, 10)[-made.dims :])
        made(x)
        made.multiply_adds(x.shape)
        taken, counted = asked[-2:]
        assert taken == counted
        assert taken[:3] == (route, "cpu", torch.float64)
