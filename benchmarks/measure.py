"""What the benchmarks share: `nlzoo.export.timing`, peak memory of fresh processes, tables."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlzoo.export import timing
from nlzoo.export.timing import machine as machine
from nlzoo.export.timing import ratio as ratio
from nlzoo.files import write_whole


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: one warm-up of all, then A B C, A B C, ... so that noise meets all."""
    for call in variants.values():
        call()
    return {name: x.wall for name, x in timing.interleaved(variants, range(rounds)).items()}


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


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


def bar(what: str, wanted: float, got: float, holds: bool) -> dict[str, Any]:
    """A row of the table of what has to hold."""
    return {"bar": what, "wanted": wanted, "measured": got, "holds": "yes" if holds else "NO"}


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
