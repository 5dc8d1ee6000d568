"""timm's backbones with blocks: places by name and stage, and nothing of timm's is lost."""

import socket
import warnings

import huggingface_hub.constants
import pytest
import timm
import torch
from tiers import marked

import nlzoo
from nlzoo.blocks import NonLocalBlock
from nlzoo.export.onnx import export_onnx
from nlzoo.models import create_model, list_models, load_model, save_model
from nlzoo.networks.image import image_model, places_for

FAMILIES = [
    "resnet18",
    "resnext50_32x4d",
    "regnety_004",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "convnext_atto",
    "convnextv2_atto",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "vgg11_bn",
    "densenet121",
    "res2net50_14w_8s",
    "resnest14d",
    "cspresnet50",
    "inception_v3",
    "resnetv2_50",
    "darknet53",
    "nfnet_l0",
    "gernet_s",
    "dpn68",
    "poolformer_s12",
    "hgnetv2_b0",
    "mixnet_s",
    "tresnet_m",
    "hardcorenas_a",
    "skresnet18",
    "edgenext_xx_small",
    "rexnet_100",
    "dla34",
    "ghostnet_100",
    "ese_vovnet19b_dw",
]


def size(model):
    return 128 if model.preprocessing.crop <= 256 else 160


def images(model, batch=2):
    side = size(model)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)


def blocks_of(model):
    return [m for m in model.modules() if isinstance(m, NonLocalBlock)]


def test_patterns_are_the_paper_s():
    """Section 4.1, and the released code: every second block of ResNet-50, every seventh of 101."""
    with torch.device("meta"):
        r50, r101 = image_model("resnet50"), image_model("resnet101")
    assert places_for(r50, "nl1") == places_for(r50, "before_last:3") == "layer3:4"
    assert places_for(r50, "nl5") == "layer2:1,3 layer3:1,3,5"
    assert places_for(r50, "nl10") == "layer2:0,1,2,3 layer3:0,1,2,3,4,5"
    assert places_for(r101, "nl5") == "layer2:1,3 layer3:6,13,20"
    assert places_for(r50, "layer2:1 before_last:4") == "layer2:1 layer4:1"


