"""Every registered name through the same protocol; names, places and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiers import marked
from torch import Tensor, nn

import nlzoo
from nlzoo import NonLocalBlock, create_model, list_models, load_model
from nlzoo.models import save_model
from nlzoo.networks.video import VideoResNet
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, MODELS
from nlzoo.tasks.classification import Classification

TINY: dict[str, Any] = {"width": 8, "geometry": "8x8", "num_classes": 5}
SMALL = Preprocessing(frames=4, crop=32, classes=("run", "jump", "swim"), mean=(0.5, 0.4, 0.3))


def tiny(name: str = "i3d_r18_nl5", **options: Any) -> VideoResNet:
    torch.manual_seed(0)
    return create_model(name, **{**TINY, **options})


def clip(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def blocks_of(model: nn.Module) -> list[str]:
    places = [n for n, m in model.named_modules() if isinstance(m, NonLocalBlock)]
    return [name.removesuffix(".non_local") for name in places]


def of(stage: str, *indices: int) -> list[str]:
    return [f"{stage}.{i}" for i in indices]


# Paper section 4.1 and the released code; ours for ten blocks of ResNet-101, and for ResNet-18,
# whose two residual blocks a stage have room for 1, 2 and 4.
TSM_PLACES = ["res3.0", "res3.2", "res4.0", "res4.2", "res4.4"]  # MIT and mmaction2
PLACES = {
    "r18_nl1": of("res4", 0),
    "r18_nl5": of("res3", 1) + of("res4", 1),
    "r18_nl10": of("res3", 0, 1) + of("res4", 0, 1),
    "r50_nl1": of("res4", 4),
    "r50_nl5": of("res3", 1, 3) + of("res4", 1, 3, 5),
    "r50_nl10": of("res3", *range(4)) + of("res4", *range(6)),
    "r101_nl1": of("res4", 21),
    "r101_nl3": of("res4", 6, 13, 20),  # SlowFast
    "r101_nl5": of("res3", 1, 3) + of("res4", 6, 13, 20),
    "r101_nl10": of("res3", *range(4)) + of("res4", 3, 6, 10, 13, 17, 20),
}


def test_names() -> None:
    backbones = ["c2d", "i3d", "slow"]
    counts = ["", "_nl1", "_nl5", "_nl10"]
    wanted = {f"{b}_{d}{n}" for b in backbones for d in ("r18", "r50", "r101") for n in counts}
    wanted |= {f"i3d333_{d}{n}" for d in ("r50", "r101") for n in counts}
    wanted |= {f"resnet{d}{n}" for d in (18, 34, 50, 101, 152) for n in counts}
    wanted |= {"tsn_r50", "tsm_r50", "tsm_r50_nl5", "tsm_r101"}
    wanted |= {"slowfast_r50", "slowfast_r50_nl5", "slowfast_r101", "slowfast_r101_nl3"}
    wanted |= {f"resnet{d}_cifar10{n}" for d in (8, 20, 32, 44, 56) for n in ("", "_nl2")}
    assert set(list_models()) - set(DETECTORS) == wanted == set(MODELS)
    assert list_models() == sorted(list_models())


QUICK = [
    *("c2d_r18_nl1", "i3d_r18_nl5", "i3d333_r50", "slow_r18_nl10", "tsn_r50", "tsm_r50_nl5"),
    "slowfast_r50_nl5",
]


@pytest.mark.parametrize("name", marked(list_models("*_r[0-9]*"), QUICK))  # videos
def test_protocol(name: str) -> None:
    model = tiny(name)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    places = PLACES | {"r50_nl5": TSM_PLACES} if name.startswith("tsm") else PLACES
    assert blocks_of(model) == (places[name.partition("_")[2]] if "_nl" in name else [])
    assert isinstance(model.preprocessing, Preprocessing)
    assert (model.preprocessing.frames, model.preprocessing.stride) == (8, 8)

    model.eval()
    x = clip()
    with torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape[:2] == (2, model.num_features)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        logits = model(x)
        assert logits.shape == (2, model.num_classes) == (2, 5)
        assert torch.equal(logits, model.forward_head(features))
        assert logits.isfinite().all()
        assert model.get_classifier().out_features == 5

        twin = create_model(name, **TINY).eval()
        assert not torch.equal(twin(x), logits)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), logits)
        twin.reset_classifier(7)
        assert twin(x).shape == (2, 7)
        assert twin.get_classifier().out_features == 7
        twin.reset_classifier(0)
        assert torch.equal(twin(x), model.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("name", list_models("*_r[0-9]*_nl5"))
def test_blocks_start_as_the_identity_with_the_released_options(name: str) -> None:
    model, plain = tiny(name).eval(), tiny(name.removesuffix("_nl5")).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".non_local." not in k})
    assert torch.equal(model(clip()), plain(clip()))
    for block in (m for m in model.modules() if isinstance(m, NonLocalBlock)):
        assert (block.form, block.subsample) == ("embedded_gaussian", (1, 2, 2))
        assert block.scale == pytest.approx(block.inner**-0.5)
        assert (block.subsample_first, block.inner) == (True, block.channels // 2)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("c2d_r50*", ["c2d_r50", "c2d_r50_nl1", "c2d_r50_nl10", "c2d_r50_nl5"]),
        ("*_r18_nl1", ["c2d_r18_nl1", "i3d_r18_nl1", "slow_r18_nl1"]),
        ("i3d_r101", ["i3d_r101"]),
        ("x*", []),
    ],
)
def test_wildcards(pattern: str, names: list[str]) -> None:
    assert list_models(pattern) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "i3d_r50_n15"}, "unknown model 'i3d_r50_n15'; did you mean 'i3d_r50_nl5'"),
        ({"name": "qqq"}, "unknown model 'qqq'; there are c2d_r18"),
        ({"widht": 8}, "unknown model argument 'widht'; did you mean 'width'"),
        ({"kind": "c2d"}, "unknown model argument 'kind'"),
        ({"num_clases": 4}, "unknown model argument 'num_clases'; did you mean 'num_classes'"),
        ({"num_classes": -1}, "num_classes = -1: expected a whole number from 0"),
        ({"num_classes": "400"}, "num_classes = '400': expected a whole number from 0"),
        ({"geometry": "16x4"}, "unknown geometry '16x4'; there are paper, 32x2"),
        ({"non_local": "ers3:1"}, "no place 'ers3'; did you mean 'res3'"),
        ({"non_local": "res3:1,4"}, "'res3:4' does not exist: 'res3' has blocks 0 to 1"),
        ({"non_local": {"form": "gausian"}}, "did you mean 'gaussian'"),
        (
            {"non_local": {"place": "res3:1"}},
            "unknown block argument 'place'; did you mean 'places'",
        ),
        ({"name": "c2d_r18", "non_local": {}}, "has no place for a block; name places"),
        ({"pretrained": True}, "no published weights for i3d_r18_nl5; give a path or timm/NAME"),
        ({"pretrained": "timm/resnte18"}, "timm has no model 'resnte18'; did you mean 'resnet18'"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**{"name": "i3d_r18_nl5", **arguments})
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file nowhere\.ckpt"):
        tiny(pretrained="nowhere.ckpt")


def test_blocks_by_argument() -> None:
    assert blocks_of(tiny("c2d_r18", non_local="res2:0 res5:1")) == ["res2.0", "res5.1"]
    options = {"places": "res4:0", "form": "concatenation", "extent": "time"}
    model = tiny("c2d_r18_nl5", non_local=options)
    assert blocks_of(model) == ["res4.0"]
    block = model.res4[0].non_local
    assert (block.form, block.extent) == ("concatenation", "time")
    assert options["places"] == "res4:0"  # the caller's dict stays whole
    assert blocks_of(tiny("c2d_r18_nl5", non_local={"scale": 1.0})) == ["res3.1", "res4.1"]


@pytest.mark.parametrize(("depth", "before"), [(8, 0), (20, 1), (32, 3), (44, 5), (56, 7)])
def test_blocks_for_cifar(depth: int, before: int) -> None:
    """Right before the last residual block of stages 2 and 3, where there is more than one."""
    model = create_model(f"resnet{depth}_cifar10_nl2", width=4)
    assert blocks_of(model) == [f"layer2.{before}", f"layer3.{before}"]
    assert model.layer3[before].non_local.form == "embedded_gaussian"


def test_defaults() -> None:
    with torch.device("meta"):
        model = create_model("i3d_r50_nl5")
    assert model.num_classes == model.get_classifier().out_features == 400
    assert (model.preprocessing.frames, model.preprocessing.stride) == (32, 2)
    assert model.num_features == 2048
    assert model.res3[1].non_local.channels == 512
    assert tiny(num_classes=0).num_classes == 0


def test_image_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timm/NAME` inflates, without touching the blocks; the download is left out here."""
    import timm

    torch.manual_seed(1)
    twin = timm.create_model("resnet18", num_classes=1000)
    asked = []
    monkeypatch.setattr(
        nlzoo.assemble, "image_model", lambda name, pretrained: asked.append(name) or twin
    )
    model = create_model("i3d_r18_nl1", pretrained="timm/resnet18.tv_in1k", num_classes=5)
    assert asked == ["resnet18.tv_in1k"]
    weight = model.res3[1].branch2.conv_b.weight
    torch.testing.assert_close(weight.sum(2), twin.layer2[1].conv2.weight)
    assert blocks_of(model) == ["res4.0"]
    assert model.get_classifier().out_features == 5


