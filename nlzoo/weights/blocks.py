"""Blocks of other implementations, by what their names and their code say.

Three facts leave no trace in a file: whether keys are pooled before or after phi and g, the scale
of the logits, and the form where names and shapes are alike. Each dialect states its own; a file
of a configuration that differs is loaded with `**facts`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlzoo.blocks import NonLocalBlock
from nlzoo.names import check_choice

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EPS = 1e-5  # of every norm


def _plain(channels: int, inner: int) -> float:
    return 1.0


def _inner(channels: int, inner: int) -> float:
    return float(inner**-0.5)


def _full(channels: int, inner: int) -> float:
    return float(channels**-0.5)


@dataclass(frozen=True)
class BlockDialect:
    """Names and facts of an implementation's block.

    Attributes:
        names: patterns of whole names, and what they are called here.
        scale: of the softmax logits, from C and the inner width.
        pooled: whether keys are pooled where the caller does not say it.
        pool_first: x is pooled, not phi and g.
        aliases: pattern of names that repeat other tensors.
        bare: the last convolution has no bias where a norm follows.
    """

    names: tuple[tuple[str, str], ...]
    scale: Callable[[int, int], float] = _inner
    pooled: bool = False
    pool_first: bool = False
    aliases: str = ""
    bare: bool = False


def _convs(theta: str, phi: str, g: str, out: str, norm: str) -> tuple[tuple[str, str], ...]:
    """Names of the four convolutions and the norm, each followed by .weight and so on."""
    convs = {"theta": theta, "phi": phi, "g": g, "out": out}
    pairs = [(rf"{name}\.(weight|bias)", rf"{own}.\1") for own, name in convs.items()]
    return *pairs, (rf"{norm}\.({'|'.join(NORM)})", r"norm.\1")


_CAFFE2 = (
    *((rf"(?:.*_)?{n}_w", f"{n}.weight") for n in ("theta", "phi", "g", "out")),
    *((rf"(?:.*_)?{n}_b", f"{n}.bias") for n in ("theta", "phi", "g", "out")),
    (r"(?:.*_)?bn_s", "norm.weight"),
    (r"(?:.*_)?bn_b", "norm.bias"),
    (r"(?:.*_)?bn_rm", "norm.running_mean"),
    (r"(?:.*_)?bn_riv", "norm.running_var"),
)
_ALEXHEX7 = (
    *_convs(r"theta(?:\.0)?", r"phi(?:\.0)?", r"g(?:\.0)?", r"W(?:\.0)?", r"W\.1"),
    (r"concat_project\.0\.weight", "w_f"),
)
DIALECTS = {
    "caffe2": BlockDialect(_CAFFE2, pooled=True, pool_first=True),
    "slowfast": BlockDialect(
        _convs("conv_theta", "conv_phi", "conv_g", "conv_out", "bn"), pooled=True, pool_first=True
    ),
    "pytorchvideo": BlockDialect(
        _convs("conv_theta", "conv_phi", "conv_g", "conv_out", "norm"), pool_first=True
    ),
    "mmcv": BlockDialect(
        (
            *_convs(
                r"theta\.conv",
                r"phi(?:\.0)?\.conv",
                r"g(?:\.0)?\.conv",
                r"conv_out\.conv",
                r"conv_out\.bn",
            ),
            (r"concat_project\.conv\.weight", "w_f"),
        ),
        bare=True,
    ),
    "mmaction01": BlockDialect(
        _convs("theta", r"phi\.1", r"g\.1", r"W\.0", r"W\.1"),
        _plain,
        pooled=True,
        pool_first=True,
        aliases=r"bn\..*",
    ),
    "mit_tsm": BlockDialect(_ALEXHEX7, _plain, pooled=True),
    "alexhex7": BlockDialect(_ALEXHEX7, _plain, pooled=True),
    "tea1528": BlockDialect(
        (
            *_convs("theta", "phi", "g", r"W_z(?:\.0)?", r"W_z\.1"),
            (r"W_f\.0\.weight", "w_f"),
            (r"W_f\.0\.bias", "w_f_bias"),
        ),
        _plain,
    ),
    "gluoncv": BlockDialect(_convs("theta", "phi", "g", "W", "bn"), aliases=r"W_bn\..*"),
    "timm": BlockDialect(_convs("t", "p", "g", "z", "norm"), _full),
    "tushar": BlockDialect(_convs("theta", "phi", "g", "out", "bn"), pooled=True, pool_first=True),
    "patykov": BlockDialect(
        _convs("theta", r"phi\.1", r"g\.1", r"W\.0", r"W\.1"), pooled=True, pool_first=True
    ),
}


def load_block(
    state_dict: Mapping[str, Tensor], dialect: str, dims: int = 3, **facts: Any
) -> NonLocalBlock:
    """The block of a state dict in another implementation's names.

    Args:
        state_dict: of one block, without the prefix of its place.
        dialect: a key of `DIALECTS`.
        dims: 1, 2 or 3.
        **facts: what no name says, where it is not the dialect's own: `form` (where theta and phi
            are there: embedded_gaussian or dot_product), `scale`, `subsample` (None, k or one size
            a dimension), `subsample_first`, `groups`, `extent`.

    Returns:
        In evaluation mode.

    Raises:
        ValueError: an unknown dialect or name, a tensor that is missing, is there twice with other
            values, or has another shape.
    """
    check_choice("dialect", dialect, DIALECTS)
    spoken = DIALECTS[dialect]
    state = rename_block(state_dict, spoken)
    if "g.weight" not in state or "out.weight" not in state:
        raise ValueError(f"{dialect}: no block: tensors {', '.join(sorted(state_dict)[:6])}")
    inner, channels = state["g.weight"].shape[:2]
    form: Any = facts.pop("form", None) or _form(state)
    if form == "embedded_gaussian":
        facts.setdefault("scale", spoken.scale(channels, inner))
    facts.setdefault("subsample", 2 if spoken.pooled else None)
    facts.setdefault("subsample_first", spoken.pool_first)
    normed = "norm.weight" in state
    block = NonLocalBlock(
        channels, dims=dims, form=form, inner=inner, norm="batch" if normed else None, **facts
    )
    _complete(state, block)
    own = block.state_dict()
    for name in sorted(own.keys() | state.keys()):
        got = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(own[name].shape) if name in own else "unknown"
        if got != wanted:
            raise ValueError(f"{dialect}: {name} is {got} in the file, {wanted} in the block")
    block.load_state_dict(state)
    return block.eval()


def rename_block(state_dict: Mapping[str, Tensor], spoken: BlockDialect) -> dict[str, Tensor]:
    """A block's tensors under this zoo's names.

    Raises:
        ValueError: a name that the dialect does not have; an alias that repeats nothing.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if spoken.aliases and re.fullmatch(spoken.aliases, name):
            check_repeats(name, state_dict)
            continue
        for pattern, own in spoken.names:
            if match := re.fullmatch(pattern, name):
                state[match.expand(own)] = tensor
                break
        else:
            raise ValueError(f"{name} is no tensor of such a block")
    if spoken.bare and "norm.weight" in state:
        state.setdefault("out.bias", torch.zeros_like(state["norm.weight"]))
    return state


