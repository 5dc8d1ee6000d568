"""Video networks in 2D, for which ONNX Runtime has the better kernels: on frames and on rows.

Kernels over space run on frames (B T, C, H, W), kernels over time on rows (B, C, T, H W). From one
to the other it is Transpose, Reshape, Transpose, which runtimes that keep channels last or in
blocks do by moving a tensor once, or not at all.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock

ALIKE = (F.relu, F.batch_norm)  # functions that see each position by itself


class Frames:
    """A map that modules take for the tensor (B, C, T, H, W) that it stands for.

    Args:
        data: its frames, or its rows.
        size: its T, H, W.
        rows: whether they are rows.
    """

    def __init__(self, data: Tensor, size: Sequence[int], rows: bool = False) -> None:
        self.data, self.size, self.rows = data, tuple(size), rows

    @classmethod
    def of(cls, x: "Frames | Tensor", rows: bool, stride: Sequence[int] = (1, 1)) -> "Frames":
        """A map as frames or rows, each n-th place of its H and W."""
        if isinstance(x, Frames) and x.rows == rows and max(stride) == 1:
            return x
        data = x.channels_last() if isinstance(x, Frames) else x.movedim(1, -1)
        if max(stride) > 1:
            data = data[:, :, :: stride[0], :: stride[1]]
        t, h, w, c = data.shape[1:]
        shape = (t, h * w, c) if rows else (h, w, c)
        return cls(data.reshape(-1, *shape).permute(0, 3, 1, 2), (t, h, w), rows)

    def channels_last(self) -> Tensor:
        """(B, T, H, W, C)."""
        return self.data.permute(0, 2, 3, 1).reshape(-1, *self.size, self.data.shape[1])

    def contiguous(self, memory_format: torch.memory_format) -> "Frames":
        """Itself: order in memory is no concern of a file."""
        return self

    def __add__(self, other: "Frames | Tensor") -> "Frames":
        return Frames(self.data + Frames.of(other, self.rows).data, self.size, self.rows)

    def __getitem__(self, key: Any) -> Tensor:
        return self.channels_last().movedim(-1, 1)[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.channels_last().movedim(-1, 1), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Tensor], types: Any, args: Any = (), kwargs: Any = None
    ) -> "Frames":
        if function not in ALIKE:
            return cast(Frames, NotImplemented)  # Python's own word for it
        x, *others = args
        return cls(function(x.data, *others, **kwargs or {}), x.size, x.rows)


class Conv(nn.Conv3d):
    """A convolution on frames, or where its kernel does not reach over space on rows."""

    padding: Any
    home: bool  # whether 1 x 1 x 1 kernels run on rows

    def forward(self, input: Any) -> Any:
        """A map -> a map."""
        (time, *space), (step, *stride), (pad, *pads) = self.kernel_size, self.stride, self.padding
        on_frames = isinstance(input, Frames) and not input.rows
        later = on_frames and self.out_channels < self.in_channels  # to move fewer channels
        if max(space) == 1 and (time > 1 or (self.home and not later)):
            x = Frames.of(input, True, stride)
            reach = self.dilation[0], 1
            data = F.conv2d(x.data, self.weight, self.bias, (step, 1), (pad, 0), reach)
            return Frames(data, (data.shape[2], *x.size[1:]), True)
        x = Frames.of(input, False)
        if max(time, step) > 1:
            x = _side_by_side(x, time, step, pad, self.dilation[0])
        data = F.conv2d(x.data, self.weight, self.bias, stride, pads, self.dilation[1:])
        return Frames(data, (x.size[0], *data.shape[2:]))


class Pool(nn.MaxPool3d):
    """A max pool over time, then over space."""

    kernel_size: Any
    stride: Any
    padding: Any

    def forward(self, input: Any) -> Any:
        """A map -> a map."""
        (time, *space), (step, *stride), (pad, *pads) = self.kernel_size, self.stride, self.padding
        x = input
        if max(time, step) > 1:
            x = Frames.of(x, True)
            data = F.max_pool2d(x.data, (time, 1), (step, 1), (pad, 0))
            x = Frames(data, (data.shape[2], *x.size[1:]), True)
        if max(*space, *stride) > 1:
            x = Frames.of(x, False)
            data = F.max_pool2d(x.data, space, stride, pads)
            x = Frames(data, (x.size[0], *data.shape[2:]))
        return x


class Block(NonLocalBlock):
    """A block whose linear maps are convolutions, too."""

    pool: Pool

    def forward(self, x: Any, inside: Tensor | None = None) -> Any:
        """A map -> a map."""
        if self.form == "concatenation":  # its scores are of one channel
            return super().forward(x, inside)
        keys = self.pool(x) if self.subsample_first else x
        theta, phi = (x, keys) if self.form == "gaussian" else (self.theta(x), self.phi(keys))
        g = self.g(keys)
        if not self.subsample_first:
            phi, g = self.pool(phi), self.pool(g)
        maps = theta, phi, g
        theta, phi, g = (self._fold(some.channels_last()).flatten(1, -2) for some in maps)
        y = self._unfold(self._pairwise(theta, phi, g, None), x.channels_last().shape)
        z = self.out(y.movedim(-1, 1))
        return x + (self.norm(z) if self.norm else z)


def _side_by_side(x: Frames, kernel: int, stride: int, padding: int, dilation: int) -> Frames:
    """Frames of k C channels: all that a kernel over time sees, zeros beyond the ends."""
    t, h, w = x.size
    data = F.pad(x.data.unflatten(0, (-1, t)), (0, 0, 0, 0, 0, 0, padding, padding))
    t = (t + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    seen = torch.arange(t)[:, None] * stride + torch.arange(kernel) * dilation
    data = data.index_select(1, seen.flatten())
    return Frames(data.reshape(-1, kernel * data.shape[2], h, w), (t, h, w))


def flatten_(network: nn.Module) -> None:
    """Let a video network compute in 2D, in place; for evaluation."""
    modules: list[Any] = list(network.modules())
    convs: list[Any] = [module for module in modules if isinstance(module, nn.Conv3d)]
    over_time = {conv for conv in convs if conv.kernel_size[0] > 1 == max(conv.kernel_size[1:])}
    for conv in convs:
        weight = conv.weight.detach()
        weight = weight.flatten(3) if conv in over_time else weight.transpose(1, 2).flatten(1, 2)
        conv.weight = nn.Parameter(weight.contiguous())
        conv.__class__, conv.home = Conv, bool(over_time)
    for module in modules:
        if isinstance(module, NonLocalBlock):
            module.__class__, module.pool = Block, Pool(module.subsample, padding=(0, 0, 0))
        elif isinstance(module, nn.MaxPool3d):
            module.__class__ = Pool
