"""Detectors are torchvision's, with torchvision's weights, until a block says something."""

import re

import pytest
import torch
from tiers import marked
from torch import nn
from torchvision.models import detection as tv
from torchvision.models import resnet50
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from nlzoo import NonLocalBlock, create_model, list_models, load_model
from nlzoo.models import save_model
from nlzoo.preprocessing import Preprocessing
from nlzoo.weights.torchvision import COCO
from nlzoo.weights.zoo import read_zoo

RCNN = {"rpn_post_nms_top_n_test": 60, "box_score_thresh": 0.0, "box_detections_per_img": 8}
SIZES = {"min_size": 96, "max_size": 160}
SMALL = {"channels": 32, "hidden": 64, "head": [32, 32], "norm": "batch", "trainable": 5, **SIZES}
THEIRS = {
    "mask_rcnn_resnet50_fpn": tv.MaskRCNN,
    "mask_rcnn_resnet50_fpn_v2": tv.maskrcnn_resnet50_fpn_v2,
    "keypoint_rcnn_resnet50_fpn": tv.KeypointRCNN,
}
OLD = (  # the layout of the published files of version 1
    (r"(_blocks\.\d)\.0\.", r"\1."),
    (r"head\.conv\.0\.0\.", "head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}."),
)


def images():
    torch.manual_seed(1)
    return [torch.rand(3, 100, 150), torch.rand(3, 120, 90)]


def torchvisions(name):
    """Random weights, statistics too."""
    torch.manual_seed(0)
    build = THEIRS[name]
    if isinstance(build, type):
        body = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 3)
        model = build(body, 2 if "keypoint" in name else 91, **SIZES, **RCNN)
    else:
        model = build(weights=None, weights_backbone=None, **SIZES, **RCNN)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.8, 1.5)
        elif key.endswith("running_mean"):
            tensor.normal_(std=0.1)
    return model.eval()


def old(state):
    renamed = {}
    for key, tensor in state.items():
        for new, before in OLD:
            key = re.sub(new, before, key)
        renamed[key] = tensor
    return renamed


def blocks(model):
    return [m for m in model.modules() if isinstance(m, NonLocalBlock)]


@pytest.mark.parametrize("name", marked(THEIRS, ["mask_rcnn_resnet50_fpn"]))
def test_published_weights_give_torchvisions_outputs_to_the_bit(name, tmp_path):
    theirs = torchvisions(name)
    second = name.endswith("v2")
    torch.save(theirs.state_dict() if second else old(theirs.state_dict()), tmp_path / "w.pth")
    if not second:
        overwrite_eps(theirs, 0.0)  # as torchvision does with its files
    with pytest.warns(UserWarning, match="has no non-local blocks"):
        ours = create_model(f"{name}_nl1", pretrained=tmp_path / "w.pth", rcnn=RCNN, **SIZES).eval()
    added = ours.state_dict().keys() - theirs.state_dict().keys()
    assert theirs.state_dict().keys() <= ours.state_dict().keys()
    assert {key.partition(".non_local.")[0] for key in added} == {"backbone.body.layer3.4"}
    wanted, same = theirs(images()), ours(images())
    for a, b in zip(wanted, same, strict=True):
        assert len(a["boxes"]) == RCNN["box_detections_per_img"]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    nn.init.normal_(blocks(ours)[0].out.weight, std=0.1)
    for a, b in zip(wanted, ours(images()), strict=True):
        assert not torch.equal(a["boxes"], b["boxes"])
        assert not torch.equal(a["scores"], b["scores"])


@pytest.mark.parametrize(("name", "tensors"), [("faster", 295), ("mask", 307), ("keypoint", 313)])
def test_layout_of_version_1(name, tensors):
    with torch.device("meta"):
        state = create_model(f"{name}_rcnn_resnet50_fpn").state_dict()
    assert len(state) == tensors


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("mask_rcnn_resnet18_fpn_nl1", ["backbone.body.layer3.0"]),
        ("mask_rcnn_resnet50_fpn_nl1", ["backbone.body.layer3.4"]),
        ("faster_rcnn_resnet101_fpn_nl1", ["backbone.body.layer3.21"]),
        ("mask_rcnn_resnext152_32x8d_fpn_nl1", ["backbone.body.layer3.34"]),
        (
            "keypoint_rcnn_resnet101_fpn_nl4head_nl1",
            ["backbone.body.layer3.21", *(f"roi_heads.keypoint_head.{i}" for i in (3, 7, 11, 15))],
        ),
    ],
)
def test_blocks_are_where_the_paper_has_them(name, places):
    with torch.device("meta"):
        model = create_model(name)
    found = [n for n, m in model.named_modules() if isinstance(m, NonLocalBlock)]
    assert found == [f"{place}.non_local" for place in places]
    assert all(block.norm is None for block in blocks(model))


