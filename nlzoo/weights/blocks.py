"""Blocks of other implementations, by what their names and their code say.

Three facts leave no trace in a file: whether keys are pooled before or after phi and g, the scale
of the logits, and the form where names and shapes are alike. Each dialect states its own; a file
of a configuration that differs is loaded with `**facts`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlzoo.blocks import NonLocalBlock
from nlzoo.names import check_choice

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EPS = 1e-5  # of every norm
NOTHING = r"$^"  # no name
NORM_WEIGHT = re.compile(r"norm(_[abc])?\.weight$")


POOLED_FIRST = {"subsample": 2, "subsample_first": True}
POOLED_LAST = {"subsample": 2, "subsample_first": False}
UNPOOLED = {"subsample": None}
PLAIN = {"scale": 1.0}  # logits as they are, in place of their inner width ** -0.5


@dataclass(frozen=True)
class BlockDialect:
    """Names and facts of an implementation's block.

    Attributes:
        names: patterns of whole names, and what they are called here.
        facts: arguments of `NonLocalBlock` that no name tells; `scale` is that of softmax forms.
        marks: patterns of names that tell a lone block of this dialect from others.
        spoken_by: whose blocks these are, where the dialect's name does not say it.
        aliases: pattern of names that repeat other tensors.
        bare: the last convolution has no bias where a norm follows.
    """

    names: tuple[tuple[str, str], ...]
    facts: Mapping[str, Any]
    marks: tuple[str, ...] = ()
    spoken_by: str = ""
    aliases: str = NOTHING
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
# where two write the same names, a lone block is taken for the first one's
DIALECTS = {
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
        {"subsample": None, "subsample_first": False},
        (r"conv_out\.conv\.weight",),
        "mmaction2, mmsegmentation, mmdetection",
        bare=True,
    ),
    "slowfast": BlockDialect(
        _convs("conv_theta", "conv_phi", "conv_g", "conv_out", "bn"),
        POOLED_FIRST,
        (r"conv_theta\.weight", r"bn\.weight"),
        "PySlowFast",
    ),
    "pytorchvideo": BlockDialect(
        _convs("conv_theta", "conv_phi", "conv_g", "conv_out", "norm"),
        {"subsample": None, "subsample_first": True},
        (r"conv_theta\.weight",),
    ),
    "tea1528": BlockDialect(
        (
            *_convs("theta", "phi", "g", r"W_z(?:\.0)?", r"W_z\.1"),
            (r"W_f\.0\.weight", "w_f"),
            (r"W_f\.0\.bias", "w_f_bias"),
        ),
        UNPOOLED | PLAIN,
        (r"W_z(\.0)?\.weight",),
    ),
    "gluoncv": BlockDialect(
        _convs("theta", "phi", "g", "W", "bn"),
        UNPOOLED,
        (r"W_bn\.0\.weight",),
        "gluoncv_torch",
        aliases=r"W_bn\..*",
    ),
    "timm": BlockDialect(  # the whole width, see `load_block`
        _convs("t", "p", "g", "z", "norm"), UNPOOLED, (r"t\.weight", r"z\.weight")
    ),
    "mmaction01": BlockDialect(
        _convs("theta", r"phi(?:\.1)?", r"g(?:\.1)?", r"W(?:\.0)?", r"W\.1"),
        POOLED_FIRST | PLAIN,
        (r"phi\.1\.weight", r"bn\.weight"),
        aliases=r"bn\..*",
    ),
    "patykov": BlockDialect(
        _convs("theta", r"phi\.1", r"g\.1", r"W\.0", r"W\.1"),
        POOLED_FIRST,
        (r"phi\.1\.weight", r"W\.0\.weight"),
        "patykov's OnlineAction",
    ),
    "tushar": BlockDialect(
        _convs("theta", "phi", "g", "out", "bn"),
        POOLED_FIRST,
        (r"theta\.weight", r"out\.weight"),
        "tushar-n; patykov's baselines have the same",
    ),
    "caffe2": BlockDialect(
        _CAFFE2,
        POOLED_FIRST,
        (r"(.*_)?theta_w", r"(.*_)?out_w"),
        "video-nonlocal-net, video-long-term-feature-banks, slowfast-caffe2",
    ),
    "alexhex7": BlockDialect(
        _ALEXHEX7,
        POOLED_LAST | PLAIN,
        (r"g(\.0)?\.weight", r"W(\.0)?\.weight"),
        "blocks of mit_tsm have the same names",
    ),
    "mit_tsm": BlockDialect(_ALEXHEX7, POOLED_LAST | PLAIN),
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
            values, has another shape, or integers or complex numbers.
    """
    check_choice("dialect", dialect, DIALECTS)
    state = rename_block(state_dict, dialect)
    if "g.weight" not in state or "out.weight" not in state:
        raise ValueError(f"{dialect}: no block: tensors {', '.join(sorted(state_dict)[:6])}")
    inner, channels = state["g.weight"].shape[:2]
    form: Any = facts.pop("form", None) or form_of_tensors(state)
    facts = facts_of(dialect, form, facts)
    if dialect == "timm":
        facts.setdefault("scale", channels**-0.5)
    norm: Any = "batch" if "norm.weight" in state else None
    block = NonLocalBlock(channels, dims=dims, inner=inner, norm=norm, **facts)
    block.load_state_dict(_fitted(state, block.state_dict(), dialect))
    return block.eval()


