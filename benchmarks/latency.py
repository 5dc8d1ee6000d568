"""NL I3D ResNet-50 on the runtimes of a CPU, beside pytorchvideo's network with its own blocks.

    python -m benchmarks.latency [--rounds 45]   # one thread, needs nlzoo[openvino]
    python -m benchmarks.latency --render        # the table again, from JSON

One clip of 8 x 224 x 224, float32. All have the same weights and compute the same function, which
is checked first. Seconds of the clock, and of the processor: the steadier ones on a shared machine.
The last measurement of each processor is kept.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nlzoo
from benchmarks.measure import bar, describe, table, write_json
from benchmarks.network import reference, share_weights
from nlzoo.export.bench import against, spread
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import compare
from nlzoo.export.runtime import Runner
from nlzoo.export.source import Source
from nlzoo.export.timing import LEAST_ROUNDS, interleaved, machine, ratio
from nlzoo.program import make_parser, parse_options, run

RESULTS = Path(__file__).parent / "results" / "latency.json"
SHAPE = (1, 3, 8, 224, 224)
PLAIN, EAGER, ORT, OPENVINO = "pytorchvideo, eager", "nlzoo, eager", "ONNX Runtime", "OpenVINO"
FILES = ((ORT, "onnxruntime", "frames"), (OPENVINO, "openvino", "clip"))
PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "Subgraph")  # the last: attention, fused
BARS = ((ORT, PLAIN, 0.60), (OPENVINO, PLAIN, 0.50), (ORT, EAGER, 1.0), (OPENVINO, EAGER, 1.0))


def networks(stack: ExitStack, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Of the same weights: as built by pytorchvideo, by nlzoo, and nlzoo's file on each runtime."""
    plain = reference().eval()
    ours = nlzoo.create_model("i3d_r50_nl5", geometry="hub").eval()
    share_weights(ours, plain)
    sources: dict[str, tuple[Source, str]] = {EAGER: (ours, "eager")}
    for name, runtime, layout in FILES:
        sources[name] = folder / f"{runtime}.onnx", runtime
        export_onnx(ours, folder / f"{runtime}.onnx", shape=SHAPE, dynamic=(), layout=layout)
    runners = {
        name: stack.enter_context(Runner(source, runtime, threads=1))
        for name, (source, runtime) in sources.items()
    }
    return {PLAIN: torch.no_grad()(plain), **runners}


def measure(rounds: int) -> dict[str, Any]:
    clip = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        calls = networks(stack, Path(folder))
        with FlopCounterMode(display=False) as counter:
            calls[PLAIN](clip)
        parity = {name: compare(calls[PLAIN], call, [clip]) for name, call in calls.items()}
        for found in parity.values():
            found.check(1e-5)
        times = interleaved({k: partial(call, clip) for k, call in calls.items()}, range(rounds))
        layers = openvino_layers(Path(folder) / "openvino.onnx", clip)
    rows = [
        {"network": name}
        | spread(times[name])
        | against(times[name], times[PLAIN])
        | {"GFLOP": counter.get_total_flops() / 1e9, "relative L2": parity[name].relative_l2}
        for name in calls
    ]
    bars = [
        bar(f"{name}: time as a share of {other}", most, share, share <= most)
        for name, other, most in BARS
        for share in (ratio(times[name].cpu, times[other].cpu),)
    ]
    return {"rows": rows, "bars": bars, "OpenVINO's layers": layers}


def openvino_layers(path: Path, clip: Tensor) -> dict[str, float]:
    """What OpenVINO spends on its kernels, by its own clock: the medians of ten runs.

    Convolutions and matrix products (attention among them) are all of the network's
    multiplications. The fastest convolution tells what a core can do.
    """
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    request = compiled.create_infer_request()
    seconds: dict[str, list[float]] = {}
    for _ in range(11):
        request.infer([clip.numpy()])
        for layer in request.profiling_info:
            seconds.setdefault(layer.node_name, []).append(layer.real_time.total_seconds())
    kinds = {layer.node_name: layer.node_type for layer in request.profiling_info}
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    rates = [
        2e-9
        * prod(node.output(0).get_shape())
        * prod(node.input(1).get_shape()[1:])
        / medians[name]
        for node in compiled.get_runtime_model().get_ordered_ops()
        if kinds.get(name := node.get_friendly_name()) == "Convolution"
    ]
    products = sum(medians[name] for name, kind in kinds.items() if kind in PRODUCTS)
    return {
        "products_ms": 1e3 * products,
        "all_ms": 1e3 * sum(medians.values()),
        "fastest_convolution": max(rates),
    }


def render() -> str:
    """Write the Markdown tables of all processors beside the JSON file; return them."""
    parts = [part for found in json.loads(RESULTS.read_text()).values() for part in tables(found)]
    text = "\n\n".join(parts) + "\n"
    RESULTS.with_suffix(".md").write_text(text)
    return text


def tables(results: dict[str, Any]) -> list[str]:
    """Of one processor."""
    head = f"NL I3D R50, {' x '.join(map(str, SHAPE))}, one thread; {describe(results['machine'])}."
    rows = [
        {
            "network": row["network"],
            "median, ms": row["median_ms"],
            "p90": row["p90_ms"],
            "processor, ms": row["cpu_ms"],
            "GFLOP/s": 1e3 * row["GFLOP"] / row["median_ms"],
            "share of the first": row["ratio"],
            "95 % of": " to ".join(f"{x:.3f}" for x in row["interval"]),
            "relative L2": f"{row['relative L2']:.1e}",
        }
        for row in results["rows"]
    ]
    both = (table(some, list(some[0])) for some in (rows, results["bars"]))
    layers, plain = results["OpenVINO's layers"], results["rows"][0]
    why = (
        f"By OpenVINO's own clock its products (convolutions, attention) alone take "
        f"{layers['products_ms']:.0f} of {layers['all_ms']:.0f} ms, at "
        f"{1e3 * plain['GFLOP'] / layers['products_ms']:.0f} GFLOP/s; its fastest convolution runs "
        f"at {layers['fastest_convolution']:.0f}. Half of the first row's time is "
        f"{plain['cpu_ms'] / 2:.0f} ms."
    )
    return [head, *both, why]


def main() -> None:
    parser = make_parser("python -m benchmarks.latency", __doc__)
    parser.add_argument("--rounds", type=int, default=45, help=f"{LEAST_ROUNDS} or more")
    parser.add_argument("--render", action="store_true", help="tables from the JSON file")
    options = parse_options(parser, sys.argv[1:])
    if options.render:
        print(render())
        return
    if torch.cuda.is_available():
        raise SystemExit("this measures a CPU: hide the GPU by CUDA_VISIBLE_DEVICES=")
    torch.set_num_threads(1)
    facts = machine()
    found = {"machine": facts, **measure(options.rounds)}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    name = f"{facts['cpu']}, {float(facts['MHz']):.0f} MHz"
    write_json(RESULTS, kept | {name: found})
    render()
    text = "\n\n".join(tables(found))
    print(text)
    if "| NO |" in text:
        raise SystemExit("a bar does not hold")


if __name__ == "__main__":
    run(lambda _: main())
