"""Video ResNets (C2D, I3D, Slow) in the paper's and the released geometries, on pytorchvideo."""

import warnings
from collections.abc import Sequence
from functools import partial
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.convs import fast_convs_, keep_size_, shift_
from nlzoo.geometry import DEPTHS, GEOMETRIES, HEADS, KINDS, Geometry, Kind, Size
from nlzoo.names import check_choice
from nlzoo.network import Network
from nlzoo.preprocessing import Preprocessing

with warnings.catch_warnings():  # of torch.jit, which pytorchvideo's dependencies still use
    warnings.simplefilter("ignore", FutureWarning)
    from pytorchvideo.models.resnet import (
        BottleneckBlock,
        create_bottleneck_block,
        create_res_block,
    )
    from pytorchvideo.models.stem import create_res_basic_stem

_relu = partial(nn.ReLU, inplace=True)


class BasicBranch(nn.Module):
    """Residual branch of ResNet-18: t x 3 x 3, then 1 x 3 x 3 (SlowFast's rule)."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, stride: Size) -> None:
        super().__init__()
        self.conv_a = nn.Conv3d(
            dim_in, dim_out, (kernel, 3, 3), stride, (kernel // 2, 1, 1), bias=False
        )
        self.norm_a = nn.BatchNorm3d(dim_out)
        self.act_a = _relu()
        self.conv_b = nn.Conv3d(dim_out, dim_out, (1, 3, 3), 1, (0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim_in, T, H, W) -> (B, dim_out, T, H / stride, W / stride)."""
        x = self.act_a(self.norm_a(self.conv_a(x)))
        return self.norm_b(self.conv_b(x))


class Head(nn.Module):
    """Average, dropout, projection; at test, one score for each window of the map."""

    def __init__(self, dropout: float, average: str) -> None:
        super().__init__()
        self.average = average  # of the windows: one of HEADS
        self.window = 7
        self.dropout = nn.Dropout(dropout)
        self.proj: nn.Module = nn.Identity()

    def forward(self, x: Tensor, multilabel: bool = False) -> Tensor:
        """(B, C, T, H, W) -> (B, K); see `VideoResNet.forward_head`."""
        if self.training:
            return self.proj(self.dropout(x.mean((2, 3, 4))))
        most = max(x.shape[3:]) if self.average == "map" else self.window
        window = min(most, x.shape[3]), min(most, x.shape[4])
        x = F.avg_pool2d(x.mean(2), window, stride=1).flatten(2).transpose(1, 2)
        logits = self.proj(x)  # (B, positions, K)
        if self.average == "logits" or logits.shape[1] == 1:
            return logits.mean(1)
        if multilabel:
            there, absent = (F.logsigmoid(z.float()).logsumexp(1) for z in (logits, -logits))
            return (there - absent).to(logits.dtype)
        scores = logits.float().log_softmax(-1)
        return (scores.logsumexp(1) - log(logits.shape[1])).to(logits.dtype)


