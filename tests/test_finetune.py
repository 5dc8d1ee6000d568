"""Starting from published weights: by name, by tag, from a file, with other classes and clips."""

import warnings

import pytest
import torch
from spoken import speak

import nlzoo
from nlzoo.models import create_model, list_models, load_model, save_model
from nlzoo.preprocessing import Preprocessing
from nlzoo.weights.zoo import find

OFFICIAL = "i3d_r50_nl5.k400_32x2_official"
BASELINE = "i3d_r50.k400_32x2_official"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that has the files of two rows, of narrow networks."""
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NLZOO_MIRROR", str(tmp_path))
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    models = {}
    for name in (OFFICIAL, BASELINE):
        torch.manual_seed(0)
        models[name] = create_model(name, width=8)
        for parameter in models[name].parameters():
            if parameter.ndim < 2:
                torch.nn.init.normal_(parameter, 0.3, 0.1)
        state = speak("caffe2", models[name].state_dict())
        torch.save(state, tmp_path / find(name).file)
    return models


@pytest.fixture(autouse=True)
def _licences():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "i3d.*: licence CC-BY-NC-4.0")
        yield


def same(model, other, but="none"):
    """Whether a model has all tensors of another one, but for those of a part."""
    a, b = model.state_dict(), other.state_dict()
    return all(torch.equal(a[k], b[k]) for k in b if not k.startswith(but))


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [(OFFICIAL, True), ("i3d_r50_nl5", True), ("i3d_r50_nl5", "k400_32x2_official")],
)
def test_names_and_tags(mirror, name, pretrained):
    model = create_model(name, pretrained=pretrained, width=8)
    assert same(model, mirror[OFFICIAL])
    assert (model.preprocessing.frames, model.preprocessing.stride) == (32, 2)
    assert model.preprocessing.classes[129] == "flipping pancake"
    assert model.spec["name"] == "i3d_r50_nl5"


def test_a_licence_that_is_not_for_commerce_is_said(mirror):
    licence = "i3d_r50_nl5.k400_32x2_official: licence CC-BY-NC-4.0"
    with pytest.warns(UserWarning, match=licence) as told:
        create_model(OFFICIAL, pretrained=True, width=8)
    assert told[0].filename == __file__


def test_other_classes_start_a_fresh_classifier(mirror):
    with pytest.warns(UserWarning, match="the classifier starts fresh"):
        model = create_model("i3d_r50_nl5", pretrained=OFFICIAL, num_classes=157, width=8)
    assert same(model, mirror[OFFICIAL], but="head.")
    assert model.get_classifier().out_features == 157


def test_long_clips_from_short_ones(mirror):
    """The released 128 x 1 networks start from the 32 x 2 baseline, blocks without a norm."""
    long = Preprocessing(frames=128, stride=1)
    blocks = {"norm": None, "res3": {"groups": 4}}
    with pytest.warns(UserWarning, match="has no non-local blocks: they start fresh"):
        model = create_model(
            "i3d_r50_nl5", pretrained=BASELINE, non_local=blocks, preprocessing=long, width=8
        )
    assert same(model, mirror[BASELINE])
    assert model.preprocessing.frames == 128
    found = [m for m in model.modules() if isinstance(m, nlzoo.NonLocalBlock)]
    assert [block.groups for block in found] == [4, 4, None, None, None]
    assert all(block.norm is None for block in found)
    same_blocks = create_model("i3d_r50_nl5", pretrained=OFFICIAL, preprocessing=long, width=8)
    assert same(same_blocks, mirror[OFFICIAL])


def test_charades_from_kinetics(mirror):
    """One row's network from another row's weights."""
    name = "i3d_r50_nl5.charades_32x4_lfb"
    with pytest.warns(UserWarning, match="the classifier starts fresh"):
        model = create_model(name, pretrained=OFFICIAL, num_classes=157, width=8)
    assert same(model, mirror[OFFICIAL], but="head.")
    assert model.spec["arch"]["geometry"] == "lfb"
    assert model.get_submodule("res3.1.non_local").groups == 4
    assert (model.preprocessing.frames, len(model.preprocessing.classes)) == (32, 157)


def test_a_row_from_photographs(tmp_path):
    """The row says what the network is, the file how its blocks are."""
    images = create_model("resnet50_nl5", num_classes=3, non_local={"scale": 0.5})
    save_model(images, path := tmp_path / "images.safetensors")
    model = create_model("i3d_r50_nl5.k400_8x8_pyslowfast", pretrained=path)
    assert model.spec["arch"]["geometry"] == "slowfast"
    assert (model.num_classes, model.preprocessing.frames) == (400, 8)
    assert model.get_submodule("res3.1.non_local").scale == 0.5
    theirs = images.get_submodule("layer2.1.non_local.theta").weight
    assert torch.equal(model.get_submodule("res3.1.non_local.theta").weight, theirs.unsqueeze(2))


def test_input_is_scaled_as_the_weights_want_it(tmp_path):
    name = "i3d_r50.k400_32x2_mmaction2"
    state = speak("mmaction2", create_model(name, width=8).state_dict())
    torch.save(state, tmp_path / "theirs.pth")
    seen = Preprocessing(frames=8, stride=4, classes=("a", "b"))
    with pytest.warns(UserWarning, match="geometry 8x8: the weights were trained in geometry mma"):
        create_model(name, pretrained=tmp_path / "theirs.pth", geometry="8x8", width=8)
    with pytest.warns(UserWarning, match="classifier starts fresh"):
        model = create_model(
            name, pretrained=tmp_path / "theirs.pth", num_classes=2, preprocessing=seen, width=8
        )
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (model.preprocessing.frames, model.preprocessing.classes) == (8, ("a", "b"))
    assert model.normalize.shift[0] == pytest.approx(-0.485 / 0.229)


def test_any_other_mismatch_is_an_error(mirror, tmp_path):
    with pytest.raises(ValueError, match=r"res3\.0\.non_local\.g\.bias: file missing"):
        create_model("i3d_r50_nl10", pretrained=OFFICIAL, width=8)
    with pytest.raises(ValueError, match="is of another architecture"):
        create_model("c2d_r50", pretrained=BASELINE, width=8)
    path = tmp_path / find(BASELINE).file
    with pytest.raises(ValueError, match=r"non_local\.g\.bias: file missing"):
        create_model(OFFICIAL, pretrained=path, width=8)  # a row has all that it says


def test_what_is_not_there(mirror, monkeypatch):
    with pytest.raises(ValueError, match=r"weights .*_offical.; did you"):
        create_model("i3d_r50.k400_32x2_offical")
    with pytest.raises(ValueError, match="no published weights for i3d333_r50"):
        create_model("i3d333_r50", pretrained=True)
    with pytest.raises(ValueError, match="cannot be built: MXNet's own format"):
        create_model("i3d_r50.k400_32x2_mxnet")
    with pytest.raises(ValueError, match="no file to download: no file is published"):
        create_model("slow_r50_nl5.k400_8x8_pyslowfast", pretrained=True)
    with pytest.raises(FileNotFoundError, match="get it elsewhere, or set NLZOO_MIRROR"):
        create_model("c2d_r50", pretrained=True)
    with pytest.raises(
        FileNotFoundError,
        match=r"no weights file k400_32x2, and no published .*did you mean .c2d_r50.k400_32x2",
    ):
        create_model("c2d_r50", pretrained="k400_32x2")


def test_saved_models_know_what_they_are(mirror, tmp_path):
    model = create_model(OFFICIAL, pretrained=True, width=8).eval()
    save_model(model, tmp_path / "own.safetensors")
    loaded = load_model(tmp_path / "own.safetensors")
    assert loaded.preprocessing == model.preprocessing
    clip = torch.randn(1, 3, 8, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(clip), model(clip))
    with pytest.raises(ValueError, match=r"own\.pth: give NAME\.safetensors"):
        save_model(model, tmp_path / "own.pth")


def test_listed_names_are_those_with_files():
    names = list_models("i3d_r50_nl5.*", pretrained=True)
    assert OFFICIAL in names
    assert all(find(name).url and find(name).model == "i3d_r50_nl5" for name in names)


def test_options_of_one_stage():
    blocks = {"subsample": None, "res3": {"groups": 2}, "res4": {"form": "dot_product"}}
    model = create_model("i3d_r50_nl5", non_local=blocks, width=8)
    found = [m for m in model.modules() if isinstance(m, nlzoo.NonLocalBlock)]
    assert [block.groups for block in found] == [2, 2, None, None, None]
    assert [block.form for block in found[2:]] == ["dot_product"] * 3
    with pytest.raises(ValueError, match="unknown stage 'res5'"):
        create_model("i3d_r50_nl5", non_local={"res5": {"groups": 2}}, width=8)
