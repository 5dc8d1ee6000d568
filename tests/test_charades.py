"""Charades: what its lists say, which actions a clip touches, and training on many labels."""

import csv
import json
import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from shared import SHARED

from nlzoo import evaluate, fit, predict, program
from nlzoo.data.charades import Action, ActionClip, Charades, Film, touched
from nlzoo.data.decode import read_frames
from nlzoo.data.encode import write_video
from nlzoo.data.sample_actions import CLASSES, draw_clip, make_actions
from nlzoo.data.sampling import Sampling
from nlzoo.data.transforms import TrainTransform
from nlzoo.models import load_model, save_model

LISTS = SHARED / "data/video_labels"
CODES = "\n".join(f"c{i:03d} class {i}" for i in range(4))
HEAD = "id,script,actions,length\n"


def module(root, **options):
    return Charades(str(root), **{"val": "test", "workers": 0, "batch_size": 2} | options)


def tree(root, *rows, classes=CODES):
    """A training list of these rows; videos A and B are there."""
    root.mkdir(exist_ok=True)
    (root / "Charades_v1_train.csv").write_text(HEAD + "\n".join(rows) + "\n")
    (root / "classes.txt").write_text(classes)
    for name in "AB":
        (root / f"{name}.mp4").touch()
    return root


def parts(data, split="train"):
    return data._splits[split]


@pytest.mark.skipif(not LISTS.exists(), reason=f"no lists in {LISTS}")
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_the_official_lists(tmp_path, split):
    path = LISTS / f"charades_{split}_sample.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::2]:
        (tmp_path / f"{row['id']}.mp4").touch()
    data = module(tmp_path, train=str(path), val="")
    labels = parts(data).labels
    assert (len(data.classes), data.classes[156]) == (157, "c156 Someone is eating something")
    assert data.expected["train"] == len(rows)
    assert labels.shape == (len(rows[::2]), 157)
    for row, found in zip(rows[::2], labels, strict=True):
        codes = {int(part.split()[0][1:]) for part in row["actions"].split(";") if part}
        assert {*found.nonzero().flatten().tolist()} == codes
    assert parts(data).missing == tuple(row["id"] for row in rows[1::2])
    assert any(not row.any() for row in labels)  # videos without actions are kept
    film = data._films[str(tmp_path / f"{rows[0]['id']}.mp4")]
    assert max(action.end for action in film.actions) <= float(rows[0]["length"])


