"""Activation checkpointing: blocks are run again in the backward pass instead of kept."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlzoo.folded import host_of
from nlzoo.names import nearest

Context = AbstractContextManager[Any]


def recompute_(model: nn.Module, stages: Sequence[str]) -> None:
    """Keep only the inputs of the children of these stages in training; in place.

    Gradients and batch statistics stay what they are without it, to the bit; a stage costs one
    forward pass more (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 1604.06174).

    Args:
        model: a network; of a `FoldedNetwork`, stages are its backbone's.
        stages: names of submodules that run their children one after the other ("res3").

    Raises:
        ValueError: no such submodule (names the nearest), or one that is no `nn.Sequential`.
    """
    host = host_of(model)
    sequences = {name: m for name, m in host.named_modules() if isinstance(m, nn.Sequential)}
    for name in stages:
        if name not in sequences:
            there = nearest(name, sequences)
            raise ValueError(
                f"activation_checkpointing: no sequence {name!r} in {type(host).__name__}{there}"
            )
        stage: Any = sequences[name]
        stage.forward = partial(_forward, stage)


def _forward(stage: nn.Sequential, x: Tensor) -> Tensor:
    for module in stage:
        if stage.training and torch.is_grad_enabled():
            again = partial(_contexts, module)
            x = checkpoint(module, x, use_reentrant=False, context_fn=again)
        else:
            x = module(x)
    return x


def _contexts(module: nn.Module) -> tuple[Context, Context]:
    """Of the two forward passes."""
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms have seen this batch already: they move by 0 and do not count it."""
    norms: list[Any] = [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
