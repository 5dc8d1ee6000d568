"""ResNets for CIFAR: published predictions to the image, strict loading, the common protocol."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from shared import SHARED
from tiers import marked

from nlzoo import create_model, evaluate, load_model
from nlzoo.models import save_model
from nlzoo.networks.cifar import ResidualBlock
from nlzoo.registry import IMAGE
from nlzoo.weights.inspect import inspect

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "cifar10_resnets").is_dir(), reason=f"no trained networks in {DATA} (NLZOO_SHARED)"
)
FILES = {
    "resnet20_cifar10": "resnet20-12fca82f",
    "resnet32_cifar10": "resnet32-d509ac18",
    "resnet44_cifar10": "resnet44-014dd654",
    "resnet56_cifar10": "resnet56-4bfd9763",
}


def published(name):
    return DATA / "cifar10_resnets" / f"{FILES[name]}.th"


def images():
    """The 846 of the test set, uint8, and their labels."""
    strip = np.array(Image.open(DATA / "cifar10_part" / "test_first846.png"))
    labels = np.loadtxt(DATA / "cifar10_part" / "test_first846_labels.txt", dtype=int)
    return torch.from_numpy(strip).unflatten(0, (-1, 32)).permute(0, 3, 1, 2), labels


def tiny(name="resnet20_cifar10", **options):
    torch.manual_seed(0)
    return create_model(name, width=4, **options).eval()


def noise():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# -- the published networks ---------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", marked(FILES, ["resnet20_cifar10"]))
def test_predictions_are_the_published_ones(name):
    model = create_model(name, pretrained=published(name)).eval()
    pixels, labels = images()
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(1) for part in pixels.split(128)]).numpy()
    wrong = {str(i): int(predicted[i]) for i in np.flatnonzero(predicted != labels)}
    expected = json.loads((DATA / "cifar10_part" / "expected.json").read_text())["models"]
    assert wrong == expected[FILES[name]]["wrong"]
    assert len(labels) - len(wrong) == expected[FILES[name]]["correct"]


@needs_data
def test_new_blocks_change_no_bit():
    path = published("resnet20_cifar10")
    plain = create_model("resnet20_cifar10", pretrained=path).eval()
    with pytest.warns(UserWarning, match="has no non-local blocks: they start fresh"):
        model = create_model("resnet20_cifar10", pretrained=path, non_local="layer2:1 layer3:0,2")
    assert model.layer3[2].non_local.channels == 64
    pixels, _ = images()
    with torch.inference_mode():
        assert torch.equal(model.eval()(pixels[:100]), plain(pixels[:100]))


@needs_data
def test_another_number_of_classes():
    with pytest.warns(UserWarning, match="the classifier starts fresh"):
        model = create_model(
            "resnet20_cifar10", pretrained=published("resnet20_cifar10"), num_classes=100
        )
    assert model.get_classifier().out_features == model.num_classes == 100


@pytest.mark.parametrize(
    ("name", "parameters"), zip(FILES, (269_722, 464_154, 658_586, 853_018), strict=True)
)
def test_published_sizes(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == parameters


# -- what is computed ---------------------------------------------------------------------------


def test_shortcut_without_weights():
    """Every second pixel, zeros around the channels: option A."""
    block = ResidualBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def test_pixels_are_normalised():
    model, pixels = tiny(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        want = model((pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        torch.testing.assert_close(model(pixels), want)


@pytest.mark.parametrize("name", IMAGE)
def test_protocol(name):
    model, x = tiny(name), noise()
    assert (model.preprocessing.frames, model.preprocessing.crop) == (0, 32)
    assert model.spec == {"name": name, "arch": {"width": 4}, "non_local": None}
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, 8, 8)
        pooled = model.forward_head(features, pre_logits=True)
        assert torch.equal(pooled, features.mean((2, 3)))
        assert torch.equal(model(x), model.get_classifier()(pooled))
        model.reset_classifier(7)
        assert model(x).shape == (2, model.num_classes) == (2, 7)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
    tiny(name).train()(x).sum().backward()


# -- files --------------------------------------------------------------------------------------


def theirs(state):
    """As trained under DataParallel: a prefix, and no counters."""
    kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return {"state_dict": {f"module.{k}": v for k, v in kept.items()}, "best_prec1": 91.78}


@pytest.mark.parametrize("form", ["theirs", "plain", "wrapped", "safetensors"])
def test_wrapped_names_load(tmp_path, form):
    source = tiny(num_classes=7)
    state, path = source.state_dict(), tmp_path / "weights.th"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        wrapped = {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}}
        torch.save({"theirs": theirs(state), "plain": state, "wrapped": wrapped}[form], path)
    model = tiny(pretrained=path)
    assert model.num_classes == 7  # the file's
    with torch.no_grad():
        assert torch.equal(model(noise()), source(noise()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn1.weight": None}, r"bn1\.weight: file missing, model \(4,\)"),
        ({"linear.bias": None}, r"linear\.bias: file missing, model \(10,\)"),
        ({"layer4.0.conv1.weight": (8, 8, 3, 3)}, r"layer4\.0\.conv1\.weight: .*model unknown"),
        (
            {"layer1.0.conv1.weight": (4, 4, 1, 1)},
            r"layer1\.0\.conv1\.weight: file \(4, 4, 1, 1\), model \(4, 4, 3, 3\)",
        ),
        (
            {"layer1.0.bn1.weight": None, "layer1.0.norm1.weight": (4,)},
            r"layer1\.0\.bn1\.weight: file missing.*layer1\.0\.norm1\.weight: .*unknown",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_tensors_are_refused(tmp_path, change, message):
    changed = tiny().state_dict() | {k: v and torch.ones(v) for k, v in change.items()}
    state = {k: v for k, v in changed.items() if v is not None}
    torch.save(theirs(state), tmp_path / "weights.th")
    with pytest.raises(ValueError, match=message):
        tiny(pretrained=tmp_path / "weights.th")


def test_other_depths_are_refused(tmp_path):
    torch.save(theirs(tiny("resnet32_cifar10").state_dict()), tmp_path / "weights.th")
    with pytest.raises(ValueError, match=r"layer1\.3\.bn1\.bias: .*; and \d+ more"):
        tiny(pretrained=tmp_path / "weights.th")


@pytest.mark.parametrize("name", IMAGE)
def test_files_tell_their_network(tmp_path, name):
    model = tiny(name, num_classes=7, non_local="layer3:0")
    torch.save(theirs(model.state_dict()), tmp_path / "weights.th")
    found = inspect(tmp_path / "weights.th")
    assert (found["architecture"], found["classes"]) == (name, "7")
    with pytest.raises(ValueError, match=r"says nothing about its model; use create_model\(NAME"):
        load_model(tmp_path / "weights.th")


def test_saved_networks_know_everything(tmp_path):
    model = tiny(num_classes=7, non_local={"places": "layer2:1", "form": "dot_product"})
    torch.nn.init.ones_(model.layer2[1].non_local.norm.weight)
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert (loaded.spec, loaded.preprocessing) == (model.spec, model.preprocessing)
    with torch.no_grad():
        assert torch.equal(loaded(noise()), model(noise()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "8x8"}, "unknown model argument 'geometry'; there are width"),
        ({"depth": 8}, "unknown model argument 'depth'"),
        ({"non_local": "layer3:3"}, "'layer3:3' does not exist: 'layer3' has blocks 0 to 2"),
        ({"non_local": {}}, 'has no place for a block; name places, as in "'),
        ({"pretrained": "timm/resnet18"}, "timm has no weights for resnet20_cifar10; give a path"),
        ({"pretrained": True}, "no published weights for resnet20_cifar10; give a path"),
    ],
    ids=str,
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_a_clip_is_no_image():
    with pytest.raises(ValueError, match=r"\(B, C, H, W\); got shape \(2, 3, 4, 32, 32\)"):
        tiny()(torch.zeros(2, 3, 4, 32, 32))


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["", "_nl2"])
@pytest.mark.parametrize("name", FILES)
def test_evaluate_counts_what_is_published(name, blocks, tmp_path):
    """From files on the disk to the report; new blocks change no answer."""
    pixels, labels = images()
    names = (DATA / "cifar10_part" / "classes.txt").read_text().split()
    for i, (image, label) in enumerate(
        zip(pixels.permute(0, 2, 3, 1).numpy(), labels, strict=True)
    ):
        folder = tmp_path / "set" / "val" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    evaluate.main(
        [
            *("--recipe", "resnet20_nl_cifar10", "--task.model", name + blocks),
            *("--checkpoint", str(published(name)), "--data", str(tmp_path / "set")),
            *("--run", str(tmp_path)),
        ]
    )
    expected = json.loads((DATA / "cifar10_part" / "expected.json").read_text())["models"]
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["files_found"], result["correct"]) == (846, expected[FILES[name]]["correct"])
