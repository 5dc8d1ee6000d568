"""A detector as a graph of plain operators, in which no size depends on the data.

What exporters and engines cannot take of torchvision's own form: numbers of boxes that the images
decide, NonMaxSuppression, RoiAlign, NonZero, loops. Everything else is torchvision's arithmetic.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from nlzoo.export.graph import DTYPES, fold_norms, set_routes
from nlzoo.export.roi_align import RoIAlign, table_of
from nlzoo.export.suppress import suppress
from nlzoo.networks.detection import LEVELS
from nlzoo.preprocessing import STRIDE

CANDIDATES = 1000  # detections of an image that suppression looks at
NOT = -1.0  # score of what is no detection
FAR = -1e4  # logit of what is no proposal
LEAST = 1e-2  # pixels, of a detection's sides (torchvision)


class StaticDetector(nn.Module):
    """A copy of a detector, for images that lie on a canvas, padded on the right and below.

    It differs from torchvision's in two points. Anchors that lie in the padding alone propose
    nothing: their scores are exactly tied where the padding's features are, and each runtime would
    choose other ones. And the score threshold is where `num` counts to: what follows is there too.

    Args:
        model: of `nlzoo.networks.detection.detector`.
        canvas: height and width in pixels, multiples of 32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__()
        if min(canvas) < STRIDE or any(side % STRIDE for side in canvas):
            size = f"{canvas[0]} x {canvas[1]}"
            raise ValueError(f"a canvas of {size} pixels: give multiples of {STRIDE}")
        self.model = model = deepcopy(model).eval()
        set_routes(model)
        self.canvas, self.dtype = canvas, torch.float32
        rpn, heads = model.rpn, model.roi_heads
        shapes = _shapes(model.backbone, canvas)
        blank = [torch.empty(1, 1, *shape) for shape in shapes]
        images = ImageList(torch.empty(1, 3, *canvas), [canvas])
        anchors = rpn.anchor_generator(images, blank)[0]
        per_cell = rpn.anchor_generator.num_anchors_per_location()
        numbers = [n * h * w for n, (h, w) in zip(per_cell, shapes, strict=True)]
        self.levels = len(numbers)
        for i, part in enumerate(anchors.split(numbers)):
            self.register_buffer(f"anchors{i}", part)
        mean, std = (
            torch.tensor(x).view(3, 1, 1)
            for x in (model.transform.image_mean, model.transform.image_std)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        pools = heads.box_roi_pool, heads.mask_roi_pool, heads.keypoint_roi_pool
        self.pools = nn.ModuleList([RoIAlign(p, shapes[:4]) if p else nn.Identity() for p in pools])

    @property
    def outputs(self) -> list[str]:
        """Names, in the order of `forward`."""
        heads = self.model.roi_heads
        more = ["masks"] * heads.has_mask() + ["heatmaps"] * heads.has_keypoint()
        return ["boxes", "scores", "labels", "num", "exact", *more]

    def narrow(self, precision: str, images: Tensor) -> "StaticDetector":
        """Compute the backbone in fp16 or bf16, as `Graph.narrow`; all from its maps on in fp32."""
        self.dtype = DTYPES[precision]
        if self.dtype != torch.float32:
            x = (images.float() / 255 - self.mean) / self.std
            fold_norms(self.model.backbone, x)
            self.model.backbone.to(self.dtype)
        return self

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in 0..1, or uint8; sizes (B, 2), height and width of what is image.

        Returns:
            boxes (B, D, 4) in pixels of the canvas, best first; scores (B, D); labels (B, D), int64
            from 1; num (B,), int64, how many have a score above the detector's threshold; exact
            (B,) bool, false where suppression had not settled, or there were too many candidates;
            masks (B, D, 28, 28) in 0..1, or heatmaps (B, D, K, 56, 56), logits, of keypoints.
        """
        maps = self.features(images, sizes)
        boxes, valid, settled = self.propose(maps, sizes)
        table = table_of([maps[name] for name in LEVELS])
        found = self.classify(table, boxes, valid, sizes)
        found["exact"] = found["exact"] & settled
        heads, boxes = self.model.roi_heads, found["boxes"]
        shape = boxes.shape[:2]
        if heads.has_mask():
            logits = heads.mask_predictor(heads.mask_head(self.pools[1](table, boxes)))
            labels = found["labels"].flatten()
            rows = torch.arange(labels.numel(), device=labels.device) * logits.shape[1] + labels
            masks = logits.flatten(0, 1).index_select(0, rows).sigmoid()
            found["masks"] = masks.unflatten(0, shape)
        if heads.has_keypoint():
            pooled = self.pools[2](table, boxes)
            found["heatmaps"] = heads.keypoint_predictor(heads.keypoint_head(pooled)).unflatten(
                0, shape
            )
        return found

    def features(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Maps of the pyramid, float32; padding is 0 after the normalisation, as torchvision's."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        down, across = (torch.arange(side, device=x.device) for side in self.canvas)
        height, width = sizes.view(-1, 2, 1, 1).unbind(1)
        inside = (down.view(1, -1, 1) < height.unsqueeze(1)) & (across < width.unsqueeze(1))
        x = (x - self.mean) / self.std * inside
        if key_mask := getattr(self.model, "key_mask", None):
            key_mask.remember(sizes, self.canvas)
        maps: dict[str, Tensor] = self.model.backbone(x.to(self.dtype))
        return maps

    def propose(self, maps: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, P, 4), which of them are proposals (B, P), and whether that is exact (B,)."""
        rpn = self.model.rpn
        logits, deltas = rpn.head(list(maps.values()))
        levels = [self._level(i, logits[i], deltas[i], sizes) for i in range(self.levels)]
        longest = max(boxes.shape[1] for boxes, *_ in levels)
        stacked = [_pad(longest, *level) for level in levels]
        boxes, scores, valid = (torch.stack(parts, 1) for parts in zip(*stacked, strict=True))
        batch, count = boxes.shape[:2]
        kept, settled = suppress(boxes.flatten(0, 1), valid.flatten(0, 1), rpn.nms_thresh)
        scores = torch.where(kept.view(batch, count, -1), scores, NOT).flatten(1)
        best, index = scores.topk(min(rpn.post_nms_top_n(), sum(b.shape[1] for b, *_ in levels)))
        boxes = _pick(boxes.flatten(1, 2), index)
        valid = best > NOT / 2
        return boxes * valid.unsqueeze(-1), valid, settled.view(batch, -1).all(1)

    def _level(self, i: int, logits: Tensor, deltas: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """The best boxes of a level (B, k, 4), their scores (B, k), and which are any (B, k)."""
        rpn, anchors = self.model.rpn, getattr(self, f"anchors{i}")
        logits = logits.permute(0, 2, 3, 1).flatten(1)
        deltas = deltas.permute(0, 2, 3, 1).reshape(len(logits), -1, 4)
        height, width = sizes.unsqueeze(1).unbind(-1)
        touches = (anchors[:, 0] < width) & (anchors[:, 1] < height)
        logits = torch.where(touches, logits, FAR)
        best, index = logits.topk(min(rpn.pre_nms_top_n(), logits.shape[1]))
        chosen = anchors.index_select(0, index.flatten())
        boxes = rpn.box_coder.decode_single(_pick(deltas, index).flatten(0, 1), chosen)
        boxes = _clip(boxes.unflatten(0, index.shape), sizes)
        scores = best.sigmoid()
        valid = (best > FAR / 2) & _at_least(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        return boxes, scores, valid

    def classify(
        self, table: Tensor, proposals: Tensor, valid: Tensor, sizes: Tensor
    ) -> dict[str, Tensor]:
        """The detections of `forward` without masks and keypoints."""
        heads = self.model.roi_heads
        features = heads.box_head(self.pools[0](table, proposals))
        logits, deltas = heads.box_predictor(features)
        boxes = heads.box_coder.decode_single(deltas, proposals.flatten(0, 1))
        classes = logits.shape[1] - 1
        boxes = boxes.unflatten(1, (-1, 4))[:, 1:].reshape(len(proposals), -1, 4)
        boxes = _clip(boxes, sizes)
        valid = valid.unsqueeze(-1).expand(-1, -1, classes).flatten(1) & _at_least(boxes, LEAST)
        scores = logits.softmax(-1)[:, 1:].reshape(len(proposals), -1)
        scores = torch.where(valid, scores, NOT)
        scores, index = scores.topk(min(CANDIDATES, scores.shape[1]))
        boxes, labels = _pick(boxes, index), index % classes + 1
        kept, settled = suppress(boxes, scores > NOT / 2, heads.nms_thresh, labels)
        least = heads.score_thresh
        # Those left out have no higher score than the last candidate
        enough = (scores[:, -1] <= least) | (kept.sum(1) >= heads.detections_per_img)
        exact = enough & (settled | (scores <= least)).all(1)
        scores = torch.where(kept, scores, NOT)
        scores, index = scores.topk(min(heads.detections_per_img, scores.shape[1]))
        return {
            "boxes": _pick(boxes, index),
            "scores": scores,
            "labels": labels.gather(1, index),
            "num": (scores > least).sum(1),
            "exact": exact,
        }


def _shapes(backbone: nn.Module, canvas: Sequence[int]) -> list[tuple[int, int]]:
    """Of its maps."""
    with torch.device("meta"):
        maps = deepcopy(backbone).to("meta")(torch.empty(1, 3, *canvas))
    return [tuple(m.shape[-2:]) for m in maps.values()]


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, N, 4), index (B, k) -> (B, k, 4)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))


def _clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """To the images; boxes (B, N, 4)."""
    return boxes.clamp(min=0).minimum(sizes.flip(1).repeat(1, 2).unsqueeze(1))


def _at_least(boxes: Tensor, side: float) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)


def _pad(length: int, boxes: Tensor, scores: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """With what is not valid."""
    more = length - boxes.shape[1]
    pad = nn.functional.pad
    return pad(boxes, (0, 0, 0, more)), pad(scores, (0, more)), pad(valid, (0, more))
