"""A copy of a network in the form that exporters and other runtimes take."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock
from nlzoo.convs import SpaceConv3d, TimeConv3d
from nlzoo.video import Head, VideoResNet

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
WINDOW = 7  # of the head, positions of the last map


class AnySizeHead(nn.Module):
    """`Head` at test without a branch on the size: log-probabilities, maps of at least 7 x 7."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.proj, self.average_logits = head.proj, head.average_logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, K)."""
        x = F.avg_pool2d(x.mean(2), WINDOW, stride=1).flatten(2).transpose(1, 2)
        logits = self.proj(x).float()
        if self.average_logits:
            return logits.mean(1).log_softmax(-1)
        return logits.softmax(-1).mean(1).log()


class Graph(nn.Module):
    """float32 (or uint8, which the network normalises) clips in, float32 scores out.

    The blocks are written as matrix products and one softmax (dot product in the order of fewest
    products), whose scores stay float32 whatever the precision; convolutions as Conv3d. The
    network that is copied stays as it is.

    Args:
        model: a video network.
        precision: fp32 or fp16.
        any_size: clips of other heights and widths will come.
    """

    def __init__(self, model: VideoResNet, precision: str = "fp32", any_size: bool = False) -> None:
        super().__init__()
        self.model = deepcopy(model).eval()
        for module in self.model.modules():
            if isinstance(module, NonLocalBlock):
                module.route = "fast" if module.form == "dot_product" else "definition"
            elif isinstance(module, SpaceConv3d | TimeConv3d):  # others have kernels for Conv3d
                module.__class__ = nn.Conv3d  # type: ignore[assignment]
        if any_size:
            self.model.head = AnySizeHead(self.model.head)  # type: ignore[assignment]
        self.dtype = DTYPES[precision]
        self.normalize = self.model.normalize
        self.model.normalize = nn.Identity()  # type: ignore[assignment]
        self.model.to(self.dtype)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, K)."""
        scores: Tensor = self.model(self.normalize(clip).to(self.dtype))
        return scores.float()
