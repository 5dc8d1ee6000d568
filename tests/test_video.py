"""Networks against the published counts, shapes and outputs of other implementations."""

import json
import zlib

import numpy as np
import pytest
import timm
import torch
from shared import SHARED
from tiers import marked
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nlzoo.models import create_model
from nlzoo.networks.inflate import inflate
from nlzoo.networks.video import VideoResNet
from nlzoo.preprocessing import Preprocessing
from nlzoo.weights.hosts import rename_host

# (parameters, multiply-adds) at 32 x 224 x 224 with Table 1's geometry, 400 classes
TABLE_1 = {
    "c2d_r50": (24_327_632, 20_437_303_296),
    "c2d_r50_nl1": (26_429_392, 21_622_259_712),
    "c2d_r50_nl5": (31_686_096, 28_565_012_480),
    "c2d_r50_nl10": (39_044_560, 36_692_721_664),
    "i3d_r50": (28_043_472, 33_128_218_624),
    "i3d_r50_nl1": (30_145_232, 34_313_175_040),
    "i3d_r50_nl5": (35_401_936, 41_255_927_808),
    "i3d_r50_nl10": (42_760_400, 49_383_636_992),
    "i3d333_r50": (33_433_808, 39_088_324_608),
    "i3d333_r50_nl5": (40_792_272, 47_216_033_792),
    "i3d333_r50_nl10": (48_150_736, 55_343_742_976),
    "c2d_r101": (43_319_760, 35_286_188_032),
    "c2d_r101_nl1": (45_421_520, 36_471_144_448),
    "c2d_r101_nl5": (50_678_224, 43_413_897_216),
    "c2d_r101_nl10": (58_036_688, 51_541_606_400),
    "i3d_r101": (51_754_192, 51_676_479_488),
    "i3d_r101_nl1": (53_855_952, 52_861_435_904),
    "i3d_r101_nl5": (59_112_656, 59_804_188_672),
    "i3d_r101_nl10": (66_471_120, 67_931_897_856),
    "i3d333_r101": (63_042_768, 62_260_805_632),
    "i3d333_r101_nl5": (70_401_232, 70_388_514_816),
    "i3d333_r101_nl10": (77_759_696, 78_516_224_000),
}
# the same with the unpadded pools of the released code (55 x 55)
RELEASED = {
    "c2d_r50": 20_233_617_408,
    "c2d_r50_nl5": 28_361_326_592,
    "c2d_r50_nl10": 36_489_035_776,
    "i3d_r50": 32_829_964_288,
    "i3d_r50_nl5": 40_957_673_472,
    "i3d_r50_nl10": 49_085_382_656,
    "c2d_r101": 35_082_502_144,
    "c2d_r101_nl5": 43_210_211_328,
    "c2d_r101_nl10": 51_337_920_512,
    "i3d_r101": 51_378_225_152,
    "i3d_r101_nl5": 59_505_934_336,
    "i3d_r101_nl10": 67_633_643_520,
}
SPARSE = {  # 8 frames: (geometry, side) -> multiply-adds
    ("i3d_r50", "8x8", 224): 28_109_406_208,
    ("i3d_r50_nl5", "8x8", 256): 48_573_546_496,
    ("c2d_r50", "slowfast", 224): 19_493_191_680,
    ("i3d_r50_nl5", "slowfast", 256): 48_914_792_448,
}


def multiply_adds(name, geometry, frames=32, side=224):
    """Parameters and multiply-adds of a network that is never allocated."""
    with torch.device("meta"):
        model = create_model(name, geometry=geometry, non_local=TEXTBOOK.get("nl" in name)).eval()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        tensors = {k: torch.empty(v.shape, dtype=v.dtype) for k, v in tensors.items()}
        clip = torch.empty(1, 3, frames, side, side)
        torch.func.functional_call(model, tensors, clip)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


# The counter knows the products of the textbook form of the block; not those of its fast routes.
TEXTBOOK = {True: {"route": "definition"}}


