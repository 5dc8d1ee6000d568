"""Any timm backbone, for images or for clips, and where its non-local blocks go."""

import logging
import re
from dataclasses import replace
from typing import Any, NamedTuple

import huggingface_hub.constants
import timm
import torch
from huggingface_hub.utils import logging as hub_logging
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from nlzoo.files import offline
from nlzoo.folded import FoldedNetwork
from nlzoo.insert import runs_children
from nlzoo.names import check_choice, nearest
from nlzoo.network import set_preprocessing
from nlzoo.networks.residual import residual_branches
from nlzoo.preprocessing import Preprocessing

TOKENS = (
    "{} passes tokens (B, N, C) or maps (B, H, W, C) on, which are mixed already: non-local blocks "
    "go into networks of maps (B, C, H, W)"
)
PATTERNS = ("nl1", "nl5", "nl10")
STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}  # of the stages res2 to res5, as timm's feature_info has them


def image_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """A timm network by name, such as `resnet50.tv_in1k`; `pretrained` downloads its weights.

    It is timm's own, with all its abilities and state-dict keys, and what else a network of
    this zoo has: `preprocessing`, and uint8 images (B, 3, H, W) as input of a call.

    Args:
        name: with or without the tag of its weights.
        pretrained: download them.
        **options: of `timm.create_model`: num_classes, drop_path_rate, ...

    Raises:
        ValueError: timm does not know the name (gives its nearest ones) or an option.
        OSError: the weights cannot be downloaded.
    """
    model = _create(name, pretrained, options)
    set_preprocessing(model, preprocessing_of(model))
    model.register_forward_pre_hook(_normalize)
    return model


def clip_model(
    name: str, *, shifted: bool = False, pretrained: bool = False, **options: Any
) -> FoldedNetwork:
    """The same for clips of 8 x 4: a `FoldedNetwork`.

    Args:
        name: with or without the tag of its weights.
        shifted: a TSM (arXiv 1811.08383): the frames' channels are shifted before each residual
            branch; before each second one where a stage has 23 or more, as published.
        pretrained: download the weights.
        **options: of `timm.create_model`.

    Raises:
        ValueError: as `image_model`; `shifted`, and no residual branch begins with a convolution.
        OSError: the weights cannot be downloaded.
    """
    backbone = _create(name, pretrained, options)
    seen = replace(preprocessing_of(backbone), frames=8, stride=4)
    model = FoldedNetwork(backbone, seen)
    if shifted:
        stages = residual_branches(backbone, torch.empty(1, 3, seen.crop, seen.crop))
        if not stages:
            raise ValueError(
                f"no residual branch of {name} begins with a convolution, before which to shift: "
                f"give one that has them, such as tsm/resnet50, or no shifts: c2d/{name}"
            )
        step = 1 if max(map(len, stages)) < 23 else 2
        for branch in [branch for stage in stages for branch in stage[::step]]:
            model.fold.shift_before(backbone.get_submodule(branch))
    return model


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no model {name!r}{nearest(architecture, timm.list_models())}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise ValueError(f"timm has no weights {name!r}{nearest(name, tagged)}")
    hub = huggingface_hub.constants  # timm's source of weights, with a word of its own for it
    was, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, offline() or hub.HF_HUB_OFFLINE
    told = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # without each of its attempts
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise ValueError(f"timm/{name}: {error}") from error
    except (OSError, RuntimeError) as error:  # of the Hub's client; some are neither's subclass
        if not pretrained:
            raise ValueError(f"timm/{name}: {error}") from error
        why = "NLZOO_OFFLINE is set" if offline() else type(error).__name__
        raise OSError(
            f"cannot download the weights of timm/{name} ({why}); give a file of them, or false "
            "for none: pretrained in the recipe, or --task.pretrained"
        ) from error
    finally:
        hub.HF_HUB_OFFLINE = was
        hub_logging.set_verbosity(told)
    classes = options.get("num_classes")
    loaded = pretrained and classes == model.pretrained_cfg.get("num_classes")
    head = model.get_classifier() if classes and not loaded else None
    if isinstance(head, nn.Linear):  # timm: up to N(0, 0.4)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    return model