@pytest.mark.skipif(not LISTS.exists(), reason=f"no lists in {LISTS}")
def test_a_clip_has_the_actions_of_its_hundredths_of_seconds():
    with (LISTS / "charades_train_sample.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:40]
    rng = np.random.default_rng(0)
    for row in rows:
        listed = [part.split() for part in row["actions"].split(";") if part]
        actions = [Action(int(c[1:]), float(a), float(b)) for c, a, b in listed]
        start = rng.integers(0, 2000)
        end = start + rng.integers(1, 600)
        times = (np.arange(start, end) + 0.5) / 100
        wanted = {a.label for a in actions if ((a.start < times) & (times < a.end)).any()}
        found = touched(Film(100, actions), start / 100, end / 100, 157)
        assert {*found.nonzero().flatten().tolist()} == wanted


@pytest.fixture(scope="module", params=["file", "folder"])
def film(request, tmp_path_factory):
    """32 frames in 2 seconds; the grey of frame i is 8 i."""
    path = tmp_path_factory.mktemp("film") / "A.mp4"
    frames = (torch.arange(32, dtype=torch.uint8) * 8)[:, None, None, None].expand(-1, 16, 16, 3)
    if request.param == "file":
        write_video(path, frames, 16)
        return str(path)
    path = path.with_suffix("")
    path.mkdir()
    for i, frame in enumerate(frames, 1):
        Image.fromarray(frame.numpy()).save(path / f"A-{i:06d}.png")
    return str(path)


def test_the_labels_of_a_training_clip_are_those_of_its_frames(film):
    actions = [Action(0, 0, 0.5), Action(1, 0.5, 1.75), Action(2, 1.75, 2)]
    read = ActionClip(
        Sampling(4, 2, 0), TrainTransform(16, (16, 16)), {film: Film(2.0, actions)}, 4
    )
    seen = set()
    for seed in range(60):
        clip, damage, label = read(film, np.random.default_rng(seed))
        first, last = ((clip[0, t].float().mean() / 8).round().int().item() for t in (0, -1))
        assert (damage, last - first) == ("", 6)
        times = {frame / 16 for frame in range(first, last + 1)}
        wanted = [int(any(a.start <= t < a.end for t in times)) for a in actions]
        assert label.tolist() == [*wanted, 0]
        seen.add(tuple(wanted))
    assert seen == {(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1)}


def test_lists_as_people_have_them(tmp_path):
    root = tree(
        tmp_path,
        'A,"Sits down, then\nreads; c003 0 9","c001 0.00 5.00;c002 9.00 31.00",30.5',
        "B,,,12",
        "C,,c003 1 2,12",
    )
    data = module(root, val="")
    assert parts(data).labels.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert parts(data).missing == ("C",)
    film = data._films[str(root / "A.mp4")]
    assert film == Film(30.5, [Action(1, 0, 5), Action(2, 9, 30.5)])


def test_reversed_actions_are_reported_once_and_left_out(tmp_path):
    root = tree(tmp_path, "A,,c001 5 2;c002 1 2,30", "B,,c001 3 3,30")
    with pytest.warns(UserWarning, match="2 of 3 actions end before they start") as said:
        data = module(root, val="")
    assert len(said) == 1
    assert "train.csv, line 2: c001 5 2" in str(said[0].message)
    assert parts(data).labels.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("A,,c004 0 1,30", r"line 2: action 'c004 0 1' is outside the 4 classes, c000 to c003"),
        ("A,,c001 5 2;c002 3 1,30", "2 of 2 actions end before they start; the first: .*line 2"),
        ("A,,c001 5 2,0", "line 2: length '0' of video A: expected seconds, above 0"),
        ("A,,c001 5 2,", "line 2: length '' of video A"),
        ("A,,c001 5,30", "line 2: action 'c001 5': expected `cNNN start end`"),
        ("A,,c001 a b,30", "line 2: action 'c001 a b': expected"),
        ("X,,c001 1 2,30", "none of the 1 videos of 'train' is in .* the first is 'X'"),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, capsys, row, message):
    argv = ["--recipe", "i3d_nl_charades", "--data", str(tree(tmp_path / "set", row))]
    argv += ["--data.classes", "", "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as exit_:
        program.run(fit.main, argv)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_other_lists_are_refused(tmp_path):
    root = tree(tmp_path)
    (root / "Charades_v1_train.csv").write_text("A.mp4 0\n")
    with pytest.raises(ValueError, match=r"line 1: length '' of video A\.mp4"):
        module(root, val="")


# -- the sample -----------------------------------------------------------------------------


def test_marks_are_where_the_list_says():
    rng = np.random.default_rng(0)
    for clip, marks in (draw_clip(rng) for _ in range(20)):
        vivid = (clip.max(3).astype(int) - clip.min(3)) > 200
        shown = {frame for _, start, end in marks for frame in range(start, end)}
        assert {*np.flatnonzero(vivid.any((1, 2))).tolist()} == shown


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    """The sample, of 24 + 7 videos; one of each split is missing, one of the test's damaged."""
    folder = make_actions(tmp_path_factory.mktemp("set") / "marks", train=24, val=7)
    for name in ("TR003", "TE001"):
        (folder / f"Charades_v1_480/{name}.mp4").unlink()
    (folder / "Charades_v1_480/TE002.mp4").write_bytes(b"no video")
    return folder


def test_batches(marks):
    data = module(marks, frames=4, stride=3, crop=32, scale=[32, 32], test_size=32, test_crop=32)
    assert data.classes == list(CLASSES)
    assert {k: data.wishes[k] for k in ("multilabel", "pool", "segments")} == {
        **{"multilabel": True, "pool": "max", "segments": True}
    }
    assert data.found == {"train": 23, "val": 6, "test": 6}
    clips, labels, *_ = next(iter(data.train_dataloader()))
    assert (clips.shape, labels.shape, labels.dtype) == ((2, 3, 4, 32, 32), (2, 6), torch.int8)
    found = torch.cat([labels for _, labels, *_ in data.val_dataloader()])
    assert found[1].tolist() == [-1] * 6  # unreadable
    assert torch.equal(found[[0, *range(2, 6)]], parts(data, "val").labels[[0, *range(2, 6)]])
    views, labels, index, _ = next(islice(data.test_dataloader(), 1, None))
    assert views.shape == (2, 3, 3, 4, 32, 32)
    assert index.tolist() == [2, 3]


@pytest.fixture(scope="module")
def run(marks, tmp_path_factory):
    """The run folder of two epochs of a small network."""
    folder = tmp_path_factory.mktemp("runs") / "marks"
    fit.main(
        [
            *("--recipe", "i3d_nl_charades", "--recipe", "_actions_sample", "--data", str(marks)),
            *("--run", str(folder), "--task.model", "i3d_r18_nl1", "--task.arch.width", "8"),
            *("--task.non_local", "null", "--data.batch_size", "4", "--data.workers", "0"),
            *("--trainer.max_epochs", "2", "--data.clips", "5", "--data.frames", "8"),
            *("--data.stride", "1"),
        ]
    )
    return folder


def test_a_run_follows_mean_average_precision(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == "val/map"
    assert summary["best"] == max(float(row["val/map"]) for row in rows)
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    steps = [row["step"] for row in rows if float(row["val/map"]) == summary["best"]]
    assert str(best["global_step"]) in steps
    assert (run / "bad_files.txt").read_text().splitlines()[0] == "TR003\tmissing"


def test_a_test_takes_the_highest_score_of_clips_in_the_middle_of_parts(run, marks, capsys):
    checkpoint = str(run / "checkpoints/best.ckpt")
    evaluate.main(["--checkpoint", checkpoint])
    assert "5 clips x 1 crop, maximum" in capsys.readouterr().out
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["files_expected"], result["files_found"]) == (7, 6)
    assert result["files_unreadable"] == 1
    rows = list(csv.DictReader((run / "scores.csv").open()))
    read = [row for row in rows if row["views"] == "5"]
    assert [row["views"] for row in rows].count("0") == 1
    model = load_model(checkpoint)
    assert model.preprocessing.multilabel
    for row in read:
        scores = torch.tensor([float(row[name]) for name in CLASSES], dtype=torch.float64)
        views = []
        for k in range(5):
            first = round(32 / 5 * (k + 0.5)) - 4
            numbers = [min(max(first + i, 0), 31) for i in range(8)]
            clip = read_frames(row["file"], numbers).permute(3, 0, 1, 2)[None]
            with torch.no_grad():
                views.append(model(clip).double().sigmoid()[0])
        torch.testing.assert_close(scores, torch.stack(views).amax(0), rtol=0, atol=1e-6)
        assert not torch.allclose(scores, torch.stack(views).mean(0), atol=1e-5)
        with (marks / "Charades_v1_test.csv").open() as file:
            listed = next(r for r in csv.DictReader(file) if r["id"] in row["file"])
        codes = sorted(int(part[1:4]) for part in listed["actions"].split(";") if part)
        assert row["label"] == " ".join(map(str, codes))
    table = list(csv.DictReader((run / "classes.csv").open()))
    there = [float(row["average_precision"]) for row in table if row["positives"] != "0"]
    assert result["map"] == pytest.approx(np.mean(there))

    predict.main(["--checkpoint", checkpoint, "--clips", "5", "--json", read[0]["file"]])
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["top"]) >= 5
    for top in found["top"]:
        assert top["score"] == pytest.approx(float(read[0][top["class"]]), abs=1e-6)


