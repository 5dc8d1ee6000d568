"""The runtimes under one call: named tensors in, named tensors out."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


class Session(Protocol):
    """A network on a runtime."""

    device: torch.device  # of what comes in and goes out

    def run(self, inputs: Tensors) -> Tensors:
        """One pass."""

    def close(self) -> None:
        """Free what it holds."""


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime is one for NVIDIA GPUs."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


class OnnxRuntime:
    """An ONNX file on ONNX Runtime: CUDA where its package has that provider, else the CPU.

    Tensors are bound where they lie: nothing is copied on the way. `content` is run in place of
    that of the file.

    Raises:
        ValueError: it cannot run there, or would silently run elsewhere.
    """

    def __init__(self, path: Path, threads: int, content: bytes = b"") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        gpu = has_cuda()
        wanted = "CUDAExecutionProvider" if gpu else "CPUExecutionProvider"
        provider = (wanted, {"use_tf32": "0"} if gpu else {})  # TF32 has float16's digits
        try:
            self._session: Any = ort.InferenceSession(
                content or str(path), options, providers=[provider]
            )
        except Exception as error:  # the runtime's own, one class for each reason
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: ONNX Runtime cannot run it: {reason}") from error
        if self._session.get_providers()[0] != wanted:
            raise ValueError(
                f"ONNX Runtime falls back from {wanted} to {self._session.get_providers()[0]}; "
                "install the CUDA libraries of onnxruntime-gpu[cuda,cudnn]"
            )
        self.device = torch.device("cuda:0" if gpu else "cpu")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Tensors) -> Tensors:
        """One pass."""
        binding, place = self._session.io_binding(), (self.device.type, self.device.index or 0)
        for name, x in inputs.items():
            kind = np.dtype(str(x.dtype).removeprefix("torch."))
            binding.bind_input(name, *place, kind, tuple(x.shape), x.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, *place)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(self._outputs, map(torch.from_dlpack, binding.get_outputs()), strict=True))

    def close(self) -> None:
        """Free the session."""
        del self._session


class OpenVino:
    """An ONNX file on OpenVINO's CPU plugin, in float32.

    Raises:
        ValueError: OpenVINO is not installed, or cannot run the file.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ValueError("OpenVINO is missing: pip install 'nlzoo[openvino]'") from error
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs would take bf16
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{path}: OpenVINO cannot run it: {reason}") from error
        self._outputs = [output.any_name for output in compiled.outputs]
        self._request: Any = compiled.create_infer_request()

    def run(self, inputs: Tensors) -> Tensors:
        """One pass; its own output memory is copied, as the next pass overwrites it."""
        found = self._request.infer({k: x.numpy() for k, x in inputs.items()}, share_inputs=True)
        return {name: torch.from_numpy(found[name].copy()) for name in self._outputs}

    def close(self) -> None:
        """Free the request."""
        del self._request


class Torch:
    """A network in PyTorch, as it is or through torch.compile; on a GPU where there is one."""

    def __init__(self, model: nn.Module, threads: int, compiled: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = model.to(self.device)
        if compiled:
            self._model = torch.compile(self._model)
        self._threads = threads

    def run(self, inputs: Tensors) -> Tensors:
        """One pass; the number of threads is PyTorch's for the whole process, so it is put back."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
                output = self._model(*inputs.values())
                return output if isinstance(output, dict) else {"output": output}
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """Free the network."""
        del self._model
