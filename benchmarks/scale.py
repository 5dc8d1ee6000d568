"""What a training on many GPUs takes and needs, simulated from figures measured on few cores.

    python -m benchmarks.scale            # measure one and two processes, simulate, write
    python -m benchmarks.scale --render   # docs/scale.md's tables again, from JSON

The simulation knows, for each rank, workers that read batches one after the other and at most two
ahead, and steps that end together, after the gradients were exchanged. Its check: from the times of
one process it has to say how fast two are that share a machine (two gloo processes, a core each).
What was not measured is assumed, and stands under "assumed" in the JSON.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from benchmarks.measure import bar, describe, machine, table, write_json
from nlzoo.callbacks.pace import Pace
from nlzoo.callbacks.run import RunFolder
from nlzoo.cli import build, parse
from nlzoo.data.sample import make_sample
from nlzoo.fit import parser
from nlzoo.program import make_parser, parse_options, run

RESULTS = Path(__file__).parent / "results" / "scale.json"
DOCS = Path(__file__).parents[1] / "docs" / "scale.md"
MARKS = "<!-- tables -->\n", "<!-- end of tables -->"
STEPS, FIRST = 60, 10  # of the measured runs; the first ones are left out
CLIPS = 240_000  # videos of Kinetics-400 that are to be had
CLIP_MB = {"raw": 0.64, "prepared": 0.59}  # of ten seconds, 340 x 256
STEP = {"older GPU, float32": 0.35, "newer GPU, bfloat16": 0.1}  # seconds for 8 clips
WORKERS, SPREAD = 8, 0.05  # a GPU; of the time of a step
GRADIENTS = 141e6  # bytes of i3d_r50_nl5's, exchanged by rings after a step, not beside it
NETWORK = {8: 100e9, 64: 12.5e9}  # bytes a second: within a node, and between nodes of 8
ASSUMED = {
    "seconds a step of 8 clips": STEP,
    "workers a GPU": WORKERS,
    "spread of a step": SPREAD,
    "bytes exchanged, twice": GRADIENTS,
    "network, bytes a second, by GPUs": NETWORK,
}


@dataclass(frozen=True)
class Times:
    """Seconds to draw from: of one batch in one worker, and of one step."""

    data: Sequence[float]
    step: Sequence[float]


def simulate(ranks: int, workers: int, times: Times, exchange: float, steps: int = 400) -> Any:
    """(seconds a step, share of them waiting for data) of synchronous training."""
    rng = np.random.default_rng(0)
    data = rng.choice(np.asarray(times.data), (steps, ranks))
    work = rng.choice(np.asarray(times.step), (steps, ranks))
    free = np.zeros((max(workers, 1), ranks))  # when a worker has done its last batch
    taken = np.zeros((steps, ranks))  # when a batch was taken
    now, waited = 0.0, 0.0
    for k in range(steps):
        if workers:
            worker, ahead = free[k % workers], k - 2 * workers  # two batches a worker
            begin = np.maximum(worker, taken[ahead] if ahead >= 0 else 0.0)
            worker[:] = begin + data[k]
            ready = worker
        else:
            ready = now + data[k]
        taken[k] = np.maximum(ready, now)
        waited += float(np.mean(taken[k] - now))
        now = float(np.max(taken[k] + work[k])) + exchange
    return now / steps, waited / now


class Record(Callback):
    """Seconds of waiting and of work of each step, as `RunFolder` counts them."""

    def __init__(self) -> None:
        self.data: list[float] = []
        self.step: list[float] = []
        self.pace = Pace()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.data.append(self.pace.wait())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step.append(self.pace.work())


def train(videos: str, folder: str, ranks: int) -> None:
    """One training of STEPS steps on one thread a rank; rank 0 writes what it saw."""
    import torch

    torch.set_num_threads(1)
    argv = [
        *("--recipe", "i3d_nl_kinetics", "--recipe", "_video_sample", "--data", videos),
        *("--run", f"{folder}/run", "--task.model", "i3d_r50_nl5", "--data.batch_size", "4"),
        *("--data.workers", "0", "--trainer.max_steps", str(STEPS), "--trainer.max_epochs", "-1"),
        *("--trainer.limit_val_batches", "0", "--trainer.devices", str(ranks)),
        *(("--trainer.strategy", "ddp") if ranks > 1 else ()),
    ]
    record = Record()
    task, data, trainer = build(parse(argv, parser()), callbacks=[record])
    trainer.callbacks = [  # type: ignore[attr-defined]
        c
        for c in trainer.callbacks  # type: ignore[attr-defined]
        if not isinstance(c, RunFolder)
    ]
    trainer.fit(task, data)
    if trainer.is_global_zero:
        sizes = sum(p.numel() * 4 for p in task.parameters())
        seen = {"data": record.data[FIRST:], "step": record.step[FIRST:], "gradients": sizes}
        Path(folder, "seen.json").write_text(json.dumps(seen))


def exchange(size: int) -> float:
    """Seconds in which two processes of this machine add up so many bytes (gloo)."""
    code = (
        "import sys, time, torch, torch.distributed as d; torch.set_num_threads(1)\n"
        "d.init_process_group('gloo'); x = torch.zeros(int(sys.argv[1]) // 4)\n"
        "for i in range(12):\n"
        "    d.barrier(); s = time.monotonic(); d.all_reduce(x)\n"
        "    if not d.get_rank(): print('took', time.monotonic() - s, flush=True)\n"
        "d.barrier(); d.destroy_process_group()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "exchange.py")
        program.write_text(code)
        run = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program))
        done = subprocess.run(
            [sys.executable, "-m", *run, str(size)], capture_output=True, text=True, check=True
        )
    return statistics.median(float(x.split()[1]) for x in done.stdout.splitlines()[2:])


def check(videos: str) -> dict[str, Any]:
    """What one process took, what the simulation makes of it for two, and what two took."""
    seen = {}
    for ranks in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            run = "-m", "benchmarks.scale", "--train", videos, folder, str(ranks)
            subprocess.run([sys.executable, *run], check=True, capture_output=True)
            seen[ranks] = json.loads(Path(folder, "seen.json").read_text())
    both = exchange(seen[1]["gradients"])
    predicted, _ = simulate(2, 0, Times(seen[1]["data"], seen[1]["step"]), both)
    took = statistics.mean(seen[2]["data"]) + statistics.mean(seen[2]["step"])
    return {
        "one": seen[1],
        "two": seen[2],
        "exchange": both,
        "predicted": predicted,
        "took": took,
        "ratio": predicted / took,
    }


def kinetics() -> list[dict[str, Any]]:
    """Rows for 8 and 64 GPUs, from the loader's measured clips a second."""
    loader = json.loads((RESULTS.parent / "loader.json").read_text())["rows"]
    rows, rng = [], np.random.default_rng(0)
    for gpus, network in NETWORK.items():
        for gpu, step in STEP.items():
            for files in CLIP_MB:
                rate = next(
                    r["nlzoo, clips/s"]
                    for r in loader
                    if r["files"] == files and r["work"] == "training clip"
                )
                data = (8 / rate) * rng.lognormal(0, 0.3, 1000)
                work = step * (1 + SPREAD * rng.standard_normal(1000))
                times = Times(data, work)
                seconds, wait = simulate(gpus, WORKERS, times, 2 * GRADIENTS / network)
                clips = 8 * gpus / seconds
                rows.append(
                    {
                        "GPUs": gpus,
                        "GPU": gpu,
                        "files": files,
                        "clips/s": round(clips),
                        "waiting for data": f"{wait:.0%}",
                        "hours an epoch": CLIPS / clips / 3600,
                        "days for 107 epochs": 107 * CLIPS / clips / 86400,
                        "cores that decode": clips / rate,
                        "MB/s read": round(clips * CLIP_MB[files]),
                    }
                )
    return rows


