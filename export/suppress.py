"""Non-maximum suppression as a fixed number of matrix products: no size depends on the data."""

import torch
from torch import Tensor

ROUNDS = 32  # chains in which each suppresses the next have up to 15 on small trained networks


def suppress(
    boxes: Tensor, valid: Tensor, threshold: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy suppression, as `torchvision.ops.nms` does it, of sets of boxes in order of score.

    A box is kept if it is valid and none that is kept before it overlaps with it by more than the
    threshold. From "all are kept" on, each round says so of all boxes at once, by what the round
    before kept: the first k are right after k rounds, and all are where a round changes nothing.

    Args:
        boxes: (B, N, 4), x1, y1, x2, y2, best first.
        valid: (B, N) bool.
        threshold: of the intersection over the union.
        labels: (B, N): boxes of another label are no reason. None: all have one.

    Returns:
        kept (B, N) bool; settled (B, N) bool, false where the last round still changed something.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    a, b = boxes.unsqueeze(2), boxes.unsqueeze(1)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    both = width * height
    over = both / (area.unsqueeze(2) + area.unsqueeze(1) - both) > threshold  # 0 / 0 is not
    n = boxes.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=boxes.device).tril(-1)
    rivals = over & earlier
    if labels is not None:
        rivals = rivals & (labels.unsqueeze(2) == labels.unsqueeze(1))
    weights = rivals.to(boxes.dtype)
    kept = before = valid
    for _ in range(ROUNDS):
        before = kept
        beaten = (weights @ kept.to(boxes.dtype).unsqueeze(-1)).squeeze(-1) > 0.5
        kept = valid & ~beaten
    return kept, kept == before
