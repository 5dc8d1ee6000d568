"""The pairwise functions of Non-local Neural Networks (arXiv 1711.07971, section 3.2).

Every function maps queries (B, N, D), keys (B, M, D) and values (B, M, Dv) to (B, N, Dv):
y_i = sum_j f(i, j) g_j / C. Each has its textbook form, route "definition", and an exact fast
form that never keeps the N x M matrix, route "fast":

* softmax forms: PyTorch's fused attention ("sdpa"), or chunks of queries recomputed in the
  backward pass ("chunked") where the fused kernels do not apply;
* dot product: theta (phi^T g / M), a D x Dv matrix in place of N x M;
* concatenation: ReLU(a_i + b_j) is a_i + b_j for the largest b_j and 0 for the others, so one
  sort and suffix sums of g_j and b_j g_j answer every query.

Route "auto" is the one decision of `choose_route`. Softmax logits, and the sums and sorting of
concatenation, are computed in at least float32, under autocast too; float64 stays float64.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nlzoo.names import check_choice

Route = Literal["auto", "definition", "fast", "sdpa", "chunked"]

BLOCK = 64  # rows of one triangular product of suffix sums

_SOFTMAX: tuple[Route, ...] = ("auto", "definition", "fast", "sdpa", "chunked")
_OTHERS: tuple[Route, ...] = ("auto", "definition", "fast")
ROUTES: dict[str, tuple[Route, ...]] = {
    "embedded_gaussian": _SOFTMAX,
    "gaussian": _SOFTMAX,
    "dot_product": _OTHERS,
    "concatenation": _OTHERS,
}


def choose_route(
    form: str, route: Route, device: str, dtype: torch.dtype, sizes: tuple[int, int, int, int]
) -> Route:
    """The route to take, from static sizes (N, M, D, Dv) only, so that a compiler sees one.

    `form` is a key of ROUTES; any `route` but "auto" and "fast" overrides the choice.
    Raises ValueError for an unknown route and where there is no key (M = 0).
    """
    check_choice("route", route, ROUTES[form])
    n, m, d, dv = sizes
    if m == 0:
        raise ValueError("there is no key to look at (M = 0); sub-sample less or use larger input")
    if route not in ("auto", "fast"):
        return route
    if route == "auto" and _definition_is_faster(form, device, n, m, d, dv):
        return "definition"
    if ROUTES[form] is not _SOFTMAX:
        return "fast"
    return "sdpa" if _fused_kernel_exists(device, dtype, d, dv) else "chunked"


def _definition_is_faster(form: str, device: str, n: int, m: int, d: int, dv: int) -> bool:
    if form == "dot_product":
        textbook, fast = (multiply_adds(form, r, (n, m, d, dv)) for r in ("definition", "fast"))
        return textbook <= fast
    if ROUTES[form] is _SOFTMAX:  # measured on a CPU; a GPU has its fused kernels at every size
        return device == "cpu" and n * m < 400_000
    # Measured on a CPU; on a GPU the many small kernels of the fast form cost their launches.
    return n * m < (150_000 if device == "cpu" else 4_000_000)


def multiply_adds(form: str, route: str, sizes: tuple[int, int, int, int]) -> int:
    """Of a sample's products by a route that `choose_route` returned, for sizes (N, M, D, Dv)."""
    n, m, d, dv = sizes
    if form == "concatenation" and route == "fast":  # two suffix sums; the rest is elementwise
        blocks = m // BLOCK + 1
        return 2 * blocks * (BLOCK**2 + blocks) * dv
    if form == "concatenation":  # a_i + b_j is no product
        return n * m * dv
    return (n + m) * d * dv if route == "fast" else n * m * (d + dv)


def _fused_kernel_exists(device: str, dtype: torch.dtype, d: int, dv: int) -> bool:
    """Whether scaled_dot_product_attention keeps no N x M matrix, and is worth taking."""
    if device != "cuda":
        return d == dv
    if d % 8 or dv % 8 or dtype == torch.float64:
        return False
    # Tensor-core kernels (16 bit) end at 256 channels; the float32 kernel has no such end.
    return dtype == torch.float32 or (d == dv and d <= 256)


