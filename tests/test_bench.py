"""What is measured, in which order, and what may be said of it."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_export import checkpoint, clips

from nlzoo.data.encode import write_video
from nlzoo.export import __main__ as program
from nlzoo.export.bench import against, measure, opened, stages, top1
from nlzoo.export.onnx import export_onnx
from nlzoo.export.timing import Times, interleaved, interval, machine, ratio
from nlzoo.program import run

# -- timing -------------------------------------------------------------------------------------


def test_rounds_are_interleaved():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(calls, range(3))
    assert order == list("abcabcabc")
    assert all(len(x.wall) == len(x.cpu) == 3 and min(x.wall) > 0 for x in times.values())


def test_processor_time_is_told_from_waiting():
    times = interleaved({"wait": lambda: time.sleep(0.05)}, range(1))["wait"]
    assert times.cpu[0] < 0.5 * times.wall[0]


def test_interval_of_a_known_distribution():
    """Quotients with median 0.5 and little spread, whatever slow rounds both share."""
    generator = torch.Generator().manual_seed(0)
    slow = torch.rand(40, generator=generator) * 10 + 1
    fast = slow * (0.5 + 0.02 * torch.randn(40, generator=generator))
    low, high = interval(fast.tolist(), slow.tolist())
    assert 0.48 < low < 0.5 < high < 0.52
    assert low <= ratio(fast.tolist(), slow.tolist()) <= high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        ours, theirs = torch.exp(0.3 * torch.randn(2, 25, generator=generator)).tolist()
        low, high = interval(ours, theirs)
        hits += low <= 1 <= high
    assert 180 <= hits <= 200


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([0.5] * 6, "faster"), ([2.0] * 6, "slower"), ([1.0] * 6, ""), ([0.9, 0.9, 0.9, 1.2] * 3, "")],
)
def test_faster_is_said_only_where_the_interval_says_so(ours, verdict):
    base = Times([1.0] * len(ours), [1.0] * len(ours))
    assert against(Times(ours, ours), base)["verdict"] == verdict


def test_few_rounds_tell_nothing():
    with pytest.raises(ValueError, match="fewer than 6"):
        interval([1.0] * 5, [2.0] * 5)


def test_the_machine_is_described(tmp_path, monkeypatch):
    facts = machine()
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert {"cpu", "cores", "threads", "load", "date"} <= facts.keys()
    assert json.loads(json.dumps(facts)) == facts
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '580.1, 1980 MHz, 2619 MHz, 35, 70 W'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    facts = machine()
    assert (facts["driver_version"], facts["clocks.sm"]) == ("580.1", "1980 MHz")


# -- bench --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(exported, tmp_path_factory):
    """A checkpoint, its file, and one that takes batches of 2 only."""
    source, _, path = exported
    two = tmp_path_factory.mktemp("bench") / "two.onnx"
    export_onnx(source, two, dynamic=(), shape=(2, 3, 8, 64, 64))
    return source, str(path), str(two)


def test_rows(files):
    with opened(files[:2], threads=1) as entries:
        rows = measure(entries, (1, 3), rounds=6)
    names = ["c.ckpt eager", "m.onnx onnxruntime"]
    assert [(row["label"], row["batch"]) for row in rows] == [(n, b) for b in (1, 3) for n in names]
    for row in rows:
        assert row["shape"] == [row["batch"], 3, 8, 64, 64]
        assert len(row["seconds"]["wall"]) == len(row["seconds"]["cpu"]) == 6
        assert all(a <= b for a, b in pairwise([row[f"{p}_ms"] for p in ("median", "p90", "p99")]))
        assert row["parity"]["relative_l2"] < 1e-5
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert row["load_s"] > 0
        assert row["first_run_s"] > 0
    first, other = rows[:2]
    assert (first["ratio"], first["verdict"], first["parity"]["relative_l2"]) == (1, "", 0)
    assert other["ratio"] == ratio(other["seconds"]["wall"], first["seconds"]["wall"])
    assert json.loads(json.dumps(rows)) == rows


def test_each_source_on_the_runtimes_that_take_it(files):
    pytest.importorskip("openvino")
    with opened(files[:2], ("openvino", "onnxruntime")) as entries:
        labels = [entry.label for entry in entries]
    assert labels == ["c.ckpt eager", "m.onnx onnxruntime", "m.onnx openvino"]
    with opened(files[1:2]) as entries:
        assert [entry.label for entry in entries] == ["m.onnx onnxruntime"]
    with pytest.raises(ValueError, match="unknown runtime 'eagre'; did you mean 'eager'"):
        opened(files, ("eagre",)).__enter__()


def test_files_of_the_same_name_are_told_apart(files, tmp_path):
    other = tmp_path / "m.onnx"
    other.write_bytes(Path(files[1]).read_bytes())
    with opened([files[1], str(other)]) as entries:
        assert [entry.label for entry in entries] == [
            f"{files[1]} onnxruntime",
            f"{other} onnxruntime",
        ]


def test_other_networks_have_no_parity(files, tmp_path):
    source, _ = checkpoint(tmp_path / "d.ckpt", "i3d_r18")
    with opened([files[0], source]) as entries:
        rows = measure(entries, (1,), rounds=6)
    assert ["parity" in row for row in rows] == [True, False]


def test_sizes_that_a_file_does_not_take_are_found_first(files):
    with opened((files[0], files[2])) as entries, pytest.raises(ValueError, match=r"wanted \(2, 3"):
        measure(entries, (2, 8), rounds=6)
    with opened(files[:1]) as entries, pytest.raises(ValueError, match="fewer than 6 tell nothing"):
        measure(entries, (2,), rounds=5)


def test_top1():
    scores = torch.eye(3)
    batches = [
        (scores, torch.tensor([0, 1, 0]), torch.arange(3), []),
        (scores[:2], torch.tensor([-1, 1])),
    ]
    assert top1(lambda x: x, batches) == 3 / 4
    with pytest.raises(ValueError, match="none of the validation files can be read"):
        top1(lambda x: x, [(scores, torch.full((3,), -1))])
    with pytest.raises(ValueError, match="the network's scores are not numbers"):
        top1(lambda x: x / 0, batches)


def test_stages(files):
    seen = []
    with opened(files[:2]) as entries:
        rows = stages(entries, lambda: seen.append("decode"), lambda frames: clips(1), rounds=6)
    names = [(row["label"], row["stage"]) for row in rows]
    assert names[:2] == [("", "decode"), ("", "preprocess")]
    assert names[2:4] == [("c.ckpt eager", "copy"), ("c.ckpt eager", "compute")]
    assert all(len(row["seconds"]["wall"]) == 6 for row in rows)
    assert len(seen) == 1 + 1 + 6


def test_program(files, tmp_path, capsys):
    for split in ("train", "val"):
        for name in "ab":
            path = tmp_path / "set" / split / name / "v.mp4"
            path.parent.mkdir(parents=True)
            write_video(path, torch.randint(0, 256, (12, 64, 80, 3), dtype=torch.uint8), 8)
    output = tmp_path / "bench.json"
    wishes = ["--rounds", "6", "--batch", "1,2", "--threads", "1", "--video", str(path)]
    data = ["--data", str(tmp_path / "set")]
    program.main(["bench", *files[:2], *wishes, *data, "--output", str(output)])
    results = json.loads(output.read_text())
    assert results.keys() == {"machine", "settings", "rows", "stages"}
    assert results["settings"]["threads of a call"] == 1
    assert len(results["rows"]) == 4
    assert len({row["top1"] for row in results["rows"]}) == 1
    assert results["rows"][0]["top1"] in (0, 0.5, 1)
    said = capsys.readouterr().out
    assert "c.ckpt eager" in said
    assert "decode" in said


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["{two}", "--batch", "8"], "wanted (2, 3, 8, 64, 64)"),
        (["--batch", "x"], "--batch 'x': expected numbers"),
        (["--batch", ""], "--batch: give sizes, as in 1,8"),
        (["nowhere.onnx", "--rounds", "5"], "--rounds 5: 6 at least"),  # before a file is read
        (["--runtime", "tensorflow"], "unknown runtime 'tensorflow'"),
        (["--data", "nowhere"], "nowhere"),
        (["--video", "nowhere.mp4"], "nowhere.mp4"),
        (["nowhere.onnx"], "nowhere.onnx"),
    ],
)
def test_program_refuses_in_one_line(files, tmp_path, capsys, wish, message):
    wish = [word.format(two=files[2]) for word in wish]
    with pytest.raises(SystemExit) as exit_:
        run(program.main, ["bench", files[0], *wish, "--output", str(tmp_path / "bench.json")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("bench", "m.onnx", "--output", "m.onnx"), "called NAME.json"),
        (("report", "a.json", "--output", "a.json"), "called NAME.html"),
        (("quantize", "m.onnx", "--data", "d", "--output", "./m.onnx"), "is what is read"),
        (("bench", "m.onnx", "--batch", "0", "--output", "a.json"), "expected numbers from 1"),
    ],
)
def test_nothing_that_is_read_is_overwritten(argv, message):
    with pytest.raises(ValueError, match=message):
        program.main(list(argv))
