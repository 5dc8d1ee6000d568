"""Names of networks: `create_model`, `list_models`, `load_model`."""

from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlzoo.image import image_model
from nlzoo.insert import insert_non_local
from nlzoo.names import check_choice
from nlzoo.preprocessing import Preprocessing
from nlzoo.video import VideoResNet, inflate
from nlzoo.weights.load import WeightFile, load_into, read_weights

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

BACKBONES: dict[str, Callable[..., VideoResNet]] = {
    "c2d_r18": partial(VideoResNet, "c2d", 18),
    "c2d_r50": partial(VideoResNet, "c2d", 50),
    "c2d_r101": partial(VideoResNet, "c2d", 101),
    "i3d_r18": partial(VideoResNet, "i3d", 18),
    "i3d_r50": partial(VideoResNet, "i3d", 50),
    "i3d_r101": partial(VideoResNet, "i3d", 101),
    "i3d333_r50": partial(VideoResNet, "i3d333", 50),
    "i3d333_r101": partial(VideoResNet, "i3d333", 101),
    "slow_r18": partial(VideoResNet, "slow", 18, geometry="slowfast"),
    "slow_r50": partial(VideoResNet, "slow", 50, geometry="slowfast"),
    "slow_r101": partial(VideoResNet, "slow", 101, geometry="slowfast"),
    "tsm_r50": partial(VideoResNet, "tsm", 50, geometry="tsm"),
}

PLACES = dict.fromkeys(BACKBONES, "") | {
    f"{name}_{count}": places
    for name in BACKBONES
    for (depth, count), places in BLOCKS.items()
    if name.endswith(f"_{depth}") and not name.startswith("tsm")
}
PLACES["tsm_r50_nl5"] = "res3:0,2 res4:0,2,4"  # MIT and mmaction2
MODELS = {name: BACKBONES[name.partition("_nl")[0]] for name in PLACES}


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    non_local: str | dict[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    **arch: Any,
) -> VideoResNet:
    """Build a network by name, with its non-local blocks.

    Args:
        name: one of `list_models()`.
        pretrained: "timm/NAME" inflates that ResNet's ImageNet weights (downloaded); a path loads
            a checkpoint of `nlzoo.fit` or a file of pytorchvideo's hub; what is not given below is
            as it was trained.
        num_classes: by default those of the weights, or 400. Where the weights have another
            number, the classifier starts fresh.
        non_local: places of the blocks in place of the name's own ("res3:1,3 res4:1,3,5"), or a
            dict with `places` (by default the name's) and arguments of `NonLocalBlock`.
        preprocessing: what the network will see; by default that of its weights or geometry.
        **arch: geometry, width, dropout, zero_init_residual of `VideoResNet`.

    Returns:
        The network in training mode, float32, weights in channels_last_3d; its `spec` (name, arch,
        non_local) is all that is needed to build it again.

    Raises:
        ValueError: unknown name, argument or place (names the nearest); weights that do not fit.
        FileNotFoundError: no such weights file.
    """
    if pretrained is True:
        raise ValueError(f"no published weights for {name}; give a path or timm/NAME")
    weights: WeightFile | nn.Module | None = None
    if str(pretrained).startswith("timm/"):
        weights = image_model(str(pretrained).removeprefix("timm/"), pretrained=True)
    elif pretrained:
        weights = read_weights(pretrained)
    return _build(name, num_classes, non_local, preprocessing, arch, weights)


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Names that match a wildcard ("*_nl5"); with `pretrained`, those with published weights."""
    return sorted(n for n in MODELS if fnmatch(n, filter)) if not pretrained else []


def load_model(path: str | Path) -> VideoResNet:
    """The network of a checkpoint of `nlzoo.fit`: architecture, weights and preprocessing.

    Args:
        path: the checkpoint.

    Returns:
        The network on the CPU, in evaluation mode; `model.preprocessing` says what it expects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, unsafe, not a checkpoint of `nlzoo.fit`, or weights that do not fit.
    """
    weights = read_weights(path)
    if not weights.spec:
        raise ValueError(
            f"{path} says nothing about its model; use create_model(NAME, pretrained=PATH)"
        )
    return _build(weights.spec["model"]["name"], None, None, None, {}, weights).eval()


def _build(
    name: str,
    num_classes: int | None,
    non_local: str | dict[str, Any] | None,
    preprocessing: Preprocessing | None,
    arch: dict[str, Any],
    weights: WeightFile | nn.Module | None = None,
) -> VideoResNet:
    """The network; what is not given is as its weights were trained."""
    check_choice("model", name, MODELS)
    if isinstance(weights, WeightFile):
        arch = weights.arch | arch
        num_classes = weights.num_classes if num_classes is None else num_classes
        if weights.spec and non_local is None:
            saved = weights.spec["model"]["non_local"]
            non_local = saved if places_of(name, saved) else None
        if weights.spec and preprocessing is None:
            preprocessing = Preprocessing.from_dict(weights.spec["preprocessing"])
    _check_arch(arch)
    classes = 400 if num_classes is None else num_classes
    model = MODELS[name](num_classes=classes, preprocessing=preprocessing, **arch)
    if isinstance(weights, nn.Module):
        inflate(model, weights)
    _insert(model, name, non_local)
    if isinstance(weights, WeightFile):
        load_into(model, weights)
    model.spec = {"name": name, "arch": arch, "non_local": non_local}
    return model


def places_of(name: str, non_local: str | dict[str, Any] | None) -> str | list[str]:
    """Where `create_model` puts blocks; empty: nowhere."""
    if isinstance(non_local, str):
        return non_local
    places: str | list[str] = (non_local or {}).get("places", PLACES.get(name, ""))
    return places


def _insert(model: VideoResNet, name: str, non_local: str | dict[str, Any] | None) -> None:
    options = {} if isinstance(non_local, str) else dict(non_local or {})
    options.pop("places", None)
    places = places_of(name, non_local)
    if places or non_local is not None:
        if not places:
            raise ValueError(
                f"{name} with non_local={non_local!r} has no place for a block; name places, as "
                'in "res3:1,3 res4:1,3,5", or leave non_local out'
            )
        insert_non_local(model, places, **options)
        model.to(memory_format=torch.channels_last_3d)


def _check_arch(arch: dict[str, Any]) -> None:
    parameters = signature(VideoResNet).parameters
    known = {k: p.annotation for k, p in parameters.items() if k not in ("kind", "depth")}
    for key, value in arch.items():
        check_choice("model argument", key, known)
        if not isinstance(value, (int, float) if known[key] is float else known[key]):
            raise ValueError(f"model argument {key} = {value!r}: expected {known[key].__name__}")