def embedded_gaussian(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    scale: float,
    route: Route = "auto",
    keys: Tensor | None = None,
) -> Tensor:
    """softmax_j(scale theta_i . phi_j) g_j, equation (3); (B, N, D), (B, M, D), (B, M, Dv).

    The paper's scale is 1, that of every released model D ** -0.5. Logits have at least float32.
    `keys` (B, M), bool, says which j are summed over; with it "sdpa" takes the place of "chunked".
    """
    theta, phi, g = _one_dtype(theta, phi, g)
    route = choose_route("embedded_gaussian", route, g.device.type, g.dtype, _sizes(theta, g))
    mask = None if keys is None else keys.unsqueeze(1)
    with autocast_off(g):
        if route == "definition":
            logits = at_least_float32(theta) @ at_least_float32(phi).mT * scale
            if mask is not None:
                logits = logits.masked_fill(~mask, -torch.inf)
            return torch.softmax(logits, -1).to(g.dtype) @ g
        if route == "sdpa" or mask is not None:
            # A last dimension with another stride than 1 would materialise N x M, silently.
            q, k, v = (_rows(t).unsqueeze(1) for t in (theta, phi, g))
            seen = None if mask is None else mask.unsqueeze(1)
            return F.scaled_dot_product_attention(q, k, v, seen, scale=scale).squeeze(1)
        # views, as the compiler refuses one tensor in two arguments (x = x_hat)
        y: Tensor = _ChunkedSoftmax.apply(theta, phi.view_as(phi), g.view_as(g), scale)
        return y


def gaussian(
    x: Tensor, x_hat: Tensor, g: Tensor, *, scale: float = 1.0, route: Route = "auto"
) -> Tensor:
    """softmax_j(scale x_i . x_hat_j) g_j, equation (2): the features themselves are compared."""
    return embedded_gaussian(x, x_hat, g, scale=scale, route=route)


def dot_product(theta: Tensor, phi: Tensor, g: Tensor, *, route: Route = "auto") -> Tensor:
    """(1 / M) sum_j (theta_i . phi_j) g_j, equation (4), M the number of keys summed over.

    Divided before the second product, which keeps float16 in range.
    """
    theta, phi, g = _one_dtype(theta, phi, g)
    m = g.shape[1]
    route = choose_route("dot_product", route, g.device.type, g.dtype, _sizes(theta, g))
    if route == "definition":
        return (theta @ phi.mT / m) @ g
    # alpha applies to the accumulator: phi^T g is never rounded, and never overflows, undivided
    return theta @ torch.baddbmm(g.new_zeros(1, 1, 1), phi.mT, g, beta=0, alpha=1 / m)


def concatenation(
    theta: Tensor, phi: Tensor, g: Tensor, w_f: Tensor, *, route: Route = "auto"
) -> Tensor:
    """(1 / M) sum_j ReLU(w_f . [theta_i, phi_j]) g_j, equation (5); w_f (2 D,).

    w_f . [theta_i, phi_j] is a_i + b_j: no pair is ever concatenated.
    """
    theta, phi, w_f = (at_least_float32(t) for t in (theta, phi, w_f))
    w_theta, w_phi = w_f.chunk(2)
    with autocast_off(g):
        a, b = theta @ w_theta, phi @ w_phi
    return pairwise_relu(a, b, g, route=route)


def pairwise_relu(a: Tensor, b: Tensor, g: Tensor, *, route: Route = "auto") -> Tensor:
    """(1 / M) sum_j ReLU(a_i + b_j) g_j for a (B, N), b (B, M), g (B, M, Dv) -> (B, N, Dv) as g.

    The fast route costs O((N + M) Dv) and sorts b once; it is deterministic, its backward is the
    same operator with the roles swapped, and a second derivative raises RuntimeError.
    """
    dtype, sizes = g.dtype, (a.shape[1], g.shape[1], 1, g.shape[2])
    route = choose_route("concatenation", route, g.device.type, dtype, sizes)
    a, b, g = _one_dtype(*(at_least_float32(t) for t in (a, b, g)))
    with autocast_off(g):
        if route == "definition":
            y = (F.relu(a.unsqueeze(2) + b.unsqueeze(1)) / g.shape[1]) @ g
        else:
            y = _PairwiseReLU.apply(a, b, g)
    return y.to(dtype)


