"""The non-local block, equation (6) of arXiv 1711.07971: z_i = W_z y_i + x_i."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo import ops
from nlzoo.names import check_choice

Form = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
Extent = Literal["spacetime", "space", "time"]
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d

EXTENTS: tuple[Extent, ...] = ("spacetime", "space", "time")
CONVS: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CHILD = "non_local"  # the name of a block inside the module that it follows
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _max_pool1d(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """As an image one pixel high: torch.export takes the length for fixed in F.max_pool1d."""
    return F.max_pool2d(x.unsqueeze(2), (1, *kernel)).squeeze(2)


POOLS: dict[int, Callable[..., Tensor]] = {1: _max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class NonLocalBlock(nn.Module):
    """x + norm(W_z y), y_i = (1 / C(x)) sum_j f(x_i, x_j) g(x_j); any input size, shape kept.

    Input (B, C, L), (B, C, H, W) or (B, C, T, H, W) for `dims` 1, 2 or 3, float. Every position
    is a query; the M keys are the positions of the sub-sampled input. The defaults are those of
    the released code behind the published numbers: softmax of logits scaled by inner ** -0.5,
    biases, pooling (where asked for) before phi and g, batch norm after W_z with gamma 0. The
    paper's literal text is two arguments away: `scale=1.0, subsample_first=False`. Weights start
    from a normal distribution of variance 1 / fan-in, biases from 0.

    Args:
        channels: C, of input and output.
        dims: 1 sequence, 2 image, 3 video.
        form: f. "embedded_gaussian" (equation 3), "gaussian" (2, without theta and phi),
            "dot_product" (4) or "concatenation" (5, with the vector `w_f` (2 inner,)).
        inner: channels of theta, phi and g; None: C // 2.
        scale: of the softmax logits. None: inner ** -0.5 for the embedded Gaussian, and 1 for the
            Gaussian, of which no official code exists.
        subsample: max pooling of the keys (section 3.3), kernel = stride, the remainder dropped.
            None: none; k: k x k in space, or k along a sequence; or one size a dimension.
        subsample_first: pool x before phi and g (released code), or pool phi and g (paper).
        bias: of theta, phi, g and W_z.
        norm: "batch" or None, after W_z.
        zero_init: start as the identity, by gamma 0, or by W_z 0 where there is no norm. Every
            value of the output then equals the input's (-0.0 may turn into 0.0).
        extent: what a query sees (Table 2d): "spacetime" every position, "space" its own frame,
            "time" its own place in all frames, which leaves no space to sub-sample.
        groups: number of runs of T / groups frames; a query sees those of its own run.
        route: of `nlzoo.ops`; "definition" is the textbook form, for exporters.

    Raises ValueError for arguments that do not fit together, and for an input of the wrong rank
    or width, smaller than the pooling kernel, or with a T that `groups` does not divide.
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 3,
        form: Form = "embedded_gaussian",
        inner: int | None = None,
        scale: float | None = None,
        subsample: int | tuple[int, ...] | None = None,
        subsample_first: bool = True,
        bias: bool = True,
        norm: Literal["batch"] | None = "batch",
        zero_init: bool = True,
        extent: Extent = "spacetime",
        groups: int | None = None,
        route: ops.Route = "auto",
    ) -> None:
        super().__init__()
        inner = channels // 2 if inner is None else inner
        check_choice("form", form, tuple(ops.ROUTES))
        check_choice("route", route, ops.ROUTES[form])
        if dims not in CONVS:
            raise ValueError(f"dims is {dims!r}: give 1 (sequence), 2 (image) or 3 (video)")
        if norm not in ("batch", None):
            raise ValueError(f"norm is {norm!r}: give 'batch' or None")
        if inner < 1:
            raise ValueError(f"inner is {inner} (channels {channels}): give at least 1")
        self.channels, self.inner, self.dims, self.form = channels, inner, dims, form
        self.scale = _scale(scale, form, inner)
        self.subsample = _kernel(subsample, dims)
        self.subsample_first, self.zero_init = subsample_first, zero_init
        self.extent, self.groups, self.route = extent, groups, route
        self._axes = _axes(dims, self.subsample, extent, groups)
        if form != "gaussian":
            self.theta = CONVS[dims](channels, inner, 1, bias=bias)
            self.phi = CONVS[dims](channels, inner, 1, bias=bias)
        if form == "concatenation":
            self.w_f = nn.Parameter(torch.empty(2 * inner))  # of theta, then of phi
        self.g = CONVS[dims](channels, inner, 1, bias=bias)
        self.out = CONVS[dims](inner, channels, 1, bias=bias)  # W_z
        self.norm = NORMS[dims](channels) if norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, from new random weights."""
        for conv in self.children():
            if isinstance(conv, Conv):
                nn.init.normal_(conv.weight, std=conv.in_channels**-0.5)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        if self.form == "concatenation":
            nn.init.normal_(self.w_f, std=(2 * self.inner) ** -0.5)
        if self.norm is not None:
            self.norm.reset_parameters()
        if self.zero_init:  # one of the two: with both at 0, neither would ever leave it
            nn.init.zeros_(self.out.weight if self.norm is None else self.norm.weight)

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """(B, C, *S) -> (B, C, *S), in the dtype and memory format of x.

        Positions where `inside` (B, *S), bool, is false are padding, which no query looks at; a
        key is padding where all that it was pooled of is. A query must have a key.
        """
        self.positions(x.shape)
        tokens = x.movedim(1, -1).contiguous()  # (B, *S, C), a view of a channels-last x
        rows = self._fold(tokens)
        keys = None
        if inside is not None:
            keys = self._pool(self._fold(inside.unsqueeze(-1).float())).flatten(1) > 0
        y = self._pairwise(self._queries(rows), *self._keys(rows), keys)
        z = _linear(self._unfold(y, tokens.shape), self.out).movedim(-1, 1)
        if self.norm is not None:
            z = self.norm(z)
        return x + z.to(x.dtype)

    def positions(self, shape: Sequence[int]) -> tuple[int, int]:
        """(N, M) for an input of shape (B, C, *S): N queries a sample, each over M keys.

        An N x M float32 map, which only the textbook form keeps, takes 4e-6 N M MB.
        """
        if len(shape) != self.dims + 2 or shape[1] != self.channels:
            axes = {1: "L", 2: "H, W", 3: "T, H, W"}[self.dims]
            raise ValueError(f"input has shape {tuple(shape)}, wanted (B, {self.channels}, {axes})")
        size = list(shape[2:])
        queries = prod(size)
        if self.groups is not None and size[0] % self.groups:
            raise ValueError(f"{size[0]} frames (input {tuple(shape)}) in {self.groups} groups")
        if self.dims == 3:
            size[0] //= self.groups or 1
        pairs = zip(size[self._axes], self.subsample[self._axes], strict=True)
        keys = prod([s // k for s, k in pairs])
        if keys == 0:
            raise ValueError(
                f"input {tuple(shape)} is smaller than the pooling kernel {self.subsample}: "
                "sub-sample less or use larger input"
            )
        return queries, keys

    def multiply_adds(self, shape: Sequence[int]) -> int:
        """Of one sample of an input (B, C, *S), by the route taken where the weights are."""
        n, m = self.positions(shape)
        c, d, form, weight = self.channels, self.inner, self.form, self.g.weight
        rows = n // prod(shape[2:][self._axes]) * (self.groups or 1)  # see `_fold`
        keys = rows * m
        convolved = keys if self._pools_first() else n
        total = (n + convolved) * c * d  # W_z, g
        if form == "concatenation":  # theta is never run, see `_scores`
            total += (n + d) * c
            total += (keys + d) * c if self._pools_first() else n * c * d + keys * d
        elif form != "gaussian":
            total += (n + convolved) * c * d
        sizes = (n // rows, m, {"gaussian": c, "concatenation": 1}.get(form, d), d)
        route = ops.choose_route(form, self.route, weight.device.type, weight.dtype, sizes)
        return total + rows * ops.multiply_adds(form, route, sizes)

    @torch.no_grad()
    def attention(self, x: Tensor, query: int | Sequence[int], sample: int = 0) -> Tensor:
        """The weights (M,) of the keys in one position's sum, at least float32, in O(M) memory.

        x (B, C, *S) is the block's input, `query` a position in its grid, (t, y, x) or flat. They
        sum to 1 for the softmax forms and are f / M, of either sign, for the others. `key_grid`
        says where each key lies.
        """
        self.positions(x.shape)
        flat = x[sample].flatten(1)
        seen = self._seen_by(x.shape, query)
        rows = flat[:, seen.flatten().to(x.device)].mT.unflatten(0, seen.shape)
        q = self._queries(flat[:, _flat_index(query, x.shape[2:])].view(1, 1, -1))
        k, _ = self._keys(rows.unsqueeze(0))
        with ops.autocast_off(x):
            q, k = ops.at_least_float32(q), ops.at_least_float32(k)
            if self.form == "concatenation":
                return F.relu(q[0, 0] + k[0]).flatten() / k.shape[1]
            f = (q @ k.mT).flatten()
            return f / k.shape[1] if self.form == "dot_product" else (f * self.scale).softmax(0)

    def key_grid(self, shape: Sequence[int], query: int | Sequence[int] = 0) -> Tensor:
        """Positions (M, dims), int64, of a query's keys in the grid of an input (B, C, *S).

        With sub-sampling, a key is the maximum over the window of size `subsample` that starts
        at its position.
        """
        self.positions(shape)
        seen = self._seen_by(shape, query)
        for axis, k in enumerate(self.subsample[self._axes]):
            starts = torch.arange(seen.shape[axis] // k) * k
            seen = seen.index_select(axis, starts)
        return torch.stack(torch.unravel_index(seen.flatten(), tuple(shape[2:])), dim=-1)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        names = ("dims", "form", "inner", "scale", "subsample", "subsample_first", "extent")
        options = [f"{name}={getattr(self, name)!r}" for name in (*names, "groups", "route")]
        return ", ".join([str(self.channels), *options])

    def _fold(self, tokens: Tensor) -> Tensor:
        """(B, *S, C) -> (B', *S', C): one row for each set of positions that see each other."""
        if self.extent == "space":
            return tokens.flatten(0, 1)
        if self.groups is not None:
            tokens = tokens.unflatten(1, (self.groups, -1)).flatten(0, 1)
        if self.extent == "time":
            tokens = tokens.movedim(1, 3).flatten(0, 2)
        return tokens

    def _unfold(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """(B', N', D) -> (B, *S, D), for tokens of `shape` (B, *S, C): the inverse of `_fold`."""
        size = shape[:-1]
        if self.extent == "time":
            y = y.view(-1, *size[2:], y.shape[1], y.shape[2]).movedim(3, 1)
        return y.reshape(*size, y.shape[-1])

    def _pools_first(self) -> bool:
        return self.subsample_first or max(self.subsample) == 1

    def _pool(self, tokens: Tensor) -> Tensor:
        kernel = self.subsample[self._axes]
        if max(kernel) == 1:
            return tokens
        frames = tokens.shape[:2]
        single = len(kernel) == 3 and kernel[0] == 1
        if single:  # as images: faster, and deterministic in the backward pass on a GPU
            tokens, kernel = tokens.flatten(0, 1), kernel[1:]
        tokens = POOLS[len(kernel)](tokens.movedim(-1, 1), kernel).movedim(1, -1)
        return tokens.unflatten(0, frames) if single else tokens

    def _queries(self, rows: Tensor) -> Tensor:
        """(B', *S', C) -> (B', N', D): x, theta, or the scores a (D = 1) of concatenation."""
        x = rows.flatten(1, -2)
        if self.form == "gaussian":
            return x
        if self.form == "concatenation":
            return _scores(x, self.theta, self.w_f[: self.inner])
        return _linear(x, self.theta)

    def _keys(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B', *S', C) -> phi (B', M, D), or x, or scores b (D = 1); g (B', M, inner)."""
        first = self._pools_first()
        x = self._pool(rows) if first else rows
        if self.form == "gaussian":
            phi, g = x, _linear(x, self.g)
        elif self.form == "concatenation" and first:
            phi, g = _scores(x, self.phi, self.w_f[self.inner :]), _linear(x, self.g)
        else:  # one product for both
            phi, g = _linear(x, self.phi, self.g).split(self.inner, dim=-1)
        if not first:
            phi, g = self._pool(phi), self._pool(g)
            if self.form == "concatenation":
                with ops.autocast_off(phi):
                    w = ops.at_least_float32(self.w_f[self.inner :, None])
                    phi = ops.at_least_float32(phi) @ w
        return phi.flatten(1, -2), g.flatten(1, -2)

    def _pairwise(self, theta: Tensor, phi: Tensor, g: Tensor, keys: Tensor | None) -> Tensor:
        if self.form in ("embedded_gaussian", "gaussian"):
            return ops.embedded_gaussian(
                theta, phi, g, scale=self.scale, route=self.route, keys=keys
            )
        if keys is not None:  # a mean over those that count
            seen = ops.at_least_float32(keys.to(g.dtype))
            g = g * (seen / seen.mean(1, keepdim=True)).unsqueeze(-1).to(g.dtype)
        if self.form == "concatenation":
            return ops.pairwise_relu(theta.squeeze(-1), phi.squeeze(-1), g, route=self.route)
        return ops.dot_product(theta, phi, g, route=self.route)

    def _seen_by(self, shape: Sequence[int], query: int | Sequence[int]) -> Tensor:
        """Flat positions (*S') of x that share a row of `_fold` with the query."""
        size = tuple(shape[2:])
        flat = torch.arange(prod(size)).view(1, *size, 1)
        rows = self._fold(flat).squeeze(-1)
        mine = (rows == _flat_index(query, size)).flatten(1).any(dim=1)
        return rows[mine][0]


