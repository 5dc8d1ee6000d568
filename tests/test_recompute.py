"""Activation checkpointing changes memory and nothing else."""

import copy

import pytest
import torch

from nlzoo import create_model
from nlzoo.tasks.recompute import recompute_

SMALL = {"width": 8, "geometry": "slowfast", "num_classes": 4, "dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "options", "stages", "shape"),
    [
        ("i3d_r18_nl5", SMALL, ["res2", "res3", "res4"], (2, 3, 8, 32, 32)),
        ("timm/resnet18", {"non_local": "nl1"}, ["layer1", "layer3"], (2, 3, 64, 64)),
        ("c2d/resnet18", {"non_local": "nl1"}, ["layer3"], (2, 3, 2, 64, 64)),
    ],
)
def test_gradients_and_statistics_stay_the_same(name, options, stages, shape):
    torch.manual_seed(0)
    plain = create_model(name, **options)
    again = copy.deepcopy(plain)
    recompute_(again, stages)
    again = copy.deepcopy(again)  # as an average of weights does
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    for model in (plain, again):
        model(x).square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), key


def test_activations_are_not_kept():
    saved = {}
    for stages in ([], ["res2", "res3", "res4", "res5"]):
        torch.manual_seed(0)
        model = create_model("c2d_r18", **SMALL)
        recompute_(model, stages)
        kept: list[int] = []

        def pack(t, kept=kept):
            kept.append(0 if t.is_leaf else t.numel())  # weights are there anyway
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8))
        saved[len(stages)] = sum(kept)
    assert saved[4] < saved[0] / 2


def test_unknown_stages_are_named():
    with pytest.raises(ValueError, match=r"no sequence 'res9' in VideoResNet; did you mean"):
        recompute_(create_model("c2d_r18", **SMALL), ["res9"])
