"""What a detector costs: multiply-adds of its parts, and the share of its blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nlzoo.blocks import NonLocalBlock
from nlzoo.estimate import count_multiply_adds
from nlzoo.tasks.optim import blocks_of


@dataclass(frozen=True)
class DetectorCost:
    """Of the forward pass of one image; blocks are part of backbone and head."""

    image: tuple[int, int]  # height and width, padded
    proposals: int
    detections: int
    parameters: int
    parts: dict[str, int]  # multiply-adds
    blocks: int  # multiply-adds

    @property
    def share(self) -> float:
        """Of the blocks, of the network without them."""
        return self.blocks / (sum(self.parts.values()) - self.blocks)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {x / 1e9:.2f}" for name, x in self.parts.items())
        size = " x ".join(map(str, self.image))
        counts = f"{self.proposals} proposals, {self.detections} detections"
        return "\n".join(
            (
                f"image           {size}, {counts}",
                f"parameters      {self.parameters / 1e6:.2f} M",
                f"multiply-adds   {sum(self.parts.values()) / 1e9:.2f} G forward: {parts}",
                f"blocks          {self.blocks / 1e9:.2f} G, {self.share:.1%} of the rest",
            )
        )


def detector_cost(model: Any, height: int, width: int) -> DetectorCost:
    """Count, on tensors that have a shape and no content, with as many boxes as there may be.

    Args:
        model: of `nlzoo.detection.detector`.
        height: of the padded image, pixels.
        width: the same.
    """
    heads, model = model.roi_heads, model.eval()
    proposals, detections = model.rpn.post_nms_top_n(), heads.detections_per_img
    blocks = []

    def record(block: NonLocalBlock, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        blocks.append(len(x) * block.multiply_adds(x.shape))

    hooks = [block.register_forward_pre_hook(record) for block in blocks_of(model)]
    parts = {}

    def count(name: str, run: Callable[[], Any]) -> Any:
        parts[name], out = count_multiply_adds(run)
        return out

    channels = model.backbone.out_channels
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.zeros(1, 3, height, width)
        maps = count("backbone", lambda: model.backbone(image))
        count("proposals", lambda: model.rpn.head(list(maps.values())))
        rois = torch.zeros(proposals, channels, 7, 7)
        count("boxes", lambda: heads.box_predictor(heads.box_head(rois)))
        rois = torch.zeros(detections, channels, 14, 14)
        if heads.mask_head is not None:
            count("masks", lambda: heads.mask_predictor(heads.mask_head(rois)))
        if heads.keypoint_head is not None:
            count("keypoints", lambda: heads.keypoint_predictor(heads.keypoint_head(rois)))
    for hook in hooks:
        hook.remove()
    parameters = sum(p.numel() for p in model.parameters())
    return DetectorCost((height, width), proposals, detections, parameters, parts, sum(blocks))
