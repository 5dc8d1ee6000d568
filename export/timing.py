"""Honest timing on noisy machines: interleaved rounds, intervals, and what figures depend on."""

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

LEAST_ROUNDS = 6  # all on one side: by chance once in 32 times
PACKAGES = (
    "nlzoo",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
NVIDIA = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
Name = TypeVar("Name")


@dataclass(frozen=True)
class Times:
    """Seconds of each round: of the clock (on a GPU its own), and of all threads of the process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleaved(
    calls: Mapping[Name, Callable[[], Any]], rounds: Iterable[Any]
) -> dict[Name, Times]:
    """A B C, A B C, ... once for each round, so that noise meets all alike; warm them up before."""
    times = {name: Times() for name in calls}
    for _ in rounds:
        for name, call in calls.items():
            wall, cpu = _seconds(call)
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    return times


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """One call that waits for no other; with a GPU by events on its stream, of all that it did."""
    if not torch.cuda.is_available():
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        return time.perf_counter() - wall, time.process_time() - cpu
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = time.process_time()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, time.process_time() - cpu


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the round-by-round quotients: neighbours in time share the machine's noise."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """What 95 % of 2000 bootstrap samples of the rounds give as `ratio`.

    Raises:
        ValueError: too few rounds to say anything.
    """
    if len(ours) < LEAST_ROUNDS:
        raise ValueError(f"rounds = {len(ours)}: fewer than {LEAST_ROUNDS} tell nothing")
    quotients = np.array(ours) / np.array(theirs)
    picks = np.random.default_rng(0).integers(len(quotients), size=(2000, len(quotients)))
    low, high = np.quantile(np.median(quotients[picks], axis=1), (0.025, 0.975))
    return float(low), float(high)


def machine() -> dict[str, Any]:
    """What the figures depend on, as found now."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "MHz": _cpuinfo("cpu MHz"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts | _nvidia()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _nvidia() -> dict[str, str]:
    """Driver and clocks of the card as read; nothing where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA)}", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True)
    cards = found.stdout.splitlines() if found.returncode == 0 else []  # else there is no driver
    card = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return dict(zip(NVIDIA, cards[card].split(", "), strict=True)) if cards else {}


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return ""
