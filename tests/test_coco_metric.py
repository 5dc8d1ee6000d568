"""COCO's numbers are those of COCO's own code, on any number of processes."""

import contextlib
import gzip
import io
import json
import multiprocessing
import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
from shared import SHARED
from tiers import marked
from torch.utils.data import DistributedSampler

from nlzoo.tasks.coco_metric import FIELDS, TYPES, CocoMetric, numbers, read_truth, score

SMALL = SHARED / "data" / "coco_small"
needs_small = pytest.mark.skipif(not SMALL.is_dir(), reason="coco_small is not in NLZOO_SHARED")
CATEGORIES = (2, 5, 11)
SIDE, K = 64, 17


# -- sets of all kinds, and COCO's own numbers --------------------------------------------------


def quarter(rng, low, high, size=None):
    """Quarters of pixels, which no rounding changes."""
    return rng.integers(low * 4, high * 4 + 1, size) / 4


def random_box(rng, variant):
    x, y = quarter(rng, 0, 40, 2)
    w, h = quarter(rng, 0 if variant == "thin" else 2, 24, 2)
    if variant == "thin" and rng.random() < 0.3:
        w = 0.0
    shift = 30 if variant == "outside" and rng.random() < 0.3 else 0
    return [float(x + shift), float(y), float(w), float(h)]


