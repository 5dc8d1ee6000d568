"""Every fault of a set in COCO's format is named, with the value and what is done about it."""

import gzip
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nlzoo.data.coco import Coco
from nlzoo.data.coco.__main__ import main
from nlzoo.data.coco.faults import RULES, Faulty

WIDTH, HEIGHT = 60, 40
NAMES = ["head", "left_hand", "right_hand"]


def make_set(root: Path) -> dict:
    """Three images, four annotations, nothing wrong with them; the JSON's content."""
    images = []
    (root / "train").mkdir()
    for i in range(1, 4):
        pixels = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT})
    made = []
    for i, image in enumerate((1, 1, 2, 3)):
        box = [10.0 + i, 5.0, 20.0, 30.0]
        x, y, w, h = box
        made.append(
            {
                "id": i + 1,
                "image_id": image,
                "category_id": 4,
                "bbox": box,
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "keypoints": [15, 10, 2, 12, 20, 1, 0, 0, 0],
                "num_keypoints": 2,
            }
        )
    category = {"id": 4, "name": "doll", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    return {"images": images, "annotations": made, "categories": [category]}


def rle(counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts}


def no_json(made, root):
    (root / "a.json").unlink()


def packed(made, root):
    (root / "a.json").write_bytes(gzip.compress(b"{}"))


def broken(made, root):
    (root / "a.json").write_text('{"images": [')


def save(name, mode="RGB", size=(WIDTH, HEIGHT), **options):
    def spoil(made, root):
        Image.new(mode, size).save(root / "train" / name, **options)

    return spoil


def cut(made, root):
    file = root / "train/2.jpg"
    file.write_bytes(file.read_bytes()[:-200])


def no_picture(made, root):
    (root / "train/2.jpg").write_text("no picture")


def turned(made, root):
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train/2.jpg", exif=tags)


def annotation(**values):
    """Change the third annotation, of image 2; None: remove."""

    def spoil(made, root):
        for key, value in values.items():
            if value is None:
                del made["annotations"][2][key]
            else:
                made["annotations"][2][key] = value

    return spoil


def image(**values):
    return lambda made, root: made["images"][1].update(values)


def every(**change):
    """Change all annotations: functions of the old value."""

    def spoil(made, root):
        for one in made["annotations"]:
            one.update({key: f(one[key]) for key, f in change.items()})

    return spoil


def without(key):
    def spoil(made, root):
        for one in made["annotations"] + made["categories"]:
            one.pop(key, None)

    return spoil


def more_corners(made, root):
    """x1, y1, x2, y2 of boxes at the right."""
    made["annotations"] = [
        {**made["annotations"][0], "id": i, "bbox": [30.0, 10.0, 50.0, 38.0]} for i in range(1, 7)
    ]


def other_train(names=(4, "doll")):
    """A training set beside it."""

    def spoil(made, root):
        content = {**made, "categories": [{"id": names[0], "name": names[1]}]}
        (root / "other.json").write_text(json.dumps(content))
        return ["--train", str(root / "other.json")]

    return spoil


def results(times=1, **change):
    def spoil(made, root):
        good = {"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5}
        (root / "results.json").write_text(json.dumps([{**good, **change}] * times))
        return ["--results", str(root / "results.json")]

    return spoil


def replace(key, value):
    return lambda made, root: made.update({key: value})


def emptied(made, root):
    made["annotations"] = made["annotations"][:1]
    made["annotations"][0]["bbox"] = [100.0, 100.0, 5.0, 5.0]


HOW = "annotation 3 of image 2 (2.jpg)"
# fault, its spoiler, what is said of it, other options
CASES = [
    ("json-missing", no_json, "no {root}/a.json; in its folder: no JSON file"),
    ("json-invalid", packed, "a.json is packed by gzip"),
    ("json-invalid", broken, "a.json: Expecting value: line 1 column 13"),
    ("json-keys", replace("categories", {}), "no list 'categories' in"),
    ("json-keys", replace("annotations", [{"caption": "a dog"}]), "holds captions, not instances"),
    ("json-keys", replace("annotations", [{"segments_info": []}]), "holds panoptic segments"),
    ("json-keys", image(width=0), "image 2 (2.jpg) has width 0"),
    ("json-keys", image(width="60"), "images[1] has width '60', not int"),
    ("rle-type", annotation(segmentation=rle([2**70, 1])), "a number beyond 64 bits"),
    ("rle-counts", annotation(segmentation=rle([2**62] * 4 + [2400])), "a count of 4611686018427"),
    ("json-keys", image(id=2**63), "images[1] has id 9223372036854775808, not int"),
    (
        "json-keys",
        lambda made, root: made["categories"][0].update(keypoints="head"),
        "category 4 has keypoints 'head', not names",
        "k",
    ),
    (
        "json-keys",
        lambda made, root: made["categories"][0].update(skeleton=[[0, 1]]),
        "category 4 has [0, 1] in its skeleton, no two of its keypoints",
        "k",
    ),
    ("wrong-task", without("keypoints"), "its categories have no keypoints; COCO's person_k", "k"),
    (
        "wrong-task",
        lambda made, root: made.update(annotations=[made["annotations"][0] | {"keypoints": []}]),
        "keypoints are asked for, no annotation has any; COCO's person_keypoints_* have",
        "k",
    ),
    ("wrong-task", without("segmentation"), "masks are asked for, no annotation has any"),
    ("image-id-duplicate", image(id=1), "image 1 is '1.jpg' and '2.jpg'"),
    ("file-name-duplicate", image(file_name="1.jpg"), "images 1 and 2 are '1.jpg': kept"),
    ("annotation-id-duplicate", annotation(id=1), "annotation 1: number them anew"),
    ("annotation-id-zero", annotation(id=0), "annotation 0 of image 2 (2.jpg): numbered anew"),
    ("annotation-image-unknown", annotation(image_id=9), "annotation 3 of image 9: no such image"),
    ("category-unknown", annotation(category_id=9), f"{HOW}: no category 9"),
    (
        "category-duplicate",
        replace("categories", [{"id": 4, "name": "doll"}, {"id": 5, "name": "doll"}]),
        "name 'doll' is there 2 times",
    ),
    (
        "category-duplicate",
        replace("categories", [{"id": 4, "name": "doll"}, {"id": 4, "name": "bear"}]),
        "id 4 is there 2 times",
    ),
    ("category-empty", replace("categories", []), "has no category"),
    (
        "category-mismatch",
        other_train((4, "bear")),
        "only in train: ['bear']; only in val: ['doll']",
    ),
    ("image-missing", image(file_name="9.jpg"), "image 2 of annotation 3 (no {root}/train/9.jpg)"),
    ("image-unreadable", no_picture, "image 2 of annotation 3 ({root}/train/2.jpg: not an image)"),
    ("image-truncated", cut, "image 2 of annotation 3 ({root}/train/2.jpg: image file is trunc"),
    ("image-size-mismatch", save("2.jpg", size=(50, 50)), "2.jpg: 50 x 50, annotated 60 x 40)"),
    ("image-size-swapped", turned, "2.jpg: 40 x 60, annotated 60 x 40; EXIF orientation 6"),
    ("image-mode", save("2.jpg", "L"), "2.jpg: L): made RGB"),
    ("image-mode", save("2.jpg", "CMYK"), "2.jpg: CMYK): made RGB"),
    ("image-empty", annotation(image_id=1), "image 2 (2.jpg): kept in validation"),
    ("bbox-format", annotation(bbox=[1, 2, 3]), f"{HOW}: [1, 2, 3] is no box of 4 finite numbers"),
    ("bbox-format", annotation(bbox=[1, 2, 3, float("nan")]), "[1, 2, 3, nan] is no box"),
    ("bbox-format", more_corners, "6 of 6 boxes reach out of their images: x1, y1, x2, y2?"),
    (
        "bbox-format",
        every(bbox=lambda box: [x / 60 for x in box]),
        "all 4 boxes are of numbers up to 1: normalised?",
    ),
    ("bbox-degenerate", annotation(bbox=[1, 2, 0, 5]), f"{HOW}: [1, 2, 0, 5]: left out"),
    ("bbox-degenerate", annotation(bbox=[59.9995, 2, 5, 5]), "[59.9995, 2, 5, 5] in 60 x 40"),
    ("bbox-outside", annotation(bbox=[70, 2, 5, 5]), "[70, 2, 5, 5] in 60 x 40: left out"),
    ("bbox-clipped", annotation(bbox=[50, 2, 15, 5]), "[50, 2, 15, 5] in 60 x 40: clipped"),
    ("segmentation-missing", annotation(segmentation=None), f"{HOW}: none: left out"),
    ("segmentation-empty", annotation(segmentation=[]), f"{HOW}: []: left out"),
    ("segmentation-empty", annotation(segmentation=[[]]), f"{HOW}: [[]]: left out"),
    ("polygon-short", annotation(segmentation=[[1, 2, 3, 4]]), f"{HOW}: 4 numbers, a box?"),
    ("polygon-short", annotation(segmentation=[1, 2, 3, 4, 5, 6]), "a flat list of 6 numbers"),
    ("polygon-odd", annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), f"{HOW}: 7 numbers"),
    (
        "polygon-nan",
        annotation(segmentation=[[1, 2, 3, 4, 5, float("inf")]]),
        "a coordinate that is no finite number",
    ),
    (
        "polygon-nan",
        annotation(segmentation=[[1, 2, 3, 4, 5, 1e9]]),
        "a coordinate of 1e+09 pixels",
    ),
    ("rle-size", annotation(segmentation=rle([2400], (WIDTH, HEIGHT))), "size [60, 40] where"),
    (
        "rle-counts",
        annotation(segmentation=rle([9, 9])),
        "counts of 18 pixels where",
    ),
    ("rle-counts", annotation(segmentation=rle([2500, -100])), "a negative count -100"),
    ("rle-counts", annotation(segmentation=rle("99")), "counts of 18 pixels"),
    ("rle-type", annotation(segmentation=rle(None)), "counts are a NoneType"),
    ("rle-type", annotation(segmentation=rle("\u00e9\u00e9")), "counts are no string of COCO's"),
    ("rle-type", annotation(segmentation="mask"), "a str, neither polygons nor run lengths"),
    ("mask-empty", annotation(segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]), f"{HOW}: left out"),
    (
        "mask-box-disagree",
        annotation(segmentation=[[0, 0, 9, 0, 9, 9, 0, 9]]),
        "the mask's box overlaps [12.0, 5.0, 20.0, 30.0] by 0.00: kept",
    ),
    ("area-missing", annotation(area=None), f"{HOW}: that of the mask, or of the box"),
    ("iscrowd-missing", annotation(iscrowd=None), f"{HOW}: taken for 0"),
    ("iscrowd-value", annotation(iscrowd=2), f"{HOW}: 2: give 0 or 1"),
    ("crowd-polygon", annotation(iscrowd=1), f"{HOW}: accepted"),
    ("keypoints-length", annotation(keypoints=[1, 2, 2]), "3 where 3 keypoints are 3 x 3", "k"),
    (
        "keypoints-length",
        annotation(keypoints=[1e9, 2, 2] * 3),
        "a coordinate of 1e+09 pixels",
        "k",
    ),
    ("keypoints-visibility", annotation(keypoints=[15, 9, 3] * 3), f"{HOW}: visibility 3", "k"),
    ("keypoints-count", annotation(num_keypoints=3), "num_keypoints 3, labelled 2: counted", "k"),
    (
        "keypoints-outside",
        annotation(keypoints=[15, 10, 2, 50, 20, 1, 0, 0, 0]),
        f"{HOW}: (50, 20) is outside its box: kept",
        "k",
    ),
    (
        "keypoints-flip",
        lambda made, root: made["categories"][0].update(keypoints=["head", "left_hand", "hand"]),
        "no keypoint 'right_hand' to change places with 'left_hand': name the pairs",
        "k",
    ),
    ("split-overlap", other_train(), "1.jpg; 2.jpg; 3.jpg: kept"),
    ("results-image", results(image_id=8), "result 0 of image 8: no such image"),
    ("results-category", results(category_id=8), "result 0 of image 1: no category 8"),
    ("results-nan", results(bbox=[1, 2, 3, float("nan")]), "bbox [1, 2, 3, nan]"),
    ("results-image", results(image_id=[1]), "results.json, result 0 of image [1]: no such image"),
    ("results-category", results(category_id={}), "result 0 of image 1: no category {{}}"),
    ("results-keys", results(bbox=[]), "image 1: none of bbox, segmentation, keypoints"),
    ("results-bbox", results(bbox=[1, 2, 3]), "result 0 of image 1: bbox [1, 2, 3]"),
    ("results-bbox", results(bbox=[1, 2, -3, 4]), "bbox [1, 2, -3, 4]"),
    ("results-bbox", results(bbox=None), "bbox None"),
    ("results-keypoints", results(keypoints=[1, 2, 1, 4]), "keypoints [1, 2, 1, 4]"),
    ("results-keypoints", results(keypoints=[1, 2, 1]), "keypoints [1, 2, 1]", "k"),
    ("results-segmentation", results(segmentation=rle("zz")), "no string of COCO's"),
    ("results-segmentation", results(segmentation=rle("0", (1, 1))), "size [1, 1] where the"),
    ("results-segmentation", results(segmentation=[[1, 2, 3, 4, 5, 6]]), "no string of run"),
    ("results-nan", results(score=float("inf")), "result 0 of image 1: score inf"),
    ("results-score", results(score=1.5), "result 0 of image 1: score 1.5"),
    ("results-many", results(101), "image 1 has 101 of category 4, more than 100"),
    ("set-empty", emptied, "3 of 3 images, 0 of 1 annotations, 0 of them crowds; annotations left"),
]


