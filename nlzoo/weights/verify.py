"""A golden file's network, loaded through its dialect and run: how far is the output?"""

from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.weights.blocks import load_block
from nlzoo.weights.golden import make_input, make_state, relative_error

FORMS = {  # as implementations call them
    "softmax": "embedded_gaussian",
    "embeddedgaussian": "embedded_gaussian",
    "embedded": "embedded_gaussian",
    "dotproduct": "dot_product",
    "dot": "dot_product",
    "concatenation": "concatenation",
    "concatenate": "concatenation",
    "concat": "concatenation",
    "gaussian": "gaussian",
}


def verify(golden: dict[str, Any]) -> float:
    """Relative L2 distance between the golden output and ours.

    Args:
        golden: of `read_golden`.

    Raises:
        ValueError: a dialect or configuration that cannot be built, tensors that do not fit.
    """
    if golden["dialect"] not in BUILDERS:
        there = ", ".join(BUILDERS)
        raise ValueError(f"no network of dialect {golden['dialect']!r} yet; there are {there}")
    x, state = make_input(golden), make_state(golden)
    network = BUILDERS[golden["dialect"]](golden["config"], state, x)
    with torch.no_grad():
        return relative_error(golden, network(x))


def form_of(text: str) -> str:
    """`embedded Gaussian`, `dot_product`, ... in this zoo's words."""
    word = "".join(c for c in text.lower() if c.isalpha())
    if word not in FORMS:
        raise ValueError(f"unknown form {text!r}")
    return FORMS[word]


def _mmcv(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    form = form_of(config.get("mode", "embedded_gaussian"))
    facts: dict[str, Any] = {"subsample": 2 if config.get("sub_sample") else None}
    if form == "embedded_gaussian" and not config.get("use_scale", True):
        facts["scale"] = 1.0
    return load_block(state, "mmcv", x.ndim - 2, form=form, **facts)


def _alexhex7(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    pooled = 2 if config.get("sub_sample", True) else None
    return load_block(state, "alexhex7", x.ndim - 2, form=form_of(config["form"]), subsample=pooled)


def _tea1528(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    form = form_of(config.get("mode", config.get("form", "embedded")))
    return load_block(state, "tea1528", x.ndim - 2, form=form)


def _mmaction01(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    form = form_of(config.get("nonlocal_type", "gaussian"))
    if form == "gaussian" and config.get("embed", True):
        form = "embedded_gaussian"
    pooled = 2 if config.get("sub_sample", True) else None
    return load_block(state, "mmaction01", x.ndim - 2, form=form, subsample=pooled)


def _timm(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    if config["cls"] == "BatNonLocalAttn":  # another operator, of which there is no block here
        from timm.layers import BatNonLocalAttn

        names = ("block_size", "groups", "rd_ratio", "rd_channels", "rd_divisor", "drop_rate")
        options = {name: config[name] for name in names if name in config}
        theirs = BatNonLocalAttn(config["in_channels"], **options)
        theirs.load_state_dict(state)
        module: nn.Module = theirs.eval()
        return module
    facts = {} if config.get("use_scale", True) else {"scale": 1.0}
    return load_block(state, "timm", 2, **facts)


def _pytorchvideo_block(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    form = form_of(config.get("instantiation", "softmax"))
    pool = tuple(config.get("pool_size", (1, 1, 1)))
    return load_block(state, "pytorchvideo", 3, form=form, subsample=pool)


BUILDERS = {
    "mmcv": _mmcv,
    "alexhex7": _alexhex7,
    "tea1528": _tea1528,
    "mmaction01": _mmaction01,
    "timm": _timm,
    "pytorchvideo-block": _pytorchvideo_block,
}