class VideoResNet(Network):
    """A residual network for clips: stem, res2, pool2, res3, res4, res5, head.

    Residual block 1 of res3 is the submodule `res3.1`.
    """

    stem: nn.Module
    res2: nn.Module
    pool2: nn.Module
    res3: nn.Module
    res4: nn.Module
    res5: nn.Module

    def __init__(
        self,
        kind: str,
        depth: int,
        geometry: str = "32x2",
        width: int = 64,
        dropout: float = 0.5,
        num_classes: int = 400,
        zero_init_residual: bool = True,
        head: str = "",
    ) -> None:
        """Build and initialise it (MSRA, fc N(0, 0.01), as released).

        Args:
            kind: c2d, i3d (3x1x1), i3d333, slow, tsn or tsm.
            depth: 18, 50 or 101.
            geometry: strides and pads, a key of `GEOMETRIES`: paper, 32x2, 8x8, slowfast, ...
            width: channels of conv1; 64 as published.
            dropout: before the projection.
            num_classes: outputs.
            zero_init_residual: start the last norm of each residual branch at gamma 0.
            head: what a score at test is, softmax, logits or map; by default the geometry's.

        Raises:
            ValueError: unknown kind, depth, geometry or head.
        """
        check_choice("geometry", geometry, GEOMETRIES)
        shape = GEOMETRIES[geometry]
        if head:
            check_choice("head", head, HEADS)
        super().__init__(Preprocessing(frames=shape.frames, stride=shape.stride))
        self.num_features = self._build(kind, depth, shape, width)
        self.head = Head(dropout, head or shape.head)
        _init(self, zero_init_residual)
        self.reset_classifier(num_classes)
        fast_convs_(self).to(memory_format=torch.channels_last_3d)

    def _build(self, kind: str, depth: int, shape: Geometry, width: int) -> int:
        """Make the trunk; returns its channels."""
        return build_pathway(self, kind, depth, shape, width)

    def forward_features(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) -> res5's map (B, C, T / 8, H / 32, W / 32) (32x2 geometry)."""
        if clip.ndim != 5:
            raise ValueError(f"a clip must be (B, C, T, H, W); got shape {tuple(clip.shape)}")
        x = self.normalize(clip).contiguous(memory_format=torch.channels_last_3d)
        return self._trunk(x)

    def _trunk(self, x: Tensor) -> Tensor:
        x = self.pool2(self.res2(self.stem(x)))
        return self.res5(self.res4(self.res3(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, T, H, W) -> (B, K) logits, or (B, C) with `pre_logits` or without classes.

        At test the projection is applied to every window (T, 7, 7) of the map. One window gives
        plain logits. Several give the log of the mean of their softmaxes, whose softmax is that
        mean: the released way to score (section 4.1, Inference). Geometry "hub" averages logits.
        Of `preprocessing.multilabel` networks the same is true of sigmoids.
        """
        if pre_logits or not self.num_classes:
            return x.mean((2, 3, 4))
        return self.head(x, self.preprocessing.multilabel)


def build_pathway(
    module: nn.Module,
    kind: str,
    depth: int,
    shape: Geometry,
    width: int,
    joined: Sequence[int] = (0, 0, 0, 0),
) -> int:
    """Put stem, res2, pool2, res3, res4 and res5 into a module; returns the channels of res5.

    `joined` says how many channels each stage is given beside those of the one before it.
    """
    check_choice("kind", kind, KINDS)
    check_choice("depth", depth, DEPTHS)
    of_kind, blocks = KINDS[kind], DEPTHS[depth]
    expansion = 1 if depth < 50 else 4
    dims = [width, *(width * expansion * 2**i for i in range(4))]
    stages = [
        _stage(dims[i] + joined[i], dims[i + 1], blocks[i], of_kind, i, expansion) for i in range(4)
    ]
    module.stem = _stem(width, of_kind.stem, shape)
    module.res2 = stages[0]
    module.pool2 = nn.MaxPool3d(*shape.pool2) if of_kind.pool2 else nn.Identity()
    module.res3, module.res4, module.res5 = stages[1:]
    if shape.res5 != "strided":
        keep_size_(stages[3], dilated=shape.res5 == "dilated")
    if of_kind.shifted:
        step = 1 if max(blocks) < 23 else 2  # of residual blocks, as published
        shifted: Any = [block for stage in stages for block in stage[::step]]
        for block in shifted:
            shift_(block.branch2.conv_a)
    return dims[-1]


def _stem(width: int, kernel: int, shape: Geometry) -> nn.Module:
    return create_res_basic_stem(
        in_channels=3,
        out_channels=width,
        conv_kernel_size=(kernel, 7, 7),
        conv_stride=(shape.time_stride, 2, 2),
        conv_padding=(kernel // 2, 3, 3),
        pool_kernel_size=shape.pool1.kernel,
        pool_stride=shape.pool1.stride,
        pool_padding=shape.pool1.padding,
        activation=_relu,
    )


def _stage(
    dim_in: int, dim_out: int, depth: int, kind: Kind, index: int, expansion: int
) -> nn.Sequential:
    """Residual blocks; the first one strides by 2 in space, except in res2."""
    kernels = kind.stages[index]
    return nn.Sequential(
        *(
            _block(
                dim_in if i == 0 else dim_out,
                dim_out,
                kernels[i % len(kernels)],
                2 if i == 0 and index > 0 else 1,
                kind.inflated,
                expansion,
            )
            for i in range(depth)
        )
    )


def _block(
    dim_in: int, dim_out: int, kernel: int, stride: int, inflated: str, expansion: int
) -> nn.Module:
    a, b = (kernel, 1) if inflated == "conv_a" else (1, kernel)
    block = create_res_block(
        dim_in=dim_in,
        dim_inner=dim_out // expansion,
        dim_out=dim_out,
        bottleneck=partial(_basic_branch, kernel=kernel)
        if expansion == 1
        else create_bottleneck_block,
        conv_a_kernel_size=(a, 1, 1),
        conv_a_stride=(1, 1, 1),
        conv_a_padding=(a // 2, 0, 0),
        conv_b_kernel_size=(b, 3, 3),
        conv_b_stride=(1, stride, stride),
        conv_b_padding=(b // 2, 1, 1),
        activation_bottleneck=_relu,
        activation_block=_relu,
    )
    if block.branch1_conv is not None:  # numpy integers, which torch.export does not take
        block.branch1_conv.stride = (1, stride, stride)
    return block


def _basic_branch(
    *, dim_in: int, dim_out: int, conv_b_stride: Size, kernel: int, **bottleneck: Any
) -> nn.Module:
    """What pytorchvideo's builder asks of a branch, less what only a bottleneck has."""
    return BasicBranch(dim_in, dim_out, kernel, conv_b_stride)


def _init(model: VideoResNet, zero_init_residual: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual and isinstance(module, BasicBranch | BottleneckBlock):
            last: Any = module.norm_b if isinstance(module, BasicBranch) else module.norm_c
            nn.init.zeros_(last.weight)
