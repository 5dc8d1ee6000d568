"""Detectors as ONNX files, compared with torchvision's own network before they get their name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlzoo.export.detection import StaticDetector
from nlzoo.export.eager import OnCanvas
from nlzoo.export.matching import DetectionParity, compare_detections, draw_canvases
from nlzoo.export.runtime import Runner
from nlzoo.export.spec import Spec
from nlzoo.export.writer import write_onnx
from nlzoo.files import whole_file
from nlzoo.preprocessing import canvas_side


def export_detector(
    model: Any, spec: Spec, path: str | Path, opset: int, tolerance: float
) -> DetectionParity:
    """Write one, and compare what it finds on canvases that are full, and padded.

    Args:
        model: of `nlzoo.networks.detection.detector`.
        spec: of the file.
        path: file to write; it appears only if it passes every check.
        opset: of the operators.
        tolerance: largest relative L2 of scores; 0: that of the precision.

    Raises:
        ValueError: a canvas that is no multiple of 32 pixels; a file out of tolerance.
    """
    canvas = spec.shape[2], spec.shape[3]
    inputs = draw_canvases(spec)
    graph = StaticDetector(model, canvas).narrow(spec.precision, inputs[0]["images"])
    example = dict(inputs[0])
    if not spec.raw:
        example["images"] = example["images"] / 255
    reference = OnCanvas(model, canvas)
    reference.threshold = 0.0
    with whole_file(path) as part:
        write_onnx(graph, example, graph.outputs, spec, opset, part)
        with Runner(part) as runner:
            parity = compare_detections(lambda x: reference(**x), runner.run, inputs)
        parity.check([spec.precision], tolerance)
    return parity


def check_wishes(spec: Spec, dynamic: Sequence[str], layout: str, islands: bool) -> None:
    """Raise ValueError for what a detector's file cannot be."""
    if free := [axis for axis in dynamic if axis != "batch"]:
        raise ValueError(
            f"{spec.model}: {', '.join(free)} of a detector's canvas cannot be free: "
            f"leave --dynamic out, and give --shape {','.join(map(str, spec.shape))} or another"
        )
    pre, (height, width) = spec.preprocessing, spec.shape[2:]
    if pre and max(height, width) < pre.test_size:
        shape = f"{spec.shape[0]},3,{canvas_side(pre.test_size)},{canvas_side(pre.test_crop)}"
        raise ValueError(
            f"no image fits on a canvas of {height} x {width} pixels: their short side becomes "
            f"{pre.test_size}; give --shape {shape}"
        )
    if layout != "frames" or not islands:
        raise ValueError(f"{spec.model} is a detector: leave layout and islands as they are")
