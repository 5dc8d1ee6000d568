"""timm's backbones on clips: frames in the batch, blocks over space and time, temporal shifts."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import nlzoo
from nlzoo.blocks import NonLocalBlock
from nlzoo.convs import shift
from nlzoo.explain import look
from nlzoo.folded import Fold, FoldedNetwork
from nlzoo.models import create_model, load_model, save_model
from nlzoo.networks.image import clip_model, preprocessing_of
from nlzoo.networks.inflate import inflate
from nlzoo.networks.residual import residual_branches
from nlzoo.preprocessing import Preprocessing


def shaken(model):
    """Norms, new blocks' too, that do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(norm.weight, 0.3, 0.8, generator=generator)
    return model.eval()


def small(name="tsm/resnet18", **options):
    torch.manual_seed(0)
    return shaken(create_model(name, **{"num_classes": 5, "non_local": "nl5", **options}))


def clips(frames=8, batch=2, side=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (batch, 3, frames, side, side), dtype=torch.uint8, generator=generator
    )


def blocks_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, NonLocalBlock)}


def shifted_in(model):
    """Names of the modules that see shifted frames."""
    names = {m: n for n, m in model.backbone.named_modules()}
    return [names[m] for m in names if Fold._shift in map(_function, m._forward_pre_hooks.values())]


def _function(hook):
    return getattr(hook, "__func__", hook)


# -- what is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("tsm/resnet50", "tsm_r50"),
        ("c2d/resnet50", "tsn_r50"),  # no pool over time
        pytest.param("tsm/resnet101", "tsm_r101", marks=pytest.mark.slow),
    ],
)
def test_equals_the_video_network_of_the_same_weights(name, twin):
    """Which is mmaction2's and MIT's to 1e-6, see test_goldens."""
    model, twin = shaken(create_model(name, num_classes=7)), create_model(twin, num_classes=7)
    inflate(twin, model.backbone).normalize = model.normalize
    with torch.no_grad():
        wanted = twin.eval()(clips())
        assert (model(clips()) - wanted).norm() < 2e-6 * wanted.norm()


def test_each_frame_is_scored_as_an_image():
    model = small("c2d/resnet18", non_local=None)
    x = clips(3)
    twin = shaken(create_model("timm/resnet18", num_classes=5))
    twin.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        wanted = torch.stack([twin(frame) for frame in x.unbind(2)]).mean(0)
        torch.testing.assert_close(model(x), wanted)
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, 3, 2, 2)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((2, 3, 4)))
        assert torch.equal(model.forward_head(features), model(x))
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(3)
        assert model(x).shape == (2, model.num_classes) == (2, 3)


def test_shift_is_that_of_the_paper():
    """Its code: two copies and zeros."""
    x = torch.randn(2, 17, 4, 3, 2)
    wanted = torch.zeros_like(x)
    wanted[:, :2, :-1] = x[:, :2, 1:]
    wanted[:, 2:4, 1:] = x[:, 2:4, :-1]
    wanted[:, 4:] = x[:, 4:]
    assert torch.equal(shift(x), wanted)
    assert not shift(x[:, :, :1])[:, :4].any()  # of one frame, nothing is before or after it


def test_blocks_see_space_and_time():
    """Frame 0 knows of the last one, unless its blocks keep to space."""
    x, other = clips(4), clips(4)
    other[:, :, 3] = 0
    with torch.no_grad():
        for extent, knows in (("spacetime", True), ("space", False), ("time", True)):
            model = small("c2d/resnet18", non_local={"places": "nl1", "extent": extent})
            features = model.forward_features(x)[:, :, 0], model.forward_features(other)[:, :, 0]
            assert torch.equal(*features) != knows
            assert {block.dims for block in blocks_of(model).values()} == {3}


def test_blocks_of_each_frame_are_those_of_an_image():
    model = small("c2d/resnet18", non_local={"places": "nl5", "extent": "space"})
    twin = create_model("resnet18_nl5", num_classes=5).eval()
    like = twin.state_dict()
    state = model.backbone.state_dict()
    twin.load_state_dict({k: v.view(like[k].shape) for k, v in state.items()})  # (C, C, 1, 1, 1)
    x = clips(3)
    with torch.no_grad():
        wanted = torch.stack([twin(frame) for frame in x.unbind(2)]).mean(0)
        torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("name", ["c2d/resnet18", "tsm/tf_efficientnet_lite0", "c2d/convnext_atto"])
def test_new_blocks_change_no_bit(name):
    model = create_model(name, num_classes=5, non_local="nl5").eval()
    plain = create_model(name, num_classes=5).eval()
    own = {k: v for k, v in model.state_dict().items() if ".non_local." not in k}
    assert own.keys() == plain.state_dict().keys()
    theirs = timm.create_model(name.partition("/")[2], num_classes=5).state_dict()
    assert own.keys() == {f"backbone.{k}" for k in theirs}
    plain.load_state_dict(own)
    with torch.no_grad():
        assert torch.equal(model(clips(4)), plain(clips(4)))
    model.train()(clips(4)).sum().backward()
    assert all(b.norm.weight.grad.abs().sum() > 0 for b in blocks_of(model).values())


