"""Fast routes against the textbook form, in value and gradient, and what they promise besides."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nlzoo import ops

FAST = [
    ("embedded_gaussian", "sdpa"),
    ("embedded_gaussian", "chunked"),
    ("gaussian", "fast"),
    ("dot_product", "fast"),
    ("concatenation", "fast"),
]
Size = st.SearchStrategy[tuple[int, ...]]
EVERY = [*FAST, *((form, "definition") for form in ops.ROUTES)]


def sizes(n: tuple[int, int], m: tuple[int, int], d: tuple[int, int]) -> Size:
    """(B, N, M, D, Dv, seed) within bounds."""
    return st.tuples(
        st.integers(1, 3),
        st.integers(*n),
        st.integers(*m),
        st.integers(*d),
        st.integers(*d),
        st.integers(0, 2**31),
    )


def function(form: str, route: Any, scale: float | None = None) -> Callable[..., Tensor]:
    call = partial(getattr(ops, form), route=route)
    if form not in ("embedded_gaussian", "gaussian"):
        return call
    return lambda q, k, v: call(q, k, v, scale=scale or q.shape[-1] ** -0.5)


def inputs(form: str, b: int, n: int, m: int, d: int, dv: int, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        "concatenation": [(b, n, d), (b, m, d), (b, m, dv), (2 * d,)],
        "pairwise_relu": [(b, n), (b, m), (b, m, dv)],
    }.get(form, [(b, n, d), (b, m, d), (b, m, dv)])
    return [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


def value_and_gradients(call: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = call(*leaves)
    rng = torch.Generator().manual_seed(0)
    dy = torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def error(got: Tensor, wanted: Tensor) -> float:
    """Greatest difference relative to the greatest value; both may be zero."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def worst(
    form: str, route: str, size: tuple[int, ...], dtype: torch.dtype, spread: float = 1
) -> float:
    if route == "sdpa":  # D = Dv, as the fused kernel wants
        size = (*size[:4], size[3], size[5])
    tensors = [(t * spread).to(dtype) for t in inputs(form, *size)]
    wanted = value_and_gradients(function(form, "definition"), [t.double() for t in tensors])
    got = value_and_gradients(function(form, route), tensors)
    assert all(t.dtype == dtype for t in got)
    return max(map(error, got, wanted))


@pytest.mark.parametrize(("form", "route"), FAST)
@given(sizes(n=(4, 150), m=(4, 200), d=(2, 12)))  # of the blocks of 64 keys: part, whole, several
@settings(deadline=None, max_examples=40)
def test_fast_is_the_textbook_form(form: str, route: str, size: tuple[int, ...]) -> None:
    assert worst(form, route, size, torch.float64) < 1e-12


# Sizes from which the fast routes are chosen, logits of some tenths (`spread`): float32 itself, in
# the textbook form too, loses digits where few numbers cancel, and exp(logit) as logits grow. Of
# the concatenation, the part after its scores: their last digit decides which ReLU is open.
@pytest.mark.parametrize(
    ("form", "route"),
    [
        *((form, route) for form, route in FAST if form != "concatenation"),
        ("pairwise_relu", "fast"),
    ],
)
@given(sizes(n=(400, 800), m=(1000, 1200), d=(16, 48)))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_fast_is_as_exact_in_float32(form: str, route: str, size: tuple[int, ...]) -> None:
    assert worst(form, route, size, torch.float32, spread=0.5) < 2e-6


def test_fast_at_full_size() -> None:
    """12544 x 3136 (128 frames, res3), the textbook form a slice of queries at a time."""
    for form, route in [*FAST[:2], ("dot_product", "fast"), ("pairwise_relu", "fast")]:
        leaves = [t.float().requires_grad_() for t in inputs(form, 1, 12544, 3136, 16, 16, seed=1)]
        exact = [t.detach().double() for t in leaves]
        y = function(form, route)(*leaves)
        rng = torch.Generator().manual_seed(2)
        dy = torch.randn(y.shape, generator=rng)
        got = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
        wanted = [torch.zeros_like(t, dtype=torch.float64) for t in got]
        for rows in torch.arange(12544).split(784):
            part = [exact[0][:, rows], *exact[1:]]
            leaves = [t.detach().requires_grad_() for t in part]
            y = function(form, "definition")(*leaves)
            wanted[0][:, rows] = y.detach()
            d_query, *d_rest = torch.autograd.grad(y, leaves, dy[:, rows].double())
            wanted[1][:, rows] = d_query
            for total, d in zip(wanted[2:], d_rest, strict=True):
                total += d
        assert max(map(error, got, wanted)) < 2e-6


