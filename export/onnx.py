"""ONNX files: exported, checked, and compared with the network before they get their name."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from nlzoo.export.graph import DTYPES, WINDOW, Graph
from nlzoo.export.parity import TOLERANCE, Parity, compare
from nlzoo.export.runtime import Runner
from nlzoo.export.spec import AXES, KEY, Spec
from torch import Tensor
from torch.export import Dim

from nlzoo.files import whole_file
from nlzoo.models import MODELS, create_model, load_model
from nlzoo.names import check_choice
from nlzoo.version import __version__
from nlzoo.video import VideoResNet

OPSETS = range(17, 24)


def export_onnx(
    source: str,
    path: str | Path,
    *,
    opset: int = 18,
    dynamic: Sequence[str] = ("batch",),
    precision: str = "fp32",
    raw: bool = False,
    frames: int = 0,
    size: int = 0,
) -> Parity:
    """Write a network as ONNX, with all that is needed to run it in the file's metadata.

    Args:
        source: a checkpoint of `nlzoo.fit`, or a name of `nlzoo.list_models()` (random weights).
        path: file to write; it appears only if it passes every check.
        opset: 17 to 23.
        dynamic: axes that may change at run time: batch, frames, height, width.
        precision: fp32 or fp16; the blocks' scores and softmax stay float32.
        raw: take uint8 clips; the cast and the normalisation are in the graph.
        frames: of a clip; 0: as trained.
        size: height and width of a clip, pixels; 0: the test crop.

    Returns:
        The parity with the network, over batches and sizes other than the exported one.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: unknown name, axis or precision, an opset out of range, a clip too small for
            dynamic sizes; a file that ended with other axes than asked for, or out of tolerance.
    """
    check_choice("precision", precision, DTYPES)
    for axis in dynamic:
        check_choice("axis", axis, AXES)
    if opset not in OPSETS:
        raise ValueError(f"opset {opset}: give {OPSETS[0]} to {OPSETS[-1]}")
    model, sha256 = _load(source)
    pre = model.preprocessing
    side = size or pre.test_crop
    spec = Spec(
        model=model.spec["name"],
        source=source if sha256 else "",
        sha256=sha256,
        version=__version__,
        precision=precision,
        raw=raw,
        shape=(2, 3, frames or pre.frames, side, side),
        dynamic=tuple(dynamic),
        preprocessing=pre,
    )
    any_size = bool({"height", "width"} & set(dynamic))
    if any_size and side < 32 * WINDOW:
        raise ValueError(f"size {side}: dynamic heights and widths start at {32 * WINDOW} pixels")
    with whole_file(path) as part:
        _write(Graph(model, precision, any_size), spec, opset, part)
        _check_axes(part, spec)
        parity = compare(Graph(model, "fp32", any_size), Runner(part), _clips(spec))
        parity.check(TOLERANCE[precision])
    return parity


def _load(source: str) -> tuple[VideoResNet, str]:
    """The network in evaluation mode, and the hash of its weights."""
    if source in MODELS:
        torch.manual_seed(0)
        return create_model(source).eval(), ""
    if not Path(source).is_file():
        check_choice("model or checkpoint", source, MODELS)
    return load_model(source), hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _write(graph: Graph, spec: Spec, opset: int, path: Path) -> None:
    """Export, with metadata."""
    shape = list(spec.shape)
    if "width" in spec.dynamic:
        shape[AXES["width"]] += 32  # no two axes of the example may look the same
    example = torch.zeros(shape, dtype=torch.uint8 if spec.raw else torch.float32)
    axes = {AXES[name]: Dim(name, min=1) for name in spec.dynamic}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={"clip": axes},
            input_names=["clip"],
            output_names=["scores"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[KEY] = spec.to_json()
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


def _check_axes(path: Path, spec: Spec) -> None:
    """The exporter fixes an axis, or merges two, without a word."""
    clip = onnx.load(str(path), load_external_data=False).graph.input[0]
    found = [d.dim_param or d.dim_value for d in clip.type.tensor_type.shape.dim]
    names = [found[AXES[name]] for name in spec.dynamic]
    if not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise ValueError(f"the exported clip is {found}: not every one of {spec.dynamic} is free")


def _clips(spec: Spec) -> list[Tensor]:
    """Noise in the range of real pixels, at the exported shape and at others, odd ones included."""
    generator = torch.Generator().manual_seed(0)
    shapes = [spec.shape]
    for batch, frames, pixels in ((1, 3, 33), (3, 8, 64)):
        other = {"batch": batch, "frames": spec.shape[2] + frames, "height": spec.shape[3] + pixels}
        other["width"] = spec.shape[4] + 2 * pixels
        shape = list(spec.shape)
        for name in spec.dynamic:
            shape[AXES[name]] = other[name]
        shapes.append(tuple(shape))
    return [torch.randint(0, 256, s, generator=generator, dtype=torch.uint8) for s in shapes]
