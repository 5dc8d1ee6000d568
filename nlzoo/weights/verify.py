"""A golden file's network, loaded through its dialect and run: how far is the output?"""

import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock
from nlzoo.geometry import DEPTHS, GEOMETRIES
from nlzoo.models import create_model
from nlzoo.names import check_choice, nearest
from nlzoo.networks.video import VideoResNet
from nlzoo.weights.blocks import facts_of, form_of_tensors, load_block
from nlzoo.weights.golden import make_input, make_state, relative_error
from nlzoo.weights.hosts import HOSTS, places_in, rename_host
from nlzoo.weights.load import check_fits
from nlzoo.weights.recognise import flatten, read_architecture

UNPOOLED = dict.fromkeys(("2d", "c2d_nopool", "slow_c2d"), "tsn")  # PySlowFast's words
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
    return relative_error(golden, run(build(golden), golden))


def build(golden: dict[str, Any]) -> nn.Module:
    """The golden file's network or block with its tensors, for its input; raises as `verify`."""
    check_choice("dialect", golden["dialect"], BUILDERS)
    state, x = flatten(make_state(golden)), make_input(golden)
    try:
        return BUILDERS[golden["dialect"]](golden["config"], state, x)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"its config, or its tensors, lack what {golden['dialect']} needs: {error}"
        ) from error


def run(network: nn.Module, golden: dict[str, Any]) -> Tensor:
    """Its output for the golden file's input, as the file's `output_kind` says."""
    kind, x = golden.get("output_kind", "logits"), make_input(golden)
    check_choice("output_kind", kind, ("logits", "probabilities", "features"))
    model: Any = network[-1] if isinstance(network, nn.Sequential) else network
    with torch.no_grad():
        if kind == "features" and isinstance(model, VideoResNet):
            output: Tensor = model.forward_features(x)
        elif kind == "probabilities":
            model.head.average = "softmax" if model.head.average == "logits" else "map"
            output = network(x).softmax(-1)
        else:
            output = network(x)
    return output


def form_of(text: str) -> str:
    """`embedded Gaussian`, `dot_product`, ... in this zoo's words."""
    word = "".join(c for c in text.lower() if c.isalpha())
    if word not in FORMS:
        raise ValueError(f"unknown form {text!r}{nearest(word, FORMS)}")
    return FORMS[word]


