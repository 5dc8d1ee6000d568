"""`fit --profile`: a trace of a few iterations, and what they wait for."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from nlzoo.callbacks.pace import Pace
from nlzoo.files import whole_file

FIRST, MEASURED = 5, 10  # iterations left out, and recorded
WAIT, BUSY = 0.2, 0.7  # shares of the time from which a verdict is given


class Profile(Callback):
    """Records iterations, writes a trace for chrome://tracing or Perfetto, gives a verdict."""

    def __init__(self, trace: Path) -> None:
        self.trace, self.verdict = trace, ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own lines would end up among ours
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profile = profile(
            activities=[ProfilerActivity.CPU, *gpu],
            schedule=schedule(wait=FIRST - 1, warmup=1, active=MEASURED, repeat=1),
            on_trace_ready=self._write,
        )
        self.profile.start()
        self.step, self.pace = 0, Pace()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What has passed since the last iteration was spent waiting for data."""
        self.pace.wait()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One iteration more."""
        self.pace.work()
        self.step += 1
        self.profile.step()
        if self.step == FIRST:
            self.pace = Pace()  # of what is recorded
        self.pace.skip()  # writing is neither

    def _write(self, done: Any) -> None:
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.trace) as part:
            done.export_chrome_trace(str(part))
        events = done.key_averages()
        if torch.cuda.is_available():
            busy = sum(event.self_device_time_total for event in events)
        else:  # operators are the device's work
            busy = sum(e.self_cpu_time_total for e in events if e.key.startswith("aten::"))
        self.verdict = say(self.pace.waiting, busy / 1e6 / self.pace.passed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, also where there were too few iterations."""
        self.profile.stop()
        self.verdict = self.verdict or f"fewer than {FIRST + MEASURED} iterations: no verdict"


def say(wait: float, busy: float) -> str:
    """The verdict, from shares of the time: waiting for data, and the device at work."""
    shares = f"{wait:.0%} of the time waiting for data, the device {busy:.0%} at work"
    if wait >= WAIT:
        remedy = "more data.workers, or files made by nlzoo.data.prepare"
        return f"waiting for data ({shares}): {remedy}"
    if busy >= BUSY:
        remedy = "trainer.precision bf16-mixed, task.compile, or a smaller network"
        return f"waiting for the device ({shares}): {remedy}"
    return f"waiting for neither ({shares}): a larger data.batch_size or task.compile"
