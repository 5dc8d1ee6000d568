import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nlzoo.models import create_model
from nlzoo.tasks.optim import build_optimizer, build_schedule, freeze, parameter_groups, rate


def tiny(name="resnet8_cifar10_nl2", **options):
    return create_model(name, num_classes=3, **options)


def by_rate(model, **options):
    """(decay, rate) -> names of parameters."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        (group["weight_decay"], round(group["lr"], 6)): {names[p] for p in group["params"]}
        for group in parameter_groups(model, 1.0, 0.1, **options)
    }


def test_norms_are_not_decayed_and_nothing_is_lost():
    groups = by_rate(model := tiny(width=4))
    assert groups.keys() == {(0.1, 1.0), (0, 1.0)}
    assert all("bn" in name or "norm" in name for name in groups[0, 1.0])
    assert {"linear.bias", "conv1.weight"} <= groups[0.1, 1.0]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = tiny(width=4)
    model.layer1.requires_grad_(False)
    assert not any("layer1" in name for names in by_rate(model).values() for name in names)


def test_classifier_and_blocks_have_a_rate_of_their_own():
    groups = by_rate(tiny(width=4), head_lr=10.0)
    fast = groups[0.1, 10.0] | groups[0, 10.0]
    assert all("non_local" in name or "linear" in name for name in fast)
    assert not any("non_local" in name for name in groups[0.1, 1.0] | groups[0, 1.0])


def test_layers_have_timms_rates():
    model = tiny("timm/resnet10t", non_local="layer2:0")
    groups = by_rate(model, head_lr=2.0, layer_decay=0.5)
    rates = {name: lr for (_, lr), names in groups.items() for name in names}
    assert rates["layer2.0.non_local.theta.weight"] == rates["fc.weight"] == 2.0
    order = ["conv1.0.weight", "layer1.0.conv1.weight", "layer3.0.conv1.weight"]
    assert [rates[name] for name in order] == sorted(rates[name] for name in order)
    assert rates["layer4.0.conv1.weight"] / rates["layer3.0.conv1.weight"] == 2
    with pytest.raises(ValueError, match="layer_decay: CifarResNet is no network of timm"):
        parameter_groups(tiny(width=4), 1.0, 0.1, layer_decay=0.5)


@pytest.mark.parametrize("name", ["resnet8_cifar10_nl2", "timm/resnet10t", "tsm/resnet10t"])
def test_a_part_is_trained(name):
    blocks = None if "cifar" in name else "layer2:0"
    model = tiny(name, non_local=blocks)
    freeze(model, "blocks")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition("non_local")[1] or name.split(".")[-2] for name in trained} in (
        {"non_local", "linear"},
        {"non_local", "fc"},
    )
    freeze(model, "head")
    left = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(left) == 2
    with pytest.raises(ValueError, match="train: blocks, and the network has none"):
        freeze(tiny("resnet8_cifar10", width=4), "blocks")


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
    with pytest.raises(ValueError, match="unknown optimizer 'adamwx'; did you mean 'adamw'"):
        build_optimizer([], "adamwx", 0.1)
    with pytest.raises(ValueError, match="steps or cosine"):
        rate(0, 1, "linear")
    with pytest.raises(ValueError, match="unknown train 'heads'; did you mean 'head'"):
        freeze(tiny(width=4), "heads")


def test_sgd_is_nesterov():
    weight = nn.Parameter(torch.ones(1, 1))
    optimizer = build_optimizer([{"params": [weight], "lr": 0.1}], "sgd", 0.1)
    for _ in range(2):
        weight.grad = torch.ones(1, 1)
        optimizer.step()
    # v1 = 1, step 1 + 0.9 * 1; v2 = 1.9, step 1 + 0.9 * 1.9
    assert weight.item() == pytest.approx(1 - 0.1 * 1.9 - 0.1 * 2.71)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_timms_optimizers(name):
    model = tiny(width=4)
    optimizer = build_optimizer(parameter_groups(model, 0.1, 0.1, head_lr=2.0), name, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.2}
    schedule = build_schedule(optimizer, 10, "cosine", 2, ())
    before = model.conv1.weight.clone()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    schedule.step()
    assert not torch.equal(before, model.conv1.weight)
    assert {round(g["lr"] / g["initial_lr"], 6) for g in optimizer.param_groups} == {0.666667}
