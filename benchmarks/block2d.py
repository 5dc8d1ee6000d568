"""Blocks for images beside timm's NonLocalAttn of the same width.

    python -m benchmarks.block2d [--threads 1 2] [--rounds 15]

Batch 8; without pooling both have the same weights and compute the same function, which is
checked first; timm's has no pooling. The numbers go to benchmarks/results/block2d.json, which keeps
the least ratios of every run and holds their medians to the bars: two threads of two cores are
noisy, and no run is picked.
"""

import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from timm.layers import NonLocalAttn
from torch import nn

from benchmarks.block import forward, forward_backward
from benchmarks.measure import (
    bar,
    describe,
    interleaved,
    machine,
    median,
    ratio,
    table,
    write_json,
)
from nlzoo import NonLocalBlock
from nlzoo.files import write_whole
from nlzoo.program import make_parser, parse_options, run
from nlzoo.weights.blocks import load_block

MAPS = ((1024, 14, 14), (512, 28, 28))
BATCH = 8
LAYOUTS = {"channels-last": torch.channels_last, "NCHW": torch.contiguous_format}
PASSES = {"forward": forward, "forward + backward": forward_backward}
LEAST = {
    "same": {"channels-last": 0.85, "NCHW": 0.85},
    "pooled": {"channels-last": 1.4, "NCHW": 1.15},
}
RESULTS = Path(__file__).parent / "results"


def blocks(channels: int) -> dict[str, nn.Module]:
    """timm's block, the same function in ours, and ours with the paper's 2 x 2 pooling."""
    timm_block = NonLocalAttn(channels, rd_channels=channels // 2)
    nn.init.constant_(timm_block.norm.weight, 0.5)
    same = load_block(timm_block.state_dict(), "timm", dims=2)
    pooled = NonLocalBlock(channels, dims=2, subsample=2, zero_init=False)
    return {"timm": timm_block, "same": same, "pooled": pooled}


def measure(shape: tuple[int, ...], layout: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each pass."""
    torch.set_num_threads(threads)
    x = torch.randn(BATCH, *shape).to(memory_format=LAYOUTS[layout])
    built = {k: b.to(memory_format=LAYOUTS[layout]) for k, b in blocks(shape[0]).items()}
    rows = []
    for name, one_pass in PASSES.items():
        leaf = x.clone().requires_grad_(one_pass is forward_backward)
        seconds = interleaved({k: partial(one_pass, b, leaf) for k, b in built.items()}, rounds)
        row = {"map": "x".join(map(str, shape)), "layout": layout, "threads": threads, "pass": name}
        row |= {f"{k}, ms": 1e3 * median(v) for k, v in seconds.items()}
        row |= {f"{k}, x": ratio(seconds["timm"], seconds[k]) for k in LEAST}
        rows.append({**row, "seconds": seconds})
    return rows


def relative_error(channels: int) -> float:
    """Of our branch with timm's weights, in the L2 norm."""
    built, x = blocks(channels), torch.randn(1, channels, 14, 14)
    with torch.no_grad():
        ours, theirs = (built[k].eval()(x) - x for k in ("same", "timm"))
    return float((ours - theirs).norm() / theirs.norm())


def least_ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The least ratio over maps and threads, of each layout and pass."""
    found = {}
    for name, layout, passes in product(LEAST, LAYOUTS, PASSES):
        mine = [r for r in rows if (r["layout"], r["pass"]) == (layout, passes)]
        found[f"{name}, {layout}, {passes}"] = min(r[f"{name}, x"] for r in mine)
    return found


def bars(runs: list[dict[str, float]]) -> list[dict[str, Any]]:
    """What has to be reached by the median of the runs."""
    found = []
    for what in runs[0]:
        name, layout, _ = what.split(", ")
        least, got = LEAST[name][layout], median([run[what] for run in runs])
        found.append(bar(what, least, got, got >= least))
    return found


def main() -> None:
    """Measure, write JSON and a rendered table."""
    parser = make_parser("python -m benchmarks.block2d", __doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    options = parse_options(parser, sys.argv[1:])
    facts = machine()
    errors = {channels: relative_error(channels) for channels, *_ in MAPS}
    rows = [
        row
        for shape, layout, threads in product(MAPS, LAYOUTS, options.threads)
        for row in measure(shape, layout, threads, options.rounds)
    ]
    stored = RESULTS / "block2d.json"
    runs = json.loads(stored.read_text())["runs"] if stored.exists() else []
    runs.append(least_ratios(rows))
    held = bars(runs)
    results = {"machine": facts, "relative_error": errors, "rows": rows, "bars": held, "runs": runs}
    write_json(stored, results)
    head = (
        f"One block on images, batch {BATCH}, float32; {describe(facts)}. x: times as fast as"
        " timm's NonLocalAttn; same: its function, pooled: with 2 x 2 pooling of the keys."
    )
    columns = [key for key in rows[0] if key != "seconds"]
    every = f"Those of all {len(runs)} runs, oldest first, whose medians are in the table above:"
    text = "\n\n".join([head, table(rows, columns), table(held, list(held[0]))])
    text += f"\n\n{every}\n\n{table(runs, list(runs[0]))}\n"
    write_whole(RESULTS / "block2d.md", text)
    print(text)
    if any(b["holds"] == "NO" for b in held):
        raise SystemExit("a bar does not hold")


if __name__ == "__main__":
    run(lambda _: main())
