"""Exported files on their runtimes, called like the network they came from."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from nlzoo.export.spec import KEY, Spec
from torch import Tensor

from nlzoo.preprocessing import Normalize, Preprocessing


class Runner:
    """An ONNX file on ONNX Runtime's CPU provider.

    Args:
        path: a file of `nlzoo.export`.
        threads: of one call; 0: all cores.

    Attributes:
        spec: what the file says of itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an ONNX file, or one that says nothing about its input.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}; make it by python -m nlzoo.export onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's own, one class for each reason
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
        metadata: dict[str, Any] = self._session.get_modelmeta().custom_metadata_map
        if KEY not in metadata:
            raise ValueError(f"{path} says nothing about its input: it is no file of nlzoo.export")
        self.spec = Spec.from_json(metadata[KEY])
        pre = self.spec.preprocessing
        self._normalize = Normalize(pre.mean, pre.std)
        self.device = torch.device("cpu")
        self.num_classes: int = self._session.get_outputs()[0].shape[1]

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels reach it."""
        return self.spec.preprocessing

    def __call__(self, clip: Tensor) -> Tensor:
        """(B, 3, T, H, W), uint8 or (not `raw`) normalised float32 -> scores (B, K) float32.

        Raises:
            ValueError: a shape or dtype that the file does not take.
        """
        self.spec.check(tuple(clip.shape))
        if not self.spec.raw:
            clip = self._normalize(clip)
        wanted = torch.uint8 if self.spec.raw else torch.float32
        if clip.dtype != wanted:
            raise ValueError(f"clip has dtype {clip.dtype}, wanted {wanted}")
        (scores,) = self._session.run(["scores"], {"clip": clip.contiguous().numpy()})
        return torch.from_numpy(scores)
