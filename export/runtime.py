"""Networks and exported files on their runtimes, all called like the network they came from."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import onnx
import torch
from nlzoo.export.sessions import OnnxRuntime, OpenVino, Session, Tensors, Torch, has_cuda
from nlzoo.export.spec import KEY, Spec, foreign_spec, read_onnx, spec_of
from nlzoo.export.widen import widen
from torch import Tensor, nn

from nlzoo.names import check_choice
from nlzoo.preprocessing import Normalize, Preprocessing

if TYPE_CHECKING:
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
        check_choice("runtime", self.runtime, kinds)
        if threads < 0:
            raise ValueError(f"threads is {threads}: give 1 or more, or 0 for the runtime's own")
        self._session: Session
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
            self._session = Torch(model, threads, self.runtime == "compile")
        self.device = self._session.device
        self._thread = threading.get_ident()
        self._normalize: nn.Module = nn.Identity()
        if (pre := self.spec.preprocessing) and not self.spec.raw:
            self._normalize = Normalize(pre.mean, pre.std).to(self.device)

    def _open_engine(self, path: Path) -> None:
        from nlzoo.export.engine import EngineSession

        self._session = session = EngineSession(path)
        if not session.facts:
            raise FileNotFoundError(f"no {path}.json, which says what {path} takes; copy both")
        if KEY not in session.facts:
            raise ValueError(f"{path} was built from a file of others; export one by nlzoo.export")
        self.spec = Spec.from_json(session.facts[KEY])
        self.profiles = session.inputs[self.spec.input].ranges

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels reach it.

        Raises:
            ValueError: it is no network of nlzoo.
        """
        if self.spec.preprocessing is None:
            raise ValueError(f"{self.spec.model} says nothing of videos or images")
        return self.spec.preprocessing

    def __call__(self, input: Tensor) -> Tensor:
        """float32, of networks of nlzoo also uint8 -> the first output, float32, see `Spec`.

        Raises:
            ValueError: a shape or dtype that the file does not take.
            RuntimeError: called from another thread.
        """
        return next(iter(self.run(input).values()))

    def run(self, input: Tensor) -> Tensors:
        """The same, all outputs by name."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("this Runner was made in another thread; make one in each")
        self.spec.check(tuple(input.shape))
        input = self._normalize(input.to(self.device))
        wanted = torch.uint8 if self.spec.raw else torch.float32
        if input.dtype != wanted:
            raise ValueError(f"input has dtype {input.dtype}, wanted {wanted}")
        return self._session.run({self.spec.input: input.contiguous()})

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
