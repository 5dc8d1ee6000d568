"""3D convolutions whose kernel touches only space or only time, computed as 2D convolutions.

CPU and GPU libraries have far better kernels for 2D than for 3D convolutions. Weights and tensors
stay five-dimensional; when both are channels_last_3d, folding an axis away is a view.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class SpaceConv3d(nn.Conv3d):
    """Convolution with a 1 x k x k kernel: conv2d on the frames, (B T, C, H, W)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = input.contiguous(memory_format=torch.channels_last_3d)[:, :, :: self.stride[0]]
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)
        y = F.conv2d(
            frames,
            weight.squeeze(2),
            bias,
            self.stride[1:],
            _sizes(self.padding)[1:],
            self.dilation[1:],
        )
        return y.reshape(b, t, *y.shape[1:]).transpose(1, 2)


class TimeConv3d(nn.Conv3d):
    """Convolution with a k x 1 x 1 kernel: conv2d with kernel (k, 1) on (B, C, T, H W)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = input[..., :: self.stride[1], :: self.stride[2]]
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self._trains_on_cpu(x, weight):
            return self._by_products(x, weight, bias)
        b, c, t, h, w = x.shape
        y = F.conv2d(
            x.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c).permute(0, 3, 1, 2),
            weight.squeeze(4),
            bias,
            (self.stride[0], 1),
            (_sizes(self.padding)[0], 0),
            (self.dilation[0], 1),
        )
        return y.permute(0, 2, 3, 1).reshape(b, -1, h, w, y.shape[1]).permute(0, 4, 1, 2, 3)

    def _trains_on_cpu(self, x: Tensor, weight: Tensor) -> bool:
        """Where products apply (odd k, stride 1, T kept) and win: conv2d's backward is slow."""
        half, odd = divmod(self.kernel_size[0], 2)
        return (
            torch.is_grad_enabled()
            and (x.requires_grad or weight.requires_grad)
            and x.device.type == "cpu"
            and not torch.compiler.is_exporting()
            and (odd, self.stride[0]) == (1, 1)
            and _sizes(self.padding)[0] == half * self.dilation[0]
        )

    def _by_products(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One product with the weights of all taps, then each tap's share moved to its frame."""
        taps, t = self.kernel_size[0], x.shape[2]
        matrix = weight.flatten(2).permute(2, 0, 1).flatten(0, 1)  # (k O, C)
        shares = F.linear(x.permute(0, 2, 3, 4, 1), matrix).unflatten(-1, (taps, -1))
        y = shares[..., taps // 2, :].clone()
        for tap in range(taps):
            shift = (tap - taps // 2) * self.dilation[0]  # output frame t reads frame t + shift
            if shift and abs(shift) < t:
                y[:, max(-shift, 0) : t - max(shift, 0)] += shares[
                    :, max(shift, 0) : t + min(shift, 0), ..., tap, :
                ]
        return (y if bias is None else y + bias).permute(0, 4, 1, 2, 3)


def fast_convs_(model: M) -> M:
    """Turn the foldable Conv3d modules of a model into their fast forms, in place.

    The function computed, the parameters and the state-dict keys stay as they are; outputs differ
    by float rounding. A kernel that touches space and time, padding along an axis where the kernel
    is 1, groups (torch's conv2d has a wrong gradient there for one folded frame) and subclasses
    of Conv3d are left alone. Speed needs weights (`model.to(memory_format=...)`) and input in
    torch.channels_last_3d, and in-place activations.

    Args:
        model: any module; its own Conv3d modules are changed, wherever they are.

    Returns:
        The same object.
    """
    for conv in model.modules():
        if type(conv) is nn.Conv3d and (fast := _fast_form(conv)):
            conv.__class__ = fast
    return model


def _fast_form(conv: nn.Conv3d) -> type[nn.Conv3d] | None:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or conv.groups > 1:
        return None
    kernel, padding = tuple(conv.kernel_size), tuple(conv.padding)
    if kernel[0] == 1 and padding[0] == 0:
        return SpaceConv3d
    if kernel[1:] == (1, 1) and padding[1:] == (0, 0):
        return TimeConv3d
    return None


def _sizes(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    """Padding in numbers: a word is never folded."""
    assert not isinstance(padding, str)
    return padding
