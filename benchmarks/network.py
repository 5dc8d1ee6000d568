"""NL I3D ResNet-50 of this zoo against pytorchvideo's network with its own blocks, as built.

    python -m benchmarks.network [--threads 1 2] [--rounds 9]
    python -m benchmarks.network --device cuda --dtype bfloat16 --compile --batch 8 --frames 32

Both have the same weights and compute the same function, which is checked first. The second
measures once on a GPU. Results go to benchmarks/results/network*.json, and the table beside it.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

import nlzoo
from benchmarks.measure import describe, interleaved, machine, median, ratio, table, write_json
from nlzoo.program import make_parser, parse_options, run

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from pytorchvideo.layers.nonlocal_net import create_nonlocal
    from pytorchvideo.models.hub import i3d_r50

RESULTS = Path(__file__).parent / "results"
PLACES = {3: (1, 3), 4: (1, 3, 5)}  # hub block number of res3 and res4 -> residual blocks
COLUMNS = ["device", "threads", "pass", "pytorchvideo ms", "nlzoo ms", "speed-up"]


def main() -> None:
    """Measure, write JSON and a rendered table."""
    options = parse()
    dtype = getattr(torch, options.dtype)
    models = {
        "pytorchvideo": reference(),
        "nlzoo": nlzoo.create_model("i3d_r50_nl5", geometry="hub"),
    }
    share_weights(models["nlzoo"], models["pytorchvideo"])
    error = relative_error(models)
    if options.compile:
        for model in models.values():
            model.compile()
    for model in models.values():
        model.to(options.device, dtype)
    clip = torch.randn(options.batch, 3, options.frames, 224, 224)
    clip = clip.to(options.device, dtype)
    rows = []
    for threads in options.threads if options.device == "cpu" else [0]:
        if threads:
            torch.set_num_threads(threads)
        rows += measure(models, clip, options.rounds, threads)
    results = {
        "machine": machine(),
        "options": vars(options),
        "relative_error": error,
        "rows": rows,
    }
    name = "network" if options.device == "cpu" else f"network_{options.device}_{options.dtype}"
    write_json(RESULTS / f"{name}.json", results)
    head = f"NL I3D R50, {options.frames} x 224 x 224, batch {options.batch}, {options.dtype}"
    rendered = f"{head}; {describe(results['machine'])}.\n\n{table(rows, COLUMNS)}"
    (RESULTS / f"{name}.md").write_text(rendered + "\n")
    print(rendered, f"relative error {error:.1e}", sep="\n")


def parse() -> Namespace:
    """Command line."""
    parser = make_parser("python -m benchmarks.network", __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    return parse_options(parser, sys.argv[1:])


def reference() -> nn.Module:
    """pytorchvideo's i3d_r50 with its non-local block after five residual blocks."""
    model = i3d_r50(pretrained=False)
    for stage, indices in PLACES.items():
        blocks = model.blocks[stage].res_blocks
        for i in indices:
            width = blocks[i].branch2.conv_c.out_channels
            block = create_nonlocal(
                dim_in=width, dim_inner=width // 2, pool_size=(1, 2, 2), instantiation="softmax"
            )
            blocks[i] = nn.Sequential(blocks[i], block)
    model.blocks[-1].pool = nn.AdaptiveAvgPool3d(1)  # any number of frames
    return model


def share_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give both the same random weights, with trained-looking gammas."""
    for name, p in ours.named_parameters():
        if p.ndim == 1 and name.endswith("weight"):
            nn.init.constant_(p, 0.5)
    # Both list their tensors in the order of the data flow.
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        b.copy_(a)


def relative_error(models: dict[str, nn.Module]) -> float:
    """Of the logits, in the L2 norm."""
    clip = torch.randn(1, 3, 8, 224, 224)
    with torch.no_grad():
        ours, theirs = (models[n].eval()(clip) for n in ("nlzoo", "pytorchvideo"))
    return float((ours - theirs).norm() / theirs.norm())


def measure(
    models: dict[str, nn.Module], clip: Tensor, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Rows of the table: forward in evaluation mode, forward and backward in training mode."""
    rows = []
    for name, call, training in (("forward", forward, False), ("forward+backward", step, True)):
        variants = {k: bind(call, m.train(training), clip) for k, m in models.items()}
        seconds = interleaved(variants, rounds)
        rows.append(
            {
                "device": clip.device.type,
                "threads": threads or "",
                "pass": name,
                **{f"{k} ms": 1e3 * median(v) for k, v in seconds.items()},
                "speed-up": ratio(seconds["pytorchvideo"], seconds["nlzoo"]),
                "seconds": seconds,
            }
        )
    return rows


def bind(run: Callable[..., None], model: nn.Module, clip: Tensor) -> Callable[[], None]:
    return lambda: run(model, clip)


@torch.no_grad()
def forward(model: nn.Module, clip: Tensor) -> None:
    model(clip)


def step(model: nn.Module, clip: Tensor) -> None:
    model.zero_grad()
    model(clip).square().mean().backward()


if __name__ == "__main__":
    run(lambda _: main())
