import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nlzoo.tasks.optim import build_optimizer, parameter_groups, rate


def test_norms_are_not_decayed_and_nothing_is_lost():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Linear(4, 2), nn.LayerNorm(2))
    decayed, free = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert [tuple(p.shape) for p in free["params"]] == [(4,), (4,), (2,), (2,)]
    assert len(decayed["params"]) + 4 == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).requires_grad_(False))
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [2, 0]


def test_paper_schedule():
    at = [
        rate(step, 400_000, "steps", milestones=(150_000, 300_000))
        for step in (0, 149_999, 150_000, 300_000)
    ]
    assert at == pytest.approx([1, 1, 0.1, 0.01])


@given(st.integers(1, 1000), st.integers(0, 50))
def test_cosine_rises_then_falls_to_zero(total, warmup):
    factors = [rate(step, total + warmup, "cosine", warmup) for step in range(total + warmup + 1)]
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[warmup] == 1
    assert factors[-1] == pytest.approx(0, abs=1e-12)


def test_unknown_names_say_what_there_is():
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="sgd or adamw"):
        build_optimizer(model, "adam", 0.1, 0)
    with pytest.raises(ValueError, match="steps or cosine"):
        rate(0, 1, "linear")


def test_sgd_is_nesterov():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, "sgd", 0.1, 0.0)
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    # v1 = 1, step 1 + 0.9 * 1; v2 = 1.9, step 1 + 0.9 * 1.9
    assert model.weight.item() == pytest.approx(1 - 0.1 * 1.9 - 0.1 * 2.71)
