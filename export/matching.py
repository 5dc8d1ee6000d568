"""How far the detections of two forms of one detector are apart."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torchvision.ops import box_iou

from nlzoo.export.canvas import detections
from nlzoo.export.parity import ToleranceError
from nlzoo.export.spec import Spec

TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1, "int8": 3e-1}  # relative L2 of scores
BOTH = {"fp32": 0.95, "fp16": 0.8, "bf16": 0.6, "int8": 0.4}  # share of detections
SAME = 0.8  # IoU of two boxes that are one detection
Tensors = dict[str, Tensor]
Detector = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class DetectionParity:
    """Over all detections of all images; of pairs, the boxes of one label that overlap most."""

    relative_l2: float  # of the pairs' scores
    top1_agreement: float  # share of the detections that are in pairs
    detections: int  # of the reference
    max_score: float
    max_pixels: float  # of a box's sides
    max_mask: float  # of probabilities; 0: no masks
    moved: float  # share of keypoints that are more than a pixel apart

    def __str__(self) -> str:
        return (
            f"{self.top1_agreement:.1%} of {self.detections} detections in both, relative L2 of "
            f"scores {self.relative_l2:.2e}, max abs {self.max_score:.2e}, boxes "
            f"{self.max_pixels:.2e} pixels, masks {self.max_mask:.2e}, keypoints that moved "
            f"{self.moved:.1%}"
        )

    def check(self, precisions: Sequence[str], tolerance: float = 0.0) -> None:
        """Raise ToleranceError where scores are further apart, or detections are missing.

        Where precisions differ, the lowest decides; `tolerance` is another one than its.
        """
        tolerance = tolerance or max(TOLERANCE[name] for name in precisions)
        share = min(BOTH[name] for name in precisions)
        if not (self.relative_l2 <= tolerance and self.top1_agreement >= share):
            raise ToleranceError(
                f"parity is out of tolerance {tolerance:g} with {share:.0%} in both: {self}"
            )


def compare_detections(
    reference: Detector, other: Detector, inputs: Iterable[Tensors]
) -> DetectionParity:
    """Run both on every batch of `images` and `sizes`, and pair what they give."""
    pairs: list[tuple[Tensors, Tensors]] = []
    both = total = 0
    for batch in inputs:
        with torch.no_grad():
            a, b = ({n: x.cpu() for n, x in f(batch).items()} for f in (reference, other))
        for i in range(len(batch["images"])):
            one, two = (detections(x, i, int((x["scores"][i] > 0).sum())) for x in (a, b))
            left, right = _pair(one, two)
            both, total = both + len(left), total + max(len(one["labels"]), len(two["labels"]))
            pairs.append(
                ({n: x[left] for n, x in one.items()}, {n: x[right] for n, x in two.items()})
            )
    joined = [{n: torch.cat([p[k][n] for p in pairs]) for n in pairs[0][0]} for k in (0, 1)]
    gap = {n: (x.double() - joined[1][n].double()).abs() for n, x in joined[0].items()}
    scores = joined[0]["scores"].double()
    moved = gap.get("keypoints", torch.zeros(1, 1, 2))[..., :2].amax(-1) > 1
    return DetectionParity(
        relative_l2=float(gap["scores"].norm() / scores.norm())
        if both
        else 0.0
        if not total
        else inf,
        top1_agreement=both / total if total else 1.0,
        detections=total,
        max_score=_largest(gap["scores"]),
        max_pixels=_largest(gap["boxes"]),
        max_mask=_largest(gap.get("masks", torch.zeros(1))),
        moved=float(moved.double().mean()) if both else 0.0,
    )


def _largest(gap: Tensor) -> float:
    return float(gap.max()) if gap.numel() else 0.0


def _pair(one: Tensors, two: Tensors) -> tuple[Tensor, Tensor]:
    """Rows of each that are nearest to one another."""
    alike = one["labels"].unsqueeze(1) == two["labels"]
    overlap = torch.where(alike, box_iou(one["boxes"], two["boxes"]).nan_to_num(), -1.0)
    if not overlap.numel():
        none = torch.empty(0, dtype=torch.long)
        return none, none
    best, right = overlap.max(1)
    rows = torch.arange(len(right))
    mutual = (overlap.argmax(0)[right] == rows) & (best >= SAME)
    return rows[mutual], right[mutual]


def draw_canvases(spec: Spec) -> list[Tensors]:
    """Noise, as uint8, that fills the canvas, that leaves some on the right, and most of it below.

    On noise, too, a detector has detections, of low scores.
    """
    generator = torch.Generator().manual_seed(0)
    batch, _, height, width = spec.shape
    pixels = torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
    full, right, below = (height, width), (height - 1, width * 7 // 8), (height // 2 + 1, width)
    return [
        {"images": pixels, "sizes": torch.tensor([size] * batch, dtype=torch.float32)}
        for size in (full, right, below)
    ]
