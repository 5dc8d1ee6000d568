"""One non-local block: speed, memory and growth beside other implementations.

    python -m benchmarks.block                                    # CPU, one and two threads
    python -m benchmarks.block --device cuda --dtype bf16 --compile
    python -m benchmarks.block --render                           # table and plot again, from JSON

At (1, 512, 16, 28, 28), channels-last, keys pooled by (1, 2, 2): N = 12544 queries, M = 3136 keys
(res3 of the 128-frame models). Beside pytorchvideo's NonLocal, timm's NonLocalAttn (2D, frame by
frame, so it does less) and the textbook form. The numbers go to benchmarks/results/block*.json.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import torch
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from timm.layers import NonLocalAttn
from torch import Tensor, nn

from benchmarks.measure import (
    bar,
    describe,
    interleaved,
    machine,
    median,
    peak_bytes,
    ratio,
    table,
    write_json,
)
from nlzoo import NonLocalBlock, ops
from nlzoo.program import make_parser, parse_options, run

SHAPE = (1, 512, 16, 28, 28)
INNER = 256
GROWTH = (1568, 3136, 6272, 12544, 25088)  # N; M = N / 4
QUADRATIC = 12544  # textbook forms end here: the map of the next size has 629 MB
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Timings = dict[str, dict[str, list[float]]]  # passes -> variant -> seconds
RESULTS = Path(__file__).parent / "results"

# variant, what it is measured against, least ratio forward, forward + backward (CPU, float32)
BARS = (
    ("dot product", "pytorchvideo dot product", 4.0, 3.5),
    ("concatenation", "pytorchvideo dot product", 6.0, 4.0),
    ("embedded Gaussian", "pytorchvideo softmax", 1.2, 1.2),
)
MEMORY_BAR = ("embedded Gaussian", "pytorchvideo softmax", 0.35)


class TimmFrames(nn.Module):
    """timm's 2D block on every frame by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.block = NonLocalAttn(SHAPE[1], rd_channels=INNER)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return self.block(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def ours(form: Any, route: ops.Route = "auto") -> nn.Module:
    return NonLocalBlock(SHAPE[1], form=form, subsample=2, zero_init=False, route=route)


def theirs(instantiation: str) -> nn.Module:
    return create_nonlocal(
        dim_in=SHAPE[1], dim_inner=INNER, pool_size=(1, 2, 2), instantiation=instantiation
    )


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "pytorchvideo dot product": partial(theirs, "dot_product"),
    "pytorchvideo softmax": partial(theirs, "softmax"),
    "timm (per frame)": TimmFrames,
    "textbook dot product": partial(ours, "dot_product", "definition"),
    "textbook embedded Gaussian": partial(ours, "embedded_gaussian", "definition"),
    "textbook Gaussian": partial(ours, "gaussian", "definition"),
    "textbook concatenation": partial(ours, "concatenation", "definition"),
    "dot product": partial(ours, "dot_product"),
    "embedded Gaussian": partial(ours, "embedded_gaussian"),
    "Gaussian": partial(ours, "gaussian"),
    "concatenation": partial(ours, "concatenation"),
}


def clip(device: str, dtype: torch.dtype) -> Tensor:
    x = torch.randn(SHAPE, device=device, dtype=dtype)
    return x.to(memory_format=torch.channels_last_3d)


