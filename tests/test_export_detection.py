"""Detectors as graphs of fixed sizes, against torchvision's own."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from nlzoo.export.canvas import Canvas, detections
from nlzoo.export.detection import StaticDetector
from nlzoo.export.detectors import export_detector
from nlzoo.export.eager import OnCanvas
from nlzoo.export.matching import compare_detections
from nlzoo.export.roi_align import RoIAlign, table_of
from nlzoo.export.runtime import Runner
from nlzoo.export.source import load_network
from nlzoo.export.suppress import ROUNDS, suppress
from nlzoo.export.tensorrt import build_engine
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms, box_iou, nms

from nlzoo import NonLocalBlock, create_model

HEIGHT, WIDTH = 160, 192
FULL, PADDED, LOW = (HEIGHT, WIDTH), (143, 133), (65, WIDTH)
SIZES = [FULL, PADDED, LOW]
RCNN = {
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 100,
    "box_detections_per_img": 20,
    "box_score_thresh": 0.3,
}
SMALL = {
    "channels": 16,
    "hidden": 32,
    "head": [16, 16, 16, 16],
    "anchors": [16, 32, 48, 64, 96],
    "canonical": 56,
    "min_size": 144,
    "max_size": 190,
    "trainable": 5,
    "rcnn": RCNN,
}
NAMES = [
    ("faster_rcnn_resnet18_fpn", {}),
    ("mask_rcnn_resnet18_fpn", {"norm": "frozen", "eps": 0.0}),
    ("mask_rcnn_resnet18_fpn_nl1", {"key_mask": True}),
    ("mask_rcnn_resnet18_fpn_v2_nl1", {}),
    ("keypoint_rcnn_resnet18_fpn_nl4head_nl1", {"keypoints": 7}),
]


def detector(name, options=None, seed=0):
    """Random weights, statistics too, that find something; blocks say something."""
    options = dict(options or {})
    block = {"key_mask": True} if options.pop("key_mask", False) else None
    torch.manual_seed(seed)
    model = create_model(name, num_classes=4, non_local=block, **SMALL, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_var.uniform_(0.8, 1.5)
            module.running_mean.normal_(std=0.1)
        if isinstance(module, NonLocalBlock):
            nn.init.normal_(module.out.weight, std=module.inner**-0.5)
    heads = model.roi_heads
    spread(model, {model.rpn.head.cls_logits: 2.0, model.rpn.head.bbox_pred: 0.2})
    spread(model, {heads.box_predictor.cls_score: 1.5, heads.box_predictor.bbox_pred: 0.5})
    return model


@torch.no_grad()
def spread(model, layers):
    """Scale the layers to outputs of these standard deviations."""
    found = {}
    handles = [
        layer.register_forward_hook(lambda layer, _, y: found.setdefault(layer, []).append(y.std()))
        for layer in layers
    ]
    OnCanvas(model, FULL)(**canvas())
    for handle in handles:
        handle.remove()
    for layer, wanted in layers.items():
        layer.weight.mul_(wanted / max(found[layer]))


def canvas(size=FULL, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, HEIGHT, WIDTH, generator=generator)
    return {"images": images, "sizes": torch.tensor([size] * batch, dtype=torch.float32)}


def same(one, two, masks=0.99):
    """Of two images' detections: as many, of the same labels, at the same places."""
    assert torch.equal(one["labels"], two["labels"])
    assert (one["boxes"] - two["boxes"]).abs().max() < 1e-3
    assert (one["scores"] - two["scores"]).abs().max() < 1e-5
    if "masks" in one:
        a, b = (paste_masks_in_image(x["masks"], x["boxes"], FULL) > 0.5 for x in (one, two))
        both, either = (a & b).sum((1, 2, 3)), (a | b).sum((1, 2, 3))
        assert (both >= masks * either).all()
    if "keypoints" in one:
        assert (one["keypoints"] - two["keypoints"]).abs().max() < 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), NAMES)
def test_equals_torchvision_on_the_same_canvas(name, options):
    model = detector(name, options)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    static, eager = StaticDetector(model, FULL), OnCanvas(model, FULL)
    for seed, size in enumerate(SIZES):
        inputs = canvas(size, seed)
        ours, theirs = static(**inputs), eager(**inputs)
        number = int(theirs["num"])
        assert 0 < number == int(ours["num"])
        assert ours["exact"]
        same(detections(theirs, 0, number), detections(ours, 0, number))
        assert [name for name in static.outputs if name in ours] == list(ours)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
