"""Sets in COCO's format: what comes out of the loader is what is annotated, in every order."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from coco_sets import batches, module, train_items
from PIL import Image
from shared import SHARED
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor

from nlzoo.data.coco.faults import Faulty
from nlzoo.data.coco.keypoints import COCO_KEYPOINTS, COCO_SIGMAS, flip_pairs, mirrored
from nlzoo.data.sample_coco import KEYPOINTS, make_coco
from nlzoo.preprocessing import Unreadable

SMALL = SHARED / "data" / "coco_small"
needs_small = pytest.mark.skipif(not SMALL.is_dir(), reason="coco_small is not in NLZOO_SHARED")
pytestmark = pytest.mark.filterwarnings("ignore:.*(image-empty|keypoints-outside|data.sigmas)")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("set") / "coco", train=21, val=6)


def targets(data, loader):
    return {target["image_id"]: target for _, some in batches(data, loader) for target in some}


def annotations(root, name):
    return json.loads((root / "annotations" / f"{name}.json").read_text())


# -- what is annotated --------------------------------------------------------------------------


@needs_small
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_annotation_of_real_images_arrives(split):
    """Boxes, classes, crowds and masks of COCO, against COCO's own code."""
    coco = pytest.importorskip("pycocotools.coco")
    truth = annotations(SMALL, f"instances_{split}2017")
    known = coco.COCO()
    known.dataset = truth
    known.createIndex()
    with pytest.warns(UserWarning, match="split-overlap"):  # one for both
        data = module(SMALL, train=split, val=split, flip=0.0, batch_size=1)
    assert data._checked["val"].report.dropped == {}
    ids = sorted(c["id"] for c in truth["categories"])
    assert data.wishes["category_ids"] == ids
    assert data.classes == [known.cats[i]["name"] for i in ids]
    learnt, scored = (targets(data, x) for x in (data.train_dataloader(), data.val_dataloader()))
    assert sum(len(target["boxes"]) for target in scored.values()) == len(truth["annotations"])
    crowds = sum(one["iscrowd"] for one in truth["annotations"])
    assert sum(int(target["iscrowd"].sum()) for target in scored.values()) == crowds
    total = len(truth["annotations"])
    assert sum(len(target["boxes"]) for target in learnt.values()) == total - crowds
    for image in truth["images"]:
        own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        for found, some in (
            (scored[image["id"]], own),
            (learnt[image["id"]], [one for one in own if not one["iscrowd"]]),
        ):
            boxes = torch.tensor([one["bbox"] for one in some])
            boxes[:, 2:] += boxes[:, :2]
            torch.testing.assert_close(found["boxes"], boxes, rtol=0, atol=1e-3)
            assert [ids[label - 1] for label in found["labels"]] == [x["category_id"] for x in some]
            torch.testing.assert_close(
                found["area"], torch.tensor([float(x["area"]) for x in some])
            )
        masks = [torch.from_numpy(known.annToMask(one)) for one in own if not one["iscrowd"]]
        assert torch.equal(learnt[image["id"]]["masks"], torch.stack(masks))


@needs_small
def test_flipped_keypoints_are_those_of_the_other_side():
    """Of every annotated person: by names, from COCO's own file."""
    data = module(SMALL, wants="keypoints", flip=1.0, batch_size=1)
    truth = annotations(SMALL, "person_keypoints_train2017")
    names = truth["categories"][0]["keypoints"]
    widths = {image["id"]: image["width"] for image in truth["images"]}
    checked = Counter()
    for image, target in targets(data, data.train_dataloader()).items():
        people = [x for x in truth["annotations"] if x["image_id"] == image and not x["iscrowd"]]
        assert len(people) == len(target["keypoints"])
        for person, found in zip(people, target["keypoints"], strict=True):
            x, y, w, h = person["bbox"]
            box = torch.tensor([widths[image] - x - w, y, widths[image] - x, y + h])
            at = next(i for i, p in enumerate(people) if p is person)
            torch.testing.assert_close(target["boxes"][at], box, rtol=0, atol=1e-3)
            by_name = dict(zip(names, np.reshape(person["keypoints"], (-1, 3)), strict=True))
            for name, point in zip(names, found.tolist(), strict=True):
                swap = {"left": "right", "right": "left"}
                side, _, part = name.partition("_")
                px, py, v = by_name[f"{swap[side]}_{part}" if side in swap else name]
                assert point == ([widths[image] - px, py, v] if v else [0, 0, 0])
                checked[bool(v)] += 1
    labelled = sum(x["num_keypoints"] for x in truth["annotations"])
    assert checked[True] == labelled
    assert labelled > 500


