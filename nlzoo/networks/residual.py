"""Where residual branches begin: at the convolution that sees what a shortcut passes by it."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.insert import evaluating, run_on_meta

SHORTCUTS = ("downsample", "shortcut")  # timm's names of modules that are no branch


class Probe:
    """A block of a network during one pass.

    Attributes:
        first: name of what holds its first convolution; empty: there is none.
        whole: whether that sees all that the block sees.
        bypassed: whether the output depends on the block's input by another way, too.
    """

    def __init__(self, block: nn.Module) -> None:
        self.first, self.whole, self.bypassed = "", False, False
        self._shape: tuple[int, ...] = ()
        self._handles = [
            block.register_forward_pre_hook(self._enter),
            block.register_forward_hook(self._leave),
        ]
        for name, module in block.named_modules():
            shortcut = not name or name.partition(".")[0] in SHORTCUTS
            if not shortcut and any(isinstance(m, nn.Conv2d) for m in module.modules()):
                meet = partial(self._meet, name)
                self._handles.append(module.register_forward_pre_hook(meet))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if not isinstance(inputs[0], Tensor):
            return None
        self._shape = tuple(inputs[0].shape)
        x = inputs[0].detach().requires_grad_().clone()  # a layer may write into it
        return x, *inputs[1:]

    def _meet(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if self.first or not isinstance(inputs[0], Tensor):
            return None
        self.first, self.whole = name, tuple(inputs[0].shape) == self._shape
        return inputs[0].detach(), *inputs[1:]

    def _leave(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        self.bypassed = output.requires_grad
        return output.detach()


def residual_branches(network: nn.Module, image: Tensor) -> list[list[str]]:
    """Names of the modules that the residual branches of a timm network begin with, by stage.

    Found by a pass without data. A block, which in timm has an attribute `drop_path`, is residual
    where its output depends on its input by another way than through its first convolution.

    Args:
        network: of timm.
        image: (1, 3, H, W).
    """
    blocks = {n: m for n, m in network.named_modules() if hasattr(m, "drop_path")}
    probes = {name: Probe(block) for name, block in blocks.items()}
    try:
        with evaluating(network), torch.inference_mode(False), torch.enable_grad():
            run_on_meta(network, (image,))
    finally:
        for probe in probes.values():
            probe.remove()
    stages: dict[str, list[str]] = {}
    for name, probe in probes.items():
        if probe.bypassed and probe.whole:
            stages.setdefault(name.rpartition(".")[0], []).append(f"{name}.{probe.first}")
    return list(stages.values())