@pytest.mark.parametrize("name", marked(TABLE_1, ["c2d_r50", "i3d_r50_nl5", "i3d333_r50"]))
def test_counts_of_table_1(name):
    parameters, macs = multiply_adds(name, "paper")
    assert parameters == TABLE_1[name][0]
    assert macs == pytest.approx(TABLE_1[name][1], rel=0.005)


@pytest.mark.parametrize("name", marked(RELEASED, ["c2d_r50_nl5", "i3d_r50"]))
def test_counts_of_the_released_geometry(name):
    assert multiply_adds(name, "32x2")[1] == pytest.approx(RELEASED[name], rel=0.005)


@pytest.mark.parametrize(("name", "geometry", "side"), SPARSE)
def test_counts_of_sparse_geometries(name, geometry, side):
    macs = multiply_adds(name, geometry, 8, side)[1]
    assert macs == pytest.approx(SPARSE[name, geometry, side], rel=0.005)


def shapes(kind, depth, geometry, frames, side=224):
    """(C, T, H, W) after each part."""
    seen = {}
    with torch.device("meta"):
        model = VideoResNet(kind, depth, geometry).eval()
        clip = torch.empty(1, 3, frames, side, side)
    for name in ("stem.conv", "stem", "res2", "pool2", "res3", "res4", "res5"):
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: seen.update({name: tuple(out.shape[1:])})
        )
    assert model(clip).shape == (1, 400)
    return list(seen.values())


@pytest.mark.parametrize(("kind", "depth"), [("c2d", 50), ("i3d", 50), ("i3d333", 101)])
def test_stage_shapes_of_table_1(kind, depth):
    assert shapes(kind, depth, "paper", 32) == [
        (64, 16, 112, 112),
        (64, 8, 56, 56),
        (256, 8, 56, 56),
        (256, 4, 56, 56),
        (512, 4, 28, 28),
        (1024, 4, 14, 14),
        (2048, 4, 7, 7),
    ]


def test_stage_shapes_of_the_other_geometries():
    sizes = lambda *arguments: [s[1:] for s in shapes(*arguments)]  # noqa: E731
    unpadded = [(55, 55), (55, 55), (55, 55), (28, 28), (14, 14), (7, 7)]
    assert [s[1:] for s in sizes("i3d", 50, "32x2", 32)[1:]] == unpadded
    assert [s[0] for s in sizes("i3d", 50, "32x2", 32)] == [16, 8, 8, 4, 4, 4, 4]
    assert [s[0] for s in sizes("i3d", 50, "8x8", 8)] == [8, 8, 8, 4, 4, 4, 4]
    assert [s[1:] for s in sizes("i3d", 50, "8x8", 8)[1:]] == unpadded
    assert sizes("c2d", 18, "slowfast", 8, 256)[1] == (8, 64, 64)
    assert [s[0] for s in sizes("slow", 50, "slowfast", 8)] == [8] * 7
    assert shapes("i3d", 18, "32x2", 32)[-1] == (512, 4, 7, 7)


