"""Memory of every process stays where it is: 500 steps, 2,000 clips decoded in workers."""

from statistics import median

import psutil
import pytest
from lightning import Callback

from nlzoo.cli import build, parse
from nlzoo.data.sample import make_sample
from nlzoo.fit import parser


class Memory(Callback):
    """Resident bytes of this process and of each worker, after every step."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        me = psutil.Process()
        workers = [p for p in me.children() if "resource_tracker" not in " ".join(p.cmdline())]
        self.rows.append([p.memory_info().rss for p in (me, *workers)])


@pytest.mark.every
def test_memory_is_bounded(tmp_path):
    videos = make_sample(tmp_path / "videos", train=200, val=4)
    argv = [
        *("--recipe", "i3d_nl_kinetics", "--recipe", "_video_sample", "--data", str(videos)),
        *("--run", str(tmp_path / "run"), "--task.model", "i3d_r18_nl1", "--task.arch.width", "8"),
        *("--data.batch_size", "4", "--data.workers", "2", "--trainer.max_steps", "500"),
        *("--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"),
    ]
    memory = Memory()
    task, data, trainer = build(parse(argv, parser()), callbacks=[memory])
    trainer.fit(task, data)
    assert len(memory.rows) == 500
    assert {len(row) for row in memory.rows} == {3}  # with both workers, which live on
    for process in zip(*memory.rows, strict=True):
        second, last = median(process[125:250]), median(process[375:])
        assert last <= 1.05 * second, f"{second / 1e6:.0f} MB, then {last / 1e6:.0f} MB"
