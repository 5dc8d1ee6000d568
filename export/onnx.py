"""ONNX files: exported, checked, and compared with the network before they get their name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from nlzoo.export.detectors import check_wishes, export_detector
from nlzoo.export.graph import DTYPES, LAYOUTS, Graph, largest_logit
from nlzoo.export.matching import DetectionParity
from nlzoo.export.parity import TOLERANCE, Parity, compare, draw_inputs
from nlzoo.export.runtime import Runner
from nlzoo.export.source import Source, load_network
from nlzoo.export.spec import AXES, Spec
from nlzoo.export.writer import write_onnx
from nlzoo.files import whole_file
from nlzoo.names import check_choice
from nlzoo.networks.video import VideoResNet

OPSETS = range(17, 24)
NO_ISLANDS = 80  # largest logit whose softmax 16 bits do not spoil (relative error 2e-3 in fp16)


def export_onnx(
    source: Source,
    path: str | Path,
    *,
    opset: int = 0,
    dynamic: Sequence[str] = ("batch",),
    precision: str = "fp32",
    raw: bool = False,
    islands: bool = True,
    layout: str = "frames",
    shape: Sequence[int] = (),
    licence: str = "",
    tolerance: float = 0.0,
) -> Parity | DetectionParity:
    """Write a network as ONNX, with all that is needed to run it in the file's metadata.

    Args:
        source: see `load_network`.
        path: file to write; it appears only if it passes every check.
        opset: 17 to 23; 0: 18, or with bf16 22, the first to have it in convolutions.
        dynamic: axes that may change at run time: batch, frames, height, width (length); of
            detectors none.
        precision: fp32, fp16 or bf16; the blocks' scores and softmax stay float32.
        raw: take uint8 clips or images; the cast and the normalisation are in the graph.
        islands: False: scores and softmax in `precision` too, where the largest score allows it.
        layout: of 3D networks: frames, 2D convolutions, which suit ONNX Runtime; or clip, 3D
            ones, which suit OpenVINO.
        shape: of the input, see `load_network`.
        licence: of the weights, to be kept in the file.
        tolerance: largest relative L2; 0: that of the precision, `parity.TOLERANCE`.

    Returns:
        The parity with the network, over batches and sizes other than the exported one.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: unknown name, axis, precision or layout, an opset out of range, no shape, a clip
            too small for dynamic sizes, padding that follows them, scores too large to go without
            islands; a file that ended with other axes than asked for, or out of tolerance.
    """
    check_choice("precision", precision, DTYPES)
    check_choice("layout", layout, LAYOUTS)
    if Path(path).suffix != ".onnx":
        raise ValueError(f"{path}: an ONNX file is called NAME.onnx")
    opset = opset or (18 if precision != "bf16" else 22)
    if opset not in OPSETS or (precision == "bf16" and opset < 22):
        least = 22 if precision == "bf16" else OPSETS[0]
        raise ValueError(f"opset {opset} with {precision}: give {least} to {OPSETS[-1]}")
    model, spec = load_network(source, shape)
    if spec.is_detector:
        check_wishes(spec, dynamic, layout, islands)
        spec = replace(spec, precision=precision, raw=raw, licence=licence)
        return export_detector(model, spec, path, opset, tolerance)
    for axis in dynamic:
        check_choice("axis", axis, AXES[len(spec.shape)])
    axes = tuple(name for name in AXES[len(spec.shape)] if name in dynamic)
    spec = replace(spec, dynamic=axes, precision=precision, raw=raw, licence=licence)
    if raw and spec.preprocessing is None:
        raise ValueError(f"{spec.model} is no network of nlzoo: it has no preprocessing to put in")
    if {"height", "width"} & {*axes}:
        _check_padding(model, spec)
        if isinstance(model, VideoResNet):
            spec = replace(spec, output="log-probabilities")
            spec.check(spec.shape)
    if not shape and "batch" not in dynamic:
        spec = replace(spec, shape=(1, *spec.shape[1:]))
    inputs = draw_inputs(spec, Graph(model, spec.any_size))
    if not islands and precision == "fp32":
        raise ValueError("islands off: there are none in fp32; give --precision fp16 or bf16")
    if not islands and (largest := largest_logit(model, inputs)) > NO_ISLANDS:
        raise ValueError(f"islands off: scores reach {largest:.3g}, more than {NO_ISLANDS}")
    with whole_file(path) as part:
        graph = Graph(model, spec.any_size, islands, layout).narrow(precision, inputs[0])
        _write(graph, spec, opset, part)
        _check_axes(part, spec)
        parity = _run_and_compare(part, model, inputs, spec)
        parity.check(tolerance or TOLERANCE[precision])
    return parity


def _check_padding(model: nn.Module, spec: Spec) -> None:
    """Raise ValueError for TensorFlow's padding, whose sizes the exporter would nest for hours."""
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Same") and getattr(module, "same_pad", True):
            raise ValueError(
                f"{spec.model}: leave height and width fixed, they decide its padding "
                f"({type(module).__name__} {name})"
            )


def _write(graph: Graph, spec: Spec, opset: int, path: Path) -> None:
    """Export, with metadata."""
    shape = list(spec.shape)
    for axis in spec.axes.values():  # at size 1 conv2d's choice of a memory format would fix it
        shape[axis] = max(shape[axis], 2)
    if "width" in spec.dynamic:
        shape[-1] += 32  # no two axes of the example may look the same
    example = torch.zeros(shape, dtype=torch.uint8 if spec.raw else torch.float32)
    axes = {position: Dim(name, min=1) for name, position in spec.axes.items()}
    write_onnx(graph, {"input": example}, ["output"], spec, opset, path, {"input": axes})


def _check_axes(path: Path, spec: Spec) -> None:
    """The exporter fixes an axis, or merges two, without a word."""
    graph = onnx.load(str(path)).graph
    found, output = (v.type.tensor_type.shape.dim for v in (graph.input[0], graph.output[0]))
    names = [found[position].dim_param for position in spec.axes.values()]
    if not all(names) or len(set(names)) < len(names):
        dims = ", ".join(d.dim_param or str(d.dim_value) for d in found)
        raise ValueError(
            f"the exported input is ({dims}): {', '.join(spec.dynamic)} are not free; the network "
            "uses one of them as a number (int(), len()), or two as if they were equal"
        )
    if len(output) == 2 and not output[1].HasField("dim_value"):
        raise ValueError(
            f"the number of outputs, {output[1].dim_param}, depends on the input's size"
        )


def _run_and_compare(path: Path, model: nn.Module, inputs: Sequence[Tensor], spec: Spec) -> Parity:
    """The file on ONNX Runtime, which finds what was baked in for the example's size."""
    with Runner(path) as runner:
        try:
            return compare(model, runner, inputs, spec.output == "log-probabilities")
        except RuntimeError as error:
            raise ValueError(
                f"{spec.model}: the file runs at some sizes only, as the network chooses by them "
                f"what to do; leave some of {', '.join(spec.dynamic)} fixed"
            ) from error
