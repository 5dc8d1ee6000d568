"""A network of its parts: trunk, classifier, blocks and weights, each as the others want it."""

import warnings
from dataclasses import replace
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn

from nlzoo.folded import FoldedNetwork, host_of
from nlzoo.insert import insert_non_local
from nlzoo.names import check_choice
from nlzoo.network import Network, set_preprocessing
from nlzoo.networks.image import places_for
from nlzoo.networks.inflate import inflate
from nlzoo.networks.video import VideoResNet
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, MODELS, is_timm, options_of, places_of, timm_builder
from nlzoo.weights.blocks import facts_of
from nlzoo.weights.hosts import HOSTS
from nlzoo.weights.load import WeightFile, fit_to, load_into
from nlzoo.weights.zoo import Entry, like


def build(
    name: str,
    num_classes: int | None,
    non_local: str | dict[str, Any] | None,
    preprocessing: Preprocessing | None,
    arch: dict[str, Any],
    weights: WeightFile | nn.Module | None = None,
    entry: Entry | None = None,
) -> Network:
    """The network; what is not given is as its weights were trained, or as published."""
    check_choice("model", name, MODELS | DETECTORS)
    trained = _trained(name, weights, entry)
    for key in arch.keys() & trained.arch.keys():
        if arch[key] != trained.arch[key]:
            was = f"{key} {trained.arch[key]}"
            warnings.warn(f"{key} {arch[key]}: the weights were trained in {was}", stacklevel=3)
    arch = trained.arch | arch
    non_local = _blocks_as_trained(name, non_local, trained.non_local)
    if preprocessing and trained.preprocessing:  # weights know one input range only
        seen = trained.preprocessing
        preprocessing = replace(preprocessing, mean=seen.mean, std=seen.std)
    preprocessing = preprocessing or trained.preprocessing
    _check_arch(name, arch)
    classes = {} if num_classes is None else {"num_classes": num_classes}

    def make() -> Network:
        made: Network = MODELS[name](preprocessing=preprocessing, **classes, **arch)
        if not classes:
            _set_classes(made, weights, trained.num_classes)
        if len(made.preprocessing.classes) not in (0, made.num_classes):
            made.preprocessing = replace(made.preprocessing, classes=())
        _insert(made, name, non_local)
        if isinstance(weights, nn.Module):
            inflate(made, weights)
        return made

    if isinstance(weights, WeightFile):
        with torch.device("meta"):
            twin = make()
        if entry and entry.gives == "trunk":
            weights = weights.headless(twin)
        fresh_blocks = not (entry and entry.model == name) and not weights.has_places
        fitting = fit_to(twin, weights, bool(classes), fresh_blocks)  # before memory is taken
    model = make()
    if isinstance(weights, WeightFile):
        model.load_state_dict(fitting, strict=False)
    model.spec = {"name": name, "arch": arch, "non_local": non_local}
    return model


class Trained(NamedTuple):
    """What weights were trained as, as far as it is known."""

    arch: dict[str, Any]
    non_local: str | dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None  # of the row


def _trained(name: str, weights: WeightFile | nn.Module | None, entry: Entry | None) -> Trained:
    file = weights if isinstance(weights, WeightFile) else None
    if isinstance(blocks := getattr(weights, "spec", {}).get("non_local"), dict) and not file:
        return Trained({}, {k: v for k, v in blocks.items() if k != "places"})  # of images
    if file and file.spec:
        model, saved = file.spec["model"], Preprocessing.from_dict(file.spec["preprocessing"])
        if entry and entry.name.startswith(f"{name}.") and (model["arch"] or {}) != entry.arch:
            raise ValueError(
                f"{file.path} says of itself that it is {model['name']} with {model['arch']}, and "
                f"{entry.name} is {entry.arch}: give the model's name alone"
            )
        return Trained(model["arch"] or {}, model["non_local"], saved)
    if file and file.dialect and entry and not _speaks(file.dialect, entry.dialect):
        raise ValueError(
            f"{file.path} has tensors as {file.dialect} names them, and {entry.name} is of "
            f"{entry.dialect}, with other strides or scales: give create_model({name!r}, ...)"
        )
    if file and file.seen and not entry:
        entry = like(name, file.dialect, file.seen)
        as_ = f"read as {entry.name}, which it is like" if entry else "of strides that none has yet"
        warnings.warn(f"{file.path} is {as_}", stacklevel=4)
    seen = file.seen.arch if file and file.seen else {}
    if entry is None:
        return Trained(seen)
    blocks = {k: v for k, v in entry.non_local.items() if k != "places" or entry.model == name}
    form = blocks.get("form", "embedded_gaussian")
    blocks = facts_of(HOSTS[entry.dialect].spoken, form, blocks)
    return Trained(entry.arch | seen, blocks, entry.preprocessing(), entry.num_classes)


