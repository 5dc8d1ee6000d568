"""Whole networks of other implementations: names of their tensors, and where blocks are."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nlzoo.blocks import CHILD
from nlzoo.weights.blocks import (
    DIALECTS,
    NOTHING,
    check_repeats,
    complete_block,
    complete_norms,
    own_block_name,
)

SHORT = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var", "w": "weight"}
FAST = r"(?P<fast>t_)?"  # the fast pathway of two, in Caffe2's names
STAGE = "{fast}res{s}.{i}.branch"
BLOCK = f".{CHILD}."


@dataclass(frozen=True)
class HostDialect:
    """Names of an implementation's networks.

    Attributes:
        names: patterns of whole names, and what they are called here: {s} is the stage, 2 to 5,
            {i} the residual block, {l} the letter of a convolution, {t} a tensor of a module,
            {fast} the prefix of a fast pathway, {m} the number of a lateral connection.
        block: pattern of a block's names: stage n, residual block i, and the rest.
        spoken: dialect of the blocks.
        dropped: pattern of what is not weights.
        aliases: pattern of names that repeat other tensors.
        headless: pattern of heads that nlzoo does not have: dropped, and the network has none.
        blobs: Caffe2's short words for a module's tensors, and networks without statistics.
    """

    names: tuple[tuple[str, str], ...]
    block: str
    spoken: str
    dropped: str = NOTHING
    aliases: str = NOTHING
    headless: str = NOTHING
    blobs: bool = False


def _torch(
    prefix: str,
    norm: str,
    short: tuple[str, str],
    head: str,
    conv: str = "",
    layer: str = "layer",
) -> tuple[tuple[str, str], ...]:
    """ResNets with conv1, conv2, conv3; `norm` has K for the number of its convolution."""
    place = rf"{prefix}{layer}(?P<n>\d)\.(?P<i>\d+)\.(?:block\.)?"  # wrapped with its own block
    numbered = norm.replace("K", "(?P<k>[123])")
    return (
        (rf"{prefix}conv1{conv}\.weight", "stem.conv.weight"),
        (rf"{prefix}{norm.replace('K', '1')}\.(?P<t>\w+)", "stem.norm.{t}"),
        (rf"{place}conv(?P<k>[123]){conv}(?:\.net)?\.weight", STAGE + "2.conv_{l}.weight"),
        (rf"{place}{numbered}\.(?P<t>\w+)", STAGE + "2.norm_{l}.{t}"),
        (rf"{place}{short[0]}\.weight", STAGE + "1_conv.weight"),
        (rf"{place}{short[1]}\.(?P<t>\w+)", STAGE + "1_norm.{t}"),
        (rf"{head}\.(?P<t>\w+)", "head.proj.{t}"),
    )


_DOWN = (r"downsample\.0", r"downsample\.1")
_CAFFE2 = (
    (rf"{FAST}conv1_w", "{fast}stem.conv.weight"),
    (rf"{FAST}res_conv1_bn_(?P<t>s|b|rm|riv)", "{fast}stem.norm.{t}"),
    (r"t_pool1_subsample_w", "lateral.0.conv.weight"),
    (r"t_pool1_subsample_bn_(?P<t>s|b|rm|riv)", "lateral.0.norm.{t}"),
    (r"t_res(?P<m>\d)_\d+_branch2c_bn_subsample_w", "lateral.{m}.conv.weight"),
    (r"t_res(?P<m>\d)_\d+_branch2c_bn_subsample_bn_(?P<t>s|b|rm|riv)", "lateral.{m}.norm.{t}"),
    (rf"{FAST}res(?P<n>\d)_(?P<i>\d+)_branch2(?P<l>[abc])_w", STAGE + "2.conv_{l}.weight"),
    (
        rf"{FAST}res(?P<n>\d)_(?P<i>\d+)_branch2(?P<l>[abc])_bn_(?P<t>s|b|rm|riv)",
        STAGE + "2.norm_{l}.{t}",
    ),
    (rf"{FAST}res(?P<n>\d)_(?P<i>\d+)_branch1_w", STAGE + "1_conv.weight"),
    (rf"{FAST}res(?P<n>\d)_(?P<i>\d+)_branch1_bn_(?P<t>s|b|rm|riv)", STAGE + "1_norm.{t}"),
    (r"pred_(?P<t>[wb])", "head.proj.{t}"),
)
_SLOWFAST_PLACE = r"s(?P<n>\d)\.pathway(?P<p>[01])_"
_SLOWFAST = (
    (r"s1\.pathway(?P<p>[01])_stem\.conv\.weight", "{fast}stem.conv.weight"),
    (r"s1\.pathway(?P<p>[01])_stem\.bn\.(?P<t>\w+)", "{fast}stem.norm.{t}"),
    (r"s(?P<m>\d)_fuse\.conv_f2s\.weight", "lateral.{m}.conv.weight"),
    (r"s(?P<m>\d)_fuse\.bn\.(?P<t>\w+)", "lateral.{m}.norm.{t}"),
    (rf"{_SLOWFAST_PLACE}res(?P<i>\d+)\.branch1\.weight", STAGE + "1_conv.weight"),
    (rf"{_SLOWFAST_PLACE}res(?P<i>\d+)\.branch1_bn\.(?P<t>\w+)", STAGE + "1_norm.{t}"),
    (
        rf"{_SLOWFAST_PLACE}res(?P<i>\d+)\.branch2\.(?P<l>[abc])\.weight",
        STAGE + "2.conv_{l}.weight",
    ),
    (
        rf"{_SLOWFAST_PLACE}res(?P<i>\d+)\.branch2\.(?P<l>[abc])_bn\.(?P<t>\w+)",
        STAGE + "2.norm_{l}.{t}",
    ),
    (r"head\.projection\.(?P<t>\w+)", "head.proj.{t}"),
)
_PATH = r"(?:multipathway_blocks\.(?P<p>[01])\.)?"
_PYTORCHVIDEO = (
    (rf"blocks\.0\.{_PATH}conv\.weight", "{fast}stem.conv.weight"),
    (rf"blocks\.0\.{_PATH}norm\.(?P<t>\w+)", "{fast}stem.norm.{t}"),
    (
        r"blocks\.(?P<u>\d)\.multipathway_fusion\.conv_fast_to_slow\.weight",
        "lateral.{u}.conv.weight",
    ),
    (r"blocks\.(?P<u>\d)\.multipathway_fusion\.norm\.(?P<t>\w+)", "lateral.{u}.norm.{t}"),
    (
        rf"blocks\.(?P<n>\d)\.{_PATH}res_blocks\.(?P<i>\d+)\.branch(?P<t>[12][\w.]+)",
        STAGE + "{t}",
    ),
    (r"blocks\.\d\.proj\.(?P<t>\w+)", "head.proj.{t}"),
)
HOSTS = {
    "caffe2": HostDialect(
        _CAFFE2,
        rf"{FAST}nonlocal_conv(?P<n>\d)_(?P<i>\d+)_(?P<rest>.+)",
        "caffe2",
        dropped=r".*_momentum|lr|model_iter",
        headless=r"(?:.*_)?lfb_.*|.*_fbonl_.*",
        blobs=True,
    ),
    "slowfast": HostDialect(
        _SLOWFAST, rf"{_SLOWFAST_PLACE}nonlocal(?P<i>\d+)\.(?P<rest>.+)", "slowfast"
    ),
    "pytorchvideo": HostDialect(_PYTORCHVIDEO, NOTHING, "pytorchvideo"),
    "mmaction2": HostDialect(
        _torch(
            r"backbone\.",
            r"convK\.bn",
            (r"downsample\.conv", r"downsample\.bn"),
            r"cls_head\.fc_cls",
            conv=r"\.conv",
        ),
        r"backbone\.layer(?P<n>\d)\.(?P<i>\d+)\.non_local_block\.(?P<rest>.+)",
        "mmcv",
        headless=r"roi_head\..*",
    ),
    "gluoncv": HostDialect(
        (
            (r"first_stage\.0\.weight", "stem.conv.weight"),
            (r"first_stage\.1\.(?P<t>\w+)", "stem.norm.{t}"),
            *_torch(r"res_layers\.", "bnK", _DOWN, "fc", layer="")[2:],
        ),
        r"res_layers\.(?P<n>\d)\.(?P<i>\d+)\.nonlocal_block\.(?P<rest>.+)",
        "gluoncv",
        aliases=r"head\.1\..*",
    ),
    "mit_tsm": HostDialect(
        _torch(r"base_model\.", "bnK", _DOWN, "new_fc"),
        r"base_model\.layer(?P<n>\d)\.(?P<i>\d+)\.nl\.(?P<rest>.+)",
        "mit_tsm",
    ),
    "mmaction01": HostDialect(
        _torch(r"backbone\.", "bnK", _DOWN, r"cls_head\.fc_cls"),
        r"backbone\.layer(?P<n>\d)\.(?P<i>\d+)\.nonlocal_block\.(?P<rest>.+)",
        "mmaction01",
    ),
    "tushar": HostDialect(
        _torch("", "bnK", _DOWN, "fc"),
        r"layer(?P<n>\d)\.(?P<i>\d+)\.nl\.(?P<rest>.+)",
        "tushar",
    ),
    "patykov": HostDialect(
        _torch("", "bnK", _DOWN, "fc"),
        r"layer(?P<n>\d)\.(?P<i>\d+)\.nonlocal_block\.(?P<rest>.+)",
        "patykov",
    ),
}


def recognise_host(names: Iterable[str]) -> str | None:
    """The dialect that knows most of these names, or None for fewer than half.

    Names that it does not know are then `rename_host`'s to refuse.
    """
    names = list(names)
    known = {d: len(names) - len(unknown_names(names, d)) for d in HOSTS}
    best = max(known, key=lambda dialect: known[dialect])
    return best if 2 * known[best] > len(names) else None


def unknown_names(names: Iterable[str], dialect: str) -> list[str]:
    """Those that no network of a dialect has."""
    return [name for name, own in own_names(names, dialect).items() if own is None]


def own_names(names: Iterable[str], dialect: str) -> dict[str, str | None]:
    """What this zoo calls a network's tensors; empty: dropped; None: unknown to the dialect."""
    host, names = HOSTS[dialect], list(names)
    stages = _stages(names, host)
    return {name: _own_name(name, host, stages) for name in names}