@pytest.mark.parametrize("name", marked(FAMILIES, FAMILIES[:2], FAMILIES[2:9]))
def test_protocol_and_bit_identity(name):
    """With fresh blocks: the same bits in both layouts, the same keys, and timm's own methods."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = create_model(f"timm/{name}", num_classes=5).eval()
        model = create_model(f"timm/{name}", num_classes=5, non_local="nl5").eval()
    keys = {k for k in model.state_dict() if ".non_local." not in k}
    assert keys == set(plain.state_dict()) == set(timm.create_model(name).state_dict())
    model.load_state_dict(plain.state_dict(), strict=False)
    found = blocks_of(model)
    assert found
    x = images(model)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            plain.to(memory_format=layout)
            model.to(memory_format=layout)
            assert torch.equal(model(x), plain(x))
        features = model.forward_features(model.normalize(x))
        assert features.shape[1] == model.num_features
        assert torch.equal(model.forward_head(features), model(x))
    model.train()(x).sum().backward()
    assert all(b.norm.weight.grad.abs().sum() > 0 for b in found)
    model.reset_classifier(3)
    assert model.eval()(x).shape == (2, 3)
    assert model.preprocessing.crop == model.default_cfg["input_size"][-1]


@pytest.mark.parametrize("name", marked(FAMILIES, slow=["dla34"]))
def test_export(tmp_path, name):
    """With blocks that do something, in float32."""
    torch.manual_seed(0)
    model = create_model(f"timm/{name}", num_classes=5, non_local="nl5").eval()
    for norm in model.modules():
        gamma = getattr(norm, "weight", None)
        if gamma is not None and gamma.ndim == 1 and not gamma.any():
            torch.nn.init.constant_(gamma, 0.1)  # scores of random networks choose single keys
    shape = 2, 3, size(model), size(model)
    assert export_onnx(model, tmp_path / "m.onnx", shape=shape).relative_l2 <= 1e-5


@pytest.mark.parametrize("name", ["pvt_v2_b0", "gcvit_xxtiny"])
def test_stages_of_tokens_end_in_maps(name):
    with torch.device("meta"):
        blocks = blocks_of(create_model(f"timm/{name}", non_local="nl5"))
    widths = {"pvt_v2_b0": [64, 160], "gcvit_xxtiny": [128, 256]}
    assert [block.out.out_channels for block in blocks] == widths[name]


def test_what_timm_can_do(tmp_path):
    model = create_model("resnet18_nl5", num_classes=4).eval()
    for block in blocks_of(model):
        torch.nn.init.normal_(block.norm.weight)
    x = images(model)
    model.set_grad_checkpointing()
    model.train()(x).sum().backward()
    assert all(b.theta.weight.grad is not None for b in blocks_of(model))
    model.eval().zero_grad()
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(torch.compile(model, backend="eager")(x), wanted)
    maps = create_model("resnet18_nl5", features_only=True)(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert create_model("resnet18_nl1", num_classes=0)(x).shape == (2, 512)
    save_model(model, tmp_path / "own.safetensors")
    loaded = load_model(tmp_path / "own.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), wanted)
    assert loaded.spec == model.spec


def test_names():
    names = list_models("resnet*_nl*")
    assert {"resnet50_nl1", "resnet50_nl5", "resnet101_nl10", "resnet18_nl5"} <= set(names)
    for name, count in (("resnet18", 0), ("resnet18_nl1", 1), ("resnet50_nl5", 5)):
        with torch.device("meta"):
            assert len(blocks_of(create_model(name))) == count


def test_a_file_of_timm_s(tmp_path):
    theirs = timm.create_model("resnet18", num_classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    with pytest.warns(UserWarning, match="has no non-local blocks: they start fresh"):
        model = create_model("resnet18_nl5", pretrained=tmp_path / "theirs.pth").eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), theirs(x))
    with pytest.raises(ValueError, match="of features_only, takes no file: load the whole network"):
        create_model("resnet18", pretrained=tmp_path / "theirs.pth", features_only=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/resnet51", {}, "timm has no model 'resnet51'; did you mean"),
        ("resnet50_nl7", {}, "unknown model 'resnet50_nl7'; did you mean"),
        ("timm/resnet18", {"dropout": 1}, "unexpected keyword argument 'dropout'"),
        ("timm/vit_tiny_patch16_224", {"non_local": "nl5"}, "passes tokens"),
        ("timm/swin_tiny_patch4_window7_224", {"non_local": "nl1"}, "passes tokens"),
        ("timm/mixer_s32_224", {"non_local": "blocks:1"}, "returns tokens"),
        (
            "timm/mixer_s32_224",
            {"non_local": "nl5"},
            "no stage 2, of maps 1/8 as wide as the image",
        ),
        ("timm/coat_tiny", {"non_local": "nl5"}, "no stage 2, .*; it has none: name places"),
        ("timm/hrnet_w18_small", {"non_local": "nl1"}, "no stage 3, .*; it has none: name places"),
        ("timm/resnet18", {"non_local": "nl7"}, "unknown pattern of blocks 'nl7'; did you mean"),
        ("tsm/vit_tiny_patch16_224", {}, "give one that has them, such as tsm/resnet50"),
        ("timm/tiny_vit_5m_224", {"non_local": "stages.1.blocks:0"}, "maps \\(B, H, W, C\\)"),
        ("timm/levit_128s", {"non_local": {"places": ["stages.0.blocks.0"]}}, "returns tokens"),
        ("timm/resnet50.foo", {}, "timm has no weights 'resnet50.foo'"),
        ("timm/resnet18", {"non_local": "before_last:7"}, "unknown stage '7'"),
        ("timm/resnet18", {"non_local": "layer9:1"}, "has no place 'layer9'"),
    ],
)
def test_what_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(name, **options)


def test_timm_is_not_asked_offline(monkeypatch):
    """Without its retries: a connection would be an error of another class."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network is used"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name is looked up"))
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    with pytest.raises(OSError, match=r"weights of timm/resnet26t \(NLZOO_OFFLINE is set\)"):
        image_model("resnet26t", pretrained=True)


def test_costs_are_reported():
    with torch.device("meta"):
        model = image_model("resnet50")
        report = nlzoo.insert_non_local(model, places_for(model, "nl5"))
    sizes = [(b.channels, b.queries, b.keys) for b in report.blocks]
    assert sizes == [(512, 784, 196)] * 2 + [(1024, 196, 49)] * 3
