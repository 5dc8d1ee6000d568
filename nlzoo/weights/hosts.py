"""Whole networks of other implementations: names of the hosts' tensors, and where blocks are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nlzoo.weights.blocks import DIALECTS, EPS, rename_block

SHORT = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var", "w": "weight"}
PLACE = r"(?P<n>\d)\.(?P<i>\d+)\.(?:block\.)?"  # stage and residual block, wrapped with its own
STAGE = "res{s}.{i}.branch"


@dataclass(frozen=True)
class HostDialect:
    """Names of an implementation's networks.

    Attributes:
        names: patterns of whole names, and what they are called here: {s} is the stage, 2 to 5,
            {i} the residual block, {l} the letter of a convolution, {t} a tensor of a module.
        block: pattern of a block's names: stage n, residual block i, and the rest.
        spoken: dialect of the blocks.
        offset: from the number of a stage to this zoo's.
        dropped: pattern of what is not weights, or repeats others.
    """

    names: tuple[tuple[str, str], ...]
    block: str
    spoken: str
    offset: int = 0
    dropped: str = r"$^"


def _torch(
    stem: tuple[str, str], stages: str, norm: str, short: tuple[str, str], head: str
) -> tuple[tuple[str, str], ...]:
    """ResNets with conv1, conv2, conv3; `norm` has K for the number of its convolution."""
    conv = (
        f"{stages}{PLACE}conv(?P<k>[123])" + (r"\.conv" if "conv" in norm else "") + r"(?:\.net)?"
    )
    return (
        (rf"{stem[0]}\.weight", "stem.conv.weight"),
        (rf"{stem[1]}\.(?P<t>\w+)", "stem.norm.{t}"),
        (rf"{conv}\.weight", STAGE + "2.conv_{l}.weight"),
        (
            rf"{stages}{PLACE}{norm.replace('K', '(?P<k>[123])')}\.(?P<t>\w+)",
            STAGE + "2.norm_{l}.{t}",
        ),
        (rf"{stages}{PLACE}{short[0]}\.weight", STAGE + "1_conv.weight"),
        (rf"{stages}{PLACE}{short[1]}\.(?P<t>\w+)", STAGE + "1_norm.{t}"),
        (rf"{head}\.(?P<t>\w+)", "head.proj.{t}"),
    )


_DOWN = (r"downsample\.0", r"downsample\.1")
_TORCH = _torch(("conv1", "bn1"), "layer", "bnK", _DOWN, "fc")
HOSTS = {
    "caffe2": HostDialect(
        (
            ("conv1_w", "stem.conv.weight"),
            (r"res_conv1_bn_(?P<t>\w+)", "stem.norm.{t}"),
            (r"res(?P<n>\d)_(?P<i>\d+)_branch2(?P<l>[abc])_w", STAGE + "2.conv_{l}.weight"),
            (
                r"res(?P<n>\d)_(?P<i>\d+)_branch2(?P<l>[abc])_bn_(?P<t>\w+)",
                STAGE + "2.norm_{l}.{t}",
            ),
            (r"res(?P<n>\d)_(?P<i>\d+)_branch1_w", STAGE + "1_conv.weight"),
            (r"res(?P<n>\d)_(?P<i>\d+)_branch1_bn_(?P<t>\w+)", STAGE + "1_norm.{t}"),
            (r"pred_(?P<t>[wb])", "head.proj.{t}"),
        ),
        r"nonlocal_conv(?P<n>\d)_(?P<i>\d+)_(?P<rest>.+)",
        "caffe2",
        dropped=r".*_momentum|lr|model_iter",
    ),
    "slowfast": HostDialect(
        (
            (r"s1\.pathway0_stem\.conv\.weight", "stem.conv.weight"),
            (r"s1\.pathway0_stem\.bn\.(?P<t>\w+)", "stem.norm.{t}"),
            (r"s(?P<n>\d)\.pathway0_res(?P<i>\d+)\.branch1\.weight", STAGE + "1_conv.weight"),
            (r"s(?P<n>\d)\.pathway0_res(?P<i>\d+)\.branch1_bn\.(?P<t>\w+)", STAGE + "1_norm.{t}"),
            (
                r"s(?P<n>\d)\.pathway0_res(?P<i>\d+)\.branch2\.(?P<l>[abc])\.weight",
                STAGE + "2.conv_{l}.weight",
            ),
            (
                r"s(?P<n>\d)\.pathway0_res(?P<i>\d+)\.branch2\.(?P<l>[abc])_bn\.(?P<t>\w+)",
                STAGE + "2.norm_{l}.{t}",
            ),
            (r"head\.projection\.(?P<t>\w+)", "head.proj.{t}"),
        ),
        r"s(?P<n>\d)\.pathway0_nonlocal(?P<i>\d+)\.(?P<rest>.+)",
        "slowfast",
    ),
    "mmaction2": HostDialect(
        _torch(
            (r"backbone\.conv1\.conv", r"backbone\.conv1\.bn"),
            r"backbone\.layer",
            r"convK\.bn",
            (r"downsample\.conv", r"downsample\.bn"),
            r"cls_head\.fc_cls",
        ),
        rf"backbone\.layer{PLACE}non_local_block\.(?P<rest>.+)",
        "mmcv",
        offset=1,
    ),
    "gluoncv": HostDialect(
        _torch((r"first_stage\.0", r"first_stage\.1"), r"res_layers\.", "bnK", _DOWN, "fc"),
        rf"res_layers\.{PLACE}nonlocal_block\.(?P<rest>.+)",
        "gluoncv",
        offset=2,
        dropped=r"head\.1\..*",
    ),
    "mit_tsm": HostDialect(
        _torch(
            (r"base_model\.conv1", r"base_model\.bn1"),
            r"base_model\.layer",
            "bnK",
            _DOWN,
            "new_fc",
        ),
        rf"base_model\.layer{PLACE}nl\.(?P<rest>.+)",
        "mit_tsm",
        offset=1,
    ),
    "tushar": HostDialect(_TORCH, rf"layer{PLACE}nl\.(?P<rest>.+)", "tushar", offset=1),
    "patykov": HostDialect(
        _TORCH, rf"layer{PLACE}nonlocal_block\.(?P<rest>.+)", "patykov", offset=1
    ),
}


def rename_host(state_dict: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """A network's tensors under this zoo's names, blocks included.

    Channel-wise scales and shifts without statistics (affine networks) become norms that compute
    the same.

    Raises:
        ValueError: a name that no network of this dialect has.
    """
    host = HOSTS[dialect]
    state: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if re.fullmatch(host.dropped, name):
            continue
        if match := re.fullmatch(host.block, name):
            place = f"res{int(match['n']) + host.offset}.{match['i']}.non_local."
            blocks.setdefault(place, {})[match["rest"]] = tensor
        else:
            flat = tensor.ndim == 4  # of a network of images
            state[_rename(name, host)] = tensor.unsqueeze(2) if flat else tensor
    for place, block in blocks.items():
        renamed = rename_block(block, DIALECTS[host.spoken])
        state |= {place + name: tensor for name, tensor in renamed.items()}
    for name in [name for name in state if re.search(r"norm(_[abc])?\.weight$", name)]:
        norm, like = name.removesuffix("weight"), state[name]
        if norm + "running_var" not in state:
            state[norm + "running_mean"] = torch.zeros_like(like)
            state[norm + "running_var"] = torch.full_like(like, 1 - EPS)
        count = state.get(norm + "num_batches_tracked", torch.tensor(0))
        state[norm + "num_batches_tracked"] = count.long()
    return state


def places_in(state: Mapping[str, Tensor]) -> str:
    """Where the blocks of renamed tensors are: `res3:1,3 res4:1,3,5`."""
    found = {k.partition(".non_local.")[0] for k in state if ".non_local." in k}
    by_stage: dict[str, list[int]] = {}
    for place in sorted(found):
        stage, _, index = place.partition(".")
        by_stage.setdefault(stage, []).append(int(index))
    return " ".join(f"{s}:{','.join(map(str, sorted(i)))}" for s, i in by_stage.items())


def _rename(name: str, host: HostDialect) -> str:
    for pattern, own in host.names:
        if match := re.fullmatch(pattern, name):
            words = match.groupdict()
            if "n" in words:
                words["s"] = str(int(words["n"]) + host.offset)
            if "k" in words:
                words["l"] = "abc"[int(words["k"]) - 1]
            words["t"] = SHORT.get(words.get("t", ""), words.get("t", ""))
            return own.format(**words)
    raise ValueError(f"{name} is no tensor of such a network")