@pytest.mark.parametrize(("form", "route"), EVERY)
def test_gradcheck(form: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_chunk_rows", lambda g: 3)  # 7 queries: two chunks and a rest
    leaves = [t.requires_grad_() for t in inputs(form, 2, 7, 5, 3, 3, seed=0)]
    assert torch.autograd.gradcheck(function(form, route), leaves)


def test_gaussian_without_subsampling_has_one_tensor_twice() -> None:
    x, _, g = (t.requires_grad_() for t in inputs("gaussian", 1, 6, 6, 4, 2, seed=0))
    assert torch.autograd.gradcheck(lambda x, g: ops.gaussian(x, x, g, route="chunked"), (x, g))


@pytest.mark.parametrize("rows", [1, 16])
def test_several_chunks_are_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs("gaussian", 2, 50, 20, 18, 3, seed=0)
    whole = value_and_gradients(function("gaussian", "chunked"), tensors)
    monkeypatch.setattr(ops, "_chunk_rows", lambda g: rows)
    parts = value_and_gradients(function("gaussian", "chunked"), tensors)
    assert max(map(error, parts, whole)) < 1e-14


def test_a_chunk_s_weights_stay_in_cache() -> None:
    """(B, rows, M) of them: 2 ** 20 on a CPU, 2 ** 24 elsewhere, and a row at least."""
    assert ops._chunk_rows(torch.empty(2, 1024, 3)) == 512
    assert ops._chunk_rows(torch.empty(2, 1024, 3, device="meta")) == 8192
    assert ops._chunk_rows(torch.empty(1, 1 << 21, 3, device="meta").expand(9, -1, 3)) == 1


def test_fused_attention_gets_rows_as_they_lie() -> None:
    t = torch.randn(2, 5, 3)
    assert ops._rows(t) is t
    assert ops._rows(t[..., :2]).data_ptr() == t.data_ptr()
    assert ops._rows(t.mT).is_contiguous()
    assert torch.equal(ops._rows(t.mT), t.mT)


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_the_widest_dtype_is_that_of_all(wide: int) -> None:
    tensors = [torch.zeros(1, 2, 2, dtype=torch.bfloat16) for _ in range(3)]
    tensors[wide] = tensors[wide].double()
    assert ops.dot_product(*tensors).dtype == torch.float64


def test_autocast_is_left_alone_where_it_is_off() -> None:
    """A graph without it has none, and "meta" knows none."""
    cpu, meta = torch.empty(1), torch.empty(1, device="meta")
    assert isinstance(ops.autocast_off(cpu), nullcontext)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(ops.autocast_off(meta), nullcontext)
        with ops.autocast_off(cpu):
            assert not torch.is_autocast_enabled("cpu")


def test_gradients_of_chunks_are_added_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 sum of 512 like terms ends at 256 of them."""
    monkeypatch.setattr(ops, "_chunk_rows", lambda g: 4)
    theta, phi = (torch.ones(1, n, 2).bfloat16().requires_grad_() for n in (2048, 2))
    g = torch.tensor([[[1.0, 1], [-1, -1]]]).bfloat16().requires_grad_()
    y = ops.gaussian(theta, phi, g, route="chunked")
    d_phi, d_g = torch.autograd.grad(y.sum(), (phi, g))
    assert d_phi.tolist() == [[[2048, 2048], [-2048, -2048]]]
    assert d_g.tolist() == [[[1024, 1024], [1024, 1024]]]


@pytest.mark.parametrize("route", ["definition", "sdpa", "chunked"])
def test_keys_that_are_left_out_have_no_part(route: ops.Route) -> None:
    theta, phi, g = inputs("embedded_gaussian", 2, 9, 7, 4, 4, seed=0)
    keys = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0, 1]]).bool()
    got = ops.embedded_gaussian(theta, phi, g, scale=0.5, route=route, keys=keys)
    for i, seen in enumerate(keys):
        some = (t[i : i + 1] for t in (theta, phi[:, seen], g[:, seen]))
        wanted = ops.embedded_gaussian(*some, scale=0.5, route="definition")
        torch.testing.assert_close(got[i : i + 1], wanted)


@pytest.mark.parametrize("form", [*ops.ROUTES, "pairwise_relu"])
def test_the_route_is_chosen_by_what_is_there(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose, asked = ops.choose_route, []

    def ask(*given: Any) -> ops.Route:
        asked.append(given)
        return choose(*given)

    monkeypatch.setattr(ops, "choose_route", ask)
    tensors = inputs(form, 2, 9, 7, 4, 3, seed=0)
    scale = {"scale": 1.0} if form == "embedded_gaussian" else {}
    got = getattr(ops, form)(*tensors, **scale)
    d = 1 if form in ("concatenation", "pairwise_relu") else 4  # a_i + b_j
    name = {"gaussian": "embedded_gaussian", "pairwise_relu": "concatenation"}.get(form, form)
    assert asked == [(name, "auto", "cpu", torch.float64, (9, 7, d, 3))]
    scale = {"scale": 1.0} if ops.ROUTES.get(form) is ops.ROUTES["gaussian"] else {}
    wanted = getattr(ops, form)(*tensors, **scale, route="definition")
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("form", "route"), [e for e in EVERY if "sdpa" not in e and e[0] != "gaussian"]
)
def test_products_are_those_that_pytorch_counts(form: str, route: str) -> None:
    n, m, d, dv = 150, 130, 12, 20
    own = "pairwise_relu" if form == "concatenation" else form
    call, tensors = function(own, route), inputs(own, 1, n, m, d, dv, seed=0)
    with FlopCounterMode(display=False) as counter:
        call(*tensors)
    assert counter.get_total_flops() == 2 * ops.multiply_adds(form, route, (n, m, d, dv))


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_relu_at_ties_and_at_zero(seed: int) -> None:
    """Whole numbers: many equal keys, many pairs with a_i + b_j = 0, where ReLU's gradient is 0."""
    rng = torch.Generator().manual_seed(seed)
    a, b, g = (
        torch.randint(-4, 5, s, generator=rng).double() for s in ((2, 90), (2, 70), (2, 70, 3))
    )
    wanted = value_and_gradients(partial(ops.pairwise_relu, route="definition"), [a, b, g])
    got = value_and_gradients(partial(ops.pairwise_relu, route="fast"), [a, b, g])
    assert max(map(error, got, wanted)) < 1e-14


def test_row_with_one_active_key_is_as_exact_as_any() -> None:
    """No row is the small difference of large sums: exact to its own size, not the maximum's."""
    b = torch.linspace(-1000, 0.5, 3000).unsqueeze(0)
    a, g = torch.tensor([[-0.4, 1000.0]]), torch.ones(1, 3000, 1)
    got = ops.pairwise_relu(a, b, g, route="fast").double()
    wanted = ops.pairwise_relu(a.double(), b.double(), g.double(), route="definition")
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 130])
def test_suffix_sums(m: int) -> None:
    g = torch.randn(2, m, 3, dtype=torch.float64)
    sums = ops._suffix_sums(g)
    torch.testing.assert_close(sums[:, :m], g.flip(1).cumsum(1).flip(1))
    assert sums.shape[1] > m
    assert not sums[:, m:].any()


