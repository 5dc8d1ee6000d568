"""What a bare state dict is: whose names it has, and which network or block they make."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor

from nlzoo.geometry import DEPTHS, KINDS, Kind
from nlzoo.weights.blocks import DIALECTS, own_block_name
from nlzoo.weights.hosts import BLOCK, places_in

CONTAINERS = (
    *("state_dict", "model_state", "model_state_dict", "blobs", "model", "network", "net"),
    *("params", "weights", "module"),
    # averages of them, where there is nothing else
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "teacher"),
)
DEEPEST = 3  # containers, or wrappers, in one another
WRAPPERS = ("module.", "model.", "_orig_mod.")
SHIFTED = re.compile(r".*layer\d.*conv1(\.conv)?\.net\.weight")


@dataclass(frozen=True)
class Architecture:
    """What tensors under this zoo's names say; geometry, form and scale leave no trace."""

    kind: str
    depth: int
    places: str
    num_classes: int  # 0: no classifier
    arch: dict[str, Any]
    normed: bool  # blocks have a norm
    embedded: bool  # and theta and phi

    @property
    def name(self) -> str:
        """Without blocks: `i3d_r50`."""
        return f"{self.kind}_r{self.depth}"


def flatten(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of its container and without the prefixes of wrappers.

    What lies beside a container (optimizers, averages) is not read.
    """
    for _ in range(DEEPEST):
        raw = next(filter(_may_hold_weights, map(raw.get, CONTAINERS)), raw)
    state = {k: v for k, v in raw.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for wrapper in WRAPPERS * DEEPEST:
        if state and all(k.startswith(wrapper) for k in state):
            state = {k.removeprefix(wrapper): v for k, v in state.items()}
    return {k.replace("_orig_mod.", ""): v for k, v in state.items()}


def _may_hold_weights(value: Any) -> TypeGuard[Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(v, Tensor) for v in value.values()) or any(c in value for c in CONTAINERS)


def recognise_block(names: Iterable[str]) -> str | None:
    """The dialect of a lone block's tensors, or None."""
    names = list(names)
    for dialect, spoken in DIALECTS.items():
        marks = [any(re.fullmatch(mark, name) for name in names) for mark in spoken.marks]
        if marks and all(marks) and None not in (own_block_name(n, dialect) for n in names):
            return dialect
    return None


def read_architecture(state: Mapping[str, Tensor], shifted: bool = False) -> Architecture | None:
    """The network that has these tensors (under this zoo's names), or None."""
    blocks = [
        len({k.split(".")[1] for k in state if k.startswith(f"res{stage}.")})
        for stage in range(2, 6)
    ]
    depth = next((d for d, wanted in DEPTHS.items() if list(wanted[:3]) == blocks[:3]), None)
    if depth is None or "stem.conv.weight" not in state:
        return None
    two = "fast.stem.conv.weight" in state
    fitting = (
        name
        for name, kind in KINDS.items()
        if kind.shifted == shifted and kind.fast == two and _fits(kind, blocks, state)
    )
    kind = next(fitting, None)
    if kind is None:
        return None
    arch = {"lateral": state["lateral.0.conv.weight"].shape[2]} if two else {}
    head = state.get("head.proj.weight")
    places = places_in(state)
    normed, embedded = (
        any(k.endswith(f"{BLOCK}{part}.weight") for k in state) for part in ("norm", "theta")
    )
    classes = 0 if head is None else len(head)
    return Architecture(kind, depth, places, classes, arch, normed, embedded)


def _fits(kind: Kind, blocks: list[int], state: Mapping[str, Tensor]) -> bool:
    """Whether temporal kernels are those of a kind."""
    for stage, (count, kernels) in enumerate(zip(blocks, kind.stages, strict=True), 2):
        for i in range(count):
            for conv in ("conv_a", "conv_b"):
                weight = state.get(f"res{stage}.{i}.branch2.{conv}.weight")
                wanted = kernels[i % len(kernels)] if conv == kind.inflated else 1
                if weight is None or weight.shape[2] != wanted:
                    return False
    return state["stem.conv.weight"].shape[2] == kind.stem