def render(result: dict[str, Any]) -> str:
    """The tables, for docs/scale.md."""
    found = result["check"]
    rows = [
        {"": "a step of one process", "seconds": statistics.mean(found["one"]["step"])},
        {"": "its batch", "seconds": statistics.mean(found["one"]["data"])},
        {"": "exchange between two", "seconds": found["exchange"]},
        {"": "both of two processes, simulated", "seconds": found["predicted"]},
        {"": "both of two processes, measured", "seconds": found["took"]},
    ]
    bars = [bar("simulated over measured, two processes", 0.85, found["ratio"], result["holds"])]
    return (
        f"Measured on {describe(result['machine'])}:\n\n{table(rows, ['', 'seconds'])}\n"
        f"\n{table(bars, list(bars[0]))}\n"
        f"\nSimulated, Kinetics-400:\n\n{table(result['kinetics'], list(result['kinetics'][0]))}\n"
    )


def main() -> None:
    """Measure, simulate, write JSON and the tables."""
    made = make_parser("python -m benchmarks.scale", __doc__)
    made.add_argument("--render", action="store_true", help="only the tables, from JSON")
    made.add_argument("--train", nargs=3, help=SUPPRESS)
    options = parse_options(made, sys.argv[1:])
    if options.train:
        videos, folder, ranks = options.train
        train(videos, folder, int(ranks))
        return
    if not options.render:
        found = check(str(make_sample()))
        holds = 0.85 <= found["ratio"] <= 1 / 0.85
        result = {"machine": machine(), "check": found, "holds": holds}
        write_json(RESULTS, result | {"assumed": ASSUMED, "kinetics": kinetics()})
    tables = render(json.loads(RESULTS.read_text()))
    before, _, rest = DOCS.read_text().partition(MARKS[0])
    DOCS.write_text(f"{before}{MARKS[0]}\n{tables}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(tables)


if __name__ == "__main__":
    run(lambda _: main())
