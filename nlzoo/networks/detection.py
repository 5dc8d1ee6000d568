"""Torchvision's Faster, Mask and Keypoint R-CNN on a ResNet of timm, key for key."""

from collections import OrderedDict
from functools import partial
from inspect import signature
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from nlzoo.insert import InsertionReport, insert_non_local
from nlzoo.names import check_choice
from nlzoo.networks.image import places_for
from nlzoo.networks.padding import KeyMask
from nlzoo.ops import at_least_float32, autocast_off
from nlzoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

Kind = Literal["faster", "mask", "keypoint"]
LEVELS = ["0", "1", "2", "3"]  # P2 to P5
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")  # in the order they are unfrozen
# Options of timm's builder that make another network. ResNeXt-152 has stages of 3, 8, 36, 3 blocks.
DEPTHS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnext152_32x8d": ("resnext101_32x8d", {"layers": (3, 8, 36, 3)})
}
HEAD = "nl4head"  # a block after every two of the eight convolutions of the keypoint head
EXAMPLE = (800, 1344)  # pixels; of the map that an insertion report measures


class PyramidBackbone(nn.Module):
    """A ResNet and its feature pyramid (Lin et al., "Feature Pyramid Networks", 1612.03144).

    Maps leave it in at least float32, under autocast too: anchors, boxes and losses take their
    dtype from them, and bfloat16 moves anchors by up to 7 pixels.
    """

    def __init__(self, body: nn.Module, channels: int, norm: type[nn.Module] | None) -> None:
        super().__init__()
        self.body = body
        widths = body.feature_info.channels()  # type: ignore[union-attr, operator]
        extra = LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=extra, norm_layer=norm)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> maps of 1/4, 1/8, 1/16, 1/32 ("0" to "3") and 1/64 ("pool")."""
        maps = self.fpn(OrderedDict(zip(LEVELS, self.body(x), strict=True)))
        return OrderedDict((name, at_least_float32(one)) for name, one in maps.items())


def detector(
    kind: Kind,
    name: str,
    version: int = 1,
    *,
    pretrained: bool = False,
    num_classes: int = 90,
    norm: Literal["frozen", "batch", ""] = "",
    eps: float = 1e-5,
    trainable: int = 3,
    channels: int = 256,
    hidden: int = 1024,
    head: list[int] | None = None,
    keypoints: int = 17,
    min_size: list[int] | int = 800,
    max_size: int = 1333,
    anchors: list[int] | None = None,
    canonical: int = 224,
    rcnn: dict[str, Any] | None = None,
) -> Any:
    """A detector; input is a list of images (3, H, W), uint8 or float in 0..1, of any sizes.

    As a call it is torchvision's: with targets in training it returns losses, in evaluation a dict
    of boxes (N, 4) in pixels, labels from 1, scores, and masks (N, 1, H, W) or keypoints an image.
    Heads run without autocast.

    Args:
        kind: faster (boxes), mask or keypoint.
        name: of the backbone, a ResNet of timm's, or resnext152_32x8d.
        version: of torchvision's heads; 2 (arXiv 2111.11429) has norms in them, and more layers.
        pretrained: download the backbone's ImageNet weights.
        num_classes: without background; torchvision's published weights have 90.
        norm: of the backbone: frozen statistics and gains (version 1), or batch (version 2).
        eps: of frozen norms; the published weights of version 1 want 0.
        trainable: stages that train, counted from the last; 5: all. Blocks always do.
        channels: of the pyramid.
        hidden: of the box head.
        head: channels of each convolution of the mask or keypoint head.
        keypoints: of an instance.
        min_size: short side in pixels; of several, training draws one and a test takes the last.
        max_size: at most so long is the long side.
        anchors: side in pixels, one for each of the five levels.
        canonical: side of a box in pixels that is looked at in P4.
        rcnn: further options of torchvision's class, as rpn_post_nms_top_n_train.

    Raises:
        ValueError: an unknown kind, backbone or option.
        OSError: the weights cannot be downloaded.
    """
    batch = norm == "batch" or (version == 2 and not norm)
    body = _body(name, pretrained, batch, eps)
    _freeze(body, trainable)
    norms = nn.BatchNorm2d if version == 2 else None
    pyramid = PyramidBackbone(body, channels, norms)
    pool = partial(MultiScaleRoIAlign, LEVELS, sampling_ratio=2, canonical_scale=canonical)
    sides = tuple((side,) for side in anchors or (32, 64, 128, 256, 512))
    options: dict[str, Any] = {
        "min_size": min_size,
        "max_size": max_size,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "rpn_anchor_generator": AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        "rpn_head": RPNHead(channels, 3, conv_depth=version),
        "box_roi_pool": pool(output_size=7),
        "box_head": TwoMLPHead(channels * 49, hidden)
        if version == 1
        else FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [hidden], norms),
        "box_predictor": FastRCNNPredictor(hidden, num_classes + 1),
        **_head(kind, pool(output_size=14), channels, head, norms, (num_classes, keypoints)),
        **(rcnn or {}),
    }
    made = {"faster": tv.FasterRCNN, "mask": tv.MaskRCNN, "keypoint": tv.KeypointRCNN}
    for key, value in (rcnn or {}).items():
        check_choice("option of rcnn", key, signature(made[kind]).parameters)
        if isinstance(value, str):  # an option's text, which has taken the place of the others
            raise ValueError(f"rcnn.{key}: give all of it: --task.arch.rcnn '{{{key}: {value}}}'")
    return _finish(made[kind](pyramid, **options), num_classes)


def _body(name: str, pretrained: bool, batch: bool, eps: float) -> nn.Module:
    name, options = DEPTHS.get(name, (name, {}))
    if not batch:
        # timm gives norms a device; a gain of 0 that is frozen would end its branch for ever
        options = {
            **options,
            "norm_layer": lambda width, **_: FrozenBatchNorm2d(width, eps),
            "zero_init_last": False,
        }
    if pretrained and "layers" in options:
        raise ValueError(f"timm has no weights for {name}")
    made: nn.Module = timm.create_model(
        name, pretrained=pretrained, features_only=True, out_indices=(1, 2, 3, 4), **options
    )
    return made


def _freeze(body: nn.Module, trainable: int) -> None:
    if not 0 <= trainable <= len(STAGES):
        raise ValueError(f"trainable = {trainable}: expected 0 to {len(STAGES)} stages")
    for name, parameter in body.named_parameters():
        trains = name.startswith(STAGES[:trainable]) or (trainable > 4 and name.startswith("bn1"))
        parameter.requires_grad_(trains)


def _head(
    kind: Kind,
    pool: nn.Module,
    channels: int,
    layers: list[int] | None,
    norm: type[nn.Module] | None,
    sizes: tuple[int, int],
) -> dict[str, nn.Module]:
    """What the third head takes; `sizes` are classes and keypoints."""
    classes, keypoints = sizes
    if kind == "mask":
        layers = layers or [256] * 4
        return {
            "mask_roi_pool": pool,
            "mask_head": MaskRCNNHeads(channels, layers, 1, norm),
            "mask_predictor": MaskRCNNPredictor(layers[-1], layers[-1], classes + 1),
        }
    if kind == "keypoint":
        layers = layers or [512] * 8
        return {
            "keypoint_roi_pool": pool,
            "keypoint_head": KeypointRCNNHeads(channels, layers),
            "keypoint_predictor": KeypointRCNNPredictor(layers[-1], keypoints),
        }
    return {}


def _finish(model: Any, num_classes: int) -> Any:
    """What every network of this zoo has."""
    for part in (model.rpn, model.roi_heads):
        part.forward = partial(_without_autocast, part.forward)
    model.register_forward_pre_hook(_scale)
    model.num_classes = num_classes
    model.get_classifier = partial(_classifiers, model.roi_heads)
    short = model.transform.min_size[-1]
    model.preprocessing = Preprocessing(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        frames=0,
        stride=0,
        crop=short,
        test_size=short,
        test_crop=model.transform.max_size,
        task="detection",
    )
    return model


def _scale(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """uint8 images become float in 0..1."""
    images = [i / 255 if i.dtype == torch.uint8 else i for i in inputs[0]]
    return images, *inputs[1:]


def _classifiers(heads: Any) -> tuple[nn.Module, ...]:
    """What depends on the classes, and on the keypoints."""
    masks = getattr(heads.mask_predictor, "mask_fcn_logits", None)
    found = (heads.box_predictor, masks, heads.keypoint_predictor)
    return tuple(part for part in found if part is not None)


def _without_autocast(forward: Any, *args: Any) -> Any:
    """`args` hold the maps second (RPN) or first (heads)."""
    maps = next(a for a in args if isinstance(a, dict))
    with autocast_off(maps["0"]):
        return forward(*args)


def insert_into_detector(
    model: Any, places: str, key_mask: bool = False, **block: Any
) -> list[InsertionReport]:
    """Put non-local blocks into the backbone, and into the keypoint head.

    They have no norm, and W_z 0, where nothing else is said: a batch of two images says little
    about statistics, and a frozen gamma of 0 would end a block for ever.

    Args:
        model: of `detector`.
        places: words of `nlzoo.networks.image.places_for` about the backbone (nl1: right before
            the last block of res4, as the paper's section "Extension: COCO"), and "nl4head": after
            every two convolutions of the keypoint head.
        key_mask: the backbone's blocks pay no attention to padding.
        **block: arguments of `NonLocalBlock`.

    Raises:
        ValueError: as `insert_non_local`; no keypoint head.
    """
    block = {"norm": None, **block}
    words, reports = places.split(), []
    body = [word for word in words if word != HEAD]
    if body:
        where = places_for(model.backbone.body, " ".join(body))
        example = torch.empty(1, 3, *EXAMPLE, device="meta")
        reports.append(insert_non_local(model.backbone.body, where, example=example, **block))
    if HEAD in words:
        head = model.roi_heads.keypoint_head
        if head is None:
            raise ValueError(f"{HEAD}: the network has no keypoint head")
        width = head[0].in_channels
        after = [str(i) for i in range(3, len(head), 4)]  # convolution, ReLU, ...
        example = torch.empty(1, width, 14, 14, device="meta")
        reports.append(insert_non_local(head, after, example=example, **block))
    if key_mask:
        model.key_mask = KeyMask(model)
    return reports