def _normalize(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return model.get_submodule("normalize")(inputs[0]), *inputs[1:]


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What timm says that the weights want: mean, deviation, sizes; frames 0: of images."""
    config = resolve_model_data_config(model)
    test = resolve_model_data_config(model, use_test_size=True)
    side = test["input_size"][-1]
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        frames=0,
        stride=0,
        crop=config["input_size"][-1],
        test_size=int(side / test["crop_pct"]),
        test_crop=side,
        interpolation=config["interpolation"],
    )


class Stage(NamedTuple):
    """A module of one map size, and how many blocks it runs one after the other."""

    name: str
    blocks: int


def stages(model: nn.Module) -> dict[int, Stage]:
    """Stage 1 (1/4 of the image's size) to 4 (1/32), where the network has them.

    Raises:
        ValueError: a network without feature_info.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise ValueError(f"{type(model).__name__} has no stages (no feature_info in timm)")
    modules = dict(model.named_modules())
    by_stride = {int(one["reduction"]): one["module"] for one in info if one["module"] in modules}
    found = {}
    for number, stride in STRIDES.items():
        if stride in by_stride:
            name = by_stride[stride]
            inner = f"{name}.blocks"  # of ConvNeXt and others
            name = inner if isinstance(modules.get(inner), nn.Sequential) else name
            if runs_children(modules[name]) and not isinstance(modules[name], nn.ModuleList):
                name = _next(modules, name)  # of DenseNet
            if isinstance(modules[name], nn.ModuleList):  # of several branches, or of tokens
                continue
            blocks = len(modules[name]) if isinstance(modules[name], nn.Sequential) else 0
            found[number] = Stage(name, blocks)
    return found


def _next(modules: dict[str, nn.Module], name: str) -> str:
    """The module that sees the output of this one, in the order of their definition."""
    names = list(modules)
    for one in names[names.index(name) + 1 :]:
        if not one.startswith(f"{name}.") and not isinstance(modules[one], nn.Sequential):
            return one
    raise ValueError(f"nothing follows {name}")


def places_for(model: nn.Module, words: str) -> str:
    """Places in a network's own names.

    Args:
        model: of timm.
        words: nl1, nl5 or nl10, the paper's (section 4.1) by stage: right before the last block of
            stage 3; two in stage 2 and three in stage 3, evenly; all of both, at most 4 and 6.
            Or places, where `before_last:3` stands for right before the last block of stage 3. A
            stage that timm does not divide into blocks has one place, its end.

    Raises:
        ValueError: a transformer; a stage that the network has not, or has too few blocks in.
    """
    if hasattr(model, "num_prefix_tokens") or getattr(model, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(TOKENS.format(type(model).__name__))
    if re.fullmatch("nl[0-9]*", words):
        check_choice("pattern of blocks", words, PATTERNS)
    if words == "nl1":
        words = "before_last:3"
    if words in PATTERNS:
        of = stages(model)
        counts = {2: 2, 3: 3} if words == "nl5" else {2: 4, 3: 6}
        return " ".join(_spread(of, number, count) for number, count in counts.items())
    return " ".join(_before_last(model, word) for word in words.split())


def _before_last(model: nn.Module, word: str) -> str:
    stage, _, number = word.partition(":")
    if stage != "before_last":
        return word
    check_choice("stage", number, map(str, STRIDES))
    name, blocks = _stage(stages(model), int(number))
    if not blocks:
        return name
    if blocks == 1:
        raise ValueError(f"stage {number} ({name}) has {blocks} block: nothing is before its last")
    return f"{name}:{blocks - 2}"


def _stage(of: dict[int, Stage], number: int) -> Stage:
    if number not in of:
        there = f"stages {', '.join(map(str, of))}" if of else "none"
        raise ValueError(
            f"the network has no stage {number}, of maps 1/{STRIDES[number]} as wide as the image; "
            f"it has {there}: name places that return maps, as in blocks:3"
        )
    return of[number]


def _spread(of: dict[int, Stage], number: int, count: int) -> str:
    """`layer3:1,3,5`: after every so many blocks, as the released code does."""
    name, blocks = _stage(of, number)
    if not blocks:
        return name
    step = max(1, blocks // count)
    indices = range(step - 1, min(blocks, step * count), step)
    return f"{name}:{','.join(map(str, indices))}"
