"""Non-local blocks after named places of any network, without a trace in its own keys."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nlzoo.blocks import CHILD, NonLocalBlock
from nlzoo.folded import FoldedNetwork, host_of
from nlzoo.names import check_choice, nearest


@dataclass(frozen=True)
class BlockReport:
    """One inserted block."""

    place: str
    channels: int
    shape: tuple[int, ...]  # of the map (B, C, *S) it was measured on
    queries: int  # N
    keys: int  # M, after sub-sampling
    multiply_adds: int  # of one sample
    parameters: int
    note: str = ""

    @property
    def megabytes(self) -> float:
        """Size of one float32 N x M attention map, 10^6 bytes."""
        return self.queries * self.keys * 4 / 1e6


@dataclass(frozen=True)
class InsertionReport:
    """What went where. `str()` is a table, `check` proves that no output bit changed."""

    model: nn.Module = field(repr=False)
    blocks: tuple[BlockReport, ...]

    def __str__(self) -> str:
        rows = [("place", "channels", "map", "N", "M", "MB", "GMACs", "parameters", "")]
        for b in self.blocks:
            size = "x".join(map(str, b.shape[2:]))
            cost = (f"{b.megabytes:.3g}", f"{b.multiply_adds / 1e9:.3g}", f"{b.parameters:,}")
            places = (size, f"{b.queries:,}", f"{b.keys:,}")
            rows.append((b.place, str(b.channels), *places, *cost, b.note))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def check(self, example: Any) -> None:
        """Compare the output with the blocks against the output without them, bit by bit.

        Args:
            example: input of the model (a tensor, or a tuple of its arguments).

        Raises:
            ValueError: they differ, as they do once the blocks are trained or start non-zero.
        """
        inner = _unwrap(self.model)
        with evaluating(inner), torch.no_grad():
            with_blocks = tree_leaves(inner(*_arguments(example)))
            with _bypassed(host_of(inner), [b.place for b in self.blocks]):
                without = tree_leaves(inner(*_arguments(example)))
        for a, b in zip(with_blocks, without, strict=True):
            if isinstance(a, Tensor) and not torch.equal(a, b):
                raise ValueError(
                    f"the blocks change the output by up to {(a - b).abs().max():.3g}: they are "
                    "trained, or were made with zero_init=False"
                )


def insert_non_local(
    model: nn.Module, places: str | list[str], *, example: Any = None, **block: Any
) -> InsertionReport:
    """Put a non-local block after each named place of a network (section 3.3, section 4).

    A block is a child `non_local` of the module it follows, applied to that module's output by a
    forward hook: keys of the host stay as they are, and so do mode, buffers, dtype and device.
    With the default identity start the output does not change by a bit. Everything is checked
    before anything is changed.

    Args:
        model: any network, compiled or not.
        places: "res3:1,3 res4:1,3,5" (a submodule, then 0-based indices of its children), or a
            list of names of submodules. Each must return one tensor (B, C, *S) of rank 3 to 5.
            Those of a `FoldedNetwork` are its backbone's, and the blocks see (B, C, T, H, W).
        example: an input (or tuple of inputs) to measure widths with, by a pass without data. By
            default made from `model.preprocessing`, timm's default_cfg or the first convolution.
        **block: arguments of `NonLocalBlock`. By default maps of 2 and 3 dimensions are
            sub-sampled by 2 in space, as released, where they are at least 2 wide.

    Returns:
        What was inserted, with the sizes of the attention maps of the example, and its cost in
        multiply-adds a sample.

    Raises:
        ValueError: no place; a place that is unknown (names the nearest), out of range, listed
            twice, not run or run several times by the example, with an unsuitable output (tokens
            of a transformer, too), or that has a block already; no example to be guessed; wrong
            block arguments.
    """
    inner = _unwrap(model)
    host = host_of(inner)
    _check_arguments(block)
    names = _resolve(host, places)
    modules = {name: _place(host, name) for name in names}
    if len(set(modules.values())) < len(names):
        raise ValueError(f"two of the places {', '.join(names)} are one and the same module")
    outputs = _measure(inner, modules, _guess(inner) if example is None else example)
    blocks, reports = [], []
    for name, module in modules.items():
        built, report = _build(inner, name, module, outputs[name], block)
        blocks.append(built)
        reports.append(report)
    for module, built in zip(modules.values(), blocks, strict=True):
        module.add_module(CHILD, built)
        if isinstance(inner, FoldedNetwork):
            inner.fold.around(built)
        if not isinstance(module, nn.Sequential):  # that runs its children itself
            module.register_forward_hook(apply_non_local)
    if "torch._dynamo" in sys.modules:  # compiled code does not look for new hooks
        torch.compiler.reset()
    return InsertionReport(model, tuple(reports))


def apply_non_local(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The forward hook of a place: its output through its block."""
    through: Tensor = module.get_submodule(CHILD)(output)
    return through