def spoiled(spoil, root):
    """Write the set; the program's arguments."""
    made = make_set(root)
    good = json.dumps(made)
    (root / "a.json").write_text(good)
    more = spoil(made, root)
    if json.dumps(made) != good:
        (root / "a.json").write_text(json.dumps(made))
    more = more if isinstance(more, list) else []
    return ["check", str(root / "a.json"), str(root / "train"), *more]


def check(arguments, capsys):
    """Exit code, standard output, errors."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = capsys.readouterr()
    return stopped.value.code, told.out, told.err


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_faults_are_named(case, tmp_path, capsys):
    fault, spoil, words, *keypoints = case
    arguments = spoiled(spoil, tmp_path) + ["--wants", "keypoints"] * bool(keypoints)
    code, out, err = check(arguments, capsys)
    assert code == (2 if RULES[fault].error else 0)
    text, level = (err, "error") if RULES[fault].error else (out, "warning")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{level}: {fault}")]
    assert words.format(root=tmp_path) in line
    assert line.endswith(RULES[fault].action)
    if not RULES[fault].error:
        assert check([*arguments, "--strict"], capsys)[0] == 2


def test_every_fault_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize("wants", ["boxes", "masks", "keypoints"])
def test_a_good_set_is_good(wants, tmp_path, capsys):
    arguments = spoiled(lambda made, root: None, tmp_path)
    code, out, err = check([*arguments, "--wants", wants, "--strict"], capsys)
    assert (code, err) == (0, "")
    assert out.endswith("3 of 3 images, 4 of 4 annotations, 0 of them crowds\n")


@pytest.mark.parametrize(
    ("spoil", "left"),
    [
        (image(file_name="9.jpg"), "2 of 3 images, 3 of 4 annotations"),
        (no_picture, "2 of 3 images, 3 of 4 annotations"),
        (cut, "2 of 3 images, 3 of 4 annotations"),
        (annotation(image_id=9), "3 of 3 images, 3 of 4 annotations"),
        (annotation(id=1), "3 of 3 images, 4 of 4 annotations"),
    ],
)
def test_leniently_what_is_broken_is_left_out(spoil, left, tmp_path, capsys):
    arguments = spoiled(spoil, tmp_path)
    assert check(arguments, capsys)[0] == 2
    code, out, err = check([*arguments, "--lenient"], capsys)
    assert (code, err) == (0, "")
    assert left in out


def test_a_number_beyond_64_bits_is_none(tmp_path, capsys):
    code, out, _ = check(spoiled(annotation(id=2**63), tmp_path), capsys)
    assert (code, "warning" in out) == (0, False)


def test_many_of_a_kind_are_counted_and_the_first_shown(tmp_path, capsys):
    def spoil(made, root):
        made["annotations"] = [
            {**made["annotations"][0], "id": i, "iscrowd": 1} for i in range(1, 13)
        ]

    out = check(spoiled(spoil, tmp_path), capsys)[1]
    assert "warning: crowd-polygon, 12 times: annotation 1 of image 1" in out
    assert "annotation 5 of image 1 (1.jpg); and 7 more: accepted" in out


def test_no_other_fault_where_nothing_is_left(tmp_path, capsys):
    err = check(spoiled(emptied, tmp_path), capsys)[2]
    assert re.findall("error: ([a-z-]+)", err) == ["set-empty"]


def test_all_errors_are_told_at_once(tmp_path, capsys):
    def spoil(made, root):
        cut(made, root)
        made["annotations"][0]["bbox"] = []
        made["annotations"][1]["iscrowd"] = 7

    err = check(spoiled(spoil, tmp_path), capsys)[2]
    assert re.findall("error: ([a-z-]+)", err) == [
        "image-truncated",
        "bbox-format",
        "iscrowd-value",
    ]


def test_training_runs_the_same_check(tmp_path):
    """Errors stop it in one line with the command that shows all; warnings are summarised."""

    def spoil(made, root):
        made["annotations"][0]["bbox"] = []
        made["annotations"][1]["image_id"] = 8

    annotations = spoiled(spoil, tmp_path)[1]
    with pytest.raises(Faulty) as stopped:
        Coco(str(tmp_path), train="a.json", val="", images="train", workers=0)
    text = str(stopped.value)
    assert "\n" not in text
    assert "bbox-format: annotation 1" in text
    assert "annotation-image-unknown: annotation 2 of image 8: no such image" in text
    assert f"python -m nlzoo.data.coco check {annotations} {tmp_path / 'train'}" in text


def test_training_tells_of_what_it_mends(tmp_path):
    spoiled(annotation(bbox=[50, 2, 15, 5]), tmp_path)
    with pytest.warns(UserWarning, match="bbox-clipped: annotation 3 of image 2"):
        data = Coco(str(tmp_path), train="a.json", val="", images="train", workers=0)
    assert data.found["train"] == 3
    with pytest.raises(Faulty, match="bbox-clipped"):
        Coco(str(tmp_path), train="a.json", val="", images="train", check="strict")


@pytest.mark.parametrize("spoil", [cut, no_picture, image(file_name="9.jpg")])
def test_training_leaves_out_and_lists_broken_images(spoil, tmp_path):
    spoiled(spoil, tmp_path)
    options = {"train": "a.json", "val": "a.json", "images": "train", "batch_size": 1}
    with pytest.raises(Faulty, match="image-"):
        Coco(str(tmp_path), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = str(tmp_path / "bad.txt")
        data = Coco(str(tmp_path), check="lenient", bad_files=bad, **options)
        data.setup("fit")
    assert (data.found["train"], data.expected["train"]) == (2, 3)
    (line,) = Path(bad).read_text().splitlines()
    assert re.match(rf"{tmp_path}/train/(2|9).jpg\t(missing|unreadable: .*)", line)
