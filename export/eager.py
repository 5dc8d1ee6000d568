"""Torchvision's own detector, on images that lie on a canvas: what files are compared with."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from nlzoo.networks.detection import LEVELS


class OnCanvas(nn.Module):
    """Torchvision's own detector, called like `nlzoo.export.detection.StaticDetector`.

    Attributes:
        threshold: of scores; None: the detector's own, by which `num` counts in any case.
    """

    threshold: float | None = None

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.canvas, heads = model.eval(), canvas, model.roi_heads
        maps = {n: torch.empty(1, 1, *(s // 4 >> i for s in canvas)) for i, n in enumerate(LEVELS)}
        for pool in (heads.box_roi_pool, heads.mask_roi_pool, heads.keypoint_roi_pool):
            if pool is not None:  # it keeps the scales of its first call, and guesses them by it
                pool.scales = None
                pool(maps, [torch.empty(0, 4)], [canvas])

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """As `StaticDetector`, keypoints (B, D, K, 3) and their scores in place of heat maps."""
        model, heads = self.model, self.model.roi_heads
        shapes = [(int(h), int(w)) for h, w in sizes.tolist()]
        x = torch.zeros(images.shape, device=images.device)
        for place, image, (height, width) in zip(x, images, shapes, strict=True):
            image = image / 255 if image.dtype == torch.uint8 else image
            place[:, :height, :width] = model.transform.normalize(image)[:, :height, :width]
        if key_mask := getattr(model, "key_mask", None):
            key_mask.remember(shapes, self.canvas)
        maps = model.backbone(x)
        least = heads.score_thresh
        heads.score_thresh = least if self.threshold is None else self.threshold
        try:
            proposals, _ = model.rpn(ImageList(x, shapes), maps)
            found, _ = heads(maps, proposals, shapes)
        finally:
            heads.score_thresh = least
        filled = [_fill(one, heads.detections_per_img) for one in found]
        outputs = {name: torch.stack([one[name] for one in filled]) for name in filled[0]}
        outputs["num"] = (outputs["scores"] > least).sum(1)
        outputs["exact"] = torch.ones_like(outputs["num"], dtype=torch.bool)
        return outputs


def _fill(found: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """With detections of score 0."""
    found = {n: x.squeeze(1) if n == "masks" else x for n, x in found.items()}
    pads = {n: (0, 0) * (x.ndim - 1) + (0, number - len(x)) for n, x in found.items()}
    return {n: F.pad(x, pads[n]) for n, x in found.items()}
