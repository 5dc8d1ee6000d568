"""Names of pytorchvideo's hub models (c2d_r50, i3d_r50, slow_r50): blocks.N to stages."""

import re

from torch import Tensor

ARCH = {"geometry": "hub"}  # padded pools, and logits averaged over the head's positions


def recognise(state: dict[str, Tensor]) -> bool:
    """Whether these are the names of a hub ResNet."""
    return (
        "blocks.0.conv.weight" in state and "blocks.1.res_blocks.0.branch2.conv_a.weight" in state
    )


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`blocks.1.res_blocks.0.branch2.conv_a.weight` -> `res2.0.branch2.conv_a.weight`, and so on.

    Stages are numbered by the order of the blocks that have residual blocks: c2d and i3d have a
    pool among them, slow has none.
    """
    stages = sorted({k.split(".")[1] for k in state if ".res_blocks." in k}, key=int)
    names = {f"blocks.{n}.res_blocks.": f"res{i}." for i, n in enumerate(stages, 2)}
    names["blocks.0."] = "stem."
    head = re.compile(r"blocks\.\d+\.proj\.")
    return {head.sub("head.proj.", _replace_prefix(k, names)): v for k, v in state.items()}


def _replace_prefix(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