def forward(block: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        block.eval()(x)


def forward_backward(block: nn.Module, x: Tensor) -> None:
    block.train()(x).backward(x)
    x.grad = None


def time_blocks(device: str, dtype: torch.dtype, compiled: bool, rounds: int) -> Timings:
    """{"forward": {block: seconds}, "forward + backward": ...}, all blocks interleaved."""
    blocks = {name: make().to(device, dtype) for name, make in BLOCKS.items()}
    if compiled:
        for block in blocks.values():
            block.compile()
    x = clip(device, dtype)
    leaf = x.clone().requires_grad_()
    return {
        "forward": interleaved({k: partial(forward, b, x) for k, b in blocks.items()}, rounds),
        "forward + backward": interleaved(
            {k: partial(forward_backward, b, leaf) for k, b in blocks.items()}, rounds
        ),
    }


def training_memory(name: str, device: str, dtype: torch.dtype) -> int:
    """Most bytes that a forward and backward pass add, the input's gradient included."""
    if device == "cuda":
        block, x = BLOCKS[name]().to(device, dtype), clip(device, dtype).requires_grad_()
        forward_backward(block, x)
        block.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_backward(block, x)
        return torch.cuda.max_memory_allocated() - before
    setup = f"""
from benchmarks.block import *
block, x = BLOCKS[{name!r}](), clip("cpu", {dtype})
small = x[..., :4, :4].contiguous(memory_format=torch.channels_last_3d)
forward_backward(block, small.requires_grad_())
x.requires_grad_()
"""
    return peak_bytes(setup, "forward_backward(block, x)")


def time_growth(device: str, dtype: torch.dtype, n: int, rounds: int) -> Timings:
    """The operators alone for N queries and N / 4 keys of 256 channels."""
    q, k, v, dy = (
        torch.randn(1, size, INNER, device=device, dtype=dtype, requires_grad=True)
        for size in (n, n // 4, n // 4, n)
    )
    w_f = torch.randn(2 * INNER, device=device, dtype=dtype) / INNER**0.5
    forms: dict[str, Callable[..., Tensor]] = {
        "embedded Gaussian": partial(ops.embedded_gaussian, scale=INNER**-0.5),
        "dot product": ops.dot_product,
        "concatenation": partial(ops.concatenation, w_f=w_f),
    }
    calls = {name: partial(form, q, k, v) for name, form in forms.items()}
    if n <= QUADRATIC:
        calls |= {
            f"textbook {name}": partial(form, q, k, v, route="definition")
            for name, form in forms.items()
        }
    dy = dy.detach()
    return {
        "forward": interleaved({k: torch.no_grad()(c) for k, c in calls.items()}, rounds),
        "forward + backward": interleaved(
            {k: partial(lambda c: c().backward(dy), c) for k, c in calls.items()}, rounds
        ),
    }


def measure(device: str, dtype: torch.dtype, compiled: bool, rounds: int) -> dict[str, Any]:
    memory = {name: training_memory(name, device, dtype) / 1e6 for name in BLOCKS}
    blocks, bars = [], []
    for threads in (1, 2) if device == "cpu" else (torch.get_num_threads(),):
        torch.set_num_threads(threads)
        timings = time_blocks(device, dtype, compiled, rounds)
        blocks += block_rows(timings, threads, memory)
        if (device, dtype, compiled) == ("cpu", torch.float32, False):
            bars += speed_bars(timings, threads)
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    growth = [
        {"form": form, "N": n, "passes": passes, "seconds": median(seconds)}
        for n in GROWTH
        for passes, forms in time_growth(device, dtype, n, rounds).items()
        for form, seconds in forms.items()
    ]
    if bars:
        bars += [memory_bar(memory), *growth_bars(growth)]
    return {"blocks": blocks, "growth": growth, "bars": bars}


def block_rows(timings: Timings, threads: int, memory: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    for name in BLOCKS:
        row: dict[str, Any] = {"block": name, "threads": threads}
        for passes, seconds in timings.items():
            row[f"{passes}, ms"] = 1e3 * median(seconds[name])
            row[f"{passes}, x"] = ratio(seconds["pytorchvideo dot product"], seconds[name])
        rows.append({**row, "training peak, MB": memory[name]})
    return rows


def speed_bars(timings: Timings, threads: int) -> list[dict[str, Any]]:
    return [
        bar(f"{passes}, threads {threads}: {ours} against {other}", least, got, got >= least)
        for ours, other, *leasts in BARS
        for (passes, seconds), least in zip(timings.items(), leasts, strict=True)
        for got in (ratio(seconds[other], seconds[ours]),)
    ]


def memory_bar(memory: dict[str, float]) -> dict[str, Any]:
    ours, other, most = MEMORY_BAR
    share = memory[ours] / memory[other]
    return bar(f"training peak: {ours} as a share of {other}", most, share, share <= most)


def growth_bars(growth: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponent of N from a quarter of the largest size to it; 1 is linear, 2 quadratic."""
    bars = []
    for form in ("dot product", "concatenation"):
        for passes in ("forward", "forward + backward"):
            t = {r["N"]: r["seconds"] for r in growth if (r["form"], r["passes"]) == (form, passes)}
            power = log(t[GROWTH[-1]] / t[GROWTH[-1] // 4], 4)
            bars.append(
                bar(f"{passes}: {form} grows as N to the power", 1.25, power, power <= 1.25)
            )
    return bars


def render(path: Path) -> str:
    """Write the Markdown table and the growth plot beside the JSON file; return the table."""
    results = json.loads(path.read_text())
    head = describe(results["machine"])
    parts = [
        f"One block at {SHAPE}, {results['setting']}; {head}. x: times as fast as"
        " pytorchvideo's dot product.",
        table(results["blocks"], list(results["blocks"][0])),
    ]
    if results["bars"]:
        parts.append(table(results["bars"], list(results["bars"][0])))
    text = "\n\n".join(parts) + "\n"
    path.with_suffix(".md").write_text(text)
    plot(results["growth"], path.with_name(path.stem + "_growth.png"))
    return text


def plot(growth: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    colours = {"embedded Gaussian": "C0", "dot product": "C1", "concatenation": "C2"}
    figure, both = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axes, passes in zip(both, ("forward", "forward + backward"), strict=True):
        for form in dict.fromkeys(row["form"] for row in growth):
            rows = [r for r in growth if (r["form"], r["passes"]) == (form, passes)]
            textbook = form.startswith("textbook ")
            axes.plot(
                [r["N"] for r in rows],
                [1e3 * r["seconds"] for r in rows],
                color=colours[form.removeprefix("textbook ")],
                linestyle=":" if textbook else "-",
                marker="o",
                markersize=3,
                label=form,
            )
        axes.set(xscale="log", yscale="log", xlabel="queries N (keys N / 4)", title=passes)
        axes.set_xticks(GROWTH, [f"{n:,}" for n in GROWTH], rotation=30)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    both[0].set_ylabel("ms, 256 channels")
    both[1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = make_parser("python -m benchmarks.block", __doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=tuple(DTYPES))
    parser.add_argument("--compile", action="store_true", help="torch.compile every block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--render", action="store_true", help="table and plot from the JSON file")
    args = parse_options(parser, sys.argv[1:])
    setting = f"{args.device} {args.dtype}" + (" compiled" if args.compile else "")
    name = "block" if setting == "cpu fp32" else "block_" + setting.replace(" ", "_")
    path = RESULTS / f"{name}.json"
    if not args.render:
        facts = machine()
        results = measure(args.device, DTYPES[args.dtype], args.compile, args.rounds)
        write_json(path, {"setting": setting, "machine": facts, **results})
    text = render(path)
    print(text)
    if "| NO |" in text:
        raise SystemExit("a bar does not hold")


if __name__ == "__main__":
    run(lambda _: main())