@needs_small
def test_flipped_pixels_and_masks_go_with_their_boxes():
    plain, mirror = (train_items(module(SMALL, flip=share)) for share in (0.0, 1.0))
    for index in range(0, len(plain), 5):
        image, target, *_ = plain[0, index]
        other, flipped, *_ = mirror[0, index]
        assert torch.equal(other, image.flip(-1))
        assert torch.equal(flipped["masks"], target["masks"].flip(-1))
        edges = masks_to_boxes(flipped["masks"]) + torch.tensor([0, 0, 1, 1])
        before = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
        shift = (edges - flipped["boxes"]).abs() - (before - target["boxes"])[:, [2, 1, 0, 3]].abs()
        assert shift.abs().max() < 1e-3


@needs_small
def test_resized_as_torchvision_does():
    """Sizes, pixels and boxes of its GeneralizedRCNNTransform; masks drawn at the new size."""
    data = module(SMALL, scales=[320], max_size=480, flip=0.0)
    theirs = GeneralizedRCNNTransform(320, 480, [0, 0, 0], [1, 1, 1])
    native, scaled = train_items(module(SMALL, flip=0.0)), train_items(data)
    for index in range(0, len(scaled), 4):
        image, target, *_ = native[0, index]
        wanted, boxes = theirs([image / 255], [dict(target)])
        found, ours, *_ = scaled[0, index]
        assert tuple(found.shape[1:]) == wanted.image_sizes[0]
        pixels = wanted.tensors[0, :, : found.shape[1], : found.shape[2]]
        assert (found / 255 - pixels).abs().max() < 1.01 / 255  # rounded
        torch.testing.assert_close(ours["boxes"], boxes[0]["boxes"], rtol=0, atol=1e-3)
        assert ours["orig_size"] == tuple(image.shape[1:])
        large = ours["area"] > 400
        both, either = (
            f(ours["masks"].bool(), boxes[0]["masks"].bool()).flatten(1).sum(1)
            for f in (torch.logical_and, torch.logical_or)
        )
        assert (both / either)[large].min() > 0.8


def test_one_of_the_scales_is_drawn(sample):
    items = train_items(module(sample, scales=[60, 80, 100], max_size=110))
    shorts = Counter()
    for epoch in range(6):
        for index in range(len(items)):
            shape = items[epoch, index][0].shape[1:]
            assert max(shape) <= 110
            shorts[min(shape)] += 1
    assert {60, 80} <= set(shorts)
    assert max(shorts) > 80


def test_batches_are_torchvisions(sample):
    data = module(sample, wants="keypoints")
    images, some = batches(data, data.train_dataloader())[0]
    assert isinstance(images, list)
    assert len(images) == 4
    for image, target in zip(images, some, strict=True):
        count = len(target["boxes"])
        assert (image.dtype, image.shape[0]) == (torch.uint8, 3)
        assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
        assert target["keypoints"].shape == (count, len(KEYPOINTS), 3)
        assert str(data.files("train")[target["index"]]).endswith(f"{target['image_id']:012d}.png")
    images, some = batches(data, data.val_dataloader())[0]
    shape, dtype = (0, len(KEYPOINTS), 3), torch.float32
    nothing = next(target for target in some if not len(target["boxes"]))
    assert (nothing["keypoints"].shape, nothing["keypoints"].dtype) == (shape, dtype)
    assert nothing["boxes"].shape == (0, 4)


def test_images_with_nothing_in_them(sample):
    """Left out of training, unless asked for; scored."""
    truth = annotations(sample, "person_keypoints_train2017")
    some = {one["image_id"] for one in truth["annotations"]}
    data = module(sample, wants="keypoints")
    assert data.found == {"train": len(some), "val": 6, "test": 6}
    assert module(sample, wants="keypoints", empty=True).found["train"] == 21
    two = sum(n > 1 for n in Counter(one["image_id"] for one in truth["annotations"]).values())
    assert module(sample, wants="keypoints", min_keypoints=8).found["train"] == two
    with pytest.raises(Faulty, match=r"set-empty: no image is left of 21.* fewer than 99"):
        module(sample, wants="keypoints", min_keypoints=99)


def test_masks_without_a_pixel_are_left_out(tmp_path):
    made = annotations(write(tmp_path), "instances_train2017")
    made["annotations"][0]["segmentation"] = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(made))
    data = module(tmp_path, val="")
    _, target, *_ = train_items(data)[0, 0]
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) == 1


