"""Latency, parity and accuracy of networks and exported files, side by side on one machine."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from nlzoo.export.matching import DetectionParity, compare_detections, draw_canvases
from nlzoo.export.parity import Parity, common, compare
from nlzoo.export.runtime import RUNTIMES, Runner
from nlzoo.export.spec import Spec
from nlzoo.export.timing import Times, interleaved, interval, ratio
from nlzoo.names import check_choice
from nlzoo.preprocessing import UNREADABLE

WARM_UP = 0.2  # seconds, after the first calls
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A network on a runtime."""

    source: str
    label: str
    runner: Runner
    load_s: float

    def facts(self) -> Row:
        """What its rows begin with."""
        spec, path = self.runner.spec, Path(self.source)
        return {
            "source": self.source,
            "runtime": self.runner.runtime,
            "label": self.label,
            "model": spec.model,
            "precision": spec.precision,
            "device": str(self.runner.device),
            "bytes": path.stat().st_size if path.is_file() else None,
            "load_s": self.load_s,
        }


@contextmanager
def opened(
    sources: Sequence[str],
    runtimes: Sequence[str] = (),
    threads: int = 0,
    shape: Sequence[int] = (),
) -> Iterator[list[Entry]]:
    """The sources, each on those of the runtimes that take it; closed at the end.

    Args:
        sources: of `Runner`. The first is what the others are compared with: a network in eager
            mode, a file on the first of its runtimes.
        runtimes: names; empty: the first that takes a source.
        threads: of a call on a CPU; 0: each runtime's own choice.
        shape: of the input of a MODULE:OBJECT.

    Raises:
        ValueError: a runtime that takes none of the sources, a source named twice; see `Runner`.
    """
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise ValueError(f"{twice[0]} is named twice")
    kinds = [RUNTIMES.get(Path(source).suffix, RUNTIMES[""]) for source in sources]
    for runtime in runtimes:
        check_choice("runtime", runtime, {name: 0 for kind in kinds for name in kind})
    names = [Path(source).name for source in sources]
    with ExitStack() as stack:
        entries = []
        for i, (source, kind) in enumerate(zip(sources, kinds, strict=True)):
            short = names[i] if names.count(names[i]) == 1 else source
            chosen = [name for name in kind if name in runtimes] or kind[:1]
            if i == 0 and "eager" in kind:
                chosen = list(dict.fromkeys(["eager", *chosen]))
            for runtime in chosen:
                start = time.perf_counter()
                runner = stack.enter_context(Runner(source, runtime, threads, shape=shape))
                seconds = time.perf_counter() - start
                entries.append(Entry(source, f"{short} {runtime}", runner, seconds))
        yield entries


def measure(entries: Sequence[Entry], batches: Sequence[int], rounds: int) -> list[Row]:
    """A row for each batch size and entry: seconds, the ratio to the first entry, parity with it.

    A call is timed from clips on its device to scores there. Every entry takes its first calls, and
    is warm, before the rounds begin.

    Args:
        entries: of `opened`.
        batches: numbers of clips.
        rounds: of all entries in turn, for each batch size.

    Raises:
        ValueError: too few rounds; a shape that a file does not take.
    """
    spec = reduce(common, (entry.runner.spec for entry in entries))
    started = [(batch, _start(entries, _clips(spec, batch))) for batch in batches]
    rows = []
    console = Console(stderr=True)
    quiet = not console.is_terminal
    # no thread that draws while a call is timed
    with Progress(console=console, transient=True, auto_refresh=False, disable=quiet) as progress:
        for batch, (calls, firsts) in started:
            shown = progress.track(range(rounds), description=f"batch {batch}")
            times = interleaved(calls, shown)
            base = times[entries[0].label]
            for entry, first in zip(entries, firsts, strict=True):
                row = entry.facts() | {"batch": batch, "shape": [batch, *spec.shape[1:]]}
                times_ = times[entry.label]
                rows.append(row | first | spread(times_) | against(times_, base))
    return rows


def settings(threads: int, rounds: int) -> Row:
    """How it was measured, to be kept with the rows."""
    return {
        "threads of a call": threads or "each runtime's choice",
        "rounds": rounds,
        "clock": "CUDA events" if torch.cuda.is_available() else "perf_counter",
        "timed": "one call at a time, from clips on the device to scores there",
        "ONNX Runtime spins": False,
    }


