"""Engines of TensorRT 10, 11 and TensorRT-RTX on a GPU: torch tensors in, torch tensors out."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlzoo.export.backend import BACKENDS, load_backend, make_log, short, title
from nlzoo.files import write_whole

Shape = tuple[int, ...]
RECORDINGS = 8  # shapes whose launches are recorded: each holds memory for its inputs and outputs
DTYPES = {  # DataType -> torch
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Input:
    """One input of an engine."""

    dtype: torch.dtype
    ranges: tuple[tuple[Shape, Shape], ...]  # least and largest shape, by profile

    def takes(self, shape: Shape, profile: int) -> bool:
        """Whether a shape is within a profile."""
        least, largest = self.ranges[profile]
        return len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, largest, strict=True)
        )


@dataclass(frozen=True)
class Recorded:
    """A pass as a CUDA graph, which reads and writes always the same memory."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def replay(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs for other inputs of the same shapes."""
        for name, x in inputs.items():
            self.inputs[name].copy_(x)
        self.graph.replay()
        return {name: y.clone() for name, y in self.outputs.items()}


class EngineSession:
    """A built engine on the first GPU (of `CUDA_VISIBLE_DEVICES`).

    The launches of a shape are recorded as a CUDA graph and replayed: by TensorRT-RTX itself, with
    TensorRT from the second call on, for `RECORDINGS` shapes at most. TensorRT-RTX keeps the
    kernels that it compiles here beside the engine, `ENGINE.cache`, for the next start.

    Args:
        path: engine file; `PATH.json` beside it, if there, says which backend built it.

    Attributes:
        inputs: name -> dtype and sizes.
        device: where inputs are taken and outputs left.
        facts: content of `PATH.json`; empty without it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no GPU or backend; a damaged engine, or one of another release or card.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no engine {path}; make it by python -m nlzoo.export tensorrt")
        plan = path.read_bytes()
        self.facts = info = _beside(path, plan)
        if not torch.cuda.is_available():
            raise ValueError(f"{path} needs an NVIDIA GPU; PyTorch finds none here")
        self.device = torch.device("cuda", 0)
        trt = load_backend(info.get("backend", ""))
        self._log = make_log(trt)
        with torch.cuda.device(self.device):
            self._runtime = trt.Runtime(self._log)
            if info.get("version_compatible"):  # it carries its own runtime
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise ValueError(self._foreign(trt, info, plan))
            self._stream = torch.cuda.Stream(self.device)
        self._cache_file = path.with_name(f"{path.name}.cache")
        self._config: Any = None  # of TensorRT-RTX
        self._cache: Any = None
        if hasattr(trt, "CudaGraphStrategy"):
            self._use_cache(trt)
        self._contexts: dict[int, Any] = {}  # by profile
        self._seen: set[Any] = set()  # (profile, shapes)
        self._recorded: dict[Any, Recorded] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inward = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self.inputs = {name: self._input(name) for name in names if inward[name]}
        self._outputs = {name: self._dtype(name) for name in names if not inward[name]}

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One pass. On the GPU inputs are read where they lie, but for a recorded shape's copy.

        Args:
            inputs: a tensor for each of `self.inputs`.

        Raises:
            ValueError: an unknown or missing name, a dtype or shape that it was not built for.
            RuntimeError: the pass failed.
        """
        profile = self._profile_of(inputs)
        key = profile, *(tuple(inputs[name].shape) for name in self.inputs)
        with torch.cuda.device(self.device):
            placed = {name: x.to(self.device).contiguous() for name, x in inputs.items()}
            current = torch.cuda.current_stream()
            # A stream of its own, as the default one adds synchronizations. Each waits for the
            # other, so memory that one has freed the other may use.
            self._stream.wait_stream(current)
            context = self._context(profile)
            if self._config is None and key in self._seen and len(self._recorded) < RECORDINGS:
                self._recorded[key] = self._recorded.get(key) or self._record(context, placed)
            if key in self._recorded:
                with torch.cuda.stream(self._stream):
                    outputs = self._recorded[key].replay(placed)
            else:
                outputs = self._launch(context, placed)
            self._seen.add(key)
            current.wait_stream(self._stream)
        return outputs

    def close(self) -> None:
        """Free the engine; with TensorRT-RTX write the kernels that were compiled."""
        if self._cache is not None:
            with suppress(OSError):  # a read-only folder only costs the next start some time
                write_whole(self._cache_file, memoryview(self._cache.serialize()))
        self._recorded.clear()
        self._contexts.clear()
        self._config = self._cache = self._engine = self._runtime = None

    def _use_cache(self, trt: Any) -> None:
        """TensorRT-RTX: kernels of an earlier run, and CUDA graphs of its own."""
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        if self._cache_file.is_file():  # one of another release or card is left aside
            self._cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(self._cache)
        self._config = config

    def _foreign(self, trt: Any, info: dict[str, Any], plan: bytes) -> str:
        """What an engine is that cannot be loaded, and where it is."""
        reason = short("\n".join(self._log.errors))
        if hasattr(self._runtime, "get_engine_validity"):
            _, bits = self._runtime.get_engine_validity(plan)
            known = trt.EngineInvalidityDiagnostics.__members__
            reason = ", ".join(n for n, bit in known.items() if bits & int(bit)) or reason
        built = "by an unknown release"
        if info:
            cards = ", ".join(info["compute_capabilities"]) or "another card"
            built = f"by {BACKENDS[info['backend']]} {info['version']} for {cards}"
        major, minor = torch.cuda.get_device_capability(self.device)
        return (
            f"{self._path}, built {built}, does not load in {title(trt)} on "
            f"{torch.cuda.get_device_name(self.device)} (compute capability {major}.{minor}): "
            f"{reason}; build it here: python -m nlzoo.export tensorrt"
        )

    def _dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._engine.get_tensor_dtype(name).name]

    def _input(self, name: str) -> Input:
        engine, shape = self._engine, tuple(self._engine.get_tensor_shape(name))
        ranges = [(shape, shape)] * engine.num_optimization_profiles
        if -1 in shape:
            found = [engine.get_tensor_profile_shape(name, i) for i in range(len(ranges))]
            ranges = [(tuple(least), tuple(largest)) for least, _, largest in found]
        return Input(self._dtype(name), tuple(ranges))

    def _profile_of(self, inputs: dict[str, Tensor]) -> int:
        """The first that all inputs fit into."""
        if inputs.keys() != self.inputs.keys():
            raise ValueError(f"inputs are {', '.join(inputs)}, wanted {', '.join(self.inputs)}")
        fits = set(range(self._engine.num_optimization_profiles))
        for name, wanted in self.inputs.items():
            shape, dtype = tuple(inputs[name].shape), inputs[name].dtype
            if dtype != wanted.dtype:
                raise ValueError(f"{name} has dtype {dtype}, wanted {wanted.dtype}")
            fits &= {i for i in fits if wanted.takes(shape, i)}
            if not fits:
                there = ", ".join(f"{least} to {largest}" for least, largest in wanted.ranges)
                raise ValueError(f"{name} has shape {shape}, the engine is built for {there}")
        return min(fits)

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            given = () if self._config is None else (self._config,)
            context = self._engine.create_execution_context(*given)
            context.set_optimization_profile_async(profile, self._stream.cuda_stream)
            self._contexts[profile] = context
        return self._contexts[profile]

    def _launch(self, context: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = {}
        for name, x in inputs.items():
            context.set_input_shape(name, tuple(x.shape))
            context.set_tensor_address(name, x.data_ptr())
        for name, dtype in self._outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                raise ValueError(
                    f"the size of output {name} depends on the data; export a fixed one"
                )
            outputs[name] = torch.empty(shape, dtype=dtype, device=self.device)
            context.set_tensor_address(name, outputs[name].data_ptr())
        self._execute(context)
        return outputs

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(f"{self._path}: the pass failed: {'; '.join(self._log.errors)}")

    def _record(self, context: Any, inputs: dict[str, Tensor]) -> "Recorded":
        inputs = {name: x.clone() for name, x in inputs.items()}
        self._stream.wait_stream(torch.cuda.current_stream())
        outputs = self._launch(context, inputs)  # a new shape has work that cannot be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._execute(context)
        return Recorded(graph, inputs, outputs)


def _beside(path: Path, plan: bytes) -> dict[str, Any]:
    """What `PATH.json` says of the engine; empty without it."""
    file = path.with_name(f"{path.name}.json")
    if not file.is_file():
        return {}
    try:
        info: dict[str, Any] = json.loads(file.read_text("utf-8"))
        sha256 = info["engine"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged; build the engine again") from error
    if hashlib.sha256(plan).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged, or {file.name} is another engine's; build it again")
    return info