def test_what_trains():
    with torch.device("meta"):
        model = create_model("mask_rcnn_resnet50_fpn_nl1", trainable=0)
        usual = create_model("mask_rcnn_resnet50_fpn_nl1")
    frozen = {n for n, p in model.backbone.body.named_parameters() if not p.requires_grad}
    assert {n for n, _ in model.backbone.body.named_parameters()} - frozen == {
        f"layer3.4.non_local.{n}" for n, _ in blocks(model)[0].named_parameters()
    }
    frozen = {
        n.split(".")[0] for n, p in usual.backbone.body.named_parameters() if not p.requires_grad
    }
    assert frozen == {"conv1", "layer1"}


def test_a_frozen_network_from_nothing_has_live_branches():
    body = create_model("mask_rcnn_resnet18_fpn", **{**SMALL, "norm": "frozen"}).backbone.body
    norms = [m for m in body.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms
    assert all(norm.weight.abs().min() > 0 for norm in norms)


def test_a_file_of_ours_is_whole(tmp_path):
    pre = Preprocessing(frames=0, classes=("cat", "dog"), category_ids=(3, 7), task="detection")
    model = create_model("mask_rcnn_resnet18_fpn_nl1", preprocessing=pre, **SMALL).eval()
    nn.init.normal_(blocks(model)[0].out.weight, std=0.1)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.preprocessing == model.preprocessing
    assert loaded.preprocessing.category_ids == (3, 7)
    assert (loaded.preprocessing.test_size, loaded.preprocessing.test_crop) == (96, 160)
    assert loaded.spec == model.spec
    for a, b in zip(model(images()), loaded(images()), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_rows_of_cocos_classes_are_kept(tmp_path):
    theirs = create_model("mask_rcnn_resnet18_fpn", **SMALL)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    pre = Preprocessing(frames=0, classes=("dog", "person"), task="detection")
    own = {"pretrained": tmp_path / "w.pth", **SMALL}
    ours = create_model("mask_rcnn_resnet18_fpn", preprocessing=pre, **own)
    rows = [0, 18, 1]  # background, dog, person
    a, b = theirs.roi_heads, ours.roi_heads
    assert torch.equal(a.box_predictor.cls_score.weight[rows], b.box_predictor.cls_score.weight)
    boxes = a.box_predictor.bbox_pred.bias.view(91, 4)[rows].flatten()
    assert torch.equal(boxes, b.box_predictor.bbox_pred.bias)
    masks = a.mask_predictor.mask_fcn_logits.weight[rows]
    assert torch.equal(masks, b.mask_predictor.mask_fcn_logits.weight)
    same = Preprocessing(frames=0, classes=tuple(COCO[1:]), task="detection")
    whole = create_model("mask_rcnn_resnet18_fpn", preprocessing=same, **own)
    assert all(torch.equal(whole.state_dict()[k], t) for k, t in theirs.state_dict().items())
    other = Preprocessing(frames=0, classes=("gnu",), task="detection")
    with pytest.warns(UserWarning, match="the classifier starts fresh"):
        create_model("mask_rcnn_resnet18_fpn", preprocessing=other, **own)


@pytest.mark.parametrize(
    ("pretrained", "refused"),
    [(True, ValueError), ("coco_v1_torchvision", FileNotFoundError)],
)
def test_published_weights_are_asked_for_by_name(pretrained, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    file = r"mask_rcnn_resnet50_fpn_v2\.coco_v1_torchvision\.pth .*mask.*coco-73cbd019\.pth"
    with pytest.raises(FileNotFoundError, match=file):
        create_model("mask_rcnn_resnet50_fpn_v2_nl1", pretrained=pretrained)
    with pytest.raises(refused, match="no published weights"):
        create_model("mask_rcnn_resnet101_fpn", pretrained=pretrained)


PUBLISHED = [e for e in read_zoo().values() if e.dialect == "torchvision"]


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_a_published_row_is_a_network(entry):
    """As its weights want it, and without them where they are not asked for."""
    with torch.device("meta"):
        model = create_model(entry.name)
    assert entry.name in list_models("*rcnn*", pretrained=True)
    assert model.spec["name"] == entry.name.partition(".")[0]
    assert model.num_classes == (1 if "keypoint" in entry.name else 90)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(float(entry.params_M), abs=1e-3)
    frozen = [m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert bool(frozen) == ("_v2" not in entry.name)
    assert set(frozen) <= {1e-5 if "legacy" in entry.name else 0.0}
    assert model.preprocessing.classes == tuple(COCO[1 : model.num_classes + 1])
    assert COCO[model.preprocessing.category_ids[0]] == "person"
    for key in ("mean", "std", "frames", "task", "test_size", "test_crop", "category_ids"):
        assert getattr(model.preprocessing, key) == getattr(entry.preprocessing(), key)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of rows, with weights from nothing."""
    made = {}
    for row in ("mask_rcnn_resnet50_fpn.coco_v1", "keypoint_rcnn_resnet50_fpn.coco_legacy"):
        torch.manual_seed(0)
        name = f"{row}_torchvision"
        made[name] = tmp_path_factory.mktemp("files") / "w.pth"
        torch.save(create_model(name).state_dict(), made[name])
    return made


@pytest.fixture
def fetched(published, monkeypatch):
    monkeypatch.setattr("nlzoo.sources.fetch_entry", lambda entry: published[entry.name])
    return published


MASK = "mask_rcnn_resnet50_fpn.coco_v1_torchvision"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (MASK, {}),
        ("mask_rcnn_resnet50_fpn_nl1", {}),
        ("mask_rcnn_resnet50_fpn", {"non_local": "nl1"}),
        (MASK, {"non_local": {"places": "layer3:4"}}),
    ],
)
def test_published_weights_are_loaded(name, options, fetched, recwarn):
    model = create_model(name, pretrained=True, **options)
    state = torch.load(fetched[MASK], weights_only=True)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())
    assert len(blocks(model)) == (name != MASK or bool(options))
    fresh = [w for w in recwarn if "no non-local blocks: they start fresh" in str(w.message)]
    assert [w.filename for w in fresh] == [__file__] * len(blocks(model))
    assert (len(model.preprocessing.classes), model.preprocessing.classes[17]) == (90, "dog")
    assert {m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}


def test_published_weights_for_other_classes(fetched):
    with pytest.warns(UserWarning, match="the classifier starts fresh"):
        model = create_model("mask_rcnn_resnet50_fpn", pretrained=True, num_classes=5)
    assert model.num_classes == 5
    assert (model.preprocessing.classes, model.preprocessing.category_ids) == ((), ())


def test_the_older_file_of_keypoints_has_its_own_eps(fetched):
    tag = "coco_legacy_torchvision"
    model = create_model("keypoint_rcnn_resnet50_fpn_nl4head", pretrained=tag)
    assert {m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)} == {1e-5}
    assert model.preprocessing.classes == ("person",)


def test_a_file_has_its_own_classes_whatever_its_row_has(tmp_path):
    torch.save(create_model("mask_rcnn_resnet50_fpn", num_classes=3).state_dict(), tmp_path / "w")
    model = create_model(MASK, pretrained=tmp_path / "w")
    assert (model.num_classes, model.preprocessing.classes) == (3, ())


def test_a_backbone_alone(tmp_path):
    body = create_model("resnet18", num_classes=3)
    torch.save(body.state_dict(), tmp_path / "w.pth")
    model = create_model("mask_rcnn_resnet18_fpn", pretrained=tmp_path / "w.pth", **SMALL)
    assert torch.equal(model.backbone.body.layer4[1].conv2.weight, body.layer4[1].conv2.weight)


def test_images_of_bytes_are_those_in_0_to_1():
    model = create_model("mask_rcnn_resnet18_fpn", **SMALL).eval()
    x = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)]
    a, b = model(x)[0], model([x[0] / 255])[0]
    assert torch.equal(a["boxes"], b["boxes"])


def test_under_autocast_what_holds_coordinates_stays_float32():
    torch.manual_seed(0)
    sizes = {"min_size": 256, "max_size": 512}
    model = create_model("mask_rcnn_resnet18_fpn_nl1", **{**SMALL, **sizes}, rcnn=RCNN).eval()
    nn.init.normal_(blocks(model)[0].out.weight, std=0.1)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.05)
    x = torch.rand(1, 3, 256, 512)
    found = {}
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
            inputs, _ = model.transform(list(x))
            maps = model.backbone(inputs.tensors)
            anchors = model.rpn.anchor_generator(inputs, list(maps.values()))
            _, deltas = model.rpn.head(list(maps.values()))
            proposals, _ = model.rpn(inputs, maps)
            detections = model(list(x))[0]
        assert all(v.dtype in (torch.float32, torch.int64) for v in detections.values())
        assert proposals[0].dtype == anchors[0].dtype == torch.float32
        found[bf16] = decoded(model, anchors, deltas), boxes(model, maps, inputs)
    for a, b in zip(found[False], found[True], strict=True):
        assert (a - b).abs().flatten().quantile(0.99) < 0.5
    assert not torch.equal(found[False][0], found[True][0])  # bfloat16 it was


def decoded(model, anchors, deltas):
    """Every anchor's box, before any choice."""
    flat = torch.cat(
        [d.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4) for d in deltas]
    )
    return model.rpn.box_coder.decode(flat.float(), anchors)[:, 0]


def boxes(model, maps, inputs):
    """The boxes of the same proposals."""
    torch.manual_seed(0)
    corner = torch.rand(200, 2) * 200
    given = [torch.cat([corner, corner + 20 + torch.rand(200, 2) * 50], 1)]
    heads = model.roi_heads
    pooled = heads.box_roi_pool(maps, given, inputs.image_sizes)
    _, deltas = heads.box_predictor(heads.box_head(pooled))
    return heads.box_coder.decode(deltas, given)


def test_a_key_mask_knows_the_sizes_of_the_images():
    options = {"key_mask": True, "zero_init": False}
    model = create_model("mask_rcnn_resnet18_fpn_nl1", non_local=options, **SMALL).eval()
    seen = []
    blocks(model)[0].register_forward_hook(lambda m, i, o: seen.extend(i[1:]))
    model([torch.rand(3, 96, 97), torch.rand(3, 96, 128)])
    assert seen[0].shape == (2, 6, 8)  # of 96 x 128 pixels, a sixteenth
    assert seen[0][1].all()
    assert torch.equal(seen[0][0].all(0), torch.tensor([True] * 7 + [False]))
    assert model.backbone(torch.rand(1, 3, 96, 96))["0"].shape == (1, 32, 24, 24)


def test_names():
    names = list_models("*rcnn*")
    assert "mask_rcnn_resnet50_fpn_v2_nl5" in names
    assert "keypoint_rcnn_resnet101_fpn_nl4head_nl1" in names
    assert not [name for name in names if "mask" in name and "head" in name]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mask_rcnn_resnet50_fnp", {}, "mask_rcnn_resnet50_fpn"),
        ("mask_rcnn_resnet18_fpn", {"widht": 3}, "model argument 'widht'"),
        ("mask_rcnn_resnet18_fpn", {"norm": "froze"}, "model argument norm 'froze'; did you mean"),
        ("mask_rcnn_resnet18_fpn", {"trainable": "3"}, "trainable = '3': expected int"),
        ("mask_rcnn_resnet18_fpn", {"num_classes": 0}, "num_classes = 0: expected a whole number"),
        ("mask_rcnn_resnet18_fpn", {"trainable": 6}, "trainable = 6: expected 0 to 5"),
        ("mask_rcnn_resnet18_fpn_nl1", {"non_local": ""}, 'name places, as in "before_last:3"'),
        ("mask_rcnn_resnet18_fpn", {"rcnn": {"rpn_nms": 1}}, "unknown option of rcnn .rpn_nms."),
        ("mask_rcnn_resnet18_fpn", {"rcnn": {"rpn_nms_thresh": "1"}}, "give all of it"),
        ("mask_rcnn_resnet18_fpn", {"non_local": "nl4head"}, "no keypoint head"),
        ("mask_rcnn_resnet18_fpn", {"pretrained": "timm/resnet34.a1_in1k"}, "another network"),
    ],
)
def test_wrong_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)
