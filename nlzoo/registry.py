"""Names of networks: what builds each, and where its non-local blocks are."""

from functools import partial
from typing import Any

from nlzoo.names import check_choice
from nlzoo.networks.cifar import CifarResNet
from nlzoo.networks.detection import detector
from nlzoo.networks.image import PATTERNS, clip_model, image_model
from nlzoo.networks.slowfast import SlowFast
from nlzoo.networks.video import VideoResNet

# Residual blocks that a non-local block follows, from 0. ResNet-50: section 4.1, and for five
# blocks the released code (every second residual block of res3 and res4). ResNet-101: released
# for five blocks; where its ten go is unpublished: all of res3, and the three of res4 with three
# halfway. ResNet-18 has two residual blocks a stage: the same rules give 1, 2 and 4 blocks.
BLOCKS = {
    ("r18", "nl1"): "res4:0",
    ("r18", "nl5"): "res3:1 res4:1",
    ("r18", "nl10"): "res3:0,1 res4:0,1",
    ("r50", "nl1"): "res4:4",
    ("r50", "nl5"): "res3:1,3 res4:1,3,5",
    ("r50", "nl10"): "res3:0,1,2,3 res4:0,1,2,3,4,5",
    ("r101", "nl1"): "res4:21",
    ("r101", "nl5"): "res3:1,3 res4:6,13,20",
    ("r101", "nl10"): "res3:0,1,2,3 res4:3,6,10,13,17,20",
}

VIDEO: dict[str, partial[Any]] = {
    "c2d_r18": partial(VideoResNet, "c2d", 18),
    "c2d_r50": partial(VideoResNet, "c2d", 50),
    "c2d_r101": partial(VideoResNet, "c2d", 101),
    "i3d_r18": partial(VideoResNet, "i3d", 18),
    "i3d_r50": partial(VideoResNet, "i3d", 50),
    "i3d_r101": partial(VideoResNet, "i3d", 101),
    "i3d333_r50": partial(VideoResNet, "i3d333", 50),
    "i3d333_r101": partial(VideoResNet, "i3d333", 101),
    "tsn_r50": partial(VideoResNet, "tsn", 50, geometry="tsm"),
    "slowfast_r50": partial(SlowFast, 50, geometry="slowfast_8x8"),
    "slowfast_r101": partial(SlowFast, 101, geometry="slowfast_8x8"),
    "slow_r18": partial(VideoResNet, "slow", 18, geometry="slowfast"),
    "slow_r50": partial(VideoResNet, "slow", 50, geometry="slowfast"),
    "slow_r101": partial(VideoResNet, "slow", 101, geometry="slowfast"),
    "tsm_r50": partial(VideoResNet, "tsm", 50, geometry="tsm"),
    "tsm_r101": partial(VideoResNet, "tsm", 101, geometry="tsm"),
}
IMAGE: dict[str, partial[Any]] = {
    "resnet8_cifar10": partial(CifarResNet, 8),  # of MLPerf Tiny
    "resnet20_cifar10": partial(CifarResNet, 20),
    "resnet32_cifar10": partial(CifarResNet, 32),
    "resnet44_cifar10": partial(CifarResNet, 44),
    "resnet56_cifar10": partial(CifarResNet, 56),
}
TIMM = {
    f"resnet{depth}": partial(image_model, name=f"resnet{depth}")
    for depth in (18, 34, 50, 101, 152)
}
PREFIXES: dict[str, partial[Any]] = {  # before any name of timm's
    "timm/": partial(image_model),
    "c2d/": partial(clip_model),
    "tsm/": partial(clip_model, shifted=True),
}
FOLDED = ("c2d/", "tsm/")  # those for clips, of networks for images
BACKBONES = VIDEO | IMAGE | TIMM

PLACES = dict.fromkeys(BACKBONES, "") | {
    f"{name}_{count}": places
    for name in VIDEO
    for (depth, count), places in BLOCKS.items()
    if name.endswith(f"_{depth}") and not name.startswith(("ts", "slowfast"))
}
PLACES |= {
    "slowfast_r50_nl5": BLOCKS["r50", "nl5"],
    "slowfast_r101_nl3": "res4:6,13,20",
    "tsm_r50_nl5": "res3:0,2 res4:0,2,4",  # MIT and mmaction2
    # right before the last residual block of the two later stages; ResNet-8 has one a stage
    "resnet8_cifar10_nl2": "layer2:0 layer3:0",
    **{f"resnet{6 * n + 2}_cifar10_nl2": f"layer2:{n - 2} layer3:{n - 2}" for n in (3, 5, 7, 9)},
    **{f"{name}_{count}": count for name in TIMM for count in PATTERNS},
}


_BODIES = ("resnet18", "resnet50", "resnet101", "resnext101_32x8d", "resnext152_32x8d")
_HOSTS = {
    f"{kind}_rcnn_{body}_fpn{'_v2' * (version == 2)}": partial(
        detector, kind, name=body, version=version
    )
    for kind in ("faster", "mask", "keypoint")
    for body in _BODIES
    for version in (1, 2)
    if version == 1 or kind != "keypoint"
}
DETECTOR_PLACES = dict.fromkeys(_HOSTS, "") | {
    f"{name}_{words.replace(' ', '_')}": words
    for name in _HOSTS
    for words in (*PATTERNS, "nl4head", "nl4head nl1")
    if "head" not in words or "keypoint" in name
}


def base_of(name: str) -> str:
    """Of a name of `MODELS`, the one without blocks."""
    return name.partition("_nl")[0]


MODELS = {name: BACKBONES[base_of(name)] for name in PLACES}
DETECTORS = {name: _HOSTS[base_of(name)] for name in DETECTOR_PLACES}


def is_timm(name: str) -> bool:
    """Whether it is a network of timm's, by a name of ours or its own."""
    return name.startswith(tuple(PREFIXES)) or (name in MODELS and base_of(name) in TIMM)


def builder_of(name: str) -> partial[Any]:
    """What makes a network, still without blocks; its keyword `name` is what timm calls it.

    Raises:
        ValueError: no such network (names the nearest).
    """
    for prefix, made in PREFIXES.items():
        if name.startswith(prefix):
            return partial(made, name=name.removeprefix(prefix))
    check_choice("model", name, MODELS | DETECTORS)
    return (MODELS | DETECTORS)[name]


def places_of(name: str, non_local: str | dict[str, Any] | None) -> str | list[str]:
    """Where `create_model` puts blocks; empty: nowhere."""
    if isinstance(non_local, str):
        return non_local
    own = PLACES.get(name) or DETECTOR_PLACES.get(name, "")
    places: str | list[str] = (non_local or {}).get("places") or own
    return places


def options_of(non_local: str | dict[str, Any] | None) -> dict[str, Any]:
    """How it makes them: arguments of `NonLocalBlock`."""
    given = non_local if isinstance(non_local, dict) else {}
    return {key: value for key, value in given.items() if key != "places"}