def test_fast_concatenation_is_deterministic() -> None:
    a, b, g = torch.randn(2, 500), torch.randn(2, 300), torch.randn(2, 300, 8)
    call = partial(ops.pairwise_relu, route="fast")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (value_and_gradients(call, [a, b, g]) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(("form", "route"), FAST)
def test_no_pair_map_is_kept_for_the_backward_pass(form: str, route: str) -> None:
    n, m = 700, 600
    leaves = [t.requires_grad_() for t in inputs(form, 1, n, m, 4, 4, seed=0)]
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.untyped_storage().nbytes() // t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(form, route)(*leaves)
    assert kept
    assert max(kept) < n * m / 10


@pytest.mark.parametrize("form", ops.ROUTES)
def test_the_textbook_form_keeps_it_and_has_a_second_derivative(form: str) -> None:
    leaves = [t.requires_grad_() for t in inputs(form, 1, 9, 8, 2, 2, seed=0)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        function(form, "definition")(*leaves)
    assert max(kept) == 9 * 8
    assert torch.autograd.gradgradcheck(function(form, "definition"), leaves)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("route", ["definition", "sdpa", "chunked"])
def test_softmax_logits_have_float32(route: str, autocast: bool) -> None:
    """Scale 1 at 512 channels: bfloat16 logits would be wrong by 11 % of the maximum."""
    q, k, v = inputs("embedded_gaussian", 1, 64, 784, 512, 512, seed=0)
    if not autocast:
        q, k, v = (t.bfloat16() for t in (q, k, v))
    wanted = function("embedded_gaussian", "definition", 1.0)(q.double(), k.double(), v.double())
    call = function("embedded_gaussian", route, 1.0)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            got = call(q.float(), k.float(), v.float())
        assert got.dtype == torch.float32
        assert error(got, wanted) < 2e-5
    else:
        got = call(q, k, v)
        assert got.dtype == torch.bfloat16
        assert error(got, wanted) < 0.01


@pytest.mark.parametrize("route", ["definition", "fast"])
def test_concatenation_scores_have_float32_under_autocast(route: ops.Route) -> None:
    exact = inputs("concatenation", 1, 200, 150, 32, 8, seed=0)
    wanted = function("concatenation", "definition")(*exact)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_gradients(function("concatenation", route), [t.float() for t in exact])
        # values of 16 bit, scores of 32: only the output is rounded
        theta, phi, g, w_f = (t.float() for t in exact)
        half = ops.concatenation(theta, phi, g.bfloat16(), w_f, route=route)
    assert error(got[0], wanted) < 2e-6
    assert half.dtype == torch.bfloat16
    assert error(half, wanted) < 0.01


def test_backward_inside_autocast_keeps_float32() -> None:
    exact = inputs("gaussian", 1, 100, 80, 8, 4, seed=0)
    wanted = value_and_gradients(function("gaussian", "definition"), exact)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_gradients(function("gaussian", "chunked"), [t.float() for t in exact])
    assert max(map(error, got, wanted)) < 5e-6


@pytest.mark.parametrize("route", ["definition", "fast"])
def test_dot_product_stays_in_the_range_of_float16(route: ops.Route) -> None:
    m = 4096
    theta, phi, g = (torch.full((1, k, 8), v).half() for k, v in ((3, 0.5), (m, 8), (m, 8)))
    y = ops.dot_product(theta, phi, g, route=route)
    torch.testing.assert_close(y, torch.full((1, 3, 8), 256.0).half())


@pytest.mark.parametrize(("form", "route"), EVERY)
def test_compiles_as_one_graph(form: str, route: str) -> None:
    tensors = inputs(form, 2, 40, 20, 4, 4, seed=0)
    call = function(form, route)
    wanted = value_and_gradients(call, tensors)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert max(map(error, value_and_gradients(compiled, tensors), wanted)) < 1e-14


@pytest.mark.parametrize(
    ("form", "route", "message"),
    [
        ("gaussian", "chunked", "^this fast route has no .* use route='definition'$"),
        ("gaussian", "sdpa", "not implemented"),
        ("concatenation", "fast", "^this fast route has no .* use route='definition'$"),
    ],
)
def test_a_second_derivative_raises_rather_than_being_wrong(
    form: str, route: str, message: str
) -> None:
    leaves = [t.requires_grad_() for t in inputs(form, 1, 9, 8, 4, 4, seed=0)]
    y = function(form, route)(*leaves)

    def twice() -> None:
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        torch.autograd.grad(first[0].square().sum(), leaves)

    with pytest.raises(RuntimeError, match=message):
        twice()


@pytest.mark.parametrize(
    ("form", "device", "dtype", "size", "route"),
    [
        ("embedded_gaussian", "cpu", torch.float32, (12544, 3136, 256, 256), "sdpa"),
        ("embedded_gaussian", "cpu", torch.float32, (196, 49, 256, 256), "definition"),
        ("embedded_gaussian", "cpu", torch.float32, (400, 1000, 64, 64), "sdpa"),
        ("gaussian", "cpu", torch.float32, (12544, 3136, 512, 256), "chunked"),
        ("embedded_gaussian", "cuda", torch.bfloat16, (12544, 3136, 256, 256), "sdpa"),
        ("embedded_gaussian", "cuda", torch.bfloat16, (3136, 784, 512, 512), "chunked"),
        ("embedded_gaussian", "cuda", torch.float32, (3136, 784, 512, 512), "sdpa"),
        ("embedded_gaussian", "cuda", torch.float64, (3136, 784, 512, 512), "chunked"),
        ("embedded_gaussian", "cuda", torch.float64, (3136, 784, 256, 256), "chunked"),
        ("embedded_gaussian", "cuda", torch.float32, (3136, 784, 12, 16), "chunked"),
        ("embedded_gaussian", "cuda", torch.float32, (3136, 784, 16, 12), "chunked"),
        ("dot_product", "cpu", torch.float32, (12544, 3136, 256, 256), "fast"),
        ("dot_product", "cpu", torch.float32, (784, 196, 512, 512), "definition"),
        ("dot_product", "cpu", torch.float32, (64, 64, 64, 64), "definition"),  # as many products
        ("concatenation", "cpu", torch.float32, (3136, 784, 1, 256), "fast"),
        ("concatenation", "cpu", torch.float32, (196, 49, 1, 256), "definition"),
        ("concatenation", "cpu", torch.float32, (300, 500, 1, 256), "fast"),
        ("concatenation", "cuda", torch.float32, (1999, 2000, 1, 256), "definition"),
        ("concatenation", "cuda", torch.float32, (2000, 2000, 1, 256), "fast"),
    ],
)
def test_the_choice(
    form: str, device: str, dtype: torch.dtype, size: tuple[int, int, int, int], route: str
) -> None:
    assert ops.choose_route(form, "auto", device, dtype, size) == route
    assert ops.choose_route(form, "definition", device, dtype, size) == "definition"
    if route != "definition":
        assert ops.choose_route(form, "fast", device, dtype, size) == route


@pytest.mark.parametrize(("form", "route"), EVERY)
def test_no_key_raises(form: str, route: str) -> None:
    message = "^there is no key to look at .M = 0.; sub-sample less or use larger input$"
    with pytest.raises(ValueError, match=message):
        function(form, route)(*inputs(form, 1, 4, 0, 3, 3, seed=0))


def test_unknown_route_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'chunkd'.*did you mean 'chunked'"):
        function("gaussian", "chunkd")(*inputs("gaussian", 1, 4, 4, 3, 3, seed=0))
    with pytest.raises(ValueError, match="unknown route 'sdpa'; there are auto, definition, fast"):
        function("dot_product", "sdpa")(*inputs("dot_product", 1, 4, 4, 3, 3, seed=0))


def test_multihead_attention_with_one_head_is_the_embedded_gaussian() -> None:
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    reference = torch.nn.MultiheadAttention(16, 1, batch_first=True, dtype=torch.float64)
    theta, phi, g = (x @ w.mT for w in reference.in_proj_weight.chunk(3))
    for route in ops.ROUTES["embedded_gaussian"]:
        y = ops.embedded_gaussian(theta, phi, g, scale=1 / sqrt(16), route=route)
        got = torch.nn.functional.linear(y, reference.out_proj.weight)
        torch.testing.assert_close(got, reference(x, x, x)[0], rtol=1e-12, atol=1e-12)
