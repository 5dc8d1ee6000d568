"""The attentions of a graph, and whether a runtime can do each in one kernel."""

from collections.abc import Iterator, Set

from onnx import NodeProto, TensorProto

from nlzoo.export.limits import FLOAT, HEAD, Finding, View

# What may stand between a product and the softmax, and between the softmax and the other product.
BEFORE = {"Mul", "Div", "Add", "Sub", "Where", "Cast", "Identity", "Reshape"}
AFTER = {"Cast", "Identity", "Dropout", "Reshape"}
FUSING = ("rtx", "trt10", "trt11")


def attentions(view: View, target: str, fused: Set[str] | None) -> list[Finding]:
    """One for each MatMul, Softmax, MatMul; they build, fused or not.

    Args:
        view: the graph.
        target: of `nlzoo.export.check`.
        fused: the nodes that the target has put into kernels of several; None: it was not asked.
    """
    found = []
    for softmax in view.nodes:
        product = softmax.op_type == "Softmax" and _before(view, softmax.input[0])
        if product and any(_products(view, softmax.output[0])):
            found.append(_judge(view, softmax, product, target, fused))
    return found


def _before(view: View, name: str) -> NodeProto | None:
    """The product that a tensor comes from."""
    node = view.made.get(name)
    if node is None or node.op_type == "MatMul":
        return node
    if node.op_type not in BEFORE:
        return None
    return next(filter(None, (_before(view, i) for i in node.input)), None)


def _products(view: View, name: str) -> Iterator[NodeProto]:
    """The products that take a tensor as their first factor."""
    for node in view.nodes:
        if node.op_type == "MatMul" and node.input[0] == name:
            yield node
        elif node.op_type in AFTER and name in node.input:
            yield from _products(view, node.output[0])


def _judge(
    view: View, softmax: NodeProto, product: NodeProto, target: str, fused: Set[str] | None
) -> Finding:
    head, scores = view.size(product.input[0], -1), view.types.get(softmax.input[0], 0)
    remedy = ""
    if fused is not None:
        verdict = "one kernel" if softmax.name in fused else "not fused"
    elif target not in FUSING:
        verdict = "it is not known whether it is fused"
    elif (head or 0) > HEAD:
        verdict = f"not fused, kernels end at {HEAD}"
    elif scores == FLOAT:
        verdict = "not fused in float32"
        remedy = "fp16 with --islands off, if the logits allow"
    else:
        verdict = "fusable"
    rows, columns = (view.size(softmax.input[0], axis) or "?" for axis in (-2, -1))
    kind = "float32" if scores == FLOAT else TensorProto.DataType.Name(scores).lower()
    what = f"head size {head or '?'}, {rows} x {columns} {kind} scores: {verdict}"
    return Finding(softmax.name, "attention", False, what, remedy)
