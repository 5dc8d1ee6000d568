"""Honest timing on noisy machines: interleaved rounds, medians, peak memory of fresh processes."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nlzoo.files import write_whole


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: one warm-up of all, then A B C, A B C, ... so that noise meets all."""
    for call in variants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the round-by-round quotients: neighbours in time share the machine's noise."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def peak_bytes(setup: str, measured: str, threads: int = 1) -> int:
    """Most resident memory that the code `measured` adds to what `setup` left, in a new process.

    Linux only: the kernel's high-water mark is reset in between. Freed memory that the allocator
    kept would hide later peaks, hence the process of its own.
    """
    code = "\n".join(
        [
            "import pathlib, re, torch",
            f"torch.set_num_threads({threads})",
            "def status(key):",
            "    text = pathlib.Path('/proc/self/status').read_text()",
            "    return int(re.search(key + r':\\s+(\\d+) kB', text)[1]) * 1024",
            setup,
            "pathlib.Path('/proc/self/clear_refs').write_text('5')",
            "before = status('VmRSS')",
            measured,
            "print('peak', status('VmHWM') - before)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"memory measurement failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def describe(facts: Mapping[str, Any]) -> str:
    """The same in a few words."""
    where = facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores"
    return f"{where}, torch {facts['torch'].partition('+')[0]}, {facts['date']}"


def write_json(path: Path | str, results: Any) -> None:
    """Indented JSON, whole or not at all."""
    write_whole(path, json.dumps(results, indent=1) + "\n")


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table; floats keep three significant digits, missing cells are empty."""
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
