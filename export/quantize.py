"""int8 files: explicit Q/DQ nodes around the convolutions, in the form that TensorRT accepts."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto
from onnx.external_data_helper import load_external_data_for_model
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor

from nlzoo.export.spec import KEY, Spec, read_onnx, spec_of
from nlzoo.files import whole_file
from nlzoo.preprocessing import Normalize

# TensorRT refuses int32 biases, and quantised constants of other operators.
OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
# What lies between a block's convolutions and its matrix products.
MOVES = {"Reshape", "Transpose", "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Split"}
PRODUCTS = {"MatMul", "Einsum"}


def quantize(
    path: str | Path, output: str | Path, clips: Iterable[Tensor | dict[str, Tensor]]
) -> None:
    """Write an int8 form of a float32 file: weights by channel, activations by tensor.

    The convolutions are quantised, except those of non-local blocks: scores, softmax and what is
    next to them stay float32.

    Args:
        path: an .onnx file of `nlzoo.export`.
        output: file to write; it appears whole or not at all.
        clips: what the ranges of activations are taken from, some hundred are plenty; a batch
            each, uint8 as decoded, or float32 of networks that are not for video; for a detector
            all its inputs by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file of `nlzoo.export`, one that is not float32, no clips, or clips of
            another shape.
    """
    if Path(output).suffix != ".onnx":
        raise ValueError(f"{output}: an ONNX file is called NAME.onnx")
    file = read_onnx(path)
    spec = spec_of(file)
    if spec is None:
        raise ValueError(f"{path} is no file of nlzoo.export: export its network first")
    if spec.is_detector and spec.raw:
        raise ValueError(f"{path} takes uint8: a detector's int8 file is made from one of floats")
    if spec.precision != "fp32":
        raise ValueError(f"{path} is {spec.precision}: int8 is made from an fp32 file")
    first = next(clips := iter(clips), None)
    if first is None:
        raise ValueError("no clips to calibrate on")
    load_external_data_for_model(file, str(Path(path).parent))
    add_pre_process_metadata(file)  # the exporter has folded batch norms and inferred shapes
    with whole_file(output) as part:
        quantize_static(
            file,
            part,
            _Calibration(spec, chain([first], clips)),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            nodes_to_exclude=block_convolutions(file.graph),
            extra_options=OPTIONS,
        )
        made = onnx.load(str(part))
        del made.metadata_props[:]
        onnx.helper.set_model_props(made, {KEY: replace(spec, precision="int8").to_json()})
        onnx.save(made, str(part))
        onnx.checker.check_model(str(part), full_check=True)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Clips as the file's input."""

    def __init__(self, spec: Spec, clips: Iterator[Tensor | dict[str, Tensor]]) -> None:
        self._spec, self._clips = spec, clips

    def get_next(self) -> dict[str, object] | None:
        """The next batch by name, None after the last."""
        clip = next(self._clips, None)
        if clip is None:
            return None
        if isinstance(clip, dict):
            return {name: x.numpy() for name, x in clip.items()}
        self._spec.check(tuple(clip.shape))
        if (pre := self._spec.preprocessing) and not self._spec.raw:
            clip = Normalize(pre.mean, pre.std)(clip)
        return {self._spec.input: clip.numpy()}


def block_convolutions(graph: GraphProto) -> list[str]:
    """Names of the convolutions next to a product of two activations: theta, phi, g, W_z.

    Blocks of which these are matrix products already have none. They are found by what they
    compute, as names of nodes and weights differ from tool to tool.
    """
    constants = {w.name for w in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)

    def sources(node: NodeProto) -> Iterator[NodeProto]:
        return (makers[name] for name in node.input if name in makers)

    def targets(node: NodeProto) -> Iterator[NodeProto]:
        return chain.from_iterable(takers.get(name, ()) for name in node.output)

    found: set[str] = set()
    for product in graph.node:
        if product.op_type in PRODUCTS and not constants & {*product.input}:
            for step in (sources, targets):
                near = list(step(product))
                while near:
                    node = near.pop()
                    if node.op_type == "Conv":
                        found.add(node.name)
                    elif node.op_type in MOVES:
                        near += step(node)
    return sorted(found)
