"""Optimizers and schedules, counted in iterations as the paper does."""

import math
from collections.abc import Iterator
from typing import Any

import timm.optim
from timm.layers import RmsNorm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nlzoo.blocks import NonLocalBlock
from nlzoo.folded import host_of
from nlzoo.names import check_choice
from nlzoo.network import Network

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm)


def freeze(model: Network, train: str) -> None:
    """Let a part of a network train: all, head, or (blocks) the head and the blocks.

    Raises:
        ValueError: unknown part; no head, or no blocks.
    """
    check_choice("train", train, ("all", "head", "blocks"))
    if train == "all":
        return
    if train == "blocks" and not any(blocks_of(model)):
        raise ValueError("train: blocks, and the network has none; name places, or train: head")
    model.requires_grad_(False)
    for part in (*heads_of(model), *(blocks_of(model) if train == "blocks" else ())):
        part.requires_grad_(True)


def blocks_of(model: nn.Module) -> Iterator[NonLocalBlock]:
    """The blocks."""
    return (m for m in model.modules() if isinstance(m, NonLocalBlock))


def heads_of(model: Network) -> tuple[nn.Module, ...]:
    """The classifier; networks that were distilled have two."""
    found: Any = model.get_classifier()
    return found if isinstance(found, tuple) else (found,)


def host_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Batch norms outside the blocks: a frozen gamma of 0 would end a block for ever."""
    own = {m for block in blocks_of(model) for m in block.modules()}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in own:
            yield module


def parameter_groups(
    model: Network, lr: float, weight_decay: float, head_lr: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups of equal rate and decay; the affine parameters of norms have no `weight_decay`.

    The released code decays all but its `*_bn*` blobs, biases included.

    Args:
        model: what of it requires a gradient is trained.
        lr: the highest rate.
        weight_decay: of everything else.
        head_lr: factor on the rate of the classifier and the blocks.
        layer_decay: factor from each layer to the one before it, by timm's groups.

    Raises:
        ValueError: `layer_decay` of a network whose layers timm does not know.
    """
    norm = {p for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(False)}
    scale = _layer_scales(model, layer_decay) if layer_decay != 1 else {}
    for part in (*heads_of(model), *blocks_of(model)):
        scale |= dict.fromkeys(part.parameters(), head_lr)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            key = (0.0 if p in norm else weight_decay, scale.get(p, 1.0))
            groups.setdefault(key, []).append(p)
    return [
        {"params": params, "weight_decay": decay, "lr": lr * factor}
        for (decay, factor), params in groups.items()
    ]


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    host = host_of(model)
    if not hasattr(host, "group_matcher"):
        raise ValueError(f"layer_decay: {type(model).__name__} is no network of timm's; leave it 1")
    groups = timm.optim.param_groups_layer_decay(host, layer_decay=layer_decay)
    return {p: group["lr_scale"] for group in groups for p in group["params"]}


def build_optimizer(groups: list[dict[str, Any]], name: str, lr: float) -> Optimizer:
    """One of timm's: sgd (Nesterov momentum 0.9, the released code), adamw, lamb, ...

    Raises:
        ValueError: unknown name (gives the nearest).
    """
    names: Any = timm.optim.list_optimizers()
    check_choice("optimizer", name, names)
    made: Optimizer = timm.optim.create_optimizer_v2(groups, name, lr, momentum=0.9)
    return made


def rate(
    step: int,
    total: int,
    schedule: str,
    warmup: int = 0,
    milestones: tuple[int, ...] = (),
    start: float = 0.0,
) -> float:
    """The factor on the peak learning rate at iteration `step` (from 0) of `total`.

    Linear warm-up from `start` over `warmup` iterations, then "steps": a tenth after each
    milestone (paper section 4.1: 150k and 300k of 400k), or "cosine": half a cosine down to 0 at
    `total`.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in ("steps", "cosine"):
        raise ValueError(f"unknown schedule {schedule!r}: steps or cosine")
    if step < warmup:
        return start + (1 - start) * (step + 1) / (warmup + 1)
    if schedule == "steps":
        return 0.1 ** sum(step >= m for m in milestones)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: Optimizer,
    total: int,
    schedule: str,
    warmup: int,
    milestones: tuple[int, ...],
    start: float = 0.0,
) -> LambdaLR:
    """`rate` as a scheduler that is stepped once an iteration."""
    return LambdaLR(optimizer, lambda step: rate(step, total, schedule, warmup, milestones, start))
