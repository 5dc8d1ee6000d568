"""SlowFast (arXiv 1812.03982): few frames with many channels beside many frames with few."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.geometry import Geometry
from nlzoo.networks.video import VideoResNet, build_pathway

BETA = 8  # the slow pathway's channels, for each of the fast one's


class Lateral(nn.Module):
    """The fast pathway's map at the slow one's frames, with twice its channels."""

    def __init__(self, dim: int, kernel: int, alpha: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            dim, 2 * dim, (kernel, 1, 1), (alpha, 1, 1), (kernel // 2, 0, 0), bias=False
        )
        self.norm = nn.BatchNorm3d(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, 2 C, T / alpha, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class SlowFast(VideoResNet):
    """Two pathways of one clip, which is the fast one's; the slow one sees each alpha-th frame.

    The slow pathway has the names of `VideoResNet`, the other one is the submodule `fast`;
    `lateral.0` to `lateral.3` join it to what res2 to res5 of the slow one see.
    """

    def __init__(self, depth: int, *args: Any, lateral: int = 5, **options: Any) -> None:
        """As `VideoResNet`; `lateral` is the temporal kernel of the lateral convolutions."""
        self._lateral = lateral  # for `_build`
        super().__init__("slowfast", depth, *args, **options)

    def _build(self, kind: str, depth: int, shape: Geometry, width: int) -> int:
        narrow = width // BETA
        fused = [narrow, *(narrow * 4 * 2**i for i in range(3))]  # of the fast pathway
        slow = build_pathway(self, kind, depth, shape, width, [2 * dim for dim in fused])
        self.fast = nn.Module()
        fast = build_pathway(self.fast, "fast", depth, shape, narrow)
        self.lateral = nn.ModuleList(Lateral(dim, self._lateral, shape.alpha) for dim in fused)
        self.alpha = shape.alpha
        return slow + fast

    def _trunk(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, C + C / 8, T / alpha, ...): the fast one's frames are averaged."""
        frames = x.shape[2] // self.alpha
        if frames * self.alpha != x.shape[2]:
            raise ValueError(f"{x.shape[2]} frames: give a multiple of {self.alpha}")
        # evenly, the first and the last one included
        seen = torch.arange(frames, device=x.device) * (x.shape[2] - 1) // max(frames - 1, 1)
        slow, fast = self.stem(x[:, :, seen]), self.fast.get_submodule("stem")(x)
        for i, lateral in enumerate(self.lateral, 2):
            slow = self.get_submodule(f"res{i}")(torch.cat([slow, lateral(fast)], 1))
            fast = self.fast.get_submodule(f"res{i}")(fast)
        return torch.cat([slow, F.avg_pool3d(fast, (self.alpha, 1, 1))], 1)
