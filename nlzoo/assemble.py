"""A network of its parts: trunk, classifier, blocks and weights, each as the others want it."""

from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin

import torch

from nlzoo.folded import host_of
from nlzoo.insert import insert_non_local
from nlzoo.names import check_choice, nearest
from nlzoo.network import Network, set_preprocessing
from nlzoo.networks.detection import insert_into_detector
from nlzoo.networks.image import image_model, places_for
from nlzoo.networks.inflate import inflate
from nlzoo.networks.video import VideoResNet
from nlzoo.preprocessing import FACTS, Preprocessing
from nlzoo.registry import (
    DETECTORS,
    VIDEO,
    base_of,
    builder_of,
    is_timm,
    options_of,
    places_of,
)
from nlzoo.sources import Source, source_of
from nlzoo.trained import Blocks, blocks_over, facts_in, over, trained_as
from nlzoo.weights.load import WeightFile, fit_to
from nlzoo.weights.torchvision import of_names, seen_sizes

# Parameters of builders that a name says, or another argument of `create_model`.
SAID = ("kind", "depth", "name", "version", "pretrained", "num_classes", "preprocessing")
REST = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD


def build(
    source: Source,
    num_classes: int | None,
    non_local: Blocks,
    preprocessing: Preprocessing | None,
    arch: dict[str, Any],
) -> Network:
    """The network; what is not given is as its weights were trained, or as published."""
    name, entry, images = source.name, source.entry, _images(source)
    file = source.file if images is None else None
    _check_classes(name, num_classes)
    trained = trained_as(name, file, entry)
    if images is not None:
        trained = trained._replace(non_local=facts_in(trained.non_local) | _facts_of_images(images))
    arch = over(trained.arch, arch, "the weights were trained in")
    non_local = blocks_over(name, non_local, trained.non_local)
    builder = builder_of(name)
    _check_arch(builder, arch)
    if source.timm and images is None:
        builder = partial(builder, name=source.timm, pretrained=True)
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    if name in DETECTORS:
        saved = trained.preprocessing if file and file.spec else None
        data = preprocessing or saved or Preprocessing()
        sizes = _sizes(file, data, trained.num_classes) | sizes
        if file:
            file = replace(file, state=of_names(file.state, data.classes))

    def make() -> Network:
        made: Network = builder(**{**sizes, **arch})
        if not sizes:
            _set_classes(made, file, trained.num_classes)
        _set_preprocessing(made, name, preprocessing, trained.preprocessing)
        _insert(made, name, non_local)
        return made

    if file:
        with torch.device("meta"):
            twin = make()
        if entry and entry.gives == "trunk":
            file = file.headless(twin)
        published = entry and places_of(entry.model, entry.non_local)
        fresh_blocks = not (file.has_places or (published and entry and entry.model == name))
        fitting = fit_to(twin, file, bool(sizes), fresh_blocks)  # before memory is taken
    model = make()
    if images is not None:
        inflate(model, images)
    elif file:
        model.load_state_dict(fitting, strict=False)
    model.spec = {"name": name, "arch": arch, "non_local": non_local}
    return model


def _images(source: Source) -> torch.nn.Module | None:
    """The network of images whose weights a network for clips inflates."""
    if base_of(source.name) not in VIDEO:
        return None
    if source.timm:
        return image_model(source.timm, pretrained=True)
    if source.file and not source.file.spec.get("preprocessing", {}).get("frames", 1):
        name = source.file.spec["model"]["name"]
        return build(source_of(name, source.file), None, None, None, {})
    return None


def _facts_of_images(images: Any) -> dict[str, Any]:
    """How its blocks are; where they are is the network's for clips."""
    blocks = facts_in(getattr(images, "spec", {}).get("non_local"))
    return {key: value for key, value in blocks.items() if key != "places"}


def _check_classes(name: str, num_classes: Any) -> None:
    least = 1 if name in DETECTORS else 0
    if num_classes is not None and not (type(num_classes) is int and num_classes >= least):
        raise ValueError(f"num_classes = {num_classes!r}: expected a whole number from {least}")


