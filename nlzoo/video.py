"""Video ResNets (C2D, I3D, Slow) in the paper's and the released geometries, on pytorchvideo."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.convs import dilate_, fast_convs_, shift_
from nlzoo.names import nearest
from nlzoo.preprocessing import Normalize, Preprocessing

with warnings.catch_warnings():  # of torch.jit, which pytorchvideo's dependencies still use
    warnings.simplefilter("ignore", FutureWarning)
    from pytorchvideo.models.resnet import (
        BottleneckBlock,
        create_bottleneck_block,
        create_res_block,
    )
    from pytorchvideo.models.stem import create_res_basic_stem

Size = tuple[int, int, int]  # (T, H, W)


class Pool(NamedTuple):
    """A max pool; sizes are (T, H, W)."""

    kernel: Size
    stride: Size
    padding: Size = (0, 0, 0)


@dataclass(frozen=True)
class Geometry:
    """Strides and pads: the same parameters compute different functions in each of them."""

    time_stride: int  # of conv1
    pool1: Pool
    pool2: Pool
    frames: int  # clip the geometry was published with: frames x stride
    stride: int
    dilated: bool = False  # res5 keeps the size of res4, its 3 x 3 kernels reach twice as far
    head: str = "softmax"  # averaged over 7 x 7 windows; or logits, or map: one window, all of it


_POOL2 = Pool((2, 1, 1), (2, 1, 1))
_SLOWFAST_POOL1 = Pool((1, 3, 3), (1, 2, 2), (0, 1, 1))
GEOMETRIES = {
    # Table 1, where 224 pixels become 112, 56, 28, 14, 7
    "paper": Geometry(
        2,
        Pool((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        Pool((3, 1, 1), (2, 1, 1), (1, 0, 0)),
        frames=32,
        stride=2,
    ),
    # the released Caffe2 networks, without pads: 112, 55, 28, 14, 7
    "32x2": Geometry(2, Pool((2, 3, 3), (2, 2, 2)), _POOL2, frames=32, stride=2),
    "8x8": Geometry(1, Pool((1, 3, 3), (1, 2, 2)), _POOL2, frames=8, stride=8),
    # PySlowFast, and the models of pytorchvideo's hub
    "slowfast": Geometry(1, _SLOWFAST_POOL1, _POOL2, frames=8, stride=8),
    "hub": Geometry(1, _SLOWFAST_POOL1, _POOL2, frames=8, stride=8, head="logits"),
    # long-term feature banks (Charades, EPIC, AVA): res5 at 1/16
    "lfb": Geometry(1, _SLOWFAST_POOL1, _POOL2, frames=32, stride=4, dilated=True, head="map"),
    # MIT's and mmaction2's TSM
    "tsm": Geometry(1, _SLOWFAST_POOL1, _POOL2, frames=8, stride=8, head="map"),
    # mmaction2 and GluonCV: pool1 takes every second frame
    "mmaction": Geometry(
        2, Pool((1, 3, 3), (2, 2, 2), (0, 1, 1)), _POOL2, frames=32, stride=2, head="map"
    ),
}


@dataclass(frozen=True)
class Kind:
    """Temporal kernel sizes; those of a stage repeat over its blocks."""

    stem: int
    stages: tuple[tuple[int, ...], ...]
    inflated: str = "conv_a"  # which convolution of a bottleneck
    shifted: bool = False  # conv_a sees an eighth of the channels a frame earlier, one a later
    pool2: bool = True


_I3D = ((3,), (3, 1), (3, 1), (1, 3))
KINDS = {
    "c2d": Kind(1, ((1,), (1,), (1,), (1,))),
    "i3d": Kind(5, _I3D),  # I3D 3x1x1, the better one of Table 2e
    "i3d333": Kind(5, _I3D, inflated="conv_b"),
    "slow": Kind(1, ((1,), (1,), (3,), (3,)), pool2=False),
    "tsm": Kind(1, ((1,), (1,), (1,), (1,)), pool2=False, shifted=True),
}
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

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
        self.average = average  # of the windows: `Geometry.head`
        self.window = 7
        self.dropout = nn.Dropout(dropout)
        self.proj: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, K); see `VideoResNet.forward_head`."""
        if self.training:
            return self.proj(self.dropout(x.mean((2, 3, 4))))
        most = max(x.shape[3:]) if self.average == "map" else self.window
        window = min(most, x.shape[3]), min(most, x.shape[4])
        x = F.avg_pool2d(x.mean(2), window, stride=1).flatten(2).transpose(1, 2)
        logits = self.proj(x)  # (B, positions, K)
        if self.average == "logits" or logits.shape[1] == 1:
            return logits.mean(1)
        scores = logits.float().log_softmax(-1)
        return (scores.logsumexp(1) - log(logits.shape[1])).to(logits.dtype)


