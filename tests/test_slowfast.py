"""Two pathways, against pytorchvideo's own, and as golden files of PySlowFast configure them."""

import pytest
import torch
from pytorchvideo.models.slowfast import create_slowfast
from spoken import speak

from nlzoo.blocks import NonLocalBlock
from nlzoo.models import create_model
from nlzoo.networks.slowfast import SlowFast
from nlzoo.weights.hosts import rename_host
from nlzoo.weights.verify import build


def shaken(model):
    """Norms and convolutions that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.3, 0.8)
    return model.eval()


@pytest.mark.parametrize(("alpha", "geometry"), [(4, "slowfast_8x8"), (8, "slowfast_4x16")])
@pytest.mark.parametrize("lateral", [5, 7])
def test_equals_pytorchvideo(alpha, geometry, lateral):
    theirs = shaken(
        create_slowfast(
            model_num_class=9,
            slowfast_fusion_conv_kernel_size=(lateral, 1, 1),
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            stem_dim_outs=(16, 2),
            slowfast_channel_reduction_ratio=(8,),
            head_pool_kernel_sizes=((32 // alpha, 2, 2), (32, 2, 2)),
        )
    )
    ours = SlowFast(50, geometry, width=16, lateral=lateral, num_classes=9, head="logits").eval()
    ours.load_state_dict(rename_host(theirs.state_dict(), "pytorchvideo"))
    clip = torch.randn(2, 3, 32, 64, 96)
    seen = torch.linspace(0, 31, 32 // alpha).long()
    ours.head.window = 2
    with torch.no_grad():
        wanted = theirs([clip[:, :, seen], clip])
        assert (ours(clip) - wanted).norm() < 2e-6 * wanted.norm()


def test_frames_that_do_not_divide():
    model = create_model("slowfast_r50", width=8)
    with pytest.raises(ValueError, match="30 frames: give a multiple of 4"):
        model(torch.zeros(1, 3, 30, 32, 32))


def test_published_parameters():
    """PySlowFast's configurations SLOWFAST_NLN_8x8_R50 and SLOWFAST_NLN_16x8_R101_50_50."""
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in create_model(name).parameters())
            for name in ("slowfast_r50_nl5", "slowfast_r101_nl3")
        ]
    assert sizes == [41_838_680, 60_080_088]


@pytest.mark.parametrize(
    ("pools", "wanted"),
    [
        pytest.param([1, 2, 2], [(1, 2, 2)] * 3, marks=pytest.mark.every),
        pytest.param(
            [[2, 2, 2], [1, 2, 2]], [(2, 2, 2), (2, 2, 2), (1, 2, 2)], marks=pytest.mark.every
        ),
        pytest.param(
            [[1, 2, 2], [2, 2, 2], [1, 1, 1], [1, 2, 2]],
            [(2, 2, 2), (1, 1, 1), (2, 2, 2)],
            marks=pytest.mark.every,
        ),
        (
            [[[1, 2, 2]] * 2, [[2, 2, 2], [1, 1, 2]], [[1, 1, 1]] * 2, []],
            [(2, 2, 2), (1, 1, 1), (1, 1, 2)],
        ),
    ],
)
def test_a_golden_s_lists_hold_one_entry_a_stage_and_pathway(pools, wanted):
    """Blocks at res3.1 and res4.0 of the slow pathway and res3.0 of the fast one."""
    places = ["res3.1", "res4.0", "fast.res3.0"]
    blocks = {"places": places, "form": "dot_product"}
    model = shaken(create_model("slowfast_r50", num_classes=6, non_local=blocks))
    state = speak("slowfast", model.state_dict())["model_state"]
    config = {
        "yaml": "configs/Kinetics/SLOWFAST_NLN_8x8_R50.yaml",
        "arch": "slowfast",
        "depth": 50,
        "train_crop_size": 64,
        "nonlocal_location": [[[], []], [[1], [0]], [[0], []], [[], []]],
        "nonlocal_group": [[1, 1], [2, 4], [1, 1], [1, 1]],
        "nonlocal_pool": pools,
        "instantiation": "dot_product",
    }
    golden = {
        "dialect": "slowfast",
        "config": config,
        "input": {"seed": 1, "shape": [1, 3, 16, 64, 64]},
        "kernel_gain": 1.0,
        "state_dict": [[k, list(v.shape), "scale"] for k, v in state.items()],
    }
    network = build(golden)
    found = {k: m for k, m in network.named_modules() if isinstance(m, NonLocalBlock)}
    found = [found[f"{place}.non_local"] for place in places]
    assert [block.subsample for block in found] == wanted
    assert [block.groups for block in found] == [2, 1, 4]
    with torch.no_grad():
        assert network(torch.randn(1, 3, 16, 64, 64)).shape == (1, 6)
