"""Files of weights, read without running anything that they may contain."""

import errno
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from nlzoo.weights.caffe2 import read_caffe2
from nlzoo.weights.magic import seems
from nlzoo.weights.torch_files import LEGACY, ZIP, read_torch
from nlzoo.weights.unpickle import MOST_STEPS, Malformed, Refused


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a file holds; its content, not its suffix, says how to read it.

    Args:
        path: safetensors, what `torch.save` wrote, or a pickle of Caffe2. Tensors are read to the
            CPU, and take at most a few times the size of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, claims more than it has, holds objects other than tensors and
            plain values, or is no dictionary.
        OSError: the disk failed, or there is too little memory.
    """
    with _opened(path) as file:
        raw = _read(file)
        _check_sharing(raw)
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}, not a state dict or a checkpoint")
    return raw


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a file of safetensors says beside its weights; nothing of other files.

    Raises as `read_checkpoint`.
    """
    with _opened(path) as file:
        if not _is_safetensors(file.peek(9)):  # type: ignore[attr-defined]
            return {}
        with safetensors.safe_open(file.name, "pt") as opened:
            return opened.metadata() or {}


def warn_not_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Warn where weights are NaN or infinite: all that a model computes with them will be.

    Args:
        state: of the file.
        path: named in the warning.
    """
    for name, tensor in state.items():
        known = tensor.is_floating_point() and tensor.itemsize > 1  # float8 cannot be asked
        if known and not torch.isfinite(tensor).all():
            warnings.warn(f"{path}: {name} has values that are NaN or infinite", stacklevel=3)
            return


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file whose contents make one kind of error, in one line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; give a checkpoint that exists")
    with path.open("rb") as file:
        try:
            yield file
        except Exception as error:  # damaged bytes make a reader fail in any way
            raise _told(error, path) from error


def _told(error: Exception, path: Path) -> ValueError | OSError:
    """What a reader's error means."""
    text = " ".join(str(error)[:200].split())
    if isinstance(error, Refused):
        return ValueError(
            f"{path} holds Python objects that are not weights ({text[:80]!r}); refused, as "
            "loading it could run code: get the weights as .safetensors or a plain state dict"
        )
    if isinstance(error, MemoryError) or "allocate memory" in text:  # torch has no class for it
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, str(path))
    known = isinstance(error, Malformed | safetensors.SafetensorError)
    why = f": {text}" if known and text else ""
    return ValueError(
        f"{path} is not a weights file, or is truncated; copy or download it again{why}"
    )


def _check_sharing(raw: Any) -> None:
    """A value named again and again within another must be no trap for what walks through all."""
    todo, left = [raw], MOST_STEPS
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list | tuple):
            left -= len(value)
            if left < 0:
                raise Malformed("its values hold one another millions of times")
            todo.extend(value.values() if isinstance(value, dict) else value)


def _read(file: BinaryIO) -> Any:
    size = os.fstat(file.fileno()).st_size
    head = file.read(4096)
    file.seek(0)
    if _is_safetensors(head):
        mapped = safetensors.torch.load_file(file.name)  # gone if somebody overwrites the file
        return {name: tensor.clone() for name, tensor in mapped.items()}
    if head.startswith((ZIP, LEGACY)):
        return read_torch(file, size)
    if head.startswith(b"\x80"):
        return read_caffe2(file, size)
    raise Malformed(seems(head))


def _is_safetensors(head: bytes) -> bool:
    """The length of a JSON object, and its first bracket."""
    return head[8:9] == b"{"
