"""`fit --profile` writes a trace and says what a training waits for."""

import gzip
import json

import pytest

from nlzoo import fit
from nlzoo.callbacks.profiling import say
from nlzoo.data.sample import make_sample


def test_a_trace_and_one_line(tmp_path, capsys):
    videos = make_sample(tmp_path / "videos", train=8, val=4)
    fit.main(
        [
            *("--recipe", "i3d_nl_kinetics", "--recipe", "_video_sample", "--data", str(videos)),
            *("--run", str(tmp_path / "run"), "--task.model", "c2d_r18", "--task.arch.width", "8"),
            *("--data.batch_size", "4", "--data.workers", "0", "--profile"),
        ]
    )
    line = capsys.readouterr().out
    assert line.startswith("waiting for ")
    assert line.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["trace.json.gz"]
    trace = json.loads(gzip.decompress((tmp_path / "run/trace.json.gz").read_bytes()))
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.parametrize(
    ("wait", "busy", "verdict"),
    [
        (0.5, 0.4, "waiting for data (50% of the time waiting for data, the device 40% at work)"),
        (0.05, 0.9, "waiting for the device"),
        (0.05, 0.3, "waiting for neither"),
    ],
)
def test_verdicts(wait, busy, verdict):
    assert say(wait, busy).startswith(verdict)