class _ChunkedSoftmax(torch.autograd.Function):
    """Softmax attention over chunks of queries; the backward pass computes the weights again."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(theta, phi, g)
        ctx.scale = scale
        chunks = theta.split(_chunk_rows(g), dim=1)
        return torch.cat([_weights(q, phi, scale).to(g.dtype) @ g for q in chunks], dim=1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        _refuse_second_derivative()
        theta, phi, g = ctx.saved_tensors
        rows, wide = _chunk_rows(g), _wide(g.dtype)
        d_theta = []
        d_phi, d_g = torch.zeros_like(phi, dtype=wide), torch.zeros_like(g, dtype=wide)
        with autocast_off(g):
            for q, d in zip(theta.split(rows, dim=1), dy.split(rows, dim=1), strict=True):
                p = _weights(q, phi, ctx.scale)
                d_g += p.to(g.dtype).mT @ d
                d_logits = torch._softmax_backward_data((d @ g.mT).to(wide), p, -1, wide)
                d_logits = d_logits.mul_(ctx.scale).to(g.dtype)
                d_theta.append(d_logits @ phi)
                d_phi += d_logits.mT @ q
        return torch.cat(d_theta, dim=1), d_phi.to(phi.dtype), d_g.to(g.dtype), None


def _chunk_rows(g: Tensor) -> int:
    """Queries a chunk: its (B, rows, M) weights stay in cache on a CPU, in L2 on a GPU."""
    budget = 2**20 if g.device.type == "cpu" else 2**24  # numbers
    return max(1, budget // (g.shape[0] * g.shape[1]))


class _PairwiseReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        y, active = _relu_sums(a, b, g)
        ctx.save_for_backward(a, b, g, active)
        return y / g.shape[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _refuse_second_derivative()
        a, b, g, active = ctx.saved_tensors
        with autocast_off(g):
            dy = dy / g.shape[1]
            d_g, dy_active = _relu_sums(b, a, dy)
        return (dy * active).sum(-1), (g * dy_active).sum(-1), d_g


def _relu_sums(a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j ReLU(a_i + b_j) g_j and sum_{j: a_i + b_j > 0} g_j, both (B, N, Dv).

    With b ascending, k the first active key and S_k = sum_{j >= k} g_j, the first sum is
    (a_i + b_k) S_k + sum_{j > k} (b_j - b_{j-1}) S_j: no weight is negative, nothing cancels.
    """
    b, order = b.sort(dim=-1)
    first = torch.searchsorted(b, -a, right=True)  # M where no key is active
    b = torch.cat([b, b[:, -1:]], dim=-1)
    sums = _suffix_sums(_take(g, order))
    steps = b.diff().unsqueeze(-1) * sums[:, 1 : b.shape[1]]
    active = _take(sums, first)
    nearest = (a + b.gather(1, first)).unsqueeze(-1)
    return _take(_suffix_sums(steps), first).addcmul_(active, nearest), active


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, M, D) at index (B, N) -> (B, N, D); index_select copies whole rows, gather not."""
    b, m, d = rows.shape
    if b > 1:
        index = index + torch.arange(0, b * m, m, device=index.device).unsqueeze(1)
    return rows.reshape(b * m, d).index_select(0, index.flatten()).view(b, -1, d)


def _suffix_sums(g: Tensor) -> Tensor:
    """(B, M, D) -> (B, >= M + 1, D): row k holds sum_{j >= k} g_j, zero from row M on.

    Triangular products inside blocks, then across them: deterministic on a GPU, where cumsum is
    not, and faster than cumsum on a CPU. Suffixes, as differences of prefixes would cancel.
    """
    b, m, d = g.shape
    blocks = m // BLOCK + 1  # at least one row of padding: the empty sum
    g = F.pad(g, (0, 0, 0, blocks * BLOCK - m)).view(b, blocks, BLOCK, d)
    within = g.new_ones(BLOCK, BLOCK).triu() @ g
    later = g.new_ones(blocks, blocks).triu(1) @ within[:, :, 0]
    return (within + later.unsqueeze(2)).view(b, blocks * BLOCK, d)


def _refuse_second_derivative() -> None:
    # Grad mode is on in a backward pass only for create_graph=True; a compiler refuses by itself.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("this fast route has no second derivative; use route='definition'")


def _weights(theta: Tensor, phi: Tensor, scale: float) -> Tensor:
    """softmax_j(scale theta_i . phi_j) in at least float32: near 100, bfloat16 errs by 0.25."""
    if theta.device.type == "cuda" and _wide(theta.dtype) != theta.dtype:
        logits = torch.bmm(theta, phi.mT, out_dtype=torch.float32)  # 16-bit inputs, fast
    else:
        logits = at_least_float32(theta) @ at_least_float32(phi).mT
    return torch.softmax(logits.mul_(scale), -1)


def _sizes(theta: Tensor, g: Tensor) -> tuple[int, int, int, int]:
    return theta.shape[1], g.shape[1], theta.shape[2], g.shape[2]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(t: Tensor) -> Tensor:
    """bfloat16 and float16 become float32, float64 stays."""
    return t.to(_wide(t.dtype))


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def _one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return tuple(t.to(dtype) for t in tensors)


def autocast_off(t: Tensor) -> AbstractContextManager[Any]:
    """Nothing where autocast is off already: exported graphs stay free of it. "meta" has none."""
    kind = t.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()
