"""3D convolutions whose kernel touches only space or only time, computed as 2D convolutions.

CPU and GPU libraries have far better kernels for 2D than for 3D convolutions. Weights and tensors
stay five-dimensional; when both are channels_last_3d, folding an axis away is a view.
"""

from typing import Any, TypeVar

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
        b, c, t, h, w = x.shape
        rows = x.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c)
        convolve = _TimeConv.apply if self._gains_from_products(x) else _TimeConv.forward
        y = convolve(
            rows, weight.squeeze(4), self.stride[0], _sizes(self.padding)[0], self.dilation[0]
        )
        y = y if bias is None else y + bias.to(y.dtype)
        return y.reshape(b, -1, h, w, y.shape[3]).permute(0, 4, 1, 2, 3)

    def _gains_from_products(self, x: Tensor) -> bool:
        """Whether to train by `_TimeConv`'s own gradient, and it applies (T is kept)."""
        reach = self.dilation[0] * (self.kernel_size[0] - 1)
        kept = self.stride[0] == 1 and reach == 2 * _sizes(self.padding)[0]
        return kept and x.device.type == "cpu" and not torch.compiler.is_exporting()


class _TimeConv(torch.autograd.Function):
    """conv2d over time whose gradient is two matrix products: its own is slow on CPUs.

    x (B, T, P, C), weight (O, C, k, 1) -> (B, T', P, O). The gradient wants T' = T.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        y = F.conv2d(
            x.permute(0, 3, 1, 2),
            weight,
            None,
            (stride, 1),
            (padding, 0),
            (dilation, 1),
        )
        return y.permute(0, 2, 3, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].to(x.dtype)
        taps = weight.shape[2]
        shifts = (tap * ctx.dilation - ctx.padding for tap in range(taps))
        # each tap's gradient, at the input frame that the tap read
        moved = torch.cat([F.pad(grad, (0, 0, 0, 0, s, -s)) for s in shifts], dim=3)
        matrix = weight.squeeze(3).permute(2, 0, 1).flatten(0, 1)  # (k O, C)
        d_weight = moved.flatten(0, 2).T @ x.flatten(0, 2)
        return (
            moved @ matrix if ctx.needs_input_grad[0] else None,
            d_weight.unflatten(0, (taps, -1)).permute(1, 2, 0).unsqueeze(3),
            None,
            None,
            None,
        )


def keep_size_(stage: nn.Module, dilated: bool) -> None:
    """Take the strides in space away; 3 x 3 kernels then reach twice as far where `dilated`."""
    for conv in stage.modules():
        if isinstance(conv, nn.Conv3d):
            conv.stride = (1, 1, 1)
            if dilated and conv.kernel_size[1:] == (3, 3):
                conv.dilation, conv.padding = (1, 2, 2), (conv.kernel_size[0] // 2, 2, 2)


def shift_(conv: nn.Module) -> None:
    """Let a convolution see clips `shift`ed; no state-dict key changes."""
    conv.register_forward_pre_hook(_shift)


def _shift(conv: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return shift(inputs[0])


def shift(x: Tensor) -> Tensor:
    """(B, C, T, H, W): an eighth of the channels a frame late, and one a frame early.

    The temporal shift of arXiv 1811.08383, zeros beyond the ends.
    """
    x = x.movedim(1, -1)  # joined along the innermost axis of what is channels-last
    late, early, rest = x.tensor_split((x.shape[-1] // 8, x.shape[-1] // 8 * 2), -1)
    late = torch.cat([late[:, 1:], torch.zeros_like(late[:, :1])], 1)  # F.pad's gradient is slow
    early = torch.cat([torch.zeros_like(early[:, :1]), early[:, :-1]], 1)
    return torch.cat([late, early, rest], -1).movedim(-1, 1)


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
