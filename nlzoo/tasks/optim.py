"""Optimizers and schedules, counted in iterations as the paper does."""

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: everything with `weight_decay`, the affine parameters of norms without.

    The released code decays all but its `*_bn*` blobs, biases included.
    """
    norm = {p for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p not in norm], "weight_decay": weight_decay},
        {"params": [p for p in trained if p in norm], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, name: str, lr: float, weight_decay: float) -> Optimizer:
    """SGD with Nesterov momentum 0.9 (the released code) or AdamW.

    Raises:
        ValueError: unknown name.
    """
    groups = parameter_groups(model, weight_decay)
    match name:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr)
    raise ValueError(f"unknown optimizer {name!r}: sgd or adamw")


def rate(
    step: int, total: int, schedule: str, warmup: int = 0, milestones: tuple[int, ...] = ()
) -> float:
    """The factor on the peak learning rate at iteration `step` (from 0) of `total`.

    Linear warm-up over `warmup` iterations, then "steps": a tenth after each milestone (paper
    section 4.1: 150k and 300k of 400k), or "cosine": half a cosine down to 0 at `total`.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in ("steps", "cosine"):
        raise ValueError(f"unknown schedule {schedule!r}: steps or cosine")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "steps":
        return 0.1 ** sum(step >= m for m in milestones)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: Optimizer, total: int, schedule: str, warmup: int, milestones: tuple[int, ...]
) -> LambdaLR:
    """`rate` as a scheduler that is stepped once an iteration."""
    return LambdaLR(optimizer, lambda step: rate(step, total, schedule, warmup, milestones))
