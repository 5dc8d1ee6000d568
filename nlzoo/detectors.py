"""Detectors by name: their weights, published, of ImageNet or their own, and their blocks."""

import warnings
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from nlzoo.names import check_choice
from nlzoo.networks.detection import detector, insert_into_detector
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, base_of, options_of, places_of
from nlzoo.weights.load import FreshHead, WeightFile, check_fits, read_weights, without_blocks
from nlzoo.weights.torchvision import OF_CLASSES, of_names, renamed, seen_arch, seen_sizes
from nlzoo.weights.zoo import fetch_entry, find

PUBLISHED = "coco_v1_torchvision"
FACTS = ("classes", "category_ids", "keypoints", "skeleton", "sigmas")  # of data


def create_detector(
    name: str,
    pretrained: bool | str | Path,
    num_classes: int | None,
    non_local: str | dict[str, Any] | None,
    preprocessing: Preprocessing | None,
    arch: dict[str, Any],
) -> Any:
    """`nlzoo.models.create_model` for a name of `DETECTORS`, or `NAME.tag`.

    `pretrained` is True or a tag for torchvision's published weights, "timm/NAME" for a backbone
    from ImageNet, or a file: of `nlzoo.fit`, of torchvision, or of a backbone alone. Classifiers
    of other classes start fresh; those of COCO's names keep their rows of torchvision's 90.
    """
    name, _, tag = name.partition(".")
    check_choice("model", name, DETECTORS)
    on_imagenet = str(pretrained).startswith("timm/")
    file = None if on_imagenet else _file(name, pretrained or tag)
    saved = file.spec.get("model", {}) if file else {}
    foreign = file.state if file and not file.spec else {}
    arch = {**seen_arch(foreign), **(saved.get("arch") or {}), **arch}
    _check_arch(arch)
    non_local = saved.get("non_local") if non_local is None else non_local
    kept = Preprocessing.from_dict(file.spec["preprocessing"]) if saved and file else None
    seen = preprocessing or kept or Preprocessing()
    sizes = seen_sizes(file.state) if file else {}
    if classes := num_classes or len(seen.classes):
        sizes["num_classes"] = classes
    if seen.keypoints:
        sizes["keypoints"] = len(seen.keypoints)
    kind, backbone, version = DETECTORS[name].args
    if on_imagenet:
        backbone = _tagged(backbone, str(pretrained).removeprefix("timm/"))
    options = {**sizes, **arch}
    model = detector(kind, backbone, version, pretrained_backbone=on_imagenet, **options)
    facts = {key: getattr(seen, key) for key in FACTS}
    model.preprocessing = replace(model.preprocessing, **facts)
    _insert(model, name, non_local)
    if file:
        _load(model, file)
    model.spec = {"name": name, "arch": arch, "non_local": non_local}
    return model


def _file(name: str, given: bool | str | Path) -> WeightFile | None:
    """The weights that are meant; those of a backbone alone get its prefix."""
    if not given:
        return None
    row = f"{base_of(name)}.{PUBLISHED if given is True else given}"
    path = Path(str(given))
    if given is True or not path.suffix:
        path = fetch_entry(find(row))
    file = read_weights(path, clips=False)
    if file.spec.get("model", {}).get("name") in DETECTORS:
        return file
    return replace(file, state=renamed(file.state), spec={})


def _tagged(backbone: str, timm_name: str) -> str:
    if timm_name.partition(".")[0] != backbone:
        raise ValueError(f"timm/{timm_name} has weights of another network than {backbone}")
    return timm_name


def _insert(model: Any, name: str, non_local: str | dict[str, Any] | None) -> None:
    if places := places_of(name, non_local):
        words = places if isinstance(places, str) else " ".join(places)
        insert_into_detector(model, words, **options_of(non_local))


def _load(model: Any, file: WeightFile) -> None:
    """All of a file, for all that the model has, but for classifiers and blocks that are new."""
    own = model.state_dict()
    state = {k: t for k, t in file.state.items() if k in own or "num_batches_tracked" not in k}
    wanted = dict(own)
    if not any(key.startswith("rpn.") for key in state):  # of a backbone alone
        wanted = {key: t for key, t in own.items() if key.startswith("backbone.body.")}
    state = of_names(state, model.preprocessing.classes)
    other = [
        k for k in state if OF_CLASSES.match(k) and k in own and state[k].shape != own[k].shape
    ]
    if other:
        warnings.warn(f"{file.path}: the classifier starts fresh", FreshHead, stacklevel=4)
    for key in other:
        del state[key], wanted[key]
    check_fits(state, without_blocks(state, wanted, file.path), file.path)
    model.load_state_dict(state, strict=False)


def _check_arch(arch: dict[str, Any]) -> None:
    known = [k for k, p in signature(detector).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key in arch:
        check_choice("model argument", key, known)