def corners(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def random_points(rng, box):
    x, y, *_ = box
    points = np.stack([quarter(rng, 0, 24, K) + x, quarter(rng, 0, 24, K) + y], 1)
    return np.concatenate([points, rng.integers(0, 3, (K, 1))], 1)


def random_truth(rng, variant):
    images = [{"id": i * 7 + 3, "height": SIDE, "width": SIDE} for i in range(5)]
    made = []
    for image in images[:-1]:  # the last has nothing
        for _ in range(rng.integers(1, 9)):
            box = random_box(rng, variant)
            points = random_points(rng, box) * (rng.random() > 0.2)
            crowd = int(rng.random() < {"crowds": 0.6, "plain": 0.0}.get(variant, 0.1))
            shape = [corners([*box[:2], max(box[2], 1), max(box[3], 1)])]
            if crowd:
                ones = int(rng.integers(1, 900))
                shape = {"size": [SIDE, SIDE], "counts": [500, ones, SIDE * SIDE - 500 - ones]}
            made.append(
                {
                    "id": len(made) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(CATEGORIES)),
                    "bbox": box,
                    "area": box[2] * box[3] * float(rng.choice([0.5, 1, 8, 60])),
                    "iscrowd": crowd,
                    "segmentation": shape,
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORIES]
    return {"images": images, "annotations": made, "categories": categories}


def random_found(rng, variant, truth):
    """torchvision's dictionaries by image, near the truth."""
    found = {}
    for image in truth["images"]:
        own = [x for x in truth["annotations"] if x["image_id"] == image["id"]]
        count = 150 if variant == "many" and image is truth["images"][0] else rng.integers(0, 12)
        rows = []
        for _ in range(count):
            near = own[rng.integers(len(own))] if own and rng.random() < 0.8 else None
            box = np.array(near["bbox"] if near else random_box(rng, variant))
            box[:2] += quarter(rng, -2, 2, 2) * (rng.random() < 0.6)
            category = (
                near["category_id"] if near and rng.random() < 0.8 else rng.choice(CATEGORIES)
            )
            points = np.reshape(near["keypoints"], (K, 3)) if near else random_points(rng, box)
            points = points + quarter(rng, -1, 1, (K, 3)) * (rng.random() < 0.7)
            value = rng.integers(1, 4) / 4 if variant == "ties" else np.float32(rng.random())
            rows.append((box, category, points, value))
        boxes = np.reshape([row[0] for row in rows], (-1, 4))
        masks = np.zeros((len(rows), 1, SIDE, SIDE), dtype=np.float32)
        for one, (x, y, w, h) in zip(masks, boxes, strict=True):
            one[0, int(max(y, 0)) : int(y + h) + 1, int(max(x, 0)) : int(x + w) + 1] = 0.9
        labels = [CATEGORIES.index(row[1]) + 1 for row in rows]
        found[image["id"]] = {
            "boxes": torch.tensor(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor([float(row[3]) for row in rows], dtype=torch.float32),
            "masks": torch.from_numpy(masks),
            "keypoints": torch.tensor(np.reshape([row[2] for row in rows], (-1, K, 3))),
        }
    return found


def as_results(found, kind):
    """The same in COCO's format, written here anew."""
    from pycocotools import mask

    rows = []
    for image, one in found.items():
        for i, (x1, y1, x2, y2) in enumerate(one["boxes"].tolist()):
            row = {"image_id": image, "score": one["scores"][i].item()}
            row["category_id"] = CATEGORIES[one["labels"][i] - 1]
            if kind == "box":
                row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            elif kind == "keypoint":
                row["keypoints"] = one["keypoints"][i].flatten().tolist()
            else:
                drawn = np.asfortranarray(one["masks"][i, 0].numpy() > 0.5)
                row["segmentation"] = mask.encode(drawn.astype(np.uint8))
            rows.append(row)
    return rows


def reference(truth, results, kind, images=None, sigmas=None):
    """pycocotools' numbers, with its -1 as NaN."""
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        done = COCOeval(gt, gt.loadRes(results), TYPES[kind])
        if images:
            done.params.imgIds = images
        if sigmas is not None:
            done.params.kpt_oks_sigmas = np.array(sigmas)
        done.evaluate()
        done.accumulate()
        done.summarize()
    return np.where(done.stats > -1, done.stats, np.nan)


def write(path, truth):
    path.write_text(json.dumps(truth))
    return path


VARIANTS = ("plain", "ties", "crowds", "many", "thin", "outside", "mixed")


@pytest.mark.parametrize("kind", marked(TYPES, ["keypoint"], TYPES))
def test_equal_to_pycocotools(kind, tmp_path):
    """More than 200 sets of the three kinds."""
    compared = 0
    for seed in range(70):
        rng, variant = np.random.default_rng(seed), VARIANTS[seed % len(VARIANTS)]
        truth = random_truth(rng, variant)
        found = random_found(rng, variant, truth)
        if not (results := as_results(found, kind)):
            continue
        metric = CocoMetric(write(tmp_path / "a.json", truth), [kind], CATEGORIES)
        metric.update(list(found), list(found.values()))
        ours = list(metric.compute().values())
        theirs = reference(truth, results, kind)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9, err_msg=f"{seed} {variant}")
        compared += 1
    assert compared >= 67


@needs_small
@pytest.mark.parametrize("kind", TYPES)
def test_expected_numbers_of_real_annotations(kind):
    name = TYPES[kind]
    file = "person_keypoints" if kind == "keypoint" else "instances"
    truth = read_truth(SMALL / f"annotations/{file}_val2017.json", [kind])
    packed = (SMALL / f"results/{name}_val2017_synthetic.json.gz").read_bytes()
    done = score(truth, json.loads(gzip.decompress(packed)), kind)
    expected = json.loads((SMALL / "results/expected_stats.json").read_text())[name]["stats"]
    np.testing.assert_allclose(list(numbers(done, kind).values()), expected, rtol=0, atol=1e-9)


@needs_small
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_the_numbers_that_cocos_authors_print(kind, tmp_path):
    folder, name = SMALL / "cocoapi_val2014_100", TYPES[kind]
    packed = (folder / "instances_val2014_100.json.gz").read_bytes()
    (tmp_path / "truth.json").write_bytes(gzip.decompress(packed))
    packed = (folder / f"instances_val2014_fake{name}100_results.json.gz").read_bytes()
    truth = read_truth(tmp_path / "truth.json", [kind])
    found = numbers(score(truth, json.loads(gzip.decompress(packed)), kind), kind)
    printed = (folder / "val2014_fake_eval_res.txt").read_text()
    parts = re.split(r"type=(\w+)", printed)
    lines = parts[parts.index(name) + 1].splitlines()
    wanted = [
        line.rpartition("=")[2].strip() for line in lines if line.strip().startswith("Average")
    ]
    assert [f"{value:.3f}" for value in found.values()] == wanted
    assert len(wanted) == 12


# -- processes ----------------------------------------------------------------------------------


def _process(rank, world, folder, answers):
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    rng = np.random.default_rng(5)
    truth = random_truth(rng, "mixed")
    found = random_found(rng, "mixed", truth)
    metric = CocoMetric(folder / "a.json", list(TYPES), CATEGORIES)
    images = list(found)
    mine = list(DistributedSampler(images, world, rank, shuffle=False))  # 5 images: 8 with padding
    metric.update([images[i] for i in mine], [found[images[i]] for i in mine])
    answers.put((rank, len(mine), metric.compute(), metric.seen))
    dist.barrier()
    dist.destroy_process_group()


def test_four_processes_score_what_one_does(tmp_path):
    rng = np.random.default_rng(5)
    truth = random_truth(rng, "mixed")
    found = random_found(rng, "mixed", truth)
    alone = CocoMetric(write(tmp_path / "a.json", truth), list(TYPES), CATEGORIES)
    alone.update(list(found), list(found.values()))
    wanted = alone.compute()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=_process, args=(r, 4, tmp_path, answers)) for r in range(4)]
    for process in ranks:
        process.start()
    given = [answers.get(timeout=120) for _ in ranks]
    for process in ranks:
        process.join()
    assert sum(count for _, count, _, _ in given) == 8
    for _, _, values, seen in given:
        assert seen == 5
        np.testing.assert_equal(values, wanted)