def _unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile(module)`."""
    return getattr(module, "_orig_mod", module)


def _arguments(example: Any) -> tuple[Any, ...]:
    return example if isinstance(example, tuple) else (example,)


def _check_arguments(block: dict[str, Any]) -> None:
    known = [k for k in signature(NonLocalBlock).parameters if k not in ("channels", "dims")]
    for key in block:
        check_choice("block argument", key, ["places", *known])


def _resolve(model: nn.Module, places: str | list[str]) -> list[str]:
    """Names of submodules, in the order given."""
    names = []
    for token in places.split() if isinstance(places, str) else places:
        stage, colon, indices = token.partition(":")
        if colon:
            names += [_child(model, stage, index) for index in indices.split(",")]
        else:
            names.append(stage)
    if not names:
        raise ValueError('no places given; name at least one, as in "res3:1,3 res4:1,3,5"')
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"place {twice[0]!r} is listed twice")
    return names


def _child(model: nn.Module, stage: str, index: str) -> str:
    """Name of the index-th child of a stage."""
    children = [n for n, _ in _submodule(model, stage).named_children() if n != CHILD]
    if not index.isdecimal() or int(index) >= len(children):
        raise ValueError(
            f"place '{stage}:{index}' does not exist: {stage!r} has blocks 0 to {len(children) - 1}"
        )
    return f"{stage}.{children[int(index)]}"


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return _unwrap(model.get_submodule(name))
    except AttributeError:
        names = [n for n, _ in model.named_modules() if n and CHILD not in n]
        raise ValueError(
            f"{type(model).__name__} has no place {name!r}{nearest(name, names)}"
        ) from None


def _place(model: nn.Module, name: str) -> nn.Module:
    module = _submodule(model, name)
    if hasattr(module, CHILD):
        raise ValueError(f"place {name!r} has a non-local block already")
    if runs_children(module):
        raise ValueError(f"place {name!r} is a container; name one of its children")
    return module


def runs_children(module: nn.Module) -> bool:
    """Whether it is a container that would take a block for one more of its children."""
    own_forward = type(module).forward is not nn.Sequential.forward
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and own_forward


def _guess(model: nn.Module) -> Tensor:
    """An input without data, from the model's preprocessing, timm's record or the first layer."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    if pre := getattr(model, "preprocessing", None):
        frames = (pre.frames,) if pre.frames else ()  # images have none
        return torch.empty(1, 3, *frames, pre.crop, pre.crop, dtype=dtype, device="meta")
    if size := (getattr(model, "default_cfg", None) or {}).get("input_size"):
        return torch.empty(1, *size, dtype=dtype, device="meta")
    sizes = {nn.Conv3d: (8, 224, 224), nn.Conv2d: (224, 224), nn.Conv1d: (224,)}
    for module in model.modules():
        for conv, size in sizes.items():
            if isinstance(module, conv):
                return torch.empty(1, module.in_channels, *size, dtype=dtype, device="meta")
    raise ValueError(
        f"cannot guess an input of {type(model).__name__}; pass example=, an input tensor"
    )


def _measure(model: nn.Module, places: dict[str, nn.Module], example: Any) -> dict[str, Tensor]:
    """What each place returns, on device meta, by one pass that leaves the model as it was."""
    seen: dict[str, list[Any]] = {name: [] for name in places}

    def record(name: str) -> Any:
        return lambda module, args, output: seen[name].append(output)

    handles = [m.register_forward_hook(record(name)) for name, m in places.items()]
    try:
        with evaluating(model), torch.no_grad():
            _run(model, _arguments(example), seen)
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(model, FoldedNetwork):
        return {n: model.fold.unfold(_only(n, places[n], o, 4, 4)) for n, o in seen.items()}
    return {n: _only(n, places[n], outputs, 3, 5) for n, outputs in seen.items()}


def _run(model: nn.Module, arguments: tuple[Any, ...], seen: dict[str, list[Any]]) -> None:
    """One pass without computing; where an operation needs data, one with it."""
    try:
        run_on_meta(model, arguments)
    except (RuntimeError, TypeError, ValueError):
        for outputs in seen.values():
            outputs.clear()
        tensors = dict(_tensors(model))
        device = next((t.device for t in tensors.values()), torch.device("cpu"))
        real = tree_map_only(
            Tensor, lambda t: torch.zeros_like(t, device=device) if t.is_meta else t, arguments
        )
        buffers = {n: t.clone() for n, t in tensors.items() if not isinstance(t, nn.Parameter)}
        torch.func.functional_call(model, buffers, real, tie_weights=False)


def run_on_meta(model: nn.Module, arguments: tuple[Any, ...]) -> None:
    """One pass without computing, which leaves the model as it was."""
    meta = {name: torch.empty_like(t, device="meta") for name, t in _tensors(model)}
    on_meta = tree_map_only(Tensor, lambda t: t.to("meta"), arguments)
    torch.func.functional_call(model, meta, on_meta, tie_weights=False)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by one name for each place they are at.

    `functional_call` would not restore a module that it swaps under two names.
    """
    for name, module in model.named_modules():
        yield from module.named_parameters(name, recurse=False, remove_duplicate=False)
        yield from module.named_buffers(name, recurse=False, remove_duplicate=False)


def _only(name: str, place: nn.Module, outputs: list[Any], least: int, most: int) -> Tensor:
    """The one output of a place, of a rank in this range, channels second."""
    if not outputs:
        raise ValueError(f"place {name!r} is not on the path of the example: it was never called")
    if len(outputs) > 1:
        raise ValueError(f"place {name!r} is called {len(outputs)} times a pass; choose another")
    out = outputs[0]
    if isinstance(out, Tensor) and out.ndim > 2 and _channels_last(place, out.shape):
        raise ValueError(
            f"place {name!r} returns tokens (B, N, C) or maps (B, H, W, C), shape "
            f"{tuple(out.shape)}: a non-local block goes after maps (B, C, H, W)"
        )
    if not isinstance(out, Tensor) or not least <= out.ndim <= most:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        ranks = f"{least} to {most}" if most > least else least
        raise ValueError(f"place {name!r} must return one tensor (B, C, *S) of rank {ranks}: {got}")
    return out


def _channels_last(place: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the last axis has the width of its layers, and the second that of none."""
    layers = list(place.modules())
    first = {m.out_channels for m in layers if isinstance(m, nn.modules.conv._ConvNd)}
    first |= {m.num_channels for m in layers if isinstance(m, nn.GroupNorm)}
    last = {m.normalized_shape[-1] for m in layers if isinstance(m, nn.LayerNorm)}
    last |= {m.out_features for m in layers if isinstance(m, nn.Linear)}
    return shape[-1] in last and shape[1] not in first


def _build(
    model: nn.Module, name: str, place: nn.Module, output: Tensor, arguments: dict[str, Any]
) -> tuple[NonLocalBlock, BlockReport]:
    """A block for this output, on the device and in the mode of its place."""
    arguments = dict(arguments)
    shape, dims, note = tuple(output.shape), output.ndim - 2, ""
    if "subsample" not in arguments and dims > 1 and arguments.get("extent") != "time":
        arguments["subsample"] = 2 if min(shape[-2:]) >= 2 else None
        note = "" if arguments["subsample"] else "map too small to sub-sample"
    built = NonLocalBlock(shape[1], dims=dims, **arguments)
    like: Tensor = next(place.parameters(), next(model.parameters(), output))
    built.to(device=like.device, dtype=output.dtype).train(place.training)
    parameters = sum(prod(p.shape) for p in built.parameters())
    queries, keys = built.positions(shape)
    cost = built.multiply_adds(shape)
    return built, BlockReport(name, shape[1], shape, queries, keys, cost, parameters, note)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, uncompiled; afterwards each module's own mode."""
    training = {m: m.training for m in model.modules()}
    eager = (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else contextlib.nullcontext()
    )
    model.eval()
    try:
        with eager:
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextlib.contextmanager
def _bypassed(model: nn.Module, places: list[str]) -> Iterator[None]:
    """The network without these blocks."""
    modules = [_submodule(model, place) for place in places]
    blocks = [module.get_submodule(CHILD) for module in modules]
    for module in modules:
        module.add_module(CHILD, nn.Identity())
    try:
        yield
    finally:
        for module, block in zip(modules, blocks, strict=True):
            module.add_module(CHILD, block)
