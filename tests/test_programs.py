"""The README's programs, from the files on a disk to the files that they write."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback
from PIL import Image
from processes import Process, done
from tiers import marked

from nlzoo import evaluate, fit, predict, program
from nlzoo.data.sample import CLASSES, make_sample
from nlzoo.models import create_model, load_model, save_model
from nlzoo.tasks.classification import Classification
from nlzoo.weights.read import read_checkpoint

RUN_FOLDER = {
    "bad_files.txt",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "curves.png",
    "metrics.csv",
    "recipe.yaml",
    "summary.json",
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A sample of 24 + 7 videos, one of which is damaged beyond use and one missing."""
    folder = make_sample(tmp_path_factory.mktemp("set") / "videos", train=24, val=7)
    with (folder / "train.csv").open("a") as file:
        file.write("both same,nowhere,0,2,train,0\n")
    next((folder / "val").iterdir()).write_bytes(b"not a video")
    return folder


def options(videos, run):
    """The README's training, two epochs of six iterations of a small network."""
    return [
        *("--recipe", "i3d_nl_kinetics", "--recipe", "_video_sample", "--data", str(videos)),
        *("--run", str(run), "--task.model", "i3d_r18_nl1", "--task.arch.width", "8"),
        *("--data.batch_size", "4", "--data.workers", "0", "--data.clips", "3"),
        *("--data.scale", "[34,40]", "--data.test_size", "40", "--data.crops", "3"),
        *("--trainer.max_epochs", "2", "--task.arch.dropout", "0.5", "--checkpoint_every", "1"),
    ]


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """The run folder of a whole training."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit.main(options(videos, folder))
    return folder


def files(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


def test_fit_fills_the_run_folder(videos, run):
    assert files(run) == RUN_FOLDER
    assert list((run / "tensorboard").glob("events*"))
    summary = json.loads((run / "summary.json").read_text())
    assert {*summary} >= {"samples_per_second", "data_wait", "seconds", "versions"}
    assert (summary["metric"], summary["epochs"]) == ("val/top1", 2)
    assert summary["checkpoint"] == str(run / "checkpoints/best.ckpt")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["6", "12"]
    assert summary["best"] == max(float(row["val/top1"]) for row in rows)
    assert Image.open(run / "curves.png").size[0] > 500
    assert (run / "bad_files.txt").read_text().startswith("nowhere_000000_000002\tmissing\n")


def test_a_recipe_of_a_run_repeats_it(run, tmp_path):
    fit.main(["--recipe", str(run / "recipe.yaml"), "--run", str(tmp_path / "again")])
    assert_same_end(run, tmp_path / "again")


def assert_same_end(run, other):
    """Weights, optimizer, schedule, table and the best checkpoint are the same to the bit."""
    best, other_best, a, b = (
        torch.load(folder / "checkpoints" / name, weights_only=True)
        for name in ("best.ckpt", "last.ckpt")
        for folder in (run, other)
    )
    assert a["global_step"] == b["global_step"] == 12
    assert best["global_step"] == other_best["global_step"]
    torch.testing.assert_close(best["state_dict"], other_best["state_dict"], rtol=0, atol=0)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    times = ("samples_per_second", "data_wait", "step_seconds")
    tables = [list(csv.DictReader((f / "metrics.csv").open())) for f in (run, other)]
    rows = [[{k: v for k, v in row.items() if k not in times} for row in t] for t in tables]
    assert rows[0] == rows[1]


def test_a_second_run_does_not_overwrite_the_first(videos, run, capsys):
    with pytest.raises(ValueError, match="already holds a run: --resume auto continues it"):
        fit.main(options(videos, run))


def test_a_finished_run_says_that_it_is(videos, run, capsys):
    fit.main([*options(videos, run), "--resume", "auto"])
    assert "nothing to do, iteration 12 is the last" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_published_strides_goes_on_and_is_tested(videos, tmp_path):
    """Of a network named as weights are, and changed."""
    argv = [*options(videos, tmp_path / "run"), "--task.model", "i3d_r50_nl5.k400_32x2_official"]
    fit.main([*argv, "--trainer.max_steps", "1"])
    fit.main([*argv, "--trainer.max_steps", "2", "--resume", "auto"])
    last = tmp_path / "run/checkpoints/last.ckpt"
    evaluate.main(["--checkpoint", str(last), "--data.clips", "1"])
    spec = read_checkpoint(last)["nlzoo"]["model"]
    assert (spec["name"], spec["arch"]["width"]) == ("i3d_r50_nl5", 8)
    with pytest.raises(ValueError, match="of another architecture"):
        fit.main([*argv, "--task.model", "i3d_r18_nl1", "--resume", "auto"])


def test_a_resumed_run_needs_no_weights_but_its_own(videos, tmp_path):
    start = tmp_path / "start.safetensors"
    save_model(create_model("i3d_r18_nl1", num_classes=4, width=8), start)
    argv = [*options(videos, tmp_path / "run"), "--task.pretrained", str(start)]
    fit.main([*argv, "--trainer.max_steps", "1"])
    start.unlink()
    fit.main([*argv, "--trainer.max_steps", "2", "--resume", "auto"])
    stored = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert stored["global_step"] == 2
    assert stored["hyper_parameters"]["pretrained"] == str(start)


def test_one_class_is_no_choice(videos, tmp_path):
    with pytest.raises(ValueError, match="the data have one class, 'a': give two"):
        Classification("c2d_r18", preprocessing={"classes": ["a"]})


def test_training_may_end_before_it_is_validated(videos, tmp_path, capsys):
    fit.main([*options(videos, tmp_path), "--trainer.max_steps", "1"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] is None
    assert summary["checkpoint"] == str(tmp_path / "checkpoints/last.ckpt")
    assert "not validated after 1 epoch," in capsys.readouterr().err


def test_the_same_recipe_trains_without_blocks(videos, tmp_path):
    argv = [*options(videos, tmp_path / "plain"), "--trainer.limit_train_batches", "1"]
    argv[argv.index("i3d_r18_nl1")] = "i3d_r18"
    fit.main([*argv, "--trainer.max_epochs", "1"])
    model = load_model(tmp_path / "plain/checkpoints/last.ckpt")
    assert not any("non_local" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(
    "extra",
    [
        ("--task.bn", "precise"),
        pytest.param(("--task.bn", "frozen"), marks=pytest.mark.every),
        pytest.param(("--task.compile", "true"), marks=pytest.mark.every),
        ("--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2"),
        pytest.param(
            ("--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.5"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--task.optimizer", "sgd", "--task.schedule", "steps", "--task.milestones", "[1]"),
            marks=pytest.mark.slow,
        ),
        ("--task.non_local.form", "concatenation", "--task.label_smoothing", "0.1"),
    ],
    ids=lambda extra: extra[0].rpartition(".")[2] + "-" + extra[1],
)
def test_variants_train_evaluate_and_load(videos, tmp_path, extra):
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    fit.main([*options(videos, tmp_path), *short, *extra])
    checkpoint = str(tmp_path / "checkpoints/last.ckpt")
    evaluate.main(["--checkpoint", checkpoint])
    assert 0 <= json.loads((tmp_path / "evaluation.json").read_text())["top1"] <= 1
    clip = torch.zeros(1, 3, 32, 40, 40, dtype=torch.uint8)
    assert load_model(checkpoint)(clip).isfinite().all()


# -- evaluate and predict -------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(run):
    """evaluation.json and the rows of scores.csv."""
    evaluate.main(["--checkpoint", str(run / "checkpoints/last.ckpt"), "--run", str(run / "test")])
    rows = list(csv.DictReader((run / "test/scores.csv").open()))
    return json.loads((run / "test/evaluation.json").read_text()), rows


def test_evaluate_reports_what_it_found(run, report):
    result, rows = report
    assert result["views"] == "3 clips x 3 crops"
    assert (result["files_expected"], result["files_found"]) == (7, 7)
    assert result["files_unreadable"] == 1
    assert len(rows) == 7
    assert sorted(row["views"] for row in rows) == ["0", *["9"] * 6]
    read = [row for row in rows if row["views"] == "9"]
    right = [
        CLASSES[int(row["label"])] == max(CLASSES, key=lambda c: float(row[c])) for row in read
    ]
    assert result["top1"] == pytest.approx(sum(right) / 6)
    assert all(sum(float(row[c]) for c in CLASSES) == pytest.approx(1) for row in read)


def test_predict_gives_the_scores_of_evaluate(run, report, capsys):
    _, rows = report
    read = {row["file"]: row for row in rows if row["views"] == "9"}
    folder = str(Path(next(iter(read))).parent)
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), "--clips", "3", "--crops", "3"]
    with pytest.raises(SystemExit, match="1"):
        predict.main([*argv, "--json", folder])
    out = capsys.readouterr()
    results = json.loads(out.out)
    assert [result["file"] for result in results if "error" in result] == [
        row["file"] for row in rows if row["views"] == "0"
    ]
    results = [result for result in results if "top" in result]
    assert {result["file"] for result in results} == {*read}
    for result in results:
        for one in result["top"]:
            wanted = float(read[result["file"]][one["class"]])
            assert one["score"] == pytest.approx(wanted, abs=1e-5)
        scores = [one["score"] for one in result["top"]]
        assert scores == sorted(scores, reverse=True)
    assert len(out.err.splitlines()) == 1  # the damaged file is named, and does not end the list


def test_predict_draws_where_a_position_looks(run, report, tmp_path, capsys):
    video = next(row["file"] for row in report[1] if row["views"] == "9")
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), "--clips", "1", video]
    predict.main([*argv, "--look", str(tmp_path / "look.png"), "--at", "5,20,10"])
    out = capsys.readouterr().out
    assert any(name in out for name in CLASSES)
    assert "look.png: where frame 5, x 20, y 10 looks" in out
    assert Image.open(tmp_path / "look.png").size[0] > 200


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("nowhere.mp4",), "nowhere.mp4: No such file"),
        (("--at", "1,2,3", "a.mp4"), "--at needs --look"),
        (("--look", "x.png", "--at", "1,2", "a.mp4"), "--at '1,2': a video wants FRAME,X,Y"),
        (("--look", "x.png", "a.mp4", "b.mp4"), "--look draws one file, not 2"),
        (("--look", "x.xyz", "a.mp4"), "--look x.xyz: expected a picture's name"),
        (("--threshold", "7", "a.mp4"), "--threshold 7: expected a score from 0 to 1"),
        (("--threshold", ".nan", "a.mp4"), "--threshold nan: expected a score from 0 to 1"),
        (("--coco", "/", "a.mp4"), "--coco / is a folder: name a file"),
        (("--draw", __file__, "a.mp4"), "is a file: name a folder"),
        (("--clips", "0", "a.mp4"), "clips = 0: expected 1 or more"),
        (("--jsonn", "a.mp4"), "unknown key 'jsonn'; did you mean 'json'"),
    ],
)
def test_predict_says_what_is_wrong(run, argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        program.run(predict.main, ["--checkpoint", str(run / "checkpoints/last.ckpt"), *argv])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_evaluate_needs_the_videos_of_its_split_only(videos, run, report, tmp_path):
    shutil.copytree(videos / "val", tmp_path / "set" / "val")
    shutil.copy(videos / "val.csv", tmp_path / "set")
    (tmp_path / "set" / "train.csv").write_text("not a list")
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), "--run", str(tmp_path)]
    evaluate.main([*argv, "--data", str(tmp_path / "set")])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report[0]
    for option, what in (("data.classes", "class names"), ("task.model", "network")):
        with pytest.raises(ValueError, match=f"--{option}: a checkpoint .* has its own {what}"):
            evaluate.main([*argv, f"--{option}", "i3d_r50"])


def test_checkpoints_of_others_are_refused(run, tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds no recipe"):
        evaluate.main(["--checkpoint", str(tmp_path / "other.ckpt")])
    with pytest.raises(ValueError, match="--checkpoint FILE is missing"):
        evaluate.main([])
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), "--task.arch.width", "16"]
    refused = pytest.raises(ValueError, match=r"another architecture: .*file \(.*model \(")
    with pytest.warns(UserWarning, match="width 16: the weights were trained in width 8"), refused:
        evaluate.main([*argv, "--run", str(tmp_path)])
    assert not (tmp_path / "evaluation.json").exists()


# -- nothing lost ---------------------------------------------------------------------------


class Signal(Callback):
    """Sends its own process a signal where `hook` is called after iteration `step`."""

    def __init__(self, step: int, hook: str, number: int) -> None:
        def send(trainer, *_, **__):
            if trainer.global_step == step:
                os.kill(os.getpid(), number)

        setattr(self, hook, send)


def fit_until(videos, folder, number, step, hook="on_train_batch_start"):
    """A training that a signal meets; its exit code and what it said."""
    callback = {"step": step, "hook": hook, "number": int(number)}
    entry = {"class_path": "test_programs.Signal", "init_args": callback}
    more = ["--trainer.callbacks+", json.dumps(entry)]
    code, _, error = Process("-m", "nlzoo.fit", *options(videos, folder), *more).end()
    return code, error


KILLED = [
    (2, "on_train_batch_start"),
    (5, "on_before_optimizer_step"),
    (6, "on_validation_end"),  # validated, not saved
    (6, "on_train_batch_start"),  # of the next epoch
    (8, "on_train_batch_end"),  # stepped, not saved
    (10, "on_after_backward"),
]


@pytest.mark.parametrize("when", marked(KILLED, slow=[KILLED[2], KILLED[4]]), ids=str)
def test_killed_runs_resume_to_the_same_weights(videos, run, tmp_path, when):
    folder = tmp_path / "killed"
    code, error = fit_until(videos, folder, signal.SIGKILL, *when)
    assert code == -signal.SIGKILL, error
    assert not (folder / "summary.json").exists()
    fit.main([*options(videos, folder), "--resume", "auto"])
    assert_same_end(run, folder)
    assert files(folder) >= RUN_FOLDER


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(videos, tmp_path):
    code, error = fit_until(videos, tmp_path, signal.SIGINT, 2)
    assert code == 130
    assert error.splitlines()[-1].endswith(f"--run {tmp_path} --resume auto continues")
    assert "Traceback" not in error


@pytest.mark.every
def test_ctrl_c_ends_an_evaluation_in_one_line(run, tmp_path):
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), "--run", str(tmp_path)]
    process = Process("-m", "nlzoo.evaluate", *argv, "--data.clips", "400")
    while process.poll() is None and not (tmp_path / "bad_files.txt").exists():
        time.sleep(0.05)  # it names the damaged file while it tests
    process.send_signal(signal.SIGINT)
    code, _, error = process.end()
    assert code == 130
    assert error.splitlines()[-1] == "nlzoo: interrupted"
    assert "Traceback" not in error


@pytest.mark.slow
def test_two_processes_evaluate_as_one(run, tmp_path):
    """7 videos x 3 clips: an odd number, so that the last round repeats one."""
    argv = ["--checkpoint", str(run / "checkpoints/last.ckpt"), "--data.batch_size", "1"]
    evaluate.main([*argv, "--run", str(tmp_path / "one")])
    ddp = ("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_false")
    done(Process("-m", "nlzoo.evaluate", *argv, "--run", tmp_path / "two", *ddp))
    one, two = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("one", "two"))
    assert one == two
    scores = [(tmp_path / n / "scores.csv").read_text() for n in ("one", "two")]
    assert scores[0] == scores[1]
