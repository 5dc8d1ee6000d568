"""The programs on images, from the files on a disk to the files that they write."""

import csv
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image

from nlzoo import evaluate, fit, predict, program
from nlzoo.data.sample import make_sample
from nlzoo.data.sample_images import CLASSES, draw_image, make_images
from nlzoo.models import create_model, load_model, save_model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A sample of 24 + 8 images, one of which is none."""
    folder = make_images(tmp_path_factory.mktemp("set") / "images", train=24, val=8)
    (folder / "val/same/000001.png").write_text("no image")
    return folder


def options(images, run, *more):
    return [
        *("--recipe", "images_finetune", "--recipe", "_image_sample", "--data", str(images)),
        *("--run", str(run), "--data.batch_size", "8", "--data.workers", "0"),
        *("--trainer.max_epochs", "2", "--task.arch.width", "4", *more),
    ]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit.main(options(images, folder, "--task.mixup", "0.2", "--task.cutmix", "1.0"))
    return folder


def test_fit_evaluate_and_predict_agree(images, run, tmp_path, capsys):
    assert "unreadable: not an image" in (run / "bad_files.txt").read_text()
    checkpoint = str(run / "checkpoints/best.ckpt")
    evaluate.main(["--checkpoint", checkpoint, "--run", str(tmp_path)])
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["files_found"], result["files_unreadable"]) == (8, 1)
    assert {*result["correct_by_class"]} == {*CLASSES}
    assert result["correct"] == round(result["top1"] * 7)
    assert 0 <= result["calibration_error"] <= 1
    assert Image.open(tmp_path / "confusion.png").size[0] > 200
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        predict.main(["--checkpoint", checkpoint, "--json", str(images / "val")])
    *answers, failed = json.loads(capsys.readouterr().out)
    assert failed["file"] == str(images / "val/same/000001.png")
    assert len(answers) == 7
    for one in answers:
        for top in one["top"]:
            assert float(rows[one["file"]][top["class"]]) == pytest.approx(top["score"], abs=1e-6)


def test_scores_that_are_no_numbers_are_refused(images, run, tmp_path):
    stored = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    stored["state_dict"]["model.conv1.weight"][0] = torch.nan
    torch.save(stored, tmp_path / "nan.ckpt")
    argv = ["--checkpoint", str(tmp_path / "nan.ckpt")]
    for main, more in ((evaluate.main, ()), (predict.main, (str(images / "val"),))):
        with (
            pytest.warns(UserWarning, match="NaN or infinite"),
            pytest.raises(ValueError, match="png: the network's scores are not numbers"),
        ):
            main([*argv, *more])


def test_predict_reads_tar_files(images, run, tmp_path, capsys):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(images / "val/same/000003.png", "a/b.png")
    argv = ["--checkpoint", str(run / "checkpoints/best.ckpt"), "--json"]
    predict.main([*argv, str(tmp_path / "x.tar"), str(images / "val/same/000003.png")])
    packed, plain = json.loads(capsys.readouterr().out)
    assert packed["file"] == str(tmp_path / "x/a/b.png")
    assert packed["top"] == plain["top"]


@pytest.mark.parametrize("frozen", [("--task.train", "head"), ("--task.bn", "frozen")])
def test_frozen_statistics_stay(images, tmp_path, frozen):
    fit.main(options(images, tmp_path, *frozen, "--trainer.max_epochs", "1"))
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    counts = {name: int(t) for name, t in state.items() if name.endswith("num_batches_tracked")}
    assert {count for name, count in counts.items() if "non_local" not in name} == {0}
    blocks = {count for name, count in counts.items() if "non_local" in name}
    assert blocks == ({0} if "head" in frozen else {3})


def test_networks_of_timm_are_asked_and_looked_at(images, tmp_path, capsys):
    timm = (
        "--task.model",
        "timm/resnet10t",
        "--task.non_local.places",
        "layer2:0",
        "--task.arch",
        "{}",
    )
    argv = options(images, tmp_path / "run", *timm, "--trainer.max_steps", "1")
    fit.main([argument for argument in argv if argument not in ("--task.arch.width", "4")])
    argv = ["--checkpoint", str(tmp_path / "run/checkpoints/last.ckpt")]
    predict.main([*argv, str(images / "val/same/000003.png"), "--look", str(tmp_path / "x.png")])
    assert "x.png: where x 32, y 32 looks" in capsys.readouterr().out


def test_one_folder_is_tested_on_the_part_that_was_kept(images, tmp_path):
    shutil.copytree(images / "train", tmp_path / "set")
    fit.main(options(tmp_path / "set", tmp_path / "run", "--trainer.max_epochs", "1"))
    evaluate.main(["--checkpoint", str(tmp_path / "run/checkpoints/last.ckpt")])
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    result = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert result["files_found"] == 4
    assert result["top1"] == pytest.approx(float(rows[-1]["val/top1"]))


def test_predict_draws_where_a_position_of_an_image_looks(images, run, tmp_path, capsys):
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), str(images / "val/same/000003.png")]
    predict.main([*argv, "--look", str(tmp_path / "look.png"), "--at", "5,20"])
    assert "look.png: where x 5, y 20 looks" in capsys.readouterr().out
    assert Image.open(tmp_path / "look.png").size[1] > 200


class Stop(Callback):
    """Ends a run in the middle of its second epoch, right after iteration 4 was saved."""

    def on_train_batch_start(self, trainer, *_, **__):
        if trainer.global_step == 4:
            raise RuntimeError("stopped")


def test_stopped_and_resumed_is_the_same(images, run, tmp_path):
    argv = options(images, tmp_path, "--task.mixup", "0.2", "--task.cutmix", "1.0")
    argv += ["--checkpoint_every", "1"]
    stop = f"{__name__}.Stop"
    with pytest.raises(RuntimeError, match="stopped"):
        fit.main([*argv, "--trainer.callbacks+", stop])
    fit.main([*argv, "--resume", "auto"])
    ends = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (run, tmp_path)
    ]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_a_part_of_an_epoch_is_counted_once(images, tmp_path, capsys):
    argv = options(images, tmp_path, "--trainer.max_epochs", "9", "--resume", "auto")
    for steps in ("4", "4", "6"):
        fit.main([*argv, "--trainer.max_steps", steps])
    assert "iteration 4 is the last; --trainer.max_steps N goes on" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 2


def test_weights_from_elsewhere_are_evaluated_by_a_recipe(images, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_model(create_model("resnet8_cifar10", width=4, num_classes=2), path)
    common = "--checkpoint", str(path), "--run", str(tmp_path), "--data", str(images)
    small = "--recipe", "resnet20_nl_cifar10", "--recipe", "_image_sample", "--data.workers", "0"
    model = "--task.model", "resnet8_cifar10", "--task.arch.width", "4"
    evaluate.main([*small, *common, *model])
    assert json.loads((tmp_path / "evaluation.json").read_text())["files_found"] == 8
    with pytest.raises(ValueError, match="holds no recipe: --recipe NAME"):
        evaluate.main([*common])
    save_model(create_model("resnet8_cifar10", width=4), path)
    with pytest.raises(ValueError, match="for 2 classes, and the weights have others"):
        evaluate.main([*small, *common, *model])


def test_average_weights_are_what_is_kept(images, tmp_path):
    average = "lightning.pytorch.callbacks.EMAWeightAveraging"
    fit.main(
        options(
            *(images, tmp_path, "--trainer.callbacks+", average),
            *("--trainer.callbacks.decay", "0.5", "--trainer.max_epochs", "1"),
        )
    )
    stored = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    name = "model.conv1.weight"
    assert not torch.equal(stored["state_dict"][name], stored["current_model_state"][name])
    model = load_model(tmp_path / "checkpoints/last.ckpt")
    assert torch.equal(model.conv1.weight, stored["state_dict"][name])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task.model", "timm/resnet5O"], "timm has no model 'resnet5O'; did you mean"),
        (["--task.model", "timm/resnet10t", "--task.non_local.places", "layer9:1"], "layer9"),
        (["--task.model", "c2d_r18"], "c2d_r18 watches videos, the data are images"),
        (["--task.mixup", "0.2", "--data.batch_size", "1"], "mixup and cutmix mix the files"),
        (["--data.batch_size", "64"], "24 training images cannot fill a batch of 1 x 64"),
        (["--data.augment", "rezised"], "augment"),
        (["--data.clips", "3"], "unknown key 'clips' here: it is of another section, or of other"),
        (
            ["--data.augment", "resized", "--data.auto_augment", "rund"],
            "auto_augment 'rund': expected timm's words",
        ),
        (["--task.optimizer", "adamx"], "unknown optimizer 'adamx'"),
        (["--task.train", "blocks", "--task.model", "resnet8_cifar10"], "the network has none"),
    ],
)
def test_bad_input_is_one_line(images, tmp_path, argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        program.run(fit.main, options(images, tmp_path / "run", "--task.arch", "{}", *argv))
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_sample_says_nothing_at_one_side():
    """Each colour is as likely on each side in both classes."""
    rng = np.random.default_rng(0)
    seen = {label: [draw_image(label, rng) for _ in range(400)] for label in (0, 1)}
    for side in (slice(0, 16), slice(48, 64)):
        means = [np.mean([image[:, side] for image in seen[label]], (0, 1, 2)) for label in (0, 1)]
        assert np.abs(means[0] - means[1]).max() < 6
    middle = [image[:, 16:48] for image in seen[0] + seen[1]]
    assert max(part.max() for part in middle) < 130


def test_sample_is_made_once(tmp_path):
    folder = make_images(tmp_path / "a", train=2, val=2)
    assert make_images(folder) == folder
    assert {path.name for path in folder.iterdir()} == {"train", "val"}


def test_a_network_of_timm_watches_videos(tmp_path, capsys):
    """Shifted frames, blocks over space and time: trained, tested, asked, looked at."""
    videos = make_sample(tmp_path / "set", train=8, val=4)
    fit.main(
        [
            *(
                "--recipe",
                "videos_timm_finetune",
                "--recipe",
                "_frame_sample",
                "--data",
                str(videos),
            ),
            *("--task.model", "tsm/resnet10t", "--run", str(tmp_path / "run")),
            *("--data.batch_size", "4", "--data.workers", "0", "--trainer.max_epochs", "1"),
        ]
    )
    checkpoint = str(tmp_path / "run/checkpoints/last.ckpt")
    evaluate.main(["--checkpoint", checkpoint])
    rows = list(csv.DictReader((tmp_path / "run/scores.csv").open()))
    capsys.readouterr()
    argv = ["--checkpoint", checkpoint, "--clips", "1", "--json", rows[0]["file"]]
    predict.main([*argv, "--look", str(tmp_path / "look.png"), "--at", "4,8,8"])
    (answer,) = json.loads(capsys.readouterr().out)
    for top in answer["top"]:
        assert float(rows[0][top["class"]]) == pytest.approx(top["score"], abs=1e-6)
    assert Image.open(tmp_path / "look.png").size[0] > 200
    assert load_model(checkpoint).preprocessing.frames == 8