# -- what it holds ------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path):
    rng = np.random.default_rng(1)
    truth = random_truth(rng, "mixed")
    found = random_found(rng, "mixed", truth)
    metric = CocoMetric(write(tmp_path / "a.json", truth), list(TYPES), CATEGORIES)
    metric.update(list(found), list(found.values()))
    return metric, truth, found


def test_images_that_come_twice_count_once(filled):
    metric, _, found = filled
    once = metric.compute()
    metric.update(list(found), list(found.values()))
    np.testing.assert_equal(metric.compute(), once)


def test_only_images_that_were_seen_are_scored(filled, tmp_path):
    _, truth, found = filled
    metric = CocoMetric(tmp_path / "a.json", ["box"], CATEGORIES)
    some = {image: found[image] for image in list(found)[:2]}
    metric.update(list(some), list(some.values()))
    wanted = reference(truth, as_results(some, "box"), "box", images=list(some))
    np.testing.assert_allclose(list(metric.compute().values()), wanted, atol=1e-9)
    assert (metric.seen, metric.total) == (2, 5)


def test_results_are_cocos_files(filled):
    """pycocotools gives the same numbers for what was written and read again."""
    metric, truth, _ = filled
    values = metric.compute()
    for kind in TYPES:
        results = json.loads(json.dumps(metric.results(kind)))
        assert all(set(r) == {"image_id", "category_id", "score", FIELDS[kind]} for r in results)
        wanted = reference(truth, results, kind)
        ours = [x for name, x in values.items() if name.startswith(kind)]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-9)


def test_classes_average_to_the_whole(filled):
    metric, _, _ = filled
    values, rows = metric.compute(), metric.per_class()
    assert list(rows) == [f"class {i}" for i in CATEGORIES]
    for kind in TYPES:
        for name in ("AP", "AP50", "AP75"):
            per_class = [row[f"{kind}/{name}"] for row in rows.values()]
            assert np.nanmean(per_class) == pytest.approx(values[f"{kind}/{name}"], abs=1e-9)


