"""A graph as an ONNX file that says what it is."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from nlzoo.export.backend import quiet
from nlzoo.export.spec import KEY, Spec


def write_onnx(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    outputs: Sequence[str],
    spec: Spec,
    opset: int,
    path: Path,
    dynamic: dict[str, Any] | None = None,
) -> None:
    """Export, with metadata, and check.

    Args:
        graph: takes the inputs in their order.
        inputs: an example of each.
        outputs: names.
        spec: goes into the metadata.
        opset: of the operators.
        path: file to write.
        dynamic: for each input the axes that may change, by position.

    Raises:
        ValueError: the network has what an exporter cannot take.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            with quiet():
                program = torch.onnx.export(
                    graph,
                    tuple(inputs.values()),
                    dynamo=True,
                    opset_version=opset,
                    dynamic_shapes=dynamic,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__:
                cause = cause.__cause__
            reason = str(cause).strip().partition("\n")[0]
            raise ValueError(f"{spec.model} cannot be exported: {reason}") from error
    assert program is not None
    program.model.metadata_props[KEY] = spec.to_json()
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