class VideoResNet(nn.Module):
    """A residual network for clips: stem, res2, pool2, res3, res4, res5, head.

    `preprocessing` says what input it expects, `num_classes` how wide its output is and
    `num_features` how wide its last map is. Residual block 1 of res3 is the submodule `res3.1`.
    """

    spec: dict[str, Any]  # how `create_model` built it

    def __init__(
        self,
        kind: str,
        depth: int,
        geometry: str = "32x2",
        width: int = 64,
        dropout: float = 0.5,
        num_classes: int = 400,
        zero_init_residual: bool = True,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Build and initialise it (MSRA, fc N(0, 0.01), as released).

        Args:
            kind: c2d, i3d (3x1x1), i3d333, slow or tsm.
            depth: 18, 50 or 101.
            geometry: paper, 32x2, 8x8, slowfast, hub, lfb, tsm or mmaction: see `GEOMETRIES`.
            width: channels of conv1; 64 as published.
            dropout: before the projection.
            num_classes: outputs.
            zero_init_residual: start the last norm of each residual branch at gamma 0.
            preprocessing: by default the released one with the geometry's frames and stride.

        Raises:
            ValueError: unknown kind, depth or geometry.
        """
        super().__init__()
        shape = _pick(GEOMETRIES, geometry, "geometry")
        of_kind = _pick(KINDS, kind, "kind")
        blocks = _pick(DEPTHS, depth, "depth")
        expansion = 1 if depth < 50 else 4
        self.preprocessing = preprocessing or Preprocessing(
            frames=shape.frames, stride=shape.stride
        )
        self.normalize = Normalize(self.preprocessing.mean, self.preprocessing.std)
        self.stem = _stem(width, of_kind.stem, shape)
        dims = [width, *(width * expansion * 2**i for i in range(4))]
        stages = [_stage(dims[i], dims[i + 1], blocks[i], of_kind, i, expansion) for i in range(4)]
        self.res2 = stages[0]
        self.pool2 = nn.MaxPool3d(*shape.pool2) if of_kind.pool2 else nn.Identity()
        self.res3, self.res4, self.res5 = stages[1:]
        if shape.dilated:
            dilate_(self.res5)
        if of_kind.shifted:
            step = 1 if max(blocks) < 23 else 2  # of residual blocks, as published
            shifted: Any = [block for stage in stages for block in stage[::step]]
            for block in shifted:
                shift_(block.branch2.conv_a)
        self.num_features = dims[-1]
        self.head = Head(dropout, shape.head)
        _init(self, zero_init_residual)
        self.reset_classifier(num_classes)
        fast_convs_(self).to(memory_format=torch.channels_last_3d)

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return next(self.parameters()).device

    def forward(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W), uint8 0..255 or normalised float -> (B, K), see `forward_head`."""
        return self.forward_head(self.forward_features(clip))

    def forward_features(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) -> res5's map (B, C, T / 8, H / 32, W / 32) (32x2 geometry)."""
        if clip.ndim != 5:
            raise ValueError(f"a clip must be (B, C, T, H, W); got shape {tuple(clip.shape)}")
        x = self.normalize(clip).contiguous(memory_format=torch.channels_last_3d)
        x = self.pool2(self.res2(self.stem(x)))
        return self.res5(self.res4(self.res3(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, T, H, W) -> (B, K) logits, or (B, C) with `pre_logits` or without classes.

        At test the projection is applied to every window (T, 7, 7) of the map. One window gives
        plain logits. Several give the log of the mean of their softmaxes, whose softmax is that
        mean: the released way to score (section 4.1, Inference). Geometry "hub" averages logits.
        """
        if pre_logits or not self.num_classes:
            return x.mean((2, 3, 4))
        return self.head(x)

    def get_classifier(self) -> nn.Module:
        """The projection."""
        return self.head.proj

    def reset_classifier(self, num_classes: int) -> None:
        """Start a fresh projection to `num_classes`; 0 removes it."""
        self.num_classes = num_classes
        self.head.proj = nn.Identity()
        if num_classes:
            like = next(self.stem.parameters())
            proj = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            nn.init.normal_(proj.weight, std=0.01)
            nn.init.zeros_(proj.bias)
            self.head.proj = proj


def inflate(model: VideoResNet, image_model: nn.Module) -> VideoResNet:
    """Copy the weights of a 2D ResNet, kernels repeated t times over time and divided by t.

    A video of one still image then gives the 2D network's features, away from the zero padding at
    the clip's ends (section 3.3). The classifier is copied if the class counts agree.

    Args:
        model: of the same depth and width.
        image_model: a ResNet with timm's names (conv1, bn1, layer1..4, downsample, fc).

    Returns:
        The same `model`.

    Raises:
        ValueError: not a ResNet of the same shape; says which weights do not fit.
    """
    source = {_video_name(k): v for k, v in image_model.state_dict().items()}
    target = model.state_dict()
    heads = [{k: v for k, v in s.items() if k.startswith("head.")} for s in (source, target)]
    if [v.shape for v in heads[0].values()] != [v.shape for v in heads[1].values()]:
        source = {k: v for k, v in source.items() if k not in heads[0]} | heads[1]
    inflated = dict(_inflate(source, target))
    if wrong := sorted(source.keys() ^ target.keys()) or [
        k for k in target if inflated[k].shape != target[k].shape
    ]:
        raise ValueError(
            f"{type(image_model).__name__} is not the 2D twin of this network: {wrong[0]} "
            f"(and {len(wrong) - 1} more) does not fit; use a plain ResNet of the same depth"
        )
    model.load_state_dict(inflated)
    return model


def _inflate(source: dict[str, Tensor], target: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in source.keys() & target.keys():
        weight, like = source[name], target[name]
        if weight.ndim == 4 and like.ndim == 5:
            t = like.shape[2]
            weight = weight.unsqueeze(2).repeat(1, 1, t, 1, 1) / t
        yield name, weight


_IMAGE_NAMES = {
    "downsample.0": "branch1_conv",
    "downsample.1": "branch1_norm",
    **{f"conv{i}": f"branch2.conv_{x}" for i, x in enumerate("abc", 1)},
    **{f"bn{i}": f"branch2.norm_{x}" for i, x in enumerate("abc", 1)},
}


def _video_name(name: str) -> str:
    """timm's `layer2.0.conv1.weight` -> `res3.0.branch2.conv_a.weight`."""
    head, _, rest = name.partition(".")
    if head.startswith("layer"):
        block, _, rest = rest.partition(".")
        module, _, leaf = rest.rpartition(".")
        return f"res{int(head[5:]) + 1}.{block}.{_IMAGE_NAMES.get(module, module)}.{leaf}"
    return {"conv1": "stem.conv.", "bn1": "stem.norm.", "fc": "head.proj."}.get(head, head) + rest


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


def _pick(table: dict[Any, Any], key: Any, what: str) -> Any:
    if key not in table:
        raise ValueError(f"unknown {what} {key!r}{nearest(key, map(str, table))}")
    return table[key]