def test_a_mean_is_an_option(run):
    checkpoint = str(run / "checkpoints/best.ckpt")
    scores = []
    for pool in ("max", "mean"):
        evaluate.main(["--checkpoint", checkpoint, "--data.pool", pool])
        row = next(csv.DictReader((run / "scores.csv").open()))
        scores.append([float(row[name]) for name in CLASSES])
    assert all(a > b for a, b in zip(*scores, strict=True))


def test_weights_of_other_classes_are_refused(run, marks, tmp_path, capsys):
    checkpoint = str(run / "checkpoints/best.ckpt")
    other = tree(tmp_path / "set", "A,,c006 0 1,2")
    (other / "classes.txt").unlink()
    model = load_model(checkpoint)
    model.reset_classifier(5)
    model.preprocessing = replace(model.preprocessing, classes=())
    save_model(model, tmp_path / "five.safetensors")
    cases = {
        "'c006 0 1' is outside the 6 classes, c000 to c005": [
            *("--checkpoint", checkpoint, "--data", str(other), "--data.test", "train")
        ],
        "starts fresh, for 6 classes, and the weights have others": [
            *("--checkpoint", str(tmp_path / "five.safetensors"), "--data", str(marks)),
            *("--recipe", "i3d_nl_charades", "--recipe", "_actions_sample"),
            *("--task.model", "i3d_r18_nl1", "--task.arch", '{"width": 8}'),
            *("--task.non_local", "null"),
        ],
    }
    for message, options in cases.items():
        with pytest.raises(SystemExit) as exit_:
            program.run(evaluate.main, [*options, "--run", str(tmp_path)])
        error = capsys.readouterr().err
        assert exit_.value.code == 2
        assert message in error
        assert error.count("\n") == 1


