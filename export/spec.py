"""What an exported file says of itself: all that is needed to run it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from nlzoo.preprocessing import Preprocessing, canvas_side

KEY = "nlzoo"  # of the file's metadata
LEAST = 224  # pixels, where windows are scored at any size: 7 x 7 positions of the last map
AXES = {  # names of the axes that may be dynamic, by the rank of the input
    3: {"batch": 0, "length": 2},
    4: {"batch": 0, "height": 2, "width": 3},
    5: {"batch": 0, "frames": 2, "height": 3, "width": 4},
}


@dataclass(frozen=True)
class Spec:
    """One network as a file.

    Its input is float32, or with `raw` uint8 as decoded; networks of nlzoo take clips
    (B, 3, T, H, W) or images (B, 3, H, W), normalised or raw. Its output is float32; theirs (B, K).
    Detectors are as `nlzoo.export.detection.StaticDetector`, their shape is the canvas's.
    """

    model: str  # name, or MODULE:OBJECT
    source: str  # file of the weights; empty: random, or the object's own
    sha256: str  # of that file
    licence: str  # of the weights; empty: not said
    version: str  # of nlzoo
    precision: str  # fp32, fp16, bf16 or int8
    raw: bool
    shape: tuple[int, ...]  # it was exported with
    dynamic: tuple[str, ...]  # axes that may differ from it
    preprocessing: Preprocessing | None  # None: no network of nlzoo; images have no frames
    output: str = "logits"  # or log-probabilities, or detections
    input: str = "input"  # its name

    @property
    def axes(self) -> dict[str, int]:
        """The dynamic axes: name -> position."""
        return {name: AXES[len(self.shape)][name] for name in self.dynamic}

    @property
    def is_detector(self) -> bool:
        """Whether it takes images on a canvas, and their sizes, see `nlzoo.export.canvas`."""
        return self.preprocessing is not None and self.preprocessing.task == "detection"

    @property
    def any_size(self) -> bool:
        """Whether it scores the windows of clips of any height or width."""
        return self.output == "log-probabilities"

    def to_json(self) -> str:
        """For the metadata."""
        pre = self.preprocessing
        return json.dumps(asdict(self) | {"preprocessing": pre.to_dict() if pre else None})

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Inverse of `to_json`.

        Raises:
            ValueError: it is damaged, or of another version of nlzoo.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values["preprocessing"]:
                values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"what nlzoo wrote into the file is damaged, or of another version: {error}"
            ) from error

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where an input of this shape does not fit."""
        free = self.axes.values()
        fits = len(shape) == len(self.shape) and min(shape) > 0
        if not fits or any(shape[i] != s for i, s in enumerate(self.shape) if i not in free):
            raise ValueError(f"input has shape {shape}, wanted {self.wanted()}")
        if self.any_size and min(shape[3:]) < LEAST:
            raise ValueError(
                f"input has shape {shape}: clips of any size have sides of {LEAST} pixels or more"
            )

    def wanted(self) -> str:
        """The shape in words: `(batch, 3, 32, 256, 256)`."""
        names = {position: name for name, position in self.axes.items()}
        return f"({', '.join(str(names.get(i, s)) for i, s in enumerate(self.shape))})"


def sizes_of(pre: Preprocessing) -> tuple[int, ...]:
    """(T, H, W) of a clip at test, or (H, W) of an image; of a detector any image's canvas."""
    if pre.task == "detection":
        return (canvas_side(pre.test_crop),) * 2
    return *([pre.frames] if pre.frames else []), pre.test_crop, pre.test_crop


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """An ONNX file, its weights left where they are.

    Raises:
        FileNotFoundError: no such file, or not the one that it keeps its weights in.
        ValueError: it is no ONNX file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; make it by python -m nlzoo.export onnx")
    try:
        file = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf, whose classes differ between its versions
        raise ValueError(f"{path} is not an ONNX file, or is truncated; export it again") from error
    if not file.graph.node:
        raise ValueError(f"{path} is not an ONNX file, or is truncated; export it again")
    for weights in file.graph.initializer:
        for entry in weights.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise FileNotFoundError(
                    f"{path} keeps its weights in {entry.value}, which is not beside it; copy both"
                )
    return file


def inputs_of(file: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a file, without its weights, which old files list too."""
    weights = {w.name for w in file.graph.initializer}
    return [value for value in file.graph.input if value.name not in weights]


def spec_of(file: onnx.ModelProto) -> Spec | None:
    """What a file of `nlzoo.export` says of itself; None for files of others."""
    entries = {entry.key: entry.value for entry in file.metadata_props}
    return Spec.from_json(entries[KEY]) if KEY in entries else None


def foreign_spec(file: onnx.ModelProto, preprocessing: Preprocessing) -> Spec:
    """That of a video network from elsewhere, of one input; what it sees has to be given.

    Raises:
        ValueError: it does not take clips (B, 3, T, H, W) of float32 or uint8.
    """
    first, *others = inputs_of(file)
    kind = first.type.tensor_type
    pre, dims = preprocessing, kind.shape.dim
    types: dict[int, bool] = {onnx.TensorProto.FLOAT: False, onnx.TensorProto.UINT8: True}
    if others or len(dims) != 5 or kind.elem_type not in types:
        raise ValueError("it is no video network: one input (B, 3, T, H, W), float32 or uint8")
    default = 1, 3, *sizes_of(pre)
    free = [name for name, at in AXES[5].items() if not dims[at].HasField("dim_value")]
    sizes = tuple(
        d.dim_value if d.HasField("dim_value") else s for d, s in zip(dims, default, strict=True)
    )
    return Spec(
        model="",
        source="",
        sha256="",
        licence="",
        version="",
        precision="fp32",
        raw=types[kind.elem_type],
        shape=sizes,
        dynamic=tuple(free),
        preprocessing=pre,
        input=first.name,
    )