def build_timm(
    name: str,
    given: Any,
    num_classes: int | None,
    non_local: str | dict[str, Any] | None,
    preprocessing: Preprocessing | None,
    arch: dict[str, Any],
) -> Network:
    """A network of timm's; `given` is True (timm's weights), "timm/NAME", a file, or no weights."""
    build, timm_name = timm_builder(name)
    file = given if isinstance(given, WeightFile) else None
    if isinstance(given, str) and given:
        other = given.removeprefix("timm/")
        if other.partition(".")[0] != timm_name.partition(".")[0]:
            raise ValueError(f"{given} has weights of another network than {name}")
        timm_name = other
    saved = file.spec.get("model", {}) if file else {}
    arch = (saved.get("arch") or {}) | arch
    non_local = _blocks_as_trained(name, non_local, _blocks_of(saved, name))
    classes = {} if num_classes is None else {"num_classes": num_classes}
    model: Network = build(timm_name, pretrained=bool(given and not file), **classes, **arch)
    if file and isinstance(model, FoldedNetwork):
        file = file.below("backbone").over_time()
    if file and not classes:
        _set_classes(model, file, None)
    _set_preprocessing(model, file, preprocessing)
    _insert(model, name, non_local)
    if file:
        load_into(model, file, fresh_head=bool(classes), fresh_blocks=not file.has_places)
    model.spec = {"name": name, "arch": arch, "non_local": non_local}
    return model


def _blocks_of(saved: dict[str, Any], name: str) -> str | dict[str, Any] | None:
    """Those that a file's model has; where `name` has none, with the places of the file's name."""
    blocks, own = saved.get("non_local"), saved.get("name", "")
    if places_of(name, blocks) or not is_timm(own) or not places_of(own, None):
        return blocks
    return {**(blocks or {}), "places": places_of(own, None)}


def _set_preprocessing(
    model: Network, file: WeightFile | None, given: Preprocessing | None
) -> None:
    """What is given, or was saved; weights know one input range only."""
    seen = model.preprocessing
    if file and file.spec:
        saved = Preprocessing.from_dict(file.spec["preprocessing"])
        other = bool(saved.frames) != bool(seen.frames)  # of images, and it is for clips
        seen = replace(saved, frames=seen.frames, stride=seen.stride) if other else saved
    pre = replace(given or seen, mean=seen.mean, std=seen.std)
    if pre.classes and len(pre.classes) != model.num_classes:
        pre = replace(pre, classes=())
    set_preprocessing(model, pre)


def _blocks_as_trained(
    name: str, given: str | dict[str, Any] | None, trained: str | dict[str, Any] | None
) -> str | dict[str, Any] | None:
    """What is given, over what the weights were trained as; says where they differ."""
    if not trained or not places_of(name, trained if given is None else given):
        return given
    if given is None:
        return trained
    facts = {"places": trained} if isinstance(trained, str) else trained
    if isinstance(given, str):
        return {**facts, "places": given}
    for key, value in given.items():
        if key in facts and facts[key] != value and key != "places":
            was = f"{key} {facts[key]}"
            warnings.warn(f"{key} {value}: the blocks were trained with {was}", stacklevel=4)
    return {**facts, **given}


def _set_classes(
    model: Network, weights: WeightFile | nn.Module | None, published: int | None
) -> None:
    """As many as the weights have, or else as published."""
    found = weights.num_classes(model) if isinstance(weights, WeightFile) else None
    classes = published if found is None else found
    if classes not in (None, model.num_classes):
        model.reset_classifier(classes)


def _speaks(dialect: str, other: str) -> bool:
    """Whether networks of both are the same: PySlowFast has names of its own for Caffe2's."""
    twins = ({"caffe2", "slowfast"}, {"tushar", "patykov"})
    return dialect == other or {dialect, other} in twins


def _insert(model: Network, name: str, non_local: str | dict[str, Any] | None) -> None:
    options = options_of(non_local)
    places = places_of(name, non_local)
    if not places and non_local is None:
        return
    if not places:
        raise ValueError(
            f"{name} with non_local={non_local!r} has no place for a block; name places, as in "
            '"res3:1,3 res4:1,3,5", or leave non_local out'
        )
    if is_timm(name):
        places = places_for(host_of(model), places if isinstance(places, str) else " ".join(places))
    tokens = places.split() if isinstance(places, str) else places
    stages = {k: options.pop(k) for k, v in list(options.items()) if isinstance(v, dict)}
    for stage in stages:
        check_choice("stage", stage, {_stage_of(token) for token in tokens})
    for stage in dict.fromkeys(_stage_of(token) if stages else "" for token in tokens):
        here = [token for token in tokens if not stages or _stage_of(token) == stage]
        own = {**options, **stages.get(stage, {})}
        where = " ".join(here) if isinstance(places, str) else here
        insert_non_local(model, where, **own)
    if isinstance(model, VideoResNet):
        model.to(memory_format=torch.channels_last_3d)


def _stage_of(place: str) -> str:
    """`res3:1,3` or `res3.1` -> `res3`."""
    return place.partition(":")[0] if ":" in place else place.rpartition(".")[0]


def _check_arch(name: str, arch: dict[str, Any]) -> None:
    build: Any = MODELS[name].func
    parameters = {**signature(build.__base__).parameters, **signature(build).parameters}
    no_option = "kind", "depth", "args", "options", "num_classes", "preprocessing"
    known = {k: p.annotation for k, p in parameters.items() if k not in no_option}
    for key, value in arch.items():
        check_choice("model argument", key, known)
        if not isinstance(value, (int, float) if known[key] is float else known[key]):
            raise ValueError(f"model argument {key} = {value!r}: expected {known[key].__name__}")
