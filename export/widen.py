"""bfloat16 files in float32, for runtimes that have no bfloat16."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def widen(file: onnx.ModelProto) -> onnx.ModelProto:
    """The same operators and (rounded) weights in float32: all but the rounding on the way.

    ONNX Runtime has no bfloat16 convolution on a CPU, so this is how such a file is checked.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(file)
    del wide.graph.value_info[:]
    for weights in wide.graph.initializer:
        _widen(weights)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BF16:
                attribute.i = FP32
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
    return wide


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == BF16:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
