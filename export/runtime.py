"""Networks and exported files on their runtimes, all called like the network they came from."""

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, overload

import onnx
import torch
from torch import Tensor, nn

from nlzoo.export.sessions import OnnxRuntime, OpenVino, Session, Tensors, Torch, has_cuda
from nlzoo.export.spec import KEY, Spec, foreign_spec, read_onnx, spec_of
from nlzoo.export.widen import widen
from nlzoo.names import check_choice
from nlzoo.preprocessing import Normalize, Preprocessing

if TYPE_CHECKING:
    from nlzoo.export.canvas import Canvas
    from nlzoo.export.eager import OnCanvas
    from nlzoo.export.source import Source

RUNTIMES = {  # by suffix; the first is the default
    "": ("eager", "compile"),
    ".onnx": ("onnxruntime", "openvino"),
    ".engine": ("engine",),
}


class Runner:
    """A network on a runtime; a context manager. One belongs to the thread that made it.

    On ONNX Runtime's CPU bfloat16 files run in float32, with their rounded weights.

    Args:
        source: an .onnx or .engine file of `nlzoo.export`; a checkpoint of `nlzoo.fit`, a model
            name, MODULE:OBJECT or a network.
        runtime: eager or compile for networks, onnxruntime or openvino for ONNX files, engine;
            empty: the first that fits.
        threads: of a call on a CPU; 0: the runtime's own choice.
        shape: of the input of a network, see `load_network`.
        preprocessing: of an ONNX file from elsewhere.

    Attributes:
        spec: what the file or network says of itself.
        runtime: its name.
        device: where inputs are taken and outputs left.
        profiles: least and largest shape of each profile of an engine.

    Raises:
        FileNotFoundError: no such file or name.
        ValueError: the runtime is missing or cannot run it; a file that says nothing of its input.
    """

    def __init__(
        self,
        source: "Source",
        runtime: str = "",
        threads: int = 0,
        shape: Sequence[int] = (),
        preprocessing: Preprocessing | None = None,
    ) -> None:
        suffix = "" if isinstance(source, nn.Module) else Path(source).suffix
        kinds = RUNTIMES.get(suffix, RUNTIMES[""])
        self.runtime = runtime or kinds[0]
        check_choice("runtime", self.runtime, [kind for some in RUNTIMES.values() for kind in some])
        if self.runtime not in kinds:
            what, fits = suffix or "a network", " or ".join(kinds)
            raise ValueError(f"runtime {self.runtime!r} cannot take {what}: {fits} can")
        if threads < 0:
            raise ValueError(f"threads is {threads}: give 1 or more, or 0 for the runtime's own")
        self._session: Session
        self._network: OnCanvas | None = None  # torchvision's own
        self.profiles: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = ()
        if suffix == ".onnx":
            file = read_onnx(str(source))
            own = spec_of(file)
            if own and preprocessing:
                raise ValueError(f"{source} says itself what it takes: leave --clip out")
            self.spec = own or _foreign(file, preprocessing, source)
            if self.runtime == "openvino":
                self._session = OpenVino(Path(str(source)), threads)
            else:  # which has no bfloat16 convolution on a CPU
                bf16 = self.spec.precision == "bf16" and not has_cuda()
                content = widen(file).SerializeToString() if bf16 else b""
                self._session = OnnxRuntime(Path(str(source)), threads, content)
        elif suffix == ".engine":
            self._open_engine(Path(str(source)))
        else:
            from nlzoo.export.source import load_network  # all networks there are

            model, self.spec = load_network(source, shape)
            if self.spec.is_detector:
                model = self._on_canvas(model)
            self._session = Torch(model, threads, self.runtime == "compile")
        self.device = self._session.device
        self._thread = threading.get_ident()
        self._normalize: nn.Module = nn.Identity()
        if (pre := self.spec.preprocessing) and not self.spec.raw:
            seen = ((0.0,) * 3, (1.0,) * 3) if self.spec.is_detector else (pre.mean, pre.std)
            self._normalize = Normalize(*seen).to(self.device)

    def _open_engine(self, path: Path) -> None:
        from nlzoo.export.engine import EngineSession

        self._session = session = EngineSession(path)
        if not session.facts:
            raise FileNotFoundError(f"no {path}.json, which says what {path} takes; copy both")
        if KEY not in session.facts:
            raise ValueError(f"{path} was built from a file of others; export one by nlzoo.export")
        self.spec = Spec.from_json(session.facts[KEY])
        self.profiles = session.inputs[self.spec.input].ranges

    def _on_canvas(self, model: nn.Module) -> nn.Module:
        """A detector with the inputs and outputs of its file; compiled it is the file's graph."""
        from nlzoo.export.detection import StaticDetector
        from nlzoo.export.eager import OnCanvas

        canvas = self.spec.shape[2], self.spec.shape[3]
        if self.runtime == "compile":
            return StaticDetector(model, canvas)
        self._network = OnCanvas(model, canvas)
        return self._network

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels reach it.

        Raises:
            ValueError: it is no network of nlzoo.
        """
        if self.spec.preprocessing is None:
            raise ValueError(f"{self.spec.model} says nothing of videos or images")
        return self.spec.preprocessing

    @overload
    def __call__(self, input: Tensor | Tensors) -> Tensor: ...

    @overload
    def __call__(self, input: list[Tensor]) -> list[Tensors]: ...

    def __call__(self, input: Tensor | Tensors | list[Tensor]) -> Tensor | list[Tensors]:
        """As `run`, the first output; of a detector also from images to detections.

        A list of images (3, H, W) of any sizes, uint8 or in 0..1 -> torchvision's dicts, on the
        CPU.

        Raises:
            ValueError: a shape or dtype that the file does not take.
            RuntimeError: called from another thread.
        """
        if isinstance(input, list):
            return self._detect(input)
        return next(iter(self.run(input).values()))

    def _detect(self, images: list[Tensor]) -> list[Tensors]:
        inputs, sizes = self.canvas.put(images)
        originals = [(image.shape[1], image.shape[2]) for image in images]
        return self.canvas.take(self.run(inputs), sizes, originals)

    @cached_property
    def canvas(self) -> "Canvas":
        """Of a detector: what images are put on, and detections taken from."""
        from nlzoo.export.canvas import Canvas

        return Canvas(self.preprocessing, self.spec.shape)

    def everything(self, input: Tensor | Tensors) -> Tensors:
        """`run`, where torchvision's own network, as files do, gives detections of any score."""
        if self._network is None:
            return self.run(input)
        self._network.threshold = 0.0
        try:
            return self.run(input)
        finally:
            self._network.threshold = None

    def run(self, input: Tensor | Tensors) -> Tensors:
        """All outputs by name.

        Args:
            input: float32, of networks of nlzoo also uint8, see `Spec`; of a detector `images` and
                `sizes` by name.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError("this Runner was made in another thread; make one in each")
        name = self.spec.input
        inputs = {name: input} if isinstance(input, Tensor) else dict(input)
        self.spec.check(tuple(inputs[name].shape))
        wanted = torch.uint8 if self.spec.raw else torch.float32
        inputs = {name: x.to(self.device) for name, x in inputs.items()}
        inputs[name] = self._normalize(inputs[name])
        if self.spec.is_detector and inputs[name].dtype != wanted:
            inputs[name] = (inputs[name] * 255).round().to(wanted)
        if inputs[name].dtype != wanted:
            raise ValueError(f"input has dtype {inputs[name].dtype}, wanted {wanted}")
        return self._session.run({name: x.contiguous() for name, x in inputs.items()})

    def close(self) -> None:
        """Free what the runtime holds."""
        self._session.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _foreign(file: onnx.ModelProto, preprocessing: Preprocessing | None, source: "Source") -> Spec:
    if preprocessing is None:
        raise ValueError(
            f"{source} says nothing about its input, it is no file of nlzoo.export; run takes it "
            "with --clip 32x2 --size 256 --crop 256 --mean 0.45,0.45,0.45 --std 0.225,0.225,0.225 "
            "--classes FILE"
        )
    return foreign_spec(file, preprocessing)
