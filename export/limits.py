"""What a runtime is known not to do: measured with TensorRT-RTX 1.7 and ONNX Runtime 1.32."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

RTX, TENSORRT, ORT = ("rtx",), ("trt10", "trt11"), ("ort",)
HEAD = 256  # largest head size with a fused kernel
FLOAT, BF16 = TensorProto.FLOAT, TensorProto.BFLOAT16


class View:
    """A graph with the types and shapes of its tensors.

    Attributes:
        nodes: of the graph.
        types: tensor -> TensorProto.DataType, where known.
        shapes: tensor -> sizes, where known; None: a dynamic axis.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes: Sequence[NodeProto] = graph.node
        self._weights = {w.name: w for w in graph.initializer}
        self.types = {w.name: w.data_type for w in graph.initializer}
        self.shapes: dict[str, tuple[int | None, ...]]
        self.shapes = {w.name: tuple(w.dims) for w in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self.shapes[value.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
                )
        self.made = {name: node for node in graph.node for name in node.output}

    def integer(self, name: str) -> int | None:
        """The largest magnitude of a constant tensor; None where it is none, or lies elsewhere."""
        tensor = self._weights.get(name)
        if tensor is None and name in self.made and self.made[name].op_type == "Constant":
            tensor = next((a.t for a in self.made[name].attribute if a.name == "value"), None)
        if tensor is None or tensor.external_data:
            return None
        return int(np.abs(numpy_helper.to_array(tensor)).max(initial=0))

    def size(self, name: str, axis: int) -> int | None:
        """The size of an axis, where known."""
        shape = self.shapes.get(name, ())
        return shape[axis] if -len(shape) <= axis < len(shape) else None


@dataclass(frozen=True)
class Finding:
    """One thing to know about a file on a target."""

    node: str  # its name; empty: the whole file
    operator: str
    stops: bool  # the file does not build
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Limit:
    """Nodes that targets refuse; `meets` tells those that it is about."""

    operator: str
    targets: tuple[str, ...]
    why: str
    remedy: str
    meets: Callable[[View, NodeProto], bool] = lambda view, node: True
    stops: bool = True


def _rank(view: View, node: NodeProto) -> int:
    """Of an attention's query; with three axes it is written out as products, which builds."""
    return len(view.shapes.get(node.input[0], ()))


def _widths(view: View, node: NodeProto) -> tuple[int | None, int | None]:
    """Of an attention's keys and values."""
    return view.size(node.input[1], -1), view.size(node.input[2], -1)


UNSIZED = "the size of its output depends on the data, which nlzoo runs in no engine"
MATMULS = "export at opset 18: MatMul, Softmax, MatMul"
LIMITS = (
    Limit(
        "RoiAlign",
        RTX,
        "its plugin needs a GPU when the file is read",
        "write it as GridSample at the sample positions",
    ),
    Limit(
        "NonMaxSuppression",
        RTX,
        "no kernel does it",
        "sort with TopK, then repeat keep = (keep @ overlap == 0)",
    ),
    Limit("NonZero", RTX, "its plugin is not in the package", "keep the shape: Where with a mask"),
    Limit(
        "NonMaxSuppression",
        TENSORRT,
        UNSIZED,
        "fix it: sort with TopK, mark what stays",
        stops=False,
    ),
    Limit("NonZero", TENSORRT, UNSIZED, "keep the shape: Where with a mask", stops=False),
    Limit(
        "TopK",
        RTX + TENSORRT,
        "K is over 3840",
        "take fewer; concatenation exports in its pairwise form",
        lambda view, node: (view.integer(node.input[1]) or 0) > 3840,
    ),
    Limit(
        "Attention",
        RTX,
        "no kernel for float32",
        MATMULS,
        lambda view, node: _rank(view, node) == 4 and view.types.get(node.input[0]) == FLOAT,
    ),
    Limit(
        "Attention",
        RTX,
        f"no kernel for head sizes over {HEAD}",
        MATMULS,
        lambda view, node: _rank(view, node) == 4 and (view.size(node.input[0], 3) or 0) > HEAD,
    ),
    Limit(
        "Attention",
        RTX,
        "no kernel for one head of one sample",
        "leave the batch dynamic, or export at opset 18",
        lambda view, node: view.shapes.get(node.input[0], ())[:2] == (1, 1),
    ),
    Limit(
        "Attention",
        RTX,
        "the attribute softmax_precision is not read",
        MATMULS,
        lambda view, node: any(a.name == "softmax_precision" for a in node.attribute),
    ),
    Limit(
        "Attention",
        RTX,
        "V has another width than K",
        MATMULS,
        lambda view, node: None not in (k := _widths(view, node)) and k[0] != k[1],
    ),
    Limit(
        "DequantizeLinear",
        RTX,
        "a bias in int32",
        "quantize without biases: python -m nlzoo.export quantize",
        lambda view, node: view.types.get(node.input[0]) == TensorProto.INT32,
    ),
    Limit(
        "DequantizeLinear",
        RTX,
        "a zero point that is not 0",
        "quantize symmetrically: python -m nlzoo.export quantize",
        lambda view, node: len(node.input) > 2 and bool(view.integer(node.input[2])),
    ),
    Limit(
        "Conv",
        ORT,
        "bfloat16 has no kernel on a CPU (below opset 22 not even a type)",
        "export fp32 or fp16 for it",
        lambda view, node: view.types.get(node.input[0]) == BF16,
    ),
)


def limits_of(view: View, target: str) -> list[Finding]:
    """What a target is known not to do with the nodes of a graph."""
    return [
        Finding(node.name, node.op_type, limit.stops, limit.why, limit.remedy)
        for node in view.nodes
        for limit in LIMITS
        if limit.operator == node.op_type and target in limit.targets and limit.meets(view, node)
    ]


def explain(
    model: onnx.ModelProto, target: str, reason: str, named: Sequence[tuple[str, str]] = ()
) -> list[Finding]:
    """Why a target refuses a file: its reason, or of nodes whose limits are known those.

    Args:
        model: the file.
        target: of `nlzoo.export.check`.
        reason: what it said.
        named: (name, operator) of the nodes that it is about; by default those in the text.
    """
    limits = [found for found in limits_of(View(model), target) if found.stops]
    known = {found.node: found for found in reversed(limits)}
    words = {word.strip(".:") for word in re.findall(r"[\w./:-]+", reason)}
    nodes = named or [(n.name, n.op_type) for n in model.graph.node if n.name in words]
    if not nodes and known:
        return limits
    remedy = "write that part with other operators"
    return [
        known.get(name) or Finding(name, operator, True, reason, remedy if name else "")
        for name, operator in nodes or [("", "")]
    ]
