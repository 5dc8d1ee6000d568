"""A golden file's network, loaded through its dialect and run: how far is the output?"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock
from nlzoo.geometry import GEOMETRIES
from nlzoo.models import create_model
from nlzoo.video import VideoResNet
from nlzoo.weights.blocks import load_block
from nlzoo.weights.golden import make_input, make_state, relative_error
from nlzoo.weights.hosts import places_in, rename_host
from nlzoo.weights.load import check_fits
from nlzoo.weights.recognise import read_architecture

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


# -- whole networks ---------------------------------------------------------------------------


def _network(
    dialect: str, name: str, state: dict[str, Tensor], non_local: dict[str, Any], **arch: Any
) -> VideoResNet:
    """A network of this zoo with the tensors of a file."""
    own = rename_host(state, dialect)
    seen = read_architecture(own)
    classes = own["head.proj.weight"].shape[0]
    options = {"places": places_in(own), **non_local} if places_in(own) else None
    arch = {**(seen.arch if seen else {}), **arch}
    model = create_model(name, num_classes=classes, non_local=options, **arch)
    check_fits(own, model.state_dict(), f"the file ({dialect})")
    model.load_state_dict(own)
    return model.eval()


def _fair(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    """video-nonlocal-net: `resnet_video_org` has a stride of 2 in conv1, `resnet_video` of 1.

    Long-term feature banks have its names, padded pools and a dilated res5.
    """
    geometry = "32x2" if config["arch"] == "resnet_video_org" else "8x8"
    if config["res5_stride"] == 1:
        geometry = "lfb" if config["res5_dilation"] == 2 else "lfb_plain"
    shown = GEOMETRIES[geometry]
    told = list(config["pool1_pad"]), config["res5_stride"]
    if told != (list(shown.pool1.padding), 2 if shown.res5 == "strided" else 1):
        raise ValueError(f"no geometry has pool1_pad and res5_stride of {told}")
    non_local: dict[str, Any] = {"subsample": 2 if config["nonlocal_subsample"] else None}
    if config["nonlocal_form"]:
        words = config["nonlocal_form"]
        non_local["form"] = "dot_product" if words.startswith("dot") else "embedded_gaussian"
        if not config["nonlocal_norm"]:
            non_local["norm"] = None
    name = f"{config['kind']}_r{config['depth']}"
    if config["nonlocal_temporal_group"] and non_local.get("form"):  # of 4 frames, in res3 only
        frames = x.shape[2] // (8 if geometry == "32x2" else 2)
        non_local["res3"] = {"groups": frames // 4}
    return _network("caffe2", name, state, non_local, geometry=geometry)


def _slowfast(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    dialect = "caffe2" if "conv1_w" in state else "slowfast"
    two = config["arch"] == "slowfast"
    geometry = "slowfast"
    if two:
        geometry = "slowfast_4x16" if "4x16" in config.get("yaml", "") else "slowfast_8x8"
    name = f"{config['arch']}_r{config['depth']}"
    form = {"form": form_of(config["instantiation"])}
    model = _network(dialect, name, state, form, geometry=geometry)
    for place, block in model.named_modules():
        if isinstance(block, NonLocalBlock):
            pathway, stage = place.startswith("fast."), int(place.partition("res")[2][0]) - 2
            block.subsample = _of_stage(config["nonlocal_pool"], stage, pathway)
            groups = config["nonlocal_group"][stage]
            block.groups = groups[pathway if len(groups) > 1 else 0]
    model.head.window = config["train_crop_size"] // 32
    model.head.average = "logits"  # a golden output is that before the softmax
    return model


def _of_stage(pools: Any, stage: int, pathway: bool) -> tuple[int, ...]:
    """A kernel of all blocks, or one for each stage, pathway, or both."""
    while not isinstance(pools[0], int):
        by_stage = len(pools) == 4
        pools = pools[stage if by_stage else pathway if len(pools) > 1 else 0]
    return tuple(pools)


def _pytorchvideo(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    (name,) = re.findall(r"(?:c2d|i3d|slow|slowfast)_r\d+", config["model"])
    arch = {"geometry": "slowfast_8x8", "head": "logits"} if "fast" in name else {"geometry": "hub"}
    return _network("pytorchvideo", name, state, {}, **arch)


def _tushar(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    """Tushar-N and patykov: the geometries of video-nonlocal-net, averaged over the whole map."""
    dialect = "patykov" if any("nonlocal_block" in k for k in state) else "tushar"
    depth = 101 if any(k.startswith("layer3.22.") for k in state) else 50
    geometry = "32x2" if config["frames"] == 32 else "8x8"
    model = _network(dialect, f"i3d_r{depth}", state, {"subsample": 2}, geometry=geometry)
    model.head.average = "map"
    return model


def _mmaction2(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    non_local = config.get("non_local") or {}
    form = form_of(non_local.get("mode", "embedded_gaussian"))
    facts: dict[str, Any] = {"form": form, "subsample_first": False}
    facts["subsample"] = 2 if non_local.get("sub_sample") else None
    if form == "embedded_gaussian" and not non_local.get("use_scale", True):
        facts["scale"] = 1.0
    return _inflated("mmaction2", config, state, facts)


def _gluoncv(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _inflated("gluoncv", config, state, {"subsample": None})


def _inflated(
    dialect: str, config: dict[str, Any], state: dict[str, Tensor], facts: dict[str, Any]
) -> nn.Module:
    if "num_segments" in config:
        return _shifted(dialect, state, facts)
    slow = config["pool2"] is None
    depth = int(re.findall(r"\d+$", config["host"].split(" (")[0])[0])
    geometry = "slowfast" if slow else "mmaction"
    model = _network(
        dialect, f"{'slow' if slow else 'i3d'}_r{depth}", state, facts, geometry=geometry
    )
    model.head.average = "map"
    return model


def _mit_tsm(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _shifted("mit_tsm", state, {"scale": 1.0, "subsample": 2, "subsample_first": False})


def _shifted(dialect: str, state: dict[str, Tensor], facts: dict[str, Any]) -> nn.Module:
    """Frames (B, T, 3, H, W), or (B T, 3, H, W) of eight segments each, to clips."""
    model = _network(dialect, "tsm_r50", state, facts)
    return nn.Sequential(Frames(), model)


class Frames(nn.Module):
    """(B, T, 3, H, W) or (B 8, 3, H, W) -> (B, 3, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.unflatten(0, (-1, 8))
        return x.transpose(1, 2)


BUILDERS = {
    "mit_tsm": _mit_tsm,
    "video-nonlocal-net": _fair,
    "video-long-term-feature-banks": _fair,
    "slowfast": _slowfast,
    "slowfast-caffe2": _slowfast,
    "pytorchvideo": _pytorchvideo,
    "tushar-n": _tushar,
    "patykov": _tushar,
    "mmaction2": _mmaction2,
    "gluoncv_torch": _gluoncv,
    "mmcv": _mmcv,
    "alexhex7": _alexhex7,
    "tea1528": _tea1528,
    "mmaction01": _mmaction01,
    "timm": _timm,
    "pytorchvideo-block": _pytorchvideo_block,
}