# -- keypoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("left_eye", "right_eye"),
        ("eye_left", "eye_right"),
        ("leftEye", "rightEye"),
        ("eyeLeft", "eyeRight"),
        ("LEFT EYE", "RIGHT EYE"),
        ("lefteye", "righteye"),
        ("l_eye", "r_eye"),
        ("eye-R", "eye-L"),
        ("LEye", "REye"),
        ("nose", "nose"),
        ("bright_spot", "bright_spot"),
        ("Rear", "Rear"),
        ("collar", "collar"),
    ],
)
def test_names_of_the_other_side(name, other):
    assert mirrored(name) == other
    assert mirrored(other) == name


def test_pairs_of_coco():
    order = list(range(17))
    for a, b in flip_pairs(COCO_KEYPOINTS):
        order[a], order[b] = b, a
    assert order == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert len(COCO_SIGMAS) == 17


def test_sigmas_are_cocos():
    params = pytest.importorskip("pycocotools.cocoeval").Params(iouType="keypoints")
    assert list(COCO_SIGMAS) == pytest.approx(params.kpt_oks_sigmas.tolist(), abs=1e-15)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["a", "z"]], "no keypoint 'z' to change places with 'a'"),
        ([["a", "b"], ["b", "c"]], "keypoint 'b' is in two pairs"),
        ([["a", "a"]], "is no pair"),
        ([["a", "b", "c"]], "is no pair"),
    ],
)
def test_pairs_that_are_none(pairs, message):
    with pytest.raises(ValueError, match=message):
        flip_pairs("abc", pairs)
    assert flip_pairs("abc", [["c", "a"]]) == [(2, 0)]


def test_sigmas_and_pairs_of_other_keypoints(sample):
    data = module(sample, wants="keypoints")
    assert data.wishes["keypoints"] == KEYPOINTS
    assert data._checked["train"].pairs == [(2, 3), (5, 6)]
    assert data.wishes["sigmas"] == [0.05] * 7
    assert data.wishes["skeleton"][0] == [0, 1]
    named = [["left_hand", "left_foot"]]
    other = module(sample, wants="keypoints", flip_pairs=named)
    assert other._checked["train"].pairs == [(2, 5)]
    assert module(sample, wants="keypoints", sigmas=[0.1] * 7).wishes["sigmas"] == [0.1] * 7
    with pytest.raises(ValueError, match="3 numbers for 7 keypoints"):
        module(sample, wants="keypoints", sigmas=[0.1] * 3)


# -- folders, classes, files --------------------------------------------------------------------


