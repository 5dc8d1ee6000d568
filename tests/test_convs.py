"""The folded convolutions against torch's conv3d."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nlzoo.convs import SpaceConv3d, TimeConv3d, fast_convs_, shift_


@st.composite
def convolutions(draw):
    """A foldable Conv3d and an input that it takes, in float64."""
    k = draw(st.integers(1, 3))
    small = st.integers(1, 2)
    d = draw(small)
    stride = tuple(draw(small) for _ in range(3))
    if draw(st.booleans()):
        kernel, dilation, padding = (1, k, k), (1, d, d), (0, draw(small) - 1, draw(small) - 1)
    else:
        pad = draw(st.sampled_from([0, 1, d * (k - 1) // 2]))
        kernel, dilation, padding = (k, 1, 1), (d, 1, 1), (pad, 0, 0)
    conv = nn.Conv3d(3, 4, kernel, stride, padding, dilation, bias=draw(st.booleans())).double()
    size = [draw(st.integers(d * (k - 1) + 1, 6)) for _ in range(3)]
    x = torch.randn(draw(small), 3, *size, dtype=torch.float64)
    return conv, x.contiguous(memory_format=draw(st.sampled_from(FORMATS)))


FORMATS = [torch.contiguous_format, torch.channels_last_3d]


@settings(deadline=None, max_examples=60)
@given(convolutions(), st.booleans())
def test_equals_conv3d_with_gradients(case, last):
    conv, x = case
    fast = fast_convs_(copy.deepcopy(conv))
    if last:
        fast.to(memory_format=torch.channels_last_3d)
    assert type(fast) in (SpaceConv3d, TimeConv3d)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    want, got = conv(inputs[0]), fast(inputs[1])
    assert got.shape == want.shape
    upstream = torch.randn_like(want)
    want.backward(upstream)
    got.backward(upstream)
    with torch.no_grad():
        pairs = [(got, want), (fast(x), want), (inputs[1].grad, inputs[0].grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(fast.parameters(), conv.parameters(), strict=True)]
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 3, 1)},
        {"kernel_size": (1, 3, 3), "padding": 1},
        {"kernel_size": (1, 3, 3), "groups": 2},
        {"kernel_size": (3, 1, 1), "padding": 1},
        {"kernel_size": (1, 3, 3), "padding": "same"},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "padding_mode": "reflect"},
    ],
)
def test_leaves_others_alone(arguments):
    conv = fast_convs_(nn.Sequential(nn.Conv3d(2, 2, **arguments)))[0]
    assert type(conv) is nn.Conv3d


def network():
    return nn.Sequential(
        nn.Conv3d(3, 4, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.Conv3d(4, 2, (3, 1, 1), 1, (1, 0, 0))
    )


def test_survives_copies_and_keeps_keys():
    plain = network()
    fast = fast_convs_(copy.deepcopy(plain))
    assert {k: v.shape for k, v in fast.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    x = torch.randn(1, 3, 4, 6, 6)
    with torch.no_grad():
        want = fast(x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert [type(m) for m in other] == [SpaceConv3d, TimeConv3d]
            assert torch.equal(other(x), want)


def test_compile_and_export():
    fast = fast_convs_(network())
    x = torch.randn(2, 3, 4, 6, 6)
    want = fast(x)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want)
    exported = torch.export.export(fast.eval(), (x,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert "aten.conv2d.default" in targets
    assert "aten.conv3d.default" not in targets
    torch.testing.assert_close(exported.module()(x), want)


def test_folding_copies_nothing_in_channels_last():
    conv = fast_convs_(nn.Conv3d(4, 4, (1, 3, 3), 1, (0, 1, 1), bias=False))
    conv.to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 4, 3, 5, 5).to(memory_format=torch.channels_last_3d)
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profile:
        y = conv(x)
    assert not [e for e in profile.events() if e.name in ("aten::copy_", "aten::clone")]
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_shift_moves_an_eighth_each_way():
    """Channels 0, 1 of 16 come from the next frame, 2, 3 from the last, the others stay."""
    conv = nn.Conv3d(16, 16, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(16).view(16, 16, 1, 1, 1))
    keys = list(conv.state_dict())
    shift_(conv)
    x = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(2, 16, 5, 2, 3) + 1
    y = copy.deepcopy(conv)(x)
    assert y[0, 0, :, 0, 0].tolist() == [2, 3, 4, 5, 0]
    assert y[1, 3, :, 1, 2].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(y[:, 4:], x[:, 4:])
    assert list(conv.state_dict()) == keys
