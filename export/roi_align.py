"""RoIAlign (Mask R-CNN, arXiv 1703.06870) by gathers, for runtimes that have no such operator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FINEST, COARSEST = 2, 5  # levels of the pyramid that boxes look at: P2 to P5
SAMPLES = 2  # in each direction of a bin


class RoIAlign(nn.Module):
    """`torchvision.ops.MultiScaleRoIAlign` of two samples a bin, on maps of a fixed size.

    Each box has its level, so each sample has its place in a table of all levels: no box is looked
    up on a level that it is not of, and none is left out.
    """

    scales: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor

    def __init__(self, pool: Any, sizes: Sequence[tuple[int, int]]) -> None:
        """`pool` is a MultiScaleRoIAlign, `sizes` are (H, W) of P2 to P5."""
        super().__init__()
        if pool.sampling_ratio != SAMPLES:
            raise ValueError(f"RoIAlign of {pool.sampling_ratio} samples: {SAMPLES} are written")
        self.bins = pool.output_size[0]
        self.side, self.level = pool.canonical_scale, pool.canonical_level
        levels = torch.arange(FINEST, COARSEST + 1)
        self.register_buffer("scales", 0.5**levels)
        area = torch.tensor([h * w for h, w in sizes])
        self.cells = int(area.sum())
        self.register_buffer("starts", area.cumsum(0) - area)
        self.register_buffer("heights", torch.tensor([h for h, _ in sizes]))
        self.register_buffer("widths", torch.tensor([w for _, w in sizes]))

    def forward(self, table: Tensor, boxes: Tensor) -> Tensor:
        """table (B cells, C), see `table_of`; boxes (B, N, 4) in pixels -> (B N, C, bins, bins)."""
        batch, number = boxes.shape[:2]
        image = torch.arange(batch, device=boxes.device) * self.cells
        boxes = boxes.flatten(0, 1)
        level = self._levels(boxes)
        start = self.starts.index_select(0, level) + image.repeat_interleave(number)
        corners = boxes * self.scales.index_select(0, level).unsqueeze(1)
        across = self._axis(corners[:, 0], corners[:, 2], self.widths.index_select(0, level))
        down = self._axis(corners[:, 1], corners[:, 3], self.heights.index_select(0, level))
        row = start.view(-1, 1, 1)
        width = self.widths.index_select(0, level).view(-1, 1, 1)
        total: Any = 0
        for y, weight_y in down:
            for x, weight_x in across:
                place = row + y.unsqueeze(2) * width + x.unsqueeze(1)
                found = table.index_select(0, place.flatten()).view(*place.shape, -1)
                weight = weight_y.unsqueeze(2) * weight_x.unsqueeze(1)
                total = total + found * weight.unsqueeze(-1)
        bins = total.unflatten(2, (self.bins, SAMPLES)).unflatten(1, (self.bins, SAMPLES))
        pooled: Tensor = bins.mean((2, 4)).permute(0, 3, 1, 2)
        return pooled

    def _levels(self, boxes: Tensor) -> Tensor:
        """Equation (1) of "Feature Pyramid Networks", arXiv 1612.03144: from 0, for P2."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level: Tensor = (self.level + torch.log2(side / self.side) + 1e-6).floor()
        return level.clamp(FINEST, COARSEST).long() - FINEST  # of an empty box: log2(0) is -inf

    def _axis(self, start: Tensor, end: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Along one axis the two cells (N, bins x samples) of each sample, and their weights."""
        length = (end - start).clamp(min=1) / self.bins
        steps = torch.arange(self.bins * SAMPLES, device=start.device)
        bin, sample = steps // SAMPLES, steps % SAMPLES
        at = start.unsqueeze(1) + bin * length.unsqueeze(1)
        at = at + (sample + 0.5) * length.unsqueeze(1) / SAMPLES
        last = size.unsqueeze(1) - 1
        inside = ((at >= -1) & (at <= size.unsqueeze(1))).to(at.dtype)
        at = at.clamp(min=0)
        low = at.floor().long().minimum(last)
        high = (low + 1).minimum(last)
        part = torch.where(low == last, 0, at - low)
        return [(low, (1 - part) * inside), (high, part * inside)]


def table_of(maps: Sequence[Tensor]) -> Tensor:
    """P2 to P5, each (B, C, H, W) -> (B cells, C)."""
    return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2).flatten(0, 1)