def write(root, annotations="annotations/instances_train2017.json", images="train2017", **options):
    """A set of one image of two discs, somewhere."""
    file = root / images / options.get("name", "a.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    size = options.get("size", (40, 30))
    Image.new("RGB", size).save(file, **options.get("save", {}))
    one = {"id": 1, "image_id": 3, "category_id": 7, "bbox": [4, 4, 20, 10], "area": 9.0}
    one |= {"iscrowd": 0, "segmentation": [[4, 4, 24, 4, 24, 14]]}
    names = options.get("names", {7: "disc"})
    made = {
        "images": [{"id": 3, "file_name": options.get("name", "a.png"), "width": 40, "height": 30}],
        "annotations": [one, {**one, "id": 2}],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(made))
    return root


@pytest.mark.parametrize(
    ("annotations", "images", "options"),
    [
        ("annotations/instances_train2017.json", "train2017", {}),
        ("annotations/instances_train.json", "images/train", {}),
        ("annotations/train.json", "images", {}),
        ("train.json", "images", {}),
        ("train/_annotations.coco.json", "train", {}),
        ("annotations/instances_mine.json", "mine", {"train": "mine"}),
        ("labels/mine.json", "pictures", {"train": "labels/mine.json", "images": "pictures"}),
        ("labels/mine.json", "labels", {"train": "labels/mine.json"}),
    ],
)
def test_folders_as_people_have_them(annotations, images, options, tmp_path):
    write(tmp_path, annotations, images, name="some/folder/a.png")
    data = module(tmp_path, val="", **options)
    assert str(data.files("train")[0]) == str(tmp_path / images / "some/folder/a.png")
    assert data.annotations("train") == tmp_path / annotations


def test_folders_without_annotations(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data folder"):
        module(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"json-missing: none of .*\['train', 'val'\]"):
        module(tmp_path)
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match="no 'val' list"):
        module(tmp_path).setup("fit")


def test_classes_in_an_order_of_their_own(tmp_path):
    """As a checkpoint has them; torchvision's 91 have gaps."""
    write(tmp_path, names={7: "disc", 9: "box"})
    data = module(tmp_path, val="")
    assert (data.classes, data.wishes["category_ids"]) == (["disc", "box"], [7, 9])
    classes = ["N/A", "box", "N/A", "disc"]
    data = module(tmp_path, val="", classes=classes)
    assert (data.classes, data.wishes["category_ids"]) == (classes, [-1, 9, -1, 7])
    assert data._found["train"].labels.tolist() == [4, 4]
    with pytest.raises(Faulty, match=r"category-mismatch: only in the classes: \['cone'\]"):
        module(tmp_path, val="", classes=["box", "disc", "cone"])


def test_train_and_val_must_have_the_same_categories(tmp_path):
    write(tmp_path)
    write(tmp_path, "annotations/instances_val2017.json", "val2017", names={7: "cone"})
    with pytest.raises(Faulty, match=r"only in train: \['disc'\]; only in val: \['cone'\]"):
        module(tmp_path)


def test_images_are_turned_by_their_tag_if_asked(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    write(tmp_path, size=(30, 40), name="a.jpg", save={"exif": tags})
    with pytest.raises(Faulty, match=r"image-size-swapped: .*EXIF orientation 6.*exif true"):
        module(tmp_path, val="")
    image = train_items(module(tmp_path, val="", exif=True))[0, 0][0]
    assert tuple(image.shape) == (3, 30, 40)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16"])
def test_modes_become_rgb(mode, tmp_path):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    write(tmp_path, name=name)
    Image.new(mode, (40, 30), 255 if mode in ("L", "P") else 0).save(tmp_path / "train2017" / name)
    with pytest.warns(UserWarning, match=f"image-mode: image 3 of annotation 1 .*: {mode}"):
        image = train_items(module(tmp_path, val=""))[0, 0][0]
    assert (tuple(image.shape), image.dtype) == ((3, 30, 40), torch.uint8)


def test_images_that_break_later(sample, tmp_path):
    """In training another takes their place and they are named; a score without them is none."""
    root = make_coco(tmp_path / "coco", train=8, val=2)
    data = module(root, bad_share=0.5, bad_files=str(tmp_path / "bad.txt"))
    for split in ("train", "val"):
        file = root / f"{split}2017/000000000001.png"
        file.write_bytes(file.read_bytes()[:300])
    found = [t["image_id"] for _, some in batches(data, data.train_dataloader()) for t in some]
    assert (len(found), 1 in found) == (8, False)
    assert (
        (tmp_path / "bad.txt").read_text().startswith(f"{root}/train2017/000000000001.png\tunread")
    )
    with pytest.raises(Unreadable, match=r"val2017/000000000001.png: .*truncated"):
        batches(data, data.val_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip = 1.5"),
        ({"scales": [0]}, r"scales\[0\] = 0"),
        ({"max_size": 0}, "max_size = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_bad_arguments_fail_at_construction(sample, options, message):
    with pytest.raises(ValueError, match=message):
        module(sample, **options)


def test_a_batch_that_cannot_be_filled(sample):
    with pytest.raises(ValueError, match="21 training images cannot fill a batch of 1 x 30"):
        module(sample, batch_size=30).setup("fit")


# -- the sample ---------------------------------------------------------------------------------


def test_the_sample_is_the_same_everywhere_and_annotated_right(sample, tmp_path):
    again = make_coco(tmp_path / "again", train=21, val=6)
    for file in sorted(sample.rglob("*.*")):
        assert file.read_bytes() == (again / file.relative_to(sample)).read_bytes()
    data = module(sample, flip=0.0, check="strict")
    for index in range(len(train_items(data))):
        image, target, *_ = train_items(data)[0, index]
        drawn = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
        assert (drawn - target["boxes"]).abs().max() <= 1.5
        for mask, label in zip(target["masks"].bool(), target["labels"], strict=True):
            colour = image[:, mask].float().mean(1)
            wanted = [(200, 60, 60), (60, 190, 80), (70, 90, 210), (220, 190, 70)][label - 1]
            assert (colour - torch.tensor(wanted)).abs().max() < 45
    for mask_of in range(3):
        file = data.files("train")[mask_of]
        pixels = pil_to_tensor(Image.open(file.path))
        assert torch.equal(train_items(data)[0, mask_of][0], pixels)
