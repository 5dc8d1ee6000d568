"""How far two forms of one network are apart."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}  # relative L2

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parity:
    """Worst case over the inputs."""

    max_abs: float
    relative_l2: float
    top1_agreement: float  # share of the clips
    largest: float  # magnitude of the reference's scores
    worst: tuple[int, ...]  # shape of the input with the largest relative L2

    def __str__(self) -> str:
        return (
            f"relative L2 {self.relative_l2:.2e} (worst at {self.worst}), max abs "
            f"{self.max_abs:.2e} of {self.largest:.3g}, top-1 agreement {self.top1_agreement:.1%}"
        )

    def check(self, tolerance: float) -> None:
        """Raise ValueError where it is out of tolerance, or not a number."""
        if not self.relative_l2 <= tolerance:
            raise ValueError(f"parity is out of tolerance {tolerance:g}: {self}")


def compare(reference: Network, other: Network, clips: Iterable[Tensor]) -> Parity:
    """Run both on every batch of clips; scores (B, K)."""
    rows = []
    for clip in clips:
        with torch.no_grad():
            a, b = reference(clip).double().cpu(), other(clip).double().cpu()
        error = float((a - b).norm() / a.norm())
        agree = a.argmax(1) == b.argmax(1)
        rows.append((error, float((a - b).abs().max()), agree, float(a.abs().max()), clip.shape))
    worst = max(rows, key=lambda row: row[0] if row[0] == row[0] else float("inf"))
    return Parity(
        max_abs=max(row[1] for row in rows),
        relative_l2=worst[0],
        top1_agreement=float(torch.cat([row[2] for row in rows]).double().mean()),
        largest=max(row[3] for row in rows),
        worst=tuple(worst[4]),
    )