def _check_arch(builder: partial[Any], arch: dict[str, Any]) -> None:
    """Names, and the types that are plain; timm checks its own."""
    made: Any = builder.func
    own = signature(made).parameters
    inherited = signature(made.__mro__[1]).parameters if isinstance(made, type) else {}
    if not inherited and any(p.kind is Parameter.VAR_KEYWORD for p in own.values()):
        return
    named = {k: p for k, p in {**inherited, **own}.items() if p.kind not in REST}
    known = {k: p.annotation for k, p in named.items() if k not in SAID}
    for key, value in arch.items():
        if key not in known:
            there = [*known, "num_classes", "non_local", "preprocessing", "pretrained"]
            raise ValueError(f"unknown model argument {key!r}{nearest(key, there)}")
        kind = known[key]
        plain = (int, float) if kind is float else kind if isinstance(kind, type) else object
        if get_origin(kind) is Literal:
            check_choice(f"model argument {key}", value, get_args(kind))
        elif not isinstance(value, plain):
            raise ValueError(f"model argument {key} = {value!r}: expected {kind.__name__}")


def _sizes(file: WeightFile | None, seen: Preprocessing, published: int | None) -> dict[str, int]:
    """Classes and keypoints of a detector: of the data, or else as its weights have them."""
    sizes = {"num_classes": published} if published else {}
    if file:
        sizes |= seen_sizes(file.state)
    own = {"num_classes": len(seen.classes), "keypoints": len(seen.keypoints)}
    return sizes | {key: count for key, count in own.items() if count}


def _set_classes(model: Network, file: WeightFile | None, published: int | None) -> None:
    """As many as the weights have, or else as published."""
    found = file.num_classes(model) if file else None
    classes = published if found is None else found
    if classes is not None and classes != model.num_classes:
        model.reset_classifier(classes)


def _set_preprocessing(
    model: Network, name: str, given: Preprocessing | None, trained: Preprocessing | None
) -> None:
    """What is given, or was trained; weights know one input range only."""
    own = model.preprocessing
    if name in DETECTORS:  # it normalises and resizes itself
        facts = {key: getattr(given or trained or own, key) for key in FACTS}
        if len(facts["classes"]) not in (0, model.num_classes):
            facts |= {"classes": (), "category_ids": ()}
        model.preprocessing = replace(own, **facts)
        return
    if trained and bool(trained.frames) != bool(own.frames):  # of images, and it is for clips
        trained = replace(trained, frames=own.frames, stride=own.stride)
    weights = trained or (own if is_timm(name) else None)
    seen = given or trained or own
    if weights:
        seen = replace(seen, mean=weights.mean, std=weights.std)
    if seen.classes and len(seen.classes) != model.num_classes:
        seen = replace(seen, classes=())
    set_preprocessing(model, seen)


def _insert(model: Network, name: str, non_local: Blocks) -> None:
    options = options_of(non_local)
    places = places_of(name, non_local)
    if not places and non_local is None:
        return
    if not places:
        raise ValueError(
            f"{name} with non_local={non_local!r} has no place for a block; name places, as in "
            f'"{"res3:1,3 res4:1,3,5" if base_of(name) in VIDEO else "before_last:3"}", or leave '
            "non_local out"
        )
    insert: Any = insert_into_detector if name in DETECTORS else insert_non_local
    if not isinstance(places, str) and (is_timm(name) or name in DETECTORS):
        places = " ".join(places)
    if is_timm(name):
        places = places_for(host_of(model), str(places))
    tokens = places.split() if isinstance(places, str) else places
    stages = {k: options.pop(k) for k, v in list(options.items()) if isinstance(v, dict)}
    for stage in stages:
        check_choice("stage", stage, {_stage_of(token) for token in tokens})
    for stage in dict.fromkeys(_stage_of(token) if stages else "" for token in tokens):
        here = [token for token in tokens if not stages or _stage_of(token) == stage]
        own = {**options, **stages.get(stage, {})}
        where = " ".join(here) if isinstance(places, str) else here
        insert(model, where, **own)
    if isinstance(model, VideoResNet):
        model.to(memory_format=torch.channels_last_3d)


def _stage_of(place: str) -> str:
    """`res3:1,3` or `res3.1` -> `res3`."""
    return place.partition(":")[0] if ":" in place else place.rpartition(".")[0]