def _clips(spec: Spec, batch: int) -> list[Any]:
    """Two inputs in the range of real ones, taken in turn."""
    if spec.is_detector:
        return draw_canvases(replace(spec, shape=(batch, *spec.shape[1:])))[:2]
    generator, shape = torch.Generator().manual_seed(0), (batch, *spec.shape[1:])
    if spec.preprocessing:
        pixels = (256, shape)
        return [torch.randint(*pixels, generator=generator, dtype=torch.uint8) for _ in range(2)]
    return [torch.randn(shape, generator=generator) for _ in range(2)]


def _start(
    entries: Sequence[Entry], clips: Sequence[Any]
) -> tuple[dict[str, Callable[[], Tensor]], list[Row]]:
    """Calls that are warm, by label; what the first ones took, and how close the results are."""
    calls, firsts = {}, []
    reference = entries[0].runner
    for entry in entries:
        call = _caller(entry.runner, clips)
        start = time.perf_counter()
        call().cpu()
        first: Row = {"first_run_s": time.perf_counter() - start}
        if _weights(entry) == _weights(entries[0]):
            first["parity"] = asdict(_parity(reference, entry.runner, clips))
        until = time.perf_counter() + WARM_UP
        while time.perf_counter() < until:
            call()
        calls[entry.label] = call
        firsts.append(first)
    return calls, firsts


def _parity(reference: Runner, other: Runner, clips: Sequence[Any]) -> Parity | DetectionParity:
    if reference.spec.is_detector:
        return compare_detections(reference.everything, other.everything, clips)
    return compare(reference, other, clips, reference.spec.output != other.spec.output)


def _weights(entry: Entry) -> tuple[str, str]:
    return entry.runner.spec.model, entry.runner.spec.sha256


def _caller(runner: Runner, clips: Sequence[Any]) -> Callable[[], Tensor]:
    there = cycle([_copy(clip, runner.device) for clip in clips])
    return lambda: runner(next(there))


def _copy(clip: Any, device: torch.device) -> Any:
    """A clip, or a canvas and its sizes."""
    if isinstance(clip, dict):
        return {name: x.to(device) for name, x in clip.items()}
    return clip.to(device)


def spread(times: Times) -> Row:
    """Milliseconds, and all samples."""
    median, p90, p99 = (1e3 * float(x) for x in np.percentile(times.wall, (50, 90, 99)))
    cpu = 1e3 * float(np.median(times.cpu))
    milliseconds = {"median_ms": median, "p90_ms": p90, "p99_ms": p99, "cpu_ms": cpu}
    return milliseconds | {"seconds": asdict(times)}


def against(times: Times, base: Times) -> Row:
    """The ratio to `base`; "faster" or "slower" only where its interval excludes 1."""
    low, high = interval(times.wall, base.wall)
    verdict = "faster" if high < 1 else "slower" if low > 1 else ""
    return {"ratio": ratio(times.wall, base.wall), "interval": [low, high], "verdict": verdict}


def stages(
    entries: Sequence[Entry],
    decode: Callable[[], Any],
    preprocess: Callable[[Any], Any],
    rounds: int,
) -> list[Row]:
    """Where the time from a file to scores goes: rows of decode, preprocess, and for each entry
    copy (to its device) and compute.

    Args:
        entries: of `opened`.
        decode: reads the frames of one clip, or an image.
        preprocess: makes the uint8 input of them, or a detector's.
        rounds: of all of it.
    """
    frames = decode()
    clip = preprocess(frames)
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        ("", "decode"): decode,
        ("", "preprocess"): partial(preprocess, frames),
    }
    for entry in entries:
        calls[entry.label, "copy"] = partial(_copy, clip, entry.runner.device)
        calls[entry.label, "compute"] = _caller(entry.runner, [clip])
    interleaved(calls, range(1))
    times = interleaved(calls, range(rounds))
    return [{"label": label, "stage": stage} | spread(x) for (label, stage), x in times.items()]


def top1(network: Callable[[Tensor], Tensor], batches: Iterable[Any]) -> float:
    """Share of readable clips whose highest score is their label's.

    Args:
        network: clips to scores (B, K).
        batches: (clips, labels (B,), ...), as the loaders of `nlzoo.data` give them.

    Raises:
        ValueError: there is no readable clip; scores that are NaN.
    """
    right = total = 0
    for clips, labels, *_ in batches:
        readable, scores = labels != UNREADABLE, network(clips).cpu()
        if not scores.isfinite().all():
            raise ValueError("the network's scores are not numbers, but NaN or infinite")
        right += int((scores.argmax(1) == labels)[readable].sum())
        total += int(readable.sum())
    if total == 0:
        raise ValueError("none of the validation files can be read")
    return right / total