def _own_name(name: str, host: HostDialect, stages: Mapping[str, str]) -> str | None:
    if any(re.fullmatch(p, name) for p in (host.dropped, host.aliases, host.headless)):
        return ""
    if match := re.fullmatch(host.block, name):
        words = _words(match, stages, host)
        own = own_block_name(words["rest"], host.spoken)
        return own and f"{words['fast']}res{words['s']}.{words['i']}{BLOCK}{own}"
    for pattern, own in host.names:
        if match := re.fullmatch(pattern, name):
            return own.format(**_words(match, stages, host))
    return None


def rename_host(state_dict: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """A network's tensors under this zoo's names, blocks included.

    Channel-wise scales and shifts without statistics (affine networks of Caffe2) become norms that
    compute the same.

    Raises:
        ValueError: a name that no network of this dialect has; two names for one tensor.
    """
    host, names = HOSTS[dialect], own_names(state_dict, dialect)
    aliases = f"(?:{host.aliases})|(?:.*\\.(?:{DIALECTS[host.spoken].aliases}))"
    state: dict[str, Tensor] = {}
    for name, own in names.items():
        if own is None:
            raise ValueError(f"{name} is no tensor of a network of {dialect}: remove or rename it")
        if not own and re.fullmatch(aliases, name):
            check_repeats(name, state_dict)
        elif own in state:
            raise ValueError(f"{name} is there twice, under another name of {dialect}")
        elif own:
            state[own] = _shaped(state_dict[name], own)
    for place in {own.partition(BLOCK)[0] + BLOCK for own in state if BLOCK in own}:
        complete_block(state, host.spoken, place)
    if host.blobs:  # hosts and blocks are affine, or not, each for themselves
        for inside in (False, True):
            part = {name for name in state if (BLOCK in name) == inside}
            if not any("running" in name for name in part):
                norms = {name: state[name] for name in part}
                complete_norms(norms, affine=True)
                state |= norms
    complete_norms(state)
    if any(re.fullmatch(host.headless, name) for name in state_dict):
        return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    return state


def _shaped(tensor: Tensor, own: str) -> Tensor:
    """Of networks of images; a head that is a convolution with a kernel of 1."""
    if own == "head.proj.weight":
        return tensor.flatten(1)
    return tensor.unsqueeze(2) if tensor.ndim == 4 and not own.endswith("w_f") else tensor


def places_in(state: Mapping[str, Tensor]) -> str:
    """Where the blocks of renamed tensors are: `res3:1,3 res4:1,3,5`."""
    found = {k.partition(BLOCK)[0] for k in state if BLOCK in k}
    by_stage: dict[str, list[int]] = {}
    for place in sorted(found):
        stage, _, index = place.rpartition(".")
        by_stage.setdefault(stage, []).append(int(index))
    return " ".join(f"{s}:{','.join(map(str, sorted(i)))}" for s, i in by_stage.items())


def _stages(names: Iterable[str], host: HostDialect) -> dict[str, str]:
    """Stage numbers of a dialect, in order, to ours: res2, res3, ..."""
    numbered = [pattern for pattern, _ in host.names if "<n>" in pattern]
    matches = (re.fullmatch(pattern, name) for name in names for pattern in numbered)
    found = sorted({match["n"] for match in matches if match})
    return {number: str(stage) for stage, number in enumerate(found, 2)}


def _words(match: re.Match[str], stages: Mapping[str, str], host: HostDialect) -> dict[str, str]:
    words = {key: word for key, word in match.groupdict().items() if word is not None}
    words["fast"] = "fast." if "fast" in words or words.get("p") == "1" else ""
    if "n" in words:
        words["s"] = stages.get(words["n"], words["n"])
    if "k" in words:
        words["l"] = "abc"[int(words["k"]) - 1]
    if "m" in words:
        words["m"] = str(int(words["m"]) - 1)
    if host.blobs and "t" in words:
        words["t"] = SHORT[words["t"]]
    return words