def _mmcv(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return load_block(state, "mmcv", x.ndim - 2, **_mmcv_facts(config))


def _mmcv_facts(config: dict[str, Any]) -> dict[str, Any]:
    form = form_of(config.get("mode", "embedded_gaussian"))
    facts: dict[str, Any] = {"form": form, "subsample": 2 if config.get("sub_sample") else None}
    if form == "embedded_gaussian" and not config.get("use_scale", True):
        facts["scale"] = 1.0
    return facts


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
    pool = tuple(config.get("pool_size") or (1, 1, 1))
    block = load_block(state, "pytorchvideo", 3, form=form, subsample=pool)
    if isinstance(block.norm, nn.BatchNorm3d):
        block.norm.eps = config.get("norm_eps", block.norm.eps)
    return block


# -- whole networks ---------------------------------------------------------------------------


def _network(
    dialect: str, name: str, state: dict[str, Tensor], non_local: dict[str, Any], **arch: Any
) -> VideoResNet:
    """A network of this zoo with the tensors of a file."""
    own = rename_host(state, dialect)
    seen = read_architecture(own)
    classes = own["head.proj.weight"].shape[0]
    options: dict[str, Any] | None = None
    if places := places_in(own):
        form = non_local.get("form") or form_of_tensors(own)
        options = {"places": places, **facts_of(HOSTS[dialect].spoken, form, non_local)}
    arch = {**(seen.arch if seen else {}), **arch}
    model = cast(VideoResNet, create_model(name, num_classes=classes, non_local=options, **arch))
    check_fits(own, model.state_dict(), f"the file ({dialect})")
    model.load_state_dict(own)
    return model.eval()


def _fair(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    """video-nonlocal-net, and long-term feature banks, which have its names."""
    time_stride = 2 if config["arch"] == "resnet_video_org" else 1
    res5 = "strided" if config["res5_stride"] == 2 else "plain"
    res5 = "dilated" if config["res5_dilation"] == 2 else res5
    told = time_stride, tuple(config["pool1_pad"]), res5
    for geometry in ("32x2", "8x8", "slowfast", "lfb", "lfb_plain"):
        shown = GEOMETRIES[geometry]
        if (shown.time_stride, shown.pool1.padding, shown.res5) == told:
            break
    else:
        raise ValueError(f"no geometry has a stride in time, pads of pool1 and res5 of {told}")
    non_local: dict[str, Any] = {"subsample": 2 if config["nonlocal_subsample"] else None}
    if words := config["nonlocal_form"]:
        non_local["form"] = "dot_product" if words.startswith("dot") else "embedded_gaussian"
        if re.search(r"no scale|unscaled|not scaled|without", words):
            non_local["scale"] = 1.0
        if not config["nonlocal_norm"]:
            non_local["norm"] = None
        if config["nonlocal_temporal_group"]:  # of 4 frames, in res3 only
            frames = x.shape[2] // (8 if time_stride == 2 else 2)
            non_local["res3"] = {"groups": frames // 4}
    name = f"{config['kind']}_r{config['depth']}"
    return _network("caffe2", name, state, non_local, geometry=geometry, head="map")


def _slowfast(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    dialect = "caffe2" if "conv1_w" in state else "slowfast"
    two = config["arch"] == "slowfast"
    geometry = "slowfast"
    if two:
        alpha = config.get("alpha", 8 if "4x16" in config.get("yaml", "") else 4)
        geometry = "slowfast_4x16" if alpha == 8 else "slowfast_8x8"
    name = f"{UNPOOLED.get(config['arch'], config['arch'])}_r{config['depth']}"
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
    named = re.search(r"(c2d|i3d|slowfast|slow)\w*?_r\d+", config["model"])
    if named is None:
        raise ValueError(f"model {config['model']!r}: none of c2d, i3d, slow, slowfast")
    name = f"{named[1]}_{named[0].rpartition('_')[2]}"
    arch = {"geometry": "slowfast_8x8", "head": "logits"} if "fast" in name else {"geometry": "hub"}
    return _network("pytorchvideo", name, state, {}, **arch)


def _tushar(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _port("tushar", "32x2", state)


def _patykov(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _port("patykov", "32x2" if config["frames"] == 32 else "8x8", state)


def _port(dialect: str, geometry: str, state: dict[str, Tensor]) -> nn.Module:
    """video-nonlocal-net's, averaged over the whole map."""
    depth = 101 if any(k.startswith("layer3.22.") for k in state) else 50
    return _network(dialect, f"i3d_r{depth}", state, {}, geometry=geometry, head="map")


def _mmaction2(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _inflated("mmaction2", config, state, _mmcv_facts(config.get("non_local") or {}))


def _gluoncv(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _inflated("gluoncv", config, state, {})


def _inflated(
    dialect: str, config: dict[str, Any], state: dict[str, Tensor], facts: dict[str, Any]
) -> nn.Module:
    depth = next(int(n) for n in re.findall(r"\d+", config["host"]) if int(n) in DEPTHS)
    if "num_segments" in config:
        if config.get("shift_div", 8) != 8:
            raise ValueError(f"shift_div {config['shift_div']}: networks here shift an eighth")
        kind = "tsm" if any(".net." in name for name in state) else "tsn"
        model = _network(dialect, f"{kind}_r{depth}", state, facts)
        return nn.Sequential(Frames(config["num_segments"]), model)
    slow = config["pool2"] is None
    geometry = "slowfast" if slow else "mmaction"
    shown, stem, pool1 = GEOMETRIES[geometry], config["stem"], config["pool1"]
    told = stem["stride"][0], pool1["kernel"], pool1["stride"], pool1["padding"]
    if told != (shown.time_stride, *map(list, shown.pool1)):
        raise ValueError(f"no geometry has a stem's stride and a pool1 of {told}")
    name = f"{'slow' if slow else 'i3d'}_r{depth}"
    return _network(dialect, name, state, facts, geometry=geometry, head="map")


def _mit_tsm(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> nn.Module:
    return _inflated("mit_tsm", {"num_segments": 8, **config}, state, {})


class Frames(nn.Module):
    """(B, T, 3, H, W), or (B segments, 3, H, W), -> (B, 3, T, H, W)."""

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, x: Tensor) -> Tensor:
        """Clips with their frames in the third dimension."""
        if x.ndim == 4:
            x = x.unflatten(0, (-1, self.segments))
        return x.transpose(1, 2)


BUILDERS = {
    "mit_tsm": _mit_tsm,
    "video-nonlocal-net": _fair,
    "video-long-term-feature-banks": _fair,
    "slowfast": _slowfast,
    "slowfast-caffe2": _slowfast,
    "pytorchvideo": _pytorchvideo,
    "tushar-n": _tushar,
    "patykov": _patykov,
    "mmaction2": _mmaction2,
    "gluoncv_torch": _gluoncv,
    "mmcv": _mmcv,
    "alexhex7": _alexhex7,
    "tea1528": _tea1528,
    "mmaction01": _mmaction01,
    "timm": _timm,
    "pytorchvideo-block": _pytorchvideo_block,
}
