"""Detectors as torchvision's files have them: names of old, rows of COCO's classes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nlzoo.names import class_list
from nlzoo.weights.load import WeightFile

COCO = ["__background__", *class_list("coco")]  # rows of its classifiers
OF_CLASSES = re.compile(r"roi_heads\.(box_predictor|mask_predictor\.mask_fcn_logits)\.")
BODY = "backbone.body."
RENAMED = (  # what files have from before torchvision 0.13, and it renames itself
    (r"(backbone\.fpn\.\w+_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"(roi_heads\.mask_head)\.mask_fcn(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}.0."),
)


def as_detector(file: WeightFile) -> WeightFile:
    """A file's weights under the names of today; those of a network of images are its backbone."""
    if file.spec.get("preprocessing", {}).get("task") == "detection":
        return file
    names = {}
    for key in file.state:
        new = key
        for old, today in RENAMED:
            new = re.sub(old, today, new)
        names[new] = key
    if not any(name.startswith("backbone.") for name in names):
        names = {BODY + new: key for new, key in names.items() if not new.startswith("fc.")}
    state = {name: file.state[key] for name, key in names.items()}
    part = "" if any(name.startswith("rpn.") for name in names) else BODY
    return replace(file, state=state, names=names, spec={}, part=part)


def seen_arch(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Torchvision's own files of version 1 were trained with frozen norms of eps 0."""
    first, second = (f"rpn.head.conv.{i}.0.weight" in state for i in (0, 1))
    return {"eps": 0.0} if first and not second else {}


def seen_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Classes and keypoints that a file has."""
    found = {}
    if (weight := state.get("roi_heads.box_predictor.cls_score.weight")) is not None:
        found["num_classes"] = weight.shape[0] - 1
    if (weight := state.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")) is not None:
        found["keypoints"] = weight.shape[1]
    return found


def of_names(state: dict[str, Tensor], classes: Sequence[str]) -> dict[str, Tensor]:
    """Torchvision's 91 rows of each classifier, in the order of these classes, if they are COCO's.

    Its labels are the ids that COCO's files have, ten of which no class has.
    """
    rows = state.get("roi_heads.box_predictor.cls_score.weight", torch.empty(0)).shape[0]
    if rows != len(COCO) or list(classes) in ([], COCO[1:]) or not set(classes) <= set(COCO):
        return state
    index = torch.tensor([0, *map(COCO.index, classes)])
    return {
        key: t.unflatten(0, (rows, -1))[index].flatten(0, 1) if OF_CLASSES.match(key) else t
        for key, t in state.items()
    }