def check_repeats(name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Raise ValueError where an alias is no other tensor's: it would be lost."""
    alias = state_dict[name]
    others = (other for k, other in state_dict.items() if k != name and other.shape == alias.shape)
    if not any(other.is_meta or torch.equal(alias, other) for other in others):
        raise ValueError(f"{name} repeats no other tensor, as it should")


def _form(state: Mapping[str, Tensor]) -> str:
    if "w_f" in state:
        return "concatenation"
    return "embedded_gaussian" if "theta.weight" in state else "gaussian"


def _complete(state: dict[str, Tensor], block: NonLocalBlock) -> None:
    """What other implementations keep in another form, or not at all."""
    if "w_f" in state:
        state["w_f"] = state["w_f"].flatten()  # (1, 2 d, 1, 1)
    if "w_f_bias" in state:  # w_f . [theta, phi] + c: c is put into phi's bias, along its own part
        c, w = state.pop("w_f_bias"), state["w_f"][block.inner :].double()
        state["phi.bias"] = (state["phi.bias"].double() + c.double() * w / (w @ w)).float()
    if block.norm is not None:
        affine = "norm.running_var" not in state  # y = x s + b
        if affine:
            state["norm.running_mean"] = torch.zeros(block.channels)
            state["norm.running_var"] = torch.full((block.channels,), 1 - EPS)
        state.setdefault("norm.num_batches_tracked", torch.tensor(0))
        state["norm.num_batches_tracked"] = state["norm.num_batches_tracked"].long()
    for name, own in block.state_dict().items():  # kernels of 1, written for other dimensions
        if name in state and state[name].numel() == own.numel() and state[name].ndim > 1:
            state[name] = state[name].reshape(own.shape)
