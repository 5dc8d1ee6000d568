"""Where a position looks: the strongest keys of one query, block by block (Figure 3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor, nn

from nlzoo.blocks import CHILD, NonLocalBlock
from nlzoo.files import whole_file
from nlzoo.insert import evaluating

Point = tuple[int, int, int]  # (frame, y, x) in the input
Pixel = tuple[float, float]  # (x, y) in a picture


@dataclass(frozen=True)
class Look:
    """The weights of one block's keys for one query.

    For the softmax forms `weights` (M,) sum to 1; for dot product and concatenation they are
    f / M and may be negative. `boxes` (M, 6) are the keys' corners (t0, y0, x0, t1, y1, x1)
    in frames and pixels of the input, the second one past the last; features see further than that.
    """

    block: str
    at: Point
    weights: Tensor
    boxes: Tensor

    def strongest(self, count: int) -> list[int]:
        """Indices of the keys of largest magnitude, descending; none below 1 % of the first."""
        size, index = self.weights.abs().topk(min(count, len(self.weights)))
        return index[size >= 0.01 * size[0]].tolist()


def look(model: nn.Module, clip: Tensor, at: Point | None = None) -> list[Look]:
    """Follow one position of a clip or an image through every non-local block of a network.

    A block recomputes the row of its query from theta and phi, so that memory stays O(M),
    whatever route the network takes.

    Args:
        model: network with non-local blocks; it runs in evaluation mode and keeps its own.
        clip: (1, C, T, H, W), or an image (1, C, H, W), which is one frame here; uint8 or
            normalised float, on the model's device.
        at: query (frame, y, x); by default where the clip moves most, see `most_motion`.

    Returns:
        One `Look` a block, in the order of the pass, on the CPU.

    Raises:
        ValueError: no blocks, more than one clip, or a query outside of it.
    """
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, NonLocalBlock)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no non-local block to look through")
    if clip.ndim not in (4, 5) or len(clip) != 1:
        raise ValueError(
            f"look takes one clip (1, C, T, H, W) or image; got shape {tuple(clip.shape)}"
        )
    size = (1, *clip.shape[2:])[-3:]
    at = most_motion(clip.view(1, -1, *size)) if at is None else at
    if len(at) != 3 or any(not 0 <= a < s for a, s in zip(at, size, strict=True)):
        raise ValueError(f"query (frame, y, x) = {at} is outside the clip of {size}")
    looks: list[Look] = []

    def record(name: str) -> Any:
        place = name.removesuffix(f".{CHILD}")
        return lambda block, inputs: looks.append(_look(place, block, inputs[0], at, size))

    handles = [m.register_forward_pre_hook(record(n)) for n, m in blocks.items()]
    try:
        with torch.no_grad(), evaluating(model):
            model(clip)
    finally:
        for handle in handles:
            handle.remove()
    return looks


def most_motion(clip: Tensor, window: int = 16) -> Point:
    """Centre of the window (frame, y, x) in which consecutive frames differ most.

    The centre of the clip where nothing moves.

    Args:
        clip: (1, C, T, H, W), any dtype.
        window: side in pixels.
    """
    _, _, t, h, w = clip.shape
    centre = (t // 2, h // 2, w // 2)
    if t < 2:
        return centre
    change = clip[0].float().diff(dim=1).abs().mean(0)  # (T - 1, H, W)
    side = min(window, h, w)
    motion = F.avg_pool2d(change.unsqueeze(1), side, stride=1).squeeze(1)
    if not motion.max() > 0:
        return centre
    frame, y, x = (int(i) for i in torch.unravel_index(motion.argmax(), motion.shape))
    return frame, y + side // 2, x + side // 2


def draw(
    looks: Sequence[Look],
    frames: Tensor,
    path: str | Path,
    keys: int = 20,
    numbers: Sequence[int] | None = None,
) -> None:
    """Draw the strongest keys over their frames, one row a block, as in the paper's Figure 3.

    Of an image, which has one frame, three blocks are in a row.

    The query is a circle in its frame; arrows lead to the keys, the stronger the more opaque, and
    the strongest of each frame bears its weight.

    Args:
        looks: of one clip, from `look`.
        frames: that clip, (T, H, W, 3) uint8.
        path: picture to write, its format by its suffix; written whole or not at all.
        keys: how many a block.
        numbers: of the frames in their video, for the titles; by default 0, 1, 2, ...
    """
    numbers = range(len(frames)) if numbers is None else numbers
    shown = [_columns(one, len(frames), keys) for one in looks]
    image = len(frames) == 1
    columns = min(3, len(looks)) if image else max(map(len, shown))
    rows = -(-len(looks) // columns) if image else len(looks)
    width, height = _panel(frames.shape[2] / frames.shape[1], columns)
    figure = Figure(figsize=(width * columns, (height + 0.4) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    panels = grid.reshape(-1, 1)[: len(looks)] if image else grid
    for row, one, columns_of in zip(panels, looks, shown, strict=True):
        for axes, frame in zip(row, columns_of, strict=False):
            axes.imshow(frames[frame].numpy())
            frame_name = "" if image else f", frame {numbers[frame]}"
            axes.set_title(f"{one.block}{frame_name}", fontsize=8)
            axes.autoscale(False)
        _draw_row(figure, list(row), one, columns_of, keys)
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)


def _panel(ratio: float, columns: int) -> tuple[float, float]:
    """Inches for a picture of this width to height: one alone is shown large, a strip not thin."""
    width = max(2.4, min(4.8 * max(ratio, 1), 12) / columns)
    return width, min(width / ratio, 2 * width)


def _look(place: str, block: Any, x: Tensor, at: Point, size: Sequence[int]) -> Look:
    """One block's row; grids of fewer dimensions than the clip miss the leading ones."""
    grid = torch.tensor(x.shape[2:])
    cell = torch.tensor(size[-block.dims :]) / grid  # input pixels to a position
    axes = zip(at[-block.dims :], grid.tolist(), size[-block.dims :], strict=True)
    query = [a * g // s for a, g, s in axes]  # in integers: a / cell may fall just below a cell
    weights = block.attention(x, query)
    start = block.key_grid(x.shape, query)
    stop = start + torch.tensor(block.subsample)
    start, stop = start * cell, stop * cell
    missing = 3 - block.dims  # axes that the block does not see: its keys are as long as they are
    start, stop = F.pad(start, (missing, 0)), torch.cat([_ends(size, missing, stop), stop], 1)
    return Look(place, at, weights.cpu(), torch.cat([start, stop], dim=1))


def _ends(size: Sequence[int], axes: int, like: Tensor) -> Tensor:
    return like.new_tensor(size[:axes]).expand(len(like), -1)


def _columns(one: Look, total: int, keys: int, most: int = 6) -> list[int]:
    """Frames to show, ascending: the query's, and the middles of the strongest keys' spans."""
    chosen = [one.at[0]]
    for k in one.strongest(keys):
        t0, t1 = one.boxes[k, 0].item(), one.boxes[k, 3].item()
        if not any(t0 <= frame < t1 for frame in chosen) and len(chosen) < most:
            chosen.append(min(math.floor((t0 + t1) / 2), total - 1))
    return sorted(chosen)


def _draw_row(figure: Figure, row: list[Axes], one: Look, shown: list[int], keys: int) -> None:
    home = row[shown.index(one.at[0])]
    query = (one.at[2], one.at[1])
    home.plot(*query, "o", markersize=9, markerfacecolor="none", color="red", markeredgewidth=2)
    labelled: set[int] = set()
    strongest = one.strongest(keys)
    for k in strongest:
        t0, y0, x0, t1, y1, x1 = one.boxes[k].tolist()
        column = next((i for i, frame in enumerate(shown) if t0 <= frame < t1), None)
        if column is None:
            continue
        weight = one.weights[k].item()
        alpha = 0.15 + 0.85 * abs(weight / (one.weights[strongest[0]].item() or 1.0))
        colour = "yellow" if weight >= 0 else "cyan"
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.2, ec=colour, alpha=alpha)
        row[column].add_patch(box)
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        figure.add_artist(_arrow(home, query, row[column], middle, colour, alpha))
        if column not in labelled:
            labelled.add(column)
            _label(row[column], x0, y0, y1, f"{weight:.2g}")


def _arrow(
    home: Axes, start: Pixel, axes: Axes, end: Pixel, colour: str, alpha: float
) -> ConnectionPatch:
    """From one picture's point to another's."""
    arrow = ConnectionPatch(
        start, end, "data", "data", axesA=home, axesB=axes, arrowstyle="->", lw=0.8
    )
    arrow.set(color=colour, alpha=alpha)
    return arrow


def _label(axes: Axes, x: float, top: float, bottom: float, text: str) -> None:
    """Above a box, or below one that is at the top; where there is room for neither, inside."""
    height = axes.get_ylim()[0]
    above, below = top > 0.1 * height, bottom < 0.9 * height
    y, shift, side = (top, 3, "bottom") if above else (bottom if below else top, -3, "top")
    label = axes.annotate(
        text,
        (x, y),
        (3, shift),
        textcoords="offset points",
        va=side,
        fontsize=7,
        color="white",
        bbox={"facecolor": "#0008", "edgecolor": "none", "pad": 1.5},
    )
    label.set_in_layout(False)
