"""How far two forms of one network are apart."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite, isinf
from typing import Any

import torch
from torch import Tensor

from nlzoo.export.spec import AXES, Spec

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2, "int8": 2e-1}  # relative L2

Network = Callable[[Tensor], Tensor]
Range = tuple[tuple[int, ...], tuple[int, ...]]


class ToleranceError(ValueError):
    """Two forms of a network differ by more than their precision explains."""


@dataclass(frozen=True)
class Parity:
    """Worst case over the inputs."""

    max_abs: float
    relative_l2: float
    top1_agreement: float  # share of the outputs' rows
    largest: float  # magnitude of the reference's outputs
    worst: str  # the output with the largest relative L2, and the shape of its input

    def __str__(self) -> str:
        return (
            f"relative L2 {self.relative_l2:.2e}, max abs {self.max_abs:.2e} of "
            f"{self.largest:.3g}, top-1 agreement {self.top1_agreement:.1%}; worst: {self.worst}"
        )

    def check(self, tolerance: float) -> None:
        """Raise ToleranceError where it is, or is not a number."""
        if not self.relative_l2 <= tolerance:
            over = "; no numbers come out: beyond float16's range?" * isinf(self.relative_l2)
            if not isfinite(self.largest):
                over = "; the reference itself gives no numbers"
            raise ToleranceError(f"parity is out of tolerance {tolerance:g}: {self}{over}")


def compare(
    reference: Network, other: Network, inputs: Iterable[Tensor], log_probabilities: bool = False
) -> Parity:
    """Run both on every batch; outputs (B, K, ...).

    With `log_probabilities` those are compared, which logits are up to a constant of each row.

    Raises:
        ValueError: outputs of other shapes.
    """
    rows = []
    for batch in inputs:
        with torch.no_grad():
            a, b = reference(batch).double().cpu(), other(batch).double().cpu()
        if a.shape != b.shape:
            raise ValueError(f"outputs {tuple(a.shape)} and {tuple(b.shape)}: other networks")
        if log_probabilities:
            a, b = a.log_softmax(1), b.log_softmax(1)
        error = (a - b).flatten(1).norm(dim=1).nan_to_num(nan=inf, posinf=inf)
        share = (error.norm() / a.norm()).nan_to_num(nan=inf, posinf=inf)
        total = float(share) if error.any() else 0.0
        worst = f"sample {int(error.argmax())} of an input {tuple(batch.shape)}"
        agree = a.argmax(1) == b.argmax(1)
        rows.append((total, float((a - b).abs().max()), agree, float(a.abs().max()), worst))
    last = max(rows, key=lambda row: row[0])
    return Parity(
        max_abs=max(row[1] for row in rows),
        relative_l2=last[0],
        top1_agreement=float(torch.cat([row[2].flatten() for row in rows]).double().mean()),
        largest=max(row[3] for row in rows),
        worst=last[4],
    )


def draw_inputs(spec: Spec, reference: Network, profiles: Sequence[Range] = ()) -> list[Tensor]:
    """Noise in the range of real pixels: at the spec's shape, at larger and at smaller sizes.

    Odd sizes are among them. Smaller ones that `reference` itself refuses are left out; all are
    within the first of `profiles`, if there is one: the least and the largest shape.

    Raises:
        ValueError: it refuses larger ones: it is not free in its axes.
    """
    generator = torch.Generator().manual_seed(0)
    same, larger, smaller = (list(spec.shape) for _ in range(3))
    for name, at in spec.axes.items():
        size = spec.shape[at]
        larger[at] = 3 if name == "batch" else (size + at) | 1
        smaller[at] = 1 if name == "batch" else max(1, size // 2 - (size // 2 + 1) % 2)  # odd
    longer = [8 if at == spec.axes.get("batch") else s for at, s in enumerate(spec.shape)]
    shapes = [same, longer, larger, smaller]
    if profiles:
        bounds = list(zip(*profiles[0], strict=True))
        shapes = [[min(max(s, a), b) for s, (a, b) in zip(x, bounds, strict=True)] for x in shapes]
    pixels = partial(torch.randint, 0, 256, dtype=torch.uint8)
    draw: Any = pixels if spec.preprocessing else torch.randn
    inputs = [draw(shape, generator=generator) for shape in shapes]
    return inputs if _takes(reference, inputs, spec) else inputs[:-1]


def _takes(reference: Network, inputs: list[Tensor], spec: Spec) -> bool:
    """Whether it takes the last of them, too."""
    for x in inputs:
        try:
            with torch.no_grad():
                reference(x)
        except Exception as error:  # whatever a user's network says
            if x is inputs[-1]:
                return False
            if x is inputs[0]:
                raise ValueError(
                    f"{spec.model} itself refuses an input {tuple(x.shape)}, {x.dtype}; a network "
                    f"has one input, whose --shape is given: {str(error) or type(error).__name__}"
                ) from error
            raise ValueError(
                f"{spec.model} itself refuses an input {tuple(x.shape)}: it is not free in "
                f"{', '.join(spec.dynamic)}: {str(error) or type(error).__name__}"
            ) from error
    return True


def common(a: Spec, b: Spec) -> Spec:
    """What both take: an axis is free where it is in both, and has the size that one of them fixes.

    Raises:
        ValueError: there is no such input.
    """
    shape = list(a.shape)
    if len(a.shape) != len(b.shape) or (a.preprocessing is None) != (b.preprocessing is None):
        raise ValueError(f"inputs {a.wanted()} and {b.wanted()} differ: nothing fits both")
    for at in range(len(shape)):
        fixed = [s.shape[at] for s in (a, b) if at not in s.axes.values()]
        if len(set(fixed)) > 1:
            raise ValueError(
                f"inputs {a.wanted()} and {b.wanted()} differ: nothing fits both; --shape is that "
                "of a network"
            )
        shape[at] = fixed[0] if fixed else shape[at]
    free = tuple(name for name in AXES[len(shape)] if name in a.dynamic and name in b.dynamic)
    return replace(a, shape=tuple(shape), dynamic=free)
