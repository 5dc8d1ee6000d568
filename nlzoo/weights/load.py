"""Weights from files: read without running any code, and loaded without leaving anything out."""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from nlzoo.weights import pytorchvideo

HEAD = "head.proj."
BLOCK = ".non_local."


@dataclass(frozen=True)
class WeightFile:
    """Weights under this zoo's names, and what their file says about the model."""

    path: Path
    state: dict[str, Tensor]
    spec: dict[str, Any] = field(default_factory=dict)  # a checkpoint's "nlzoo" entry
    arch: dict[str, Any] = field(default_factory=dict)  # what the weights were trained as

    @property
    def num_classes(self) -> int | None:
        """Rows of the classifier, if the file has one."""
        head = self.state.get(HEAD + "weight")
        return None if head is None else head.shape[0]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a file holds, read without running anything it may contain.

    Args:
        path: .safetensors, or what `torch.save` wrote; tensors are read to the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, holds objects other than tensors and plain values, or is no
            dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; give a checkpoint that exists")
    try:
        if path.suffix == ".safetensors":
            raw = safetensors.torch.load_file(path)
        else:
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make an unpickler fail in any way
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds Python objects that are not weights; refused, as loading it could "
                "run code: get the weights as .safetensors or a plain state dict"
            ) from error
        raise _damaged(path) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}, not a state dict or a checkpoint")
    return raw


def read_weights(path: str | Path) -> WeightFile:
    """Read a checkpoint of `nlzoo.fit`, a plain state dict or a pytorchvideo hub file.

    Args:
        path: .safetensors, or what `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, see `read_checkpoint`, or holds no weights.
    """
    path = Path(path)
    raw = read_checkpoint(path)
    state = raw.get("state_dict", raw.get("model_state", raw))
    state = {
        k.removeprefix("model.").replace("_orig_mod.", ""): v
        for k, v in (state.items() if isinstance(state, dict) else ())
        if isinstance(k, str) and isinstance(v, Tensor)
    }
    if not state:
        raise ValueError(f"{path} holds no weights; expected a state dict or a checkpoint")
    if pytorchvideo.recognise(state):
        return WeightFile(path, pytorchvideo.rename(state), arch=pytorchvideo.ARCH)
    spec = raw.get("nlzoo")
    if not (isinstance(spec, dict) and {"model", "preprocessing"} <= spec.keys()):
        return WeightFile(path, state)
    return WeightFile(path, state, spec, spec["model"]["arch"] or {})


def load_into(model: nn.Module, weights: WeightFile) -> None:
    """Load every weight, strictly.

    A classifier of another class count stays freshly initialised, and blocks that a file without
    any does not know stay as they are; both with a warning.

    Args:
        model: with a classifier `head.proj`.
        weights: of the same architecture.

    Raises:
        ValueError: names or shapes differ, see `check_fits`.
    """
    state, own = dict(weights.state), model.state_dict()
    wanted = dict(own)
    head = own.get(HEAD + "weight")
    if head is None:
        state = _without(state, HEAD)
    elif weights.num_classes != head.shape[0]:
        warnings.warn(f"{weights.path}: the classifier starts fresh", stacklevel=2)
        state, wanted = _without(state, HEAD), _without(wanted, HEAD)
    if not any(BLOCK in k for k in state) and any(BLOCK in k for k in wanted):
        warnings.warn(f"{weights.path} has no non-local blocks: they start fresh", stacklevel=2)
        wanted = _without(wanted, BLOCK)
    check_fits(state, wanted, weights.path)
    model.load_state_dict(state, strict=False)


def check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Compare the names and shapes of a file's weights with those of a model.

    Args:
        state: of the file.
        own: of the model. Its counters `num_batches_tracked` may be missing in the file.
        path: named in the error.

    Raises:
        ValueError: they differ; lists the first three with both shapes.
    """
    wrong = []
    for k in sorted(state.keys() | own.keys()):
        file = tuple(state[k].shape) if k in state else "missing"
        model = tuple(own[k].shape) if k in own else "unknown"
        if file != model and not (file == "missing" and k.endswith("num_batches_tracked")):
            wrong.append(f"{k}: file {file}, model {model}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path} is of another architecture: {'; '.join(wrong[:3])}{more}")


def _without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if part not in k}


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is not a weights file, or is truncated; copy or download it again")