def test_what_is_not_annotated_has_no_number(tmp_path):
    """COCO's -1 is NaN, and no class of its own."""
    truth = random_truth(np.random.default_rng(0), "plain")
    truth["annotations"] = truth["annotations"][:1]
    truth["annotations"][0] |= {"area": 10.0, "iscrowd": 0}
    metric = CocoMetric(write(tmp_path / "a.json", truth), ["box"], CATEGORIES)
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0).long(),
        "scores": torch.zeros(0),
    }
    metric.update([truth["images"][0]["id"]], [nothing])
    values = metric.compute()
    assert values["box/AP"] == values["box/APs"] == 0
    assert np.isnan(values["box/APl"])
    assert np.isnan([row["box/AP"] for row in metric.per_class().values()]).sum() == 2


def perfect(truth):
    """Detections that are the annotations."""
    found = {}
    for image in truth["images"]:
        own = [x for x in truth["annotations"] if x["image_id"] == image["id"]]
        boxes = torch.tensor([x["bbox"] for x in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([CATEGORIES.index(x["category_id"]) + 1 for x in own])
        found[image["id"]] = {
            "boxes": boxes,
            "labels": labels.long(),
            "scores": torch.ones(len(own)),
        }
    return found


@pytest.mark.parametrize("spoil", ["zero", "twice", "none", "bare"])
def test_numbers_and_gaps_of_annotations_do_not_count(spoil, tmp_path):
    """COCO's code is silent and wrong, or fails, where ids are 0 or double and fields missing."""
    truth = random_truth(np.random.default_rng(3), "plain")
    for position, one in enumerate(truth["annotations"]):
        if spoil == "bare":
            del one["iscrowd"], one["area"]
        else:
            one["id"] = {"zero": position, "twice": position // 2, "none": None}[spoil]
    metric = CocoMetric(write(tmp_path / "a.json", truth), ["box"], CATEGORIES)
    found = perfect(truth)
    metric.update(list(found), list(found.values()))
    assert metric.compute()["box/AP"] == pytest.approx(1)


def test_sigmas_of_other_keypoints(tmp_path):
    rng = np.random.default_rng(2)
    truth = random_truth(rng, "plain")
    found = random_found(rng, "plain", truth)
    for one in truth["annotations"]:
        one["keypoints"] = one["keypoints"][:9]
        one["num_keypoints"] = sum(v > 0 for v in one["keypoints"][2::3])
    for one in found.values():
        one["keypoints"] = one["keypoints"][:, :3]
    sigmas, path = [0.03, 0.05, 0.1], write(tmp_path / "a.json", truth)
    metric = CocoMetric(path, ["keypoint"], CATEGORIES, sigmas)
    metric.update(list(found), list(found.values()))
    wanted = reference(truth, as_results(found, "keypoint"), "keypoint", sigmas=sigmas)
    np.testing.assert_allclose(list(metric.compute().values()), wanted, rtol=0, atol=1e-9)
    metric = CocoMetric(path, ["keypoint"], CATEGORIES)
    metric.update(list(found), list(found.values()))
    with pytest.raises(ValueError, match="3 keypoints where there are 17 sigmas"):
        metric.compute()


def test_no_number_is_named(filled):
    metric, _, found = filled
    image, one = next((i, x) for i, x in found.items() if len(x["boxes"]))
    one["boxes"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"results-nan: image {image} has a box that is no number"):
        metric.update([image], [one])


def test_a_class_that_the_file_has_not(filled, tmp_path):
    """As N/A of torchvision's 91 classes: left out."""
    metric, _, found = filled
    wanted = metric.compute()
    shifted = CocoMetric(tmp_path / "a.json", list(TYPES), (-1, *CATEGORIES))
    for image, one in found.items():
        more = {name: torch.cat([value, value[:1]]) for name, value in one.items()}
        more["labels"] = torch.cat([one["labels"] + 1, one["labels"][:1] * 0 + 1])
        shifted.update([image], [more])
    np.testing.assert_equal(shifted.compute(), wanted)
