"""Python 2 pickles of Caffe2: `{"blobs": {name: array}}`, or the blobs alone."""

from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from nlzoo.weights.unpickle import Malformed, Refused, Unpickler

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class DType:
    """In place of `numpy.dtype`: numbers only."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if type(code) is not str or code not in NUMBERS:
            raise Refused("numpy.dtype of other things than numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Version, byte order, and what structures have."""
        if type(state) is not tuple or state[1] not in ("<", ">", "=", "|"):
            raise Malformed("a numpy.dtype has no byte order")
        if any(part is not None for part in state[2:5]):
            raise Refused("numpy.dtype of a structure")
        self.numpy = self.numpy.newbyteorder(state[1])

    def read(self, data: str | bytes, count: int) -> np.ndarray:
        """So many numbers, in the byte order of this machine. Raises Malformed."""
        if type(data) not in (str, bytes) or len(data) != count * self.numpy.itemsize:
            raise Malformed("an array is larger or smaller than its data")
        raw = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(raw, self.numpy).astype(self.numpy.newbyteorder("="))


class Array:
    """In place of `numpy.ndarray`: makes no room before its data are there."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Version (not in the oldest), shape, dtype, Fortran order, data."""
        self.shape, self.dtype, self.fortran, self.data = state[-4:]
        fits = len(self.shape) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in self.shape)
        if not (type(self.dtype) is DType and fits):
            raise Malformed("an array has no shape or no type")

    def tensor(self) -> Tensor:
        """A tensor of the same shape and type, in C order. Raises Malformed."""
        numbers = torch.from_numpy(self.dtype.read(self.data, prod(self.shape)))
        if not self.fortran:
            return numbers.reshape(self.shape)
        axes = range(len(self.shape))
        return numbers.reshape(self.shape[::-1]).permute(*reversed(axes)).contiguous()


def reconstruct(kind: object, shape: object, code: object) -> Array:
    """In place of `numpy.core.multiarray._reconstruct`: an array to be filled."""
    if kind is not Array or shape != (0,):
        raise Refused("numpy.core.multiarray._reconstruct of another kind")
    return Array()


def scalar(dtype: DType, data: str | bytes) -> bool | int | float:
    """In place of `numpy.core.multiarray.scalar`: a number of Python."""
    if type(dtype) is not DType:
        raise Refused("numpy.core.multiarray.scalar of another kind")
    number: bool | int | float = dtype.read(data, 1)[0].item()
    return number


SCALARS: dict[str, Callable[..., Any]] = {  # by module and name; numpy 2 renamed its core
    "numpy.core.multiarray.scalar": scalar,
    "numpy._core.multiarray.scalar": scalar,
    "numpy.dtype": DType,
}
ARRAYS = {
    **SCALARS,
    "numpy.core.multiarray._reconstruct": reconstruct,
    "numpy._core.multiarray._reconstruct": reconstruct,
    "numpy.ndarray": Array,
    "__builtin__.bytes": lambda: b"",  # of an empty array
}


def read_caffe2(file: BinaryIO, size: int) -> Any:
    """What a pickle holds, its arrays and those of its blobs as tensors.

    Args:
        file: at its beginning; of protocol 2 to 5, written by Python 2 or 3.
        size: of the file in bytes.

    Raises:
        Refused: it holds anything but arrays of numbers, plain values and containers.
        Malformed: an array does not fit its data, or the pickle would outgrow its file.
    """
    raw = Unpickler(file, size, ARRAYS, "latin1").load()
    if not isinstance(raw, dict):
        return raw
    blobs = raw.get("blobs")
    levels = [raw, blobs] if isinstance(blobs, dict) else [raw]
    arrays = [v for level in levels for v in level.values() if type(v) is Array]
    if sum(len(array.data) for array in arrays) > size:  # a single one, named again and again
        raise Malformed("its arrays take more memory than the file")
    for level in levels:
        level.update({k: v.tensor() for k, v in level.items() if type(v) is Array})
    return raw