def _linear(x: Tensor, *convs: Conv) -> Tensor:
    """1 x 1 convolutions of the same input, side by side, on (..., C)."""
    if len(convs) == 1:
        return F.linear(x, convs[0].weight.flatten(1), convs[0].bias)
    weight = torch.cat([conv.weight.flatten(1) for conv in convs])
    biases = [conv.bias for conv in convs if conv.bias is not None]
    return F.linear(x, weight, torch.cat(biases) if biases else None)


def _scores(x: Tensor, conv: Conv, w: Tensor) -> Tensor:
    """w . conv(x) on (..., C) -> (..., 1), as x . (W^T w) + b . w: the convolution is never run."""
    with ops.autocast_off(x):
        x, weight, w = (ops.at_least_float32(t) for t in (x, conv.weight.flatten(1), w))
        bias = None if conv.bias is None else (ops.at_least_float32(conv.bias) @ w).view(1)
        return F.linear(x, (w @ weight).unsqueeze(0), bias)


def _flat_index(query: int | Sequence[int], size: Sequence[int]) -> int:
    position = (query,) if isinstance(query, int) else tuple(query)
    bounds = (prod(size),) if isinstance(query, int) else tuple(size)
    if len(position) != len(bounds) or any(
        not 0 <= p < s for p, s in zip(position, bounds, strict=False)
    ):
        raise ValueError(f"query {query} is no position of a grid of {tuple(size)}")
    flat = 0
    for p, s in zip(position, bounds, strict=True):
        flat = flat * s + p
    return flat