def test_blocks_of_an_image_network_start_those_of_clips(tmp_path: Path) -> None:
    """Of a still clip every frame looks alike, so that blocks over time see what 2D ones did."""
    torch.manual_seed(2)
    images = create_model("resnet18_nl1", num_classes=3, non_local={"scale": 0.5}).eval()
    nn.init.normal_(images.layer3[0].non_local.norm.weight)
    save_model(images, path := tmp_path / "images.safetensors")
    clips = create_model("c2d/resnet18", pretrained=path).eval()
    x = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        still = x.unsqueeze(2).expand(-1, -1, 4, -1, -1)
        torch.testing.assert_close(clips(still), images(x), rtol=1e-4, atol=1e-4)
    block = create_model("i3d_r18_nl1", pretrained=path, num_classes=5).res4[0].non_local
    assert block.scale == 0.5
    theta = images.layer3[0].non_local.theta.weight
    assert torch.equal(block.theta.weight, theta.unsqueeze(2))
    with pytest.raises(ValueError, match=r"2D twin of this network: res4.0.non_local.g.bias"):
        create_model("i3d_r18", pretrained=path)
    with pytest.raises(ValueError, match=r"is of resnet18_nl1, whose weights resnet20_cifar10 can"):
        create_model("resnet20_cifar10", pretrained=path)


