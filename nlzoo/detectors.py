"""Detectors by name: their weights, published, of ImageNet or their own, and their blocks."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from nlzoo.detection import detector, insert_into_detector
from nlzoo.names import check_choice
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, base_of, places_of
from nlzoo.weights.hosts import BLOCK
from nlzoo.weights.load import FreshHead, WeightFile, check_fits, read_weights
from nlzoo.weights.zoo import fetch_entry, find

PUBLISHED = "coco_v1_torchvision"
COCO = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # rows of its classifiers
OF_CLASSES = re.compile(
    r"roi_heads\.(box_predictor|mask_predictor\.mask_fcn_logits|keypoint_predictor)\."
)
FACTS = ("classes", "category_ids", "keypoints", "skeleton", "flip", "sigmas")  # of data
RENAMED = (  # what files have from before torchvision 0.13, and it renames itself
    (r"(backbone\.fpn\.\w+_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"(roi_heads\.mask_head)\.mask_fcn(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}.0."),
)


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
    arch = {**_seen_arch(file), **(saved.get("arch") or {}), **arch}
    _check_arch(arch)
    non_local = saved.get("non_local") if non_local is None else non_local
    kept = Preprocessing.from_dict(file.spec["preprocessing"]) if saved and file else None
    seen = preprocessing or kept or Preprocessing()
    sizes = _sizes(file)
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
    state = {_renamed(key): tensor for key, tensor in file.state.items()}
    if not any(key.startswith("backbone.") for key in state):
        state = {f"backbone.body.{k}": t for k, t in state.items() if not k.startswith("fc.")}
    return replace(file, state=state, spec={})


def _renamed(key: str) -> str:
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key


def _seen_arch(file: WeightFile | None) -> dict[str, Any]:
    """Torchvision's own files of version 1 were trained with frozen norms of eps 0."""
    own = file is not None and not file.spec and "rpn.head.conv.0.0.weight" in file.state
    second = own and file is not None and "rpn.head.conv.1.0.weight" in file.state
    return {"eps": 0.0} if own and not second else {}


def _sizes(file: WeightFile | None) -> dict[str, Any]:
    """Classes and keypoints that a file has."""
    state = file.state if file else {}
    found = {}
    if (weight := state.get("roi_heads.box_predictor.cls_score.weight")) is not None:
        found["num_classes"] = weight.shape[0] - 1
    if (weight := state.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")) is not None:
        found["keypoints"] = weight.shape[1]
    return found


def _tagged(backbone: str, timm_name: str) -> str:
    if timm_name.partition(".")[0] != backbone:
        raise ValueError(f"timm/{timm_name} has weights of another network than {backbone}")
    return timm_name


def _insert(model: Any, name: str, non_local: str | dict[str, Any] | None) -> None:
    options = {} if isinstance(non_local, str) else dict(non_local or {})
    options.pop("places", None)
    if places := places_of(name, non_local):
        words = places if isinstance(places, str) else " ".join(places)
        insert_into_detector(model, words, **options)


def _load(model: Any, file: WeightFile) -> None:
    """All of a file, for all that the model has, but for classifiers and blocks that are new."""
    own = model.state_dict()
    state = {k: t for k, t in file.state.items() if k in own or "num_batches_tracked" not in k}
    wanted = dict(own)
    if not any(key.startswith("rpn.") for key in state):  # of a backbone alone
        wanted = {key: t for key, t in own.items() if key.startswith("backbone.body.")}
    state = _of_names(state, model.preprocessing.classes)
    other = [
        k for k in state if OF_CLASSES.match(k) and k in own and state[k].shape != own[k].shape
    ]
    if other:
        warnings.warn(f"{file.path}: the classifier starts fresh", FreshHead, stacklevel=4)
    for key in other:
        del state[key], wanted[key]
    if not any(BLOCK in key for key in state) and any(BLOCK in key for key in wanted):
        warnings.warn(f"{file.path} has no non-local blocks: they start fresh", stacklevel=4)
        wanted = {key: t for key, t in wanted.items() if BLOCK not in key}
    check_fits(state, wanted, file.path)
    model.load_state_dict(state, strict=False)


def _of_names(state: dict[str, Tensor], classes: Sequence[str]) -> dict[str, Tensor]:
    """Torchvision's 91 rows of each classifier, in the order of these classes, if they are COCO's.

    Its labels are the ids that COCO's files have, ten of which no class has.
    """
    rows = state.get("roi_heads.box_predictor.cls_score.weight", torch.empty(0)).shape[0]
    if rows != len(COCO) or not classes or not set(classes) <= set(COCO):
        return state
    index = torch.tensor([0, *map(COCO.index, classes)])
    return {
        key: t.unflatten(0, (rows, -1))[index].flatten(0, 1) if OF_CLASSES.match(key) else t
        for key, t in state.items()
    }


def _check_arch(arch: dict[str, Any]) -> None:
    known = [k for k, p in signature(detector).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key in arch:
        check_choice("model argument", key, known)