def _scale(scale: float | None, form: Form, inner: int) -> float:
    if scale is None:
        return float(inner**-0.5) if form == "embedded_gaussian" else 1.0
    if form not in ("embedded_gaussian", "gaussian"):
        raise ValueError(f"scale is for softmax forms, not {form!r}: leave it out")
    return float(scale)


def _kernel(subsample: int | tuple[int, ...] | None, dims: int) -> tuple[int, ...]:
    """The pooling kernel, one number a dimension; all 1 for none."""
    if subsample is None:
        return (1,) * dims
    kernel = (1, subsample, subsample)[-dims:] if isinstance(subsample, int) else tuple(subsample)
    if len(kernel) != dims or min(kernel) < 1:
        raise ValueError(f"subsample is {subsample}: give None, k or {dims} numbers, at least 1")
    return kernel


def _axes(dims: int, kernel: tuple[int, ...], extent: Extent, groups: int | None) -> slice:
    """The axes of (T, H, W) along which a query sees; raises where the four do not fit."""
    check_choice("extent", extent, EXTENTS)
    if dims != 3 and (extent != "spacetime" or groups is not None):
        raise ValueError("extent and groups are about frames: use dims=3 or leave them out")
    if groups is not None and (groups < 1 or extent == "space"):
        raise ValueError(
            f"groups is {groups} with extent {extent!r}: give at least 1, and none for 'space'"
        )
    if extent == "time" and max(kernel[1:]) > 1:
        raise ValueError(
            f"subsample is {kernel} with extent 'time', where a query sees its own place only: "
            "give None or (k, 1, 1)"
        )
    if extent == "space" and kernel[0] > 1:
        raise ValueError(f"subsample is {kernel} with extent 'space': pool no frames together")
    return {"spacetime": slice(None), "space": slice(1, None), "time": slice(0, 1)}[extent]
