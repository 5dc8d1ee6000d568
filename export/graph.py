"""A copy of a network in the form that exporters and other runtimes take."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock
from nlzoo.convs import SpaceConv3d, TimeConv3d
from nlzoo.video import Head, VideoResNet

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WINDOW = 7  # of the head, positions of the last map
SOFTMAX = ("embedded_gaussian", "gaussian")


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
    """A float32 (for video networks also uint8) input, a float32 output.

    The blocks are written as matrix products and one softmax (dot product in the order of fewest
    products), whose scores stay float32 whatever the precision; convolutions as Conv3d. The
    network that is copied stays as it is.

    Args:
        model: any network of one input and one output.
        precision: fp32, fp16 or bf16.
        any_size: clips of other heights and widths will come.
        islands: False: scores and softmax in the precision of the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str = "fp32",
        any_size: bool = False,
        islands: bool = True,
    ) -> None:
        super().__init__()
        self.model = deepcopy(model).eval()
        for module in self.model.modules():
            if isinstance(module, NonLocalBlock):
                module.route = "fast" if module.form == "dot_product" else "definition"
                if module.form in SOFTMAX and not islands:
                    module._pairwise = partial(_attention, module.scale)  # type: ignore[method-assign]
            elif isinstance(module, SpaceConv3d | TimeConv3d):  # others have kernels for Conv3d
                module.__class__ = nn.Conv3d  # type: ignore[assignment]
        self.normalize: nn.Module = nn.Identity()
        if isinstance(self.model, VideoResNet):  # normalises in float32
            self.normalize, self.model.normalize = self.model.normalize, self.normalize  # type: ignore[assignment]
            if any_size:
                self.model.head = AnySizeHead(self.model.head)  # type: ignore[assignment]
        self.dtype = DTYPES[precision]
        self.model.to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """What the network computes."""
        output: Tensor = self.model(self.normalize(input).to(self.dtype))
        return output.float()


def _attention(scale: float, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """`ops.embedded_gaussian` in the precision of its inputs."""
    return torch.softmax(theta @ phi.mT * scale, -1) @ g


def largest_logit(model: nn.Module, inputs: Iterable[Tensor]) -> float:
    """The largest magnitude of a score that any block's softmax sees; 0 without softmax."""
    graph, largest = Graph(model), [0.0]

    def watch(
        pairwise: Callable[..., Tensor], scale: float, theta: Tensor, phi: Tensor, g: Tensor
    ) -> Tensor:
        largest.append(float((theta @ phi.mT * scale).abs().max()))
        return pairwise(theta, phi, g)

    for block in graph.modules():
        if isinstance(block, NonLocalBlock) and block.form in SOFTMAX:
            block._pairwise = partial(watch, block._pairwise, block.scale)  # type: ignore[method-assign]
    with torch.no_grad():
        for x in inputs:
            graph(x)
    return max(largest)