@pytest.mark.slow
def test_any_number_of_frames():
    """Whatever a pass before had; compiled, too, without a break in the graph."""
    model = small("tsm/test_resnet", non_local="layer2:0 layer3:0")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        wanted = {t: model(clips(t)) for t in (8, 1, 3)}
        assert not torch.allclose(wanted[8], wanted[3])
        for t in (3, 8, 1, 3):
            assert torch.equal(model(clips(t)), wanted[t])
        for t in (3, 8):
            torch.testing.assert_close(compiled(clips(t)), wanted[t])


def test_copies_and_files(tmp_path):
    model = small()
    save_model(model, tmp_path / "own.safetensors")
    loaded = load_model(tmp_path / "own.safetensors")
    assert (loaded.spec, loaded.preprocessing) == (model.spec, model.preprocessing)
    with torch.no_grad():
        wanted = model(clips(4))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            twin(clips(2))  # each has frames of its own
            assert torch.equal(model(clips(4)), wanted)
            assert torch.equal(twin(clips(4)), wanted)


def test_where_a_position_looks():
    looks = look(small(), clips(4, batch=1))
    places = [f"backbone.layer{i}.{j}" for i in (2, 3) for j in (0, 1)]
    assert [one.block for one in looks] == places
    for one in looks:
        assert one.weights.sum() == pytest.approx(1, abs=1e-5)
        assert one.boxes[:, 3].max() == 4  # keys are in all frames
    report = nlzoo.insert_non_local(small(non_local=None), "layer3:1")
    assert report.blocks[0].shape == (1, 256, 8, 14, 14)
    assert (report.blocks[0].queries, report.blocks[0].keys) == (8 * 196, 8 * 49)
    report.check(clips(3))


def test_places_that_are_no_maps():
    with pytest.raises(ValueError, match=r"'fc' must return one tensor \(B, C, \*S\) of rank 4"):
        nlzoo.insert_non_local(small(non_local=None), "fc")
    with torch.device("meta"):
        tokens = create_model("c2d/vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"returns tokens .* shape \(8, 197, 192\)"):
        nlzoo.insert_non_local(tokens, "blocks:1")


# -- shifts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shifted"),
    [
        ("resnet18", {f"layer{i}.{j}.conv1" for i in (1, 2, 3, 4) for j in (0, 1)}),
        (  # as MIT's MobileNetV2: blocks with a shortcut
            "mobilenetv2_100",
            {
                f"blocks.{i}.{j}.conv_pw"
                for i, n in ((1, 2), (2, 3), (3, 4), (4, 3), (5, 3))
                for j in range(1, n)
            },
        ),
        (
            "resnetv2_50",
            {f"stages.{i}.blocks.{j}.conv1" for i, n in enumerate((3, 4, 6, 3)) for j in range(n)},
        ),
    ],
)
def test_residual_branches(name, shifted):
    with torch.device("meta"):
        model = clip_model(name, shifted=True)
    assert set(shifted_in(model)) == shifted


def test_every_second_branch_of_deep_stages():
    with torch.device("meta"):
        found = shifted_in(clip_model("resnet101", shifted=True))
    assert found == [
        f"layer{i}.{j}.conv1" for i, n in enumerate((3, 4, 23, 3), 1) for j in range(0, n, 2)
    ]


def test_shortcuts_stay_as_they_are():
    """What a block adds to its branch is not shifted: with a branch of zeros, frames are apart."""
    model = small(non_local=None)
    for stage in (1, 2, 3, 4):
        for block in model.backbone.get_submodule(f"layer{stage}"):
            nn.init.zeros_(block.bn2.weight)
            nn.init.zeros_(block.bn2.bias)
    one, other = clips(4), clips(4)
    other[:, :, 1] = 0
    with torch.no_grad():
        a, b = model.forward_features(one), model.forward_features(other)
    assert torch.equal(a[:, :, [0, 2, 3]], b[:, :, [0, 2, 3]])


class Block(nn.Module):
    """Of one of several kinds; timm gives a residual one `drop_path`."""

    drop_path = None

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.later, self.first = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut, self.squeeze = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        if self.kind == "no shortcut":
            return self.later(self.first(x))
        if self.kind == "shortcut inside":
            y = self.first(x)
            return self.later(y) + y
        if self.kind == "squeezed first":
            return self.first(x * self.squeeze(x.mean((2, 3), keepdim=True))) + x
        if self.kind == "projected":
            return self.shortcut(x) + self.later(self.first(x))
        return self.later(self.first(F.relu(x, inplace=True))) + x  # "plain"


