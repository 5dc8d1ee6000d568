"""What parameters do not tell: strides, pads and temporal kernels of published video networks."""

from dataclasses import dataclass, replace
from typing import NamedTuple

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
    res5: str = "strided"  # plain: of the size of res4; dilated: its kernels reach twice as far
    head: str = "softmax"  # a key of HEADS
    alpha: int = 4  # two pathways: frames of the fast one for each of the slow one


# what a score at test is: over 7 x 7 windows the mean of softmaxes, or of logits; or of all the map
HEADS = ("softmax", "logits", "map")
_POOL2 = Pool((2, 1, 1), (2, 1, 1))
_POOL1 = Pool((1, 3, 3), (1, 2, 2), (0, 1, 1))
_SLOWFAST = Geometry(1, _POOL1, _POOL2, frames=8, stride=8)
_LFB = replace(_SLOWFAST, frames=32, stride=4, head="map")
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
    "slowfast": _SLOWFAST,
    "hub": replace(_SLOWFAST, head="logits"),
    "slowfast_8x8": replace(_SLOWFAST, frames=32, stride=2),
    "slowfast_4x16": replace(_SLOWFAST, frames=32, stride=2, alpha=8),
    # long-term feature banks and other detectors of actions: res5 at 1/16; those of ResNet-101
    # and for EPIC without dilation
    "lfb": replace(_LFB, res5="dilated"),
    "lfb_plain": replace(_LFB, res5="plain"),
    # MIT's and mmaction2's TSM
    "tsm": replace(_SLOWFAST, head="map"),
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
    fast: bool = False  # a second pathway, of all frames and an eighth of the channels


_I3D = ((3,), (3, 1), (3, 1), (1, 3))
_AS_50 = (3,) * 6 + (1,) * 17  # res4 of ResNet-101 is inflated as far as that of ResNet-50
KINDS = {
    "c2d": Kind(1, ((1,), (1,), (1,), (1,))),
    "i3d": Kind(5, _I3D),  # I3D 3x1x1, the better one of Table 2e
    "i3d333": Kind(5, _I3D, inflated="conv_b"),
    "slow": Kind(1, ((1,), (1,), (3,), (3,)), pool2=False),
    "tsn": Kind(1, ((1,), (1,), (1,), (1,)), pool2=False),
    "slowfast": Kind(1, ((1,), (1,), _AS_50, (3,)), pool2=False, fast=True),
    "fast": Kind(5, ((3,), (3,), _AS_50, (3,)), pool2=False),
    "tsm": Kind(1, ((1,), (1,), (1,), (1,)), pool2=False, shifted=True),
}
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
