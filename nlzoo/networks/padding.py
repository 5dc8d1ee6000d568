"""A detector's batch holds images of different sizes: no query looks at the padding."""

from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock


class KeyMask:
    """Tells the blocks of a detector's backbone which positions are an image's.

    Without it the attention of an image spreads over padding too, so that its detections depend
    on the sizes of the other images of its batch.
    """

    def __init__(self, model: Any) -> None:
        """Hook into a detector that has its blocks."""
        self.sizes: list[tuple[int, int]] | Tensor = []  # of the images of this pass, pixels
        self.canvas = (1, 1)
        model.transform.register_forward_hook(self._remember)
        model.backbone.register_forward_hook(self._forget)
        for module in model.backbone.modules():
            if isinstance(module, NonLocalBlock):
                module.register_forward_pre_hook(self._add)

    def remember(self, sizes: list[tuple[int, int]] | Tensor, canvas: tuple[int, int]) -> None:
        """Images of these heights and widths (B, 2), pixels, lie on the canvas of this pass."""
        self.sizes, self.canvas = sizes, canvas

    def _remember(self, transform: nn.Module, inputs: Any, output: Any) -> None:
        self.remember(output[0].image_sizes, output[0].tensors.shape[-2:])

    def _forget(self, backbone: nn.Module, inputs: Any, output: Any) -> None:
        self.sizes = []

    def _add(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A position is an image's where any of its pixels is."""
        x = inputs[0]
        if not len(self.sizes):  # a pass of the backbone alone
            return inputs
        starts = [
            torch.arange(n, device=x.device) * (side / n)
            for n, side in zip(x.shape[-2:], self.canvas, strict=True)
        ]
        sizes = torch.as_tensor(self.sizes, device=x.device)
        inside = [s < sizes[:, i, None] for i, s in enumerate(starts)]
        return x, inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