def test_what_passes_by_makes_a_branch():
    """The order is that of the pass."""
    kinds = "plain", "no shortcut", "shortcut inside", "projected", "squeezed first"
    network = nn.Sequential(*map(Block, kinds)).train()
    assert residual_branches(network, torch.zeros(1, 8, 4, 4)) == [["0.first", "3.first"]]
    assert network.training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())


# -- weights and arguments ----------------------------------------------------------------------


def test_weights_of_images(tmp_path):
    """In timm's names, with or without blocks, from its file or one of this zoo."""
    theirs = shaken(timm.create_model("resnet18", num_classes=6))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    image = create_model("timm/resnet18", pretrained=tmp_path / "theirs.pth")
    image.preprocessing = Preprocessing(
        mean=(0.5, 0.5, 0.5), frames=0, stride=0, crop=64, test_size=64, test_crop=64
    )
    save_model(image, tmp_path / "ours.safetensors")
    for file in ("theirs.pth", "ours.safetensors"):
        with pytest.warns(UserWarning, match="has no non-local blocks: they start fresh"):
            model = create_model("tsm/resnet18", pretrained=tmp_path / file, non_local="nl1")
        assert model.num_classes == 6
        assert (model.preprocessing.frames, model.preprocessing.stride) == (8, 4)
        for key, value in theirs.state_dict().items():
            assert torch.equal(model.state_dict()[f"backbone.{key}"], value)
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert model.preprocessing.crop == 64
    with pytest.warns(UserWarning, match="classifier starts fresh"):
        model = create_model("c2d/resnet18", pretrained=tmp_path / file, num_classes=3)
    assert model.get_classifier().out_features == 3
    with pytest.raises(ValueError, match=r"of another architecture: backbone\.layer1\.2\."):
        create_model("c2d/resnet34", pretrained=tmp_path / file)


@pytest.mark.parametrize("name", ["resnet18_nl1", "c2d/resnet18"])
def test_weights_that_timm_downloads(monkeypatch, name):
    """The download itself is left out here."""
    asked, create = [], timm.create_model

    def fake(model, pretrained=False, **options):
        asked.append((model, pretrained))
        return create(model, **options)

    monkeypatch.setattr(timm, "create_model", fake)
    create_model(name, pretrained=True)
    create_model(name, pretrained="timm/resnet18.tv_in1k")
    create_model(name)
    assert asked == [("resnet18", True), ("resnet18.tv_in1k", True), ("resnet18", False)]


@pytest.mark.parametrize("name", ["timm/resnet18", "resnet18_nl1", "c2d/resnet18"])
def test_weights_know_their_range(name):
    """The data say sizes and classes, the weights mean and deviation."""
    frames = 4 if name.startswith("c2d") else 0
    seen = Preprocessing(frames=frames, crop=32, classes=("a", "b"))
    model = create_model(name, preprocessing=seen, num_classes=2)
    own = preprocessing_of(model.backbone if isinstance(model, FoldedNetwork) else model)
    assert (model.preprocessing.mean, model.preprocessing.std) == (own.mean, own.std)
    assert (model.preprocessing.frames, model.preprocessing.crop) == (frames, 32)
    assert model.preprocessing.classes == ("a", "b")
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    torch.testing.assert_close(model.normalize(pixels)[0, :, 0, 0], (1 - mean) / std)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("c2d/resnet51", {}, "timm has no model 'resnet51'; did you mean"),
        ("tsm/vgg11", {}, "no residual branch of vgg11 begins with a convolution, .*: c2d/vgg11"),
        ("tsm/densenet121", {}, "no residual branch of densenet121"),
        ("tsm/vit_tiny_patch16_224", {}, "no residual branch of vit_tiny_patch16_224"),
        ("c2d/vit_tiny_patch16_224", {"non_local": "nl5"}, "passes tokens"),
        ("c2d/swin_tiny_patch4_window7_224", {"non_local": "nl1"}, "passes tokens"),
        ("c2d/resnet18", {"non_local": "layer9:1"}, "has no place 'layer9'"),
        ("c2d/resnet18", {"features_only": True}, "has no head for the frames' scores"),
        ("c2d/resnet18", {"pretrained": "timm/resnet34"}, "weights of another network than c2d/r"),
    ],
)
def test_what_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(name, **options)


def test_an_image_is_no_clip():
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\); got shape \(2, 3, 64, 64\)"):
        small(non_local=None)(torch.zeros(2, 3, 64, 64))


def test_tokens_are_folded_too():
    """Without blocks any network of timm's is one for clips."""
    model = create_model("c2d/vit_tiny_patch16_224", num_classes=3, img_size=32).eval()
    with torch.no_grad():
        features = model.forward_features(clips(3, side=32))
        assert features.shape == (2, 5, 3, 192)
        assert torch.equal(model.forward_head(features), model(clips(3, side=32)))