def _fitted(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], dialect: str
) -> dict[str, Tensor]:
    """The same tensors, in the shapes that the block has; raises as `load_block`."""
    state = dict(state)
    for name in own.keys() & state.keys():  # kernels of 1, written for other dimensions
        if state[name].ndim > 1 and _wide(state[name]) == _wide(own[name]):
            state[name] = state[name].reshape(own[name].shape)
    for name in sorted(own.keys() | state.keys()):
        got = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(own[name].shape) if name in own else "unknown"
        if got != wanted:
            raise ValueError(f"{dialect}: {name} is {got} in the file, {wanted} in the block")
    check_floats(state, own, dialect)
    return state


def _wide(tensor: Tensor) -> list[int]:
    """Its sizes, but for those of 1."""
    return [size for size in tensor.shape if size > 1]


def facts_of(dialect: str, form: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a dialect's block: its own, and over them what is known of one network."""
    found = {"form": form, **DIALECTS[dialect].facts, **facts}
    if form not in ("embedded_gaussian", "gaussian") and "scale" not in facts:
        found.pop("scale", None)
    return found


def own_block_name(name: str, dialect: str) -> str | None:
    """What this zoo calls a block's tensor; empty: an alias; None: the dialect has no such name."""
    spoken = DIALECTS[dialect]
    if re.fullmatch(spoken.aliases, name):
        return ""
    found = (
        re.fullmatch(pattern, name) and re.sub(pattern, own, name) for pattern, own in spoken.names
    )
    return next((own for own in found if own), None)


def rename_block(state_dict: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """A block's tensors under this zoo's names, those that it keeps in another form included.

    Raises:
        ValueError: a name that the dialect does not have; an alias that repeats nothing.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        own = own_block_name(name, dialect)
        if own is None:
            raise ValueError(f"{name} is no tensor of a block of {dialect}")
        if own:
            state[own] = tensor
        else:
            check_repeats(name, state_dict)
    complete_block(state, dialect)
    if dialect == "caffe2" and not any("running" in name for name in state):
        complete_norms(state, affine=True)
    return state


def complete_block(state: dict[str, Tensor], dialect: str, place: str = "") -> None:
    """Bring what a dialect keeps in another form, or not at all, into this zoo's."""
    w_f, out, phi = place + "w_f", place + "out.bias", place + "phi.bias"
    if DIALECTS[dialect].bare and place + "norm.weight" in state:
        state.setdefault(out, torch.zeros_like(state[place + "norm.weight"]))
    if w_f in state:
        state[w_f] = state[w_f].flatten()  # (1, 2 d, 1, 1)
    if w_f + "_bias" in state:  # w_f . [theta, phi] + c: into phi's bias, along its part of w_f
        c, w = state.pop(w_f + "_bias").double(), state[w_f].chunk(2)[1].double()
        state[phi] = (state[phi].double() + c * w / (w @ w)).float()
    complete_norms(state)


def complete_norms(state: dict[str, Tensor], affine: bool = False) -> None:
    """Counters that a file may lack; `affine`: y = x s + b as norms that compute the same."""
    for name in [name for name in state if NORM_WEIGHT.search(name)]:
        norm, like = name.removesuffix("weight"), state[name]
        if affine:
            state[norm + "running_mean"] = torch.zeros_like(like)
            state[norm + "running_var"] = torch.full_like(like, 1 - EPS)
        count = state.get(norm + "num_batches_tracked", torch.tensor(0))
        state[norm + "num_batches_tracked"] = count.long()


def check_repeats(name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Raise ValueError where an alias is no other tensor's: it would be lost."""
    alias = state_dict[name]
    others = (other for k, other in state_dict.items() if k != name and other.shape == alias.shape)
    if not any(other.is_meta or torch.equal(alias, other) for other in others):
        raise ValueError(f"{name} repeats no other tensor, as it should")


def check_floats(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    where: object,
    names: Mapping[str, str] | None = None,
) -> None:
    """Raise ValueError where numbers of another kind would be cast to weights, silently.

    `state` is of a file, `own` of what takes it, `names` what the file calls its tensors.
    """
    for name, tensor in state.items():
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{where}: {(names or {}).get(name, name)} is {kind}, not floating-point: give "
                "the weights in float32 or float16, as they were before any quantization"
            )


def form_of_tensors(state: Mapping[str, Tensor]) -> str:
    """What a block's, or a network's, names tell: softmax and dot product have the same."""
    if any(name.endswith("w_f") for name in state):
        return "concatenation"
    embedded = any(name.endswith("theta.weight") for name in state)
    return "embedded_gaussian" if embedded else "gaussian"