def test_lists_of_many_labels_train_too(marks, tmp_path, capsys):
    """`path label,label`: names, one of them with a comma."""
    names = ["red, of course", *(name.split(" ", 1)[1] for name in CLASSES[1:])]
    for split, name in (("train", "train"), ("test", "val")):
        with (marks / f"Charades_v1_{split}.csv").open() as file:
            listed = list(csv.DictReader(file))
        with (tmp_path / f"{name}.txt").open("w", newline="") as file:
            for row in listed:
                there = (names[int(part[1:4])] for part in row["actions"].split(";") if part)
                if labels := ",".join(f'"{one}"' for one in there):
                    file.write(f"{marks}/Charades_v1_480/{row['id']}.mp4 {labels}\n")
    argv = ["--recipe", "videos_finetune", "--recipe", "_video_sample", "--data", str(tmp_path)]
    argv += ["--run", str(tmp_path / "run"), "--task.model", "c2d_r18", "--task.arch.width", "8"]
    argv += ["--data.batch_size", "4", "--data.workers", "0", "--trainer.max_epochs", "1"]
    with pytest.raises(ValueError, match=r"data\.multilabel: true"):
        fit.main([*argv, "--data.classes", str([*names])])
    fit.main([*argv, "--data.multilabel", "true"])
    assert json.loads((tmp_path / "run/summary.json").read_text())["metric"] == "val/map"
    checkpoint = str(tmp_path / "run/checkpoints/best.ckpt")
    evaluate.main(["--checkpoint", checkpoint])
    table = list(csv.DictReader((tmp_path / "run/classes.csv").open()))
    assert sorted(row["class"] for row in table) == sorted(names)
    assert sum(int(row["positives"]) for row in table) > 0
    assert load_model(checkpoint).preprocessing.pool == "mean"


@pytest.mark.every
def test_the_sample_is_learnt(tmp_path):
    fit.main(["--recipe", "i3d_nl_charades", "--sample", "--run", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text())["best"] >= 0.9