def checkpoint(path: Any, **options: Any) -> Classification:
    """A task with trained blocks, written as Lightning and the task write it."""
    torch.manual_seed(2)
    task = Classification(
        "i3d_r18_nl5",
        arch={"width": 8, "geometry": "8x8"},
        preprocessing=SMALL.to_dict(),
        **options,
    )
    for p in task.model.parameters():
        nn.init.normal_(p, std=0.1)
    content: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    torch.save(content, path)
    return task.eval()


def test_load_model_knows_everything(tmp_path: Any) -> None:
    options = {"places": "res3:0 res4:1", "form": "dot_product"}
    task = checkpoint(tmp_path / "last.ckpt", non_local=options)
    model = load_model(tmp_path / "last.ckpt")
    assert not any(m.training for m in model.modules())
    assert model.preprocessing == SMALL
    assert blocks_of(model) == ["res3.0", "res4.1"]
    assert model.res3[0].non_local.form == "dot_product"
    with torch.no_grad():
        assert torch.equal(model(clip()), task.model(clip()))
        pixels = (clip() * 40 + 128).clamp(0, 255).to(torch.uint8)
        assert torch.equal(model(pixels), task.model(pixels))  # mean and std are its own


def test_checkpoint_as_pretrained_weights(tmp_path: Any) -> None:
    task = checkpoint(tmp_path / "last.ckpt")
    model = create_model("i3d_r18_nl5", pretrained=tmp_path / "last.ckpt").eval()
    assert (model.num_classes, model.preprocessing) == (3, SMALL)
    with torch.no_grad():
        assert torch.equal(model(clip()), task.model(clip()))
    with pytest.warns(UserWarning, match="classifier starts fresh"):
        other = create_model("i3d_r18_nl5", pretrained=tmp_path / "last.ckpt", num_classes=9)
    assert other.get_classifier().out_features == 9
    assert torch.equal(other.res5[0].branch2.conv_a.weight, model.res5[0].branch2.conv_a.weight)
    with pytest.raises(ValueError, match=r"is of another architecture: .*model unknown"):
        create_model("i3d_r18", pretrained=tmp_path / "last.ckpt")
    refused = pytest.raises(ValueError, match=r"file \(8, .*model \(4, ")
    with pytest.warns(UserWarning, match="width 4: the weights were trained in width 8"), refused:
        create_model("i3d_r18_nl5", pretrained=tmp_path / "last.ckpt", width=4)


def test_what_is_not_given_is_as_it_was_trained(tmp_path: Any) -> None:
    """The forms have the same keys: the file has to say which one it is."""
    places = {"places": "res3:0", "form": "dot_product", "subsample": None}
    task = checkpoint(tmp_path / "first.ckpt", non_local=places)
    tuned = Classification(
        "i3d_r18_nl5", pretrained=str(tmp_path / "first.ckpt"), preprocessing=SMALL.to_dict()
    )
    saved: dict[str, Any] = {"state_dict": tuned.state_dict()}
    tuned.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "second.ckpt")
    for model in (tuned.model, load_model(tmp_path / "second.ckpt")):
        assert blocks_of(model) == ["res3.0"]
        assert model.spec["arch"] == {"width": 8, "geometry": "8x8"}
        with torch.no_grad():
            assert torch.equal(model.eval()(clip()), task.model(clip()))
    other = {"form": "embedded_gaussian"}
    with pytest.warns(UserWarning, match="blocks were trained with form dot_product") as told:
        create_model("i3d_r18_nl5", pretrained=tmp_path / "first.ckpt", non_local=other)
    assert told[0].filename == __file__  # where it was called


def test_weights_without_their_classifier(tmp_path: Any) -> None:
    checkpoint(tmp_path / "last.ckpt")
    model = create_model("i3d_r18_nl5", pretrained=tmp_path / "last.ckpt", num_classes=0)
    assert model(clip()).shape == (2, model.num_features)


def test_a_file_without_an_architecture_is_no_model(tmp_path: Any) -> None:
    torch.save(tiny().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"use create_model\(NAME, pretrained=PATH\)"):
        load_model(tmp_path / "plain.pt")


def test_preprocessing_travels_as_plain_values() -> None:
    values = SMALL.to_dict()
    assert Preprocessing.from_dict(values) == SMALL
    assert all(isinstance(v, int | float | str | list) for v in values.values())
    with pytest.raises(ValueError, match=r"unknown keys \['colour'\]"):
        Preprocessing.from_dict({**values, "colour": "RGB"})
