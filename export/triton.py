"""A model repository of Triton Inference Server from an ONNX file.

Fields: ModelConfig of Triton's model_config.proto. The batch is left out of `dims` where
max_batch_size is not 0; a size that may change is -1.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx

from nlzoo.export.spec import inputs_of, read_onnx, spec_of
from nlzoo.files import whole_folder

TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.STRING: "TYPE_STRING",
}


def write_repository(path: str | Path, dest: str | Path, max_batch: int = 8) -> Path:
    """Write DEST/NAME/{config.pbtxt, labels.txt, 1/model.onnx}; NAME is that of the file.

    Args:
        path: an ONNX file; class names come from its metadata.
        dest: the repository; it may hold other models.
        max_batch: largest batch that requests are gathered into, where the batch is dynamic.

    Returns:
        The model's folder, which appears whole or not at all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no ONNX file, or no number above 0 was given.
        FileExistsError: the repository has such a model.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch = {max_batch}: expected 1 or more")
    path, dest = Path(path), Path(dest)
    file, folder = read_onnx(path), dest / path.stem
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; remove it, or name another folder")
    spec = spec_of(file)
    classes = spec.preprocessing.classes if spec and spec.preprocessing else ()
    by_class = bool(classes) and not (spec and spec.is_detector)
    text = "\n".join(_config(file, path.stem, max_batch, by_class))
    with whole_folder(folder) as part:
        (part / "1").mkdir()
        onnx.save(onnx.load(str(path)), str(part / "1" / "model.onnx"))  # in one file
        (part / "config.pbtxt").write_text(text + "\n")
        if classes:
            (part / "labels.txt").write_text("\n".join(classes) + "\n", "utf-8")
    return folder


def _config(file: onnx.ModelProto, name: str, max_batch: int, labels: bool) -> Iterator[str]:
    inputs = inputs_of(file)
    batched = all(
        value.type.tensor_type.shape.dim and not value.type.tensor_type.shape.dim[0].dim_value
        for value in inputs
    )
    yield f'name: "{name}"'
    yield 'backend: "onnxruntime"'
    yield f"max_batch_size: {max_batch if batched else 0}"
    for kind, values in (("input", inputs), ("output", file.graph.output)):
        for value in values:
            dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim][batched:]
            yield f"{kind} {{"
            yield f'  name: "{value.name}"'
            yield f"  data_type: {TYPES[value.type.tensor_type.elem_type]}"
            yield f"  dims: {dims}"
            if kind == "output" and labels:
                yield '  label_filename: "labels.txt"'
            yield "}"
    if batched:
        yield "dynamic_batching {}"