def golden_tensor(key, shape, kind, gain):
    """The golden files' rule: every tensor follows from its name."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    n = rng.standard_normal(tuple(shape))
    rules = {
        "kernel": lambda: n * np.sqrt(gain / np.prod(shape[1:])),
        "scale": lambda: 0.5 + 0.1 * n,
        "shift": lambda: 0.1 * n,
        "var": lambda: 1 + 0.1 * np.abs(n),
        "count": lambda: np.zeros(shape),
    }
    return torch.tensor(np.asarray(rules[kind](), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50", "slow_r50"])
def test_equals_pytorchvideo_hub(name):
    path = SHARED / "goldens" / f"fair_pytorchvideo_{name}.json"
    if not path.exists():
        pytest.skip("golden files are absent (NLZOO_SHARED)")
    spec = json.loads(path.read_text())
    state = {e[0]: golden_tensor(*e[:3], spec["kernel_gain"]) for e in spec["state_dict"]}
    model = create_model(name, geometry="hub").eval()
    model.load_state_dict(rename_host(state, "pytorchvideo"))
    rng = np.random.RandomState(spec["input"]["seed"])
    clip = torch.tensor(rng.standard_normal(spec["input"]["shape"]).astype(np.float32))
    with torch.no_grad():
        got = model(clip).numpy().ravel().astype(np.float64)
    want = np.asarray(spec["output"])
    assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want)
    assert type(model.res3[0].branch2.conv_b).__name__ == "SpaceConv3d"


def tiny(kind="c2d", geometry="8x8", **arguments):
    """A network of 8 channels, that is not the identity in its residual branches."""
    torch.manual_seed(0)
    return VideoResNet(
        kind, 18, geometry, width=8, num_classes=5, zero_init_residual=False, **arguments
    )


def test_test_score_is_the_mean_of_the_softmaxes():
    model = tiny().eval()
    maps = torch.randn(2, 64, 3, 9, 8)
    with torch.no_grad():
        windows = [
            maps[:, :, :, y : y + 7, x : x + 7].mean((2, 3, 4)) for y in range(3) for x in range(2)
        ]
        logits = torch.stack([model.get_classifier()(w) for w in windows])
        score = model.forward_head(maps).softmax(1)
        torch.testing.assert_close(score, logits.softmax(2).mean(0))
        hub = tiny(geometry="hub").eval()
        hub.load_state_dict(model.state_dict())
        torch.testing.assert_close(hub.forward_head(maps), logits.mean(0))
        one = maps[..., :7, :7]
        torch.testing.assert_close(model.forward_head(one), logits[:, :][0])
        model.train().head.dropout.p = 0.0
        plain = model.get_classifier()(maps.mean((2, 3, 4)))
        torch.testing.assert_close(model.forward_head(maps), plain)


@pytest.mark.parametrize("scale", [1, 300])  # certain in float32
def test_test_score_of_many_labels_is_the_mean_of_the_sigmoids(scale):
    model = tiny().eval()
    model.preprocessing = Preprocessing(multilabel=True)
    maps = torch.randn(2, 64, 3, 9, 8, generator=torch.Generator().manual_seed(0)) * scale
    windows = [
        maps[:, :, :, y : y + 7, x : x + 7].mean((2, 3, 4)) for y in range(3) for x in range(2)
    ]
    with torch.no_grad():
        logits = torch.stack([model.get_classifier()(w) for w in windows])
        score = model.forward_head(maps)
        torch.testing.assert_close(score.sigmoid(), logits.sigmoid().mean(0))
        assert score.isfinite().all()
        torch.testing.assert_close(model.forward_head(maps[..., :7, :7]), logits[0])


def test_initialisation():
    torch.manual_seed(0)
    model = VideoResNet("i3d", 50)
    assert all(not b.branch2.norm_c.weight.any() for b in model.res4)
    assert all((b.branch2.norm_a.weight == 1).all() for b in model.res4)
    weight = model.res5[0].branch2.conv_b.weight.detach()
    assert weight.std() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.02)
    assert model.head.proj.weight.detach().std() == pytest.approx(0.01, rel=0.02)
    assert not model.head.proj.bias.any()
    assert not VideoResNet("c2d", 18, width=8).res2[0].branch2.norm_b.weight.any()


def test_temporal_kernels():
    sizes = lambda model, conv: [  # noqa: E731
        [getattr(b.branch2, conv).kernel_size[0] for b in getattr(model, f"res{i}")]
        for i in (2, 3, 4, 5)
    ]
    pattern = [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
    with torch.device("meta"):
        assert sizes(VideoResNet("i3d", 50), "conv_a") == pattern
        assert sizes(VideoResNet("i3d333", 50), "conv_b") == pattern
        slow = sizes(VideoResNet("slow", 50), "conv_a")
        assert slow == [[1] * 3, [1] * 4, [3] * 6, [3] * 3]
        deep = sizes(VideoResNet("i3d", 101), "conv_a")[2]
        assert [i for i, k in enumerate(deep) if k == 3] == list(range(0, 23, 2))


@pytest.mark.parametrize(
    ("kind", "image", "border"),
    [("c2d", "resnet18", 0), ("i3d", "resnet18", 9), ("i3d", "resnet50", 9)],
)
def test_inflated_twin_agrees_on_a_still_image(kind, image, border):
    torch.manual_seed(0)
    twin = timm.create_model(image, num_classes=5).eval()
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if name.endswith(("bn3.weight", "bn2.weight")):
                p.fill_(0.5)
    depth = int(image[6:])
    model = VideoResNet(kind, depth, "slowfast", num_classes=5).eval()
    assert inflate(model, twin) is model
    still = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = twin.forward_features(still)
        got = model.forward_features(
            still.unsqueeze(2).expand(-1, -1, 2 * (2 * border + 2), -1, -1)
        )
    for t in range(border, border + 2):
        torch.testing.assert_close(got[:, :, t], want, rtol=1e-4, atol=1e-4)
    if border:
        assert (got[:, :, 0] - want).abs().max() > 1e-2  # the zero padding is felt there
    torch.testing.assert_close(model.head.proj.weight, twin.fc.weight)


def test_inflation_refuses_other_networks_and_keeps_its_head():
    model = VideoResNet("c2d", 18, num_classes=5)
    head = model.head.proj.weight.clone()
    inflate(model, timm.create_model("resnet18", num_classes=9))
    assert torch.equal(model.head.proj.weight, head)
    headless, twin = VideoResNet("c2d", 18, num_classes=0), timm.create_model("resnet18")
    assert torch.equal(inflate(headless, twin).stem.conv.weight[:, :, 0], twin.conv1.weight)
    inflate(model, timm.create_model("resnet18", num_classes=0))
    assert torch.equal(model.head.proj.weight, head)
    with pytest.raises(ValueError, match=r"not the 2D twin.*does not fit"):
        inflate(tiny(), timm.create_model("resnet18", num_classes=5))
    with pytest.raises(ValueError, match="use a plain ResNet of the same depth"):
        inflate(model, timm.create_model("resnet50d", num_classes=5))
    with pytest.raises(ValueError, match="use a plain ResNet"):
        inflate(model, torch.nn.Linear(2, 2))


def test_wrong_arguments():
    for arguments, message in [
        (("c3d", 50), "unknown kind 'c3d'; did you mean 'i3d'"),
        (("c2d", 34), "unknown depth 34; there are 18, 50, 101"),
        (("c2d", 50, "16x4"), "unknown geometry '16x4'; there are paper, 32x2"),
    ]:
        with pytest.raises(ValueError, match=message):
            VideoResNet(*arguments)
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\); got shape \(3, 8, 32, 32\)"):
        tiny()(torch.zeros(3, 8, 32, 32))


def test_without_classes_it_returns_features():
    model = VideoResNet("c2d", 18, width=8, num_classes=0).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        assert model(clip).shape == (2, 64)
        model.reset_classifier(3)
        assert model(clip).shape == (2, 3)
        features = model.forward_head(model.forward_features(clip), pre_logits=True)
        assert features.shape == (2, model.num_features)


def test_preprocessing_follows_the_geometry_unless_given():
    assert tiny(geometry="8x8").preprocessing.frames == 8
    assert VideoResNet("c2d", 18, width=8).preprocessing.stride == 2
    own = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), frames=4)
    model = create_model("c2d_r18", width=8, preprocessing=own)
    assert model.preprocessing is own
    full = torch.full((1, 3, 1, 1, 1), 255, dtype=torch.uint8)
    assert model.normalize(full).unique().tolist() == pytest.approx([1.0])
