"""Detectors are trained, resumed, tested and looked at by the programs."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from processes import Process, done

from nlzoo import evaluate, fit, predict
from nlzoo.answers.detect import CocoFile, Found, draw_objects
from nlzoo.cli import read_recipe, recipe_names
from nlzoo.data.sample_coco import make_coco
from nlzoo.models import load_model
from nlzoo.preprocessing import Preprocessing
from nlzoo.tasks.detection import Detection
from nlzoo.tasks.optim import rate

TINY = {"channels": 16, "hidden": 32, "head": [16, 16], "norm": "batch", "trainable": 5}
QUICK = [
    *("--data.workers", "0", "--data.batch_size", "2", "--task.schedule", "steps"),
    *("--task.arch.channels", "16", "--task.arch.hidden", "32"),
    *("--task.arch.min_size", "96", "--data.scales", "[96]", "--checkpoint_every", "2"),
    *("--trainer.num_sanity_val_steps", "0", "--trainer.check_val_every_n_epoch", "1"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train=6, val=4)


def train(root, run, kind="masks", *options):
    name = {"masks": "mask_rcnn_r50_nl_coco", "keypoints": "keypoint_rcnn_r101_nl_coco"}[kind]
    recipes = ["--recipe", name, "--recipe", f"_{kind}_sample"]
    fit.main([*recipes, "--data", str(root), "--run", str(run), *QUICK, *options])


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "masks"
    train(root, run, "masks", "--trainer.max_steps", "4")
    return run


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_run_leaves_its_files(trained):
    for name in ("recipe.yaml", "metrics.csv", "curves.png", "summary.json"):
        assert (trained / name).stat().st_size
    header = (trained / "metrics.csv").read_text().splitlines()[0]
    assert {"val/box/AP", "val/box/AP50", "val/mask/AP", "train/loss"} <= set(header.split(","))
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["metric"] == "val/mask/AP"
    assert summary["best"] is not None


@pytest.mark.slow
def test_resumed_inside_an_epoch_it_ends_at_the_same_weights(root, trained, tmp_path):
    train(root, tmp_path / "run", "masks", "--trainer.max_steps", "2")
    train(root, tmp_path / "run", "masks", "--trainer.max_steps", "4", "--resume", "auto")
    once, twice = weights(trained), weights(tmp_path / "run")
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_evaluate_writes_what_cocos_server_takes(trained, root, capsys):
    checkpoint = str(trained / "checkpoints/last.ckpt")
    evaluate.main(["--checkpoint", checkpoint])
    result = json.loads((trained / "evaluation.json").read_text())
    assert result["images_scored"] == result["images_expected"] == 4
    assert set(result["by_class"]) == {"disc", "box", "triangle", "figure"}
    assert 0 <= result["box/AP"] <= 1
    assert "mask/AP" in capsys.readouterr().out
    for kind, key in (("box", "bbox"), ("mask", "segmentation")):
        rows = json.loads((trained / f"detections_{kind}.json").read_text())
        assert rows
        assert {row["category_id"] for row in rows} <= {1, 3, 7, 18}
        assert all(key in row and 0 <= row["score"] <= 1 for row in rows)


def test_predict_draws_and_writes_coco(trained, root, tmp_path, capsys):
    files = sorted((root / "val2017").glob("*.png"))
    out = [*("--draw", str(tmp_path / "drawn")), *("--coco", str(tmp_path / "found.json"))]
    checkpoint = str(trained / "checkpoints/last.ckpt")
    arguments = ["--checkpoint", checkpoint, "--threshold", "0.05", "--json", *out]
    predict.main([str(root / "val2017"), *arguments])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == list(map(str, files))
    for answer, file in zip(answers, files, strict=True):
        assert Image.open(answer["picture"]).size == Image.open(file).size
    found = json.loads((tmp_path / "found.json").read_text())
    assert [c["id"] for c in found["categories"]] == [1, 3, 7, 18]
    assert len(found["images"]) == 4
    assert len(found["annotations"]) == sum(len(answer["top"]) for answer in answers)


def test_look_through_the_block_of_the_backbone(trained, root, tmp_path, capsys):
    image = str(root / "val2017/000000000001.png")
    arguments = ["--checkpoint", str(trained / "checkpoints/last.ckpt"), image]
    predict.main([*arguments, "--look", str(tmp_path / "look.png"), "--at", "30,40", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["look"]["x"] == 30
    assert Image.open(tmp_path / "look.png").width > 100
    with pytest.raises(ValueError, match="is outside: it has"):
        predict.main([*arguments, "--look", str(tmp_path / "look.png"), "--at", "30,400"])


def test_pictures_are_of_detectors(tmp_path):
    from nlzoo import create_model
    from nlzoo.models import save_model

    save_model(create_model("resnet8_cifar10", width=4), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="--draw and --coco are of detectors"):
        predict.main(["x.png", "--checkpoint", str(tmp_path / "m.safetensors"), "--draw", "out"])


def test_keypoints(root, tmp_path, capsys):
    train(root, tmp_path / "run", "keypoints", "--trainer.max_steps", "2")
    model = load_model(tmp_path / "run/checkpoints/last.ckpt")
    pre = model.preprocessing
    assert len(pre.keypoints) == 7
    assert model.roi_heads.keypoint_predictor.kps_score_lowres.out_channels == 7
    assert pre.classes == ("figure",)
    objects = {
        "boxes": torch.tensor([[20.0, 10, 60, 90]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.9]),
        "keypoints": torch.tensor([[[40.0, 10 + 10 * k, 1] for k in range(7)]]),
        "keypoints_scores": torch.full((1, 7), 5.0),
    }
    image = torch.zeros(3, 100, 80, dtype=torch.uint8)
    found = Found("one.png", image, objects)
    draw_objects(found, pre, tmp_path / "one.png")
    drawn = np.asarray(Image.open(tmp_path / "one.png"))
    assert (drawn[15, 40] == 255).all()  # of the neck: a white line
    coco = CocoFile(pre)
    coco.add(found)
    coco.write(tmp_path / "one.json")
    written = json.loads((tmp_path / "one.json").read_text())
    assert written["annotations"][0]["keypoints"][:3] == [40.0, 10.0, 1.0]
    assert written["annotations"][0]["bbox"] == [20.0, 10.0, 40.0, 80.0]
    assert written["categories"][0]["keypoints"] == list(pre.keypoints)


@pytest.mark.parametrize("name", [n for n in recipe_names() if "rcnn" in n or "detect" in n])
def test_recipes_say_how_large_the_whole_batch_is(name):
    recipe = read_recipe(name)
    task, trainer = recipe["task"]["init_args"], recipe["trainer"]
    batch = recipe["data"]["init_args"]["batch_size"]
    assert task["reference_batch"] == batch * (1 if "finetune" in name else 8)
    assert all(step < trainer["max_steps"] for step in task.get("milestones", ()))


def test_warm_up_starts_at_a_third():
    rates = [rate(step, 100, "steps", 10, (50,), start=1 / 3) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 3 + 2 / 3 / 11)
    assert np.allclose(np.diff(rates[:11]), 2 / 3 / 11)
    assert rates[10] == 1.0
    assert rates[50] == 0.1


def test_detectrons_box_loss_is_linear_from_one_on(monkeypatch):
    """Against smooth L1 on what the box predictor said, and on the targets that it was given."""
    pre = {"frames": 0, "classes": ["a", "b"], "category_ids": [1, 2]}
    losses, seen = {}, {}
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    target = {
        "boxes": torch.tensor([[10.0, 12, 50, 70], [60, 20, 120, 90]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.ones(2, 96, 128, dtype=torch.uint8),
    }
    for kind in ("torchvision", "detectron"):
        torch.manual_seed(0)
        task = Detection("mask_rcnn_resnet18_fpn", arch=TINY, box_loss=kind, preprocessing=pre)
        task.log = task.log_dict = lambda *_, **__: None
        heads = task.model.roi_heads
        torch.nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.3)
        if kind == "torchvision":
            predictor, select = heads.box_predictor.forward, heads.select_training_samples
            monkeypatch.setattr(heads, "select_training_samples", keep(seen, "chosen", select))
            monkeypatch.setattr(heads.box_predictor, "forward", keep(seen, "said", predictor))
        forward = task.model.forward
        monkeypatch.setattr(task.model, "forward", keep(losses, kind, forward))
        torch.manual_seed(1)
        loss = task.training_step(([image], [dict(target)]), 0)
        loss.backward()
    _, _, labels, targets = seen["chosen"]
    labels, targets = torch.cat(labels), torch.cat(targets)
    deltas = seen["said"][1].unflatten(1, (-1, 4))
    positive = labels > 0
    mine = deltas[positive, labels[positive]]
    for kind, beta in (("torchvision", 1 / 9), ("detectron", 1.0)):
        wanted = F.smooth_l1_loss(mine, targets[positive], beta=beta, reduction="sum")
        found = losses[kind]["loss_box_reg"]
        assert found.item() == pytest.approx(wanted.item() / len(labels), rel=1e-4)


def keep(where, name, function):
    def kept(*args):
        where[name] = function(*args)
        return where[name]

    return kept


def test_a_loss_that_is_no_number_names_the_file(root, tmp_path):
    with pytest.raises(FloatingPointError, match=r"iteration \d+, on .*train2017/0000"):
        train(root, tmp_path / "run", "masks", "--trainer.max_steps", "5", "--task.lr", "1e30")


def test_data_without_masks_are_no_data_of_masks(root, tmp_path):
    message = "mask_rcnn_resnet18_fpn_nl1 needs masks, the data give boxes"
    with pytest.raises(ValueError, match=message):
        train(root, tmp_path / "run", "masks", "--data.wants", "boxes")


def test_other_networks_are_no_detectors():
    with pytest.raises(ValueError, match="unknown detector"):
        Detection("resnet8_cifar10", preprocessing={"frames": 0, "classes": ["a"] * 10})


def test_preprocessing_travels_as_plain_values():
    pre = Preprocessing(frames=0, skeleton=([0, 1],), sigmas=(0.1,))
    assert Preprocessing.from_dict(json.loads(json.dumps(pre.to_dict()))) == pre


@pytest.mark.slow
def test_two_processes_score_as_one_does(tmp_path):
    """Five images, of which one is there twice for two processes."""
    root, run = make_coco(tmp_path / "coco", train=8, val=5), tmp_path / "run"
    recipes = ["--recipe", "mask_rcnn_r50_nl_coco", "--recipe", "_masks_sample"]
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "2"]
    where = ["--data", root, "--run", run]
    done(Process("-m", "nlzoo.fit", *recipes, *where, *QUICK, *ranks, "--task.lr", "2e-3"))
    last = list(csv.DictReader((run / "metrics.csv").open()))[-1]
    checkpoint = str(run / "checkpoints/last.ckpt")
    one = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    evaluate.main(["--checkpoint", checkpoint, *one])
    result = json.loads((run / "evaluation.json").read_text())
    assert result["images_scored"] == 5
    for key in ("box/AP50", "mask/AP50", "box/AR100", "mask/AR100"):
        assert float(last[f"val/{key}"]) == pytest.approx(result[key], abs=1e-6)
    assert result["box/AR100"] > 0
