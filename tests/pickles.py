"""Weight files written opcode by opcode, as Python 2, or somebody with bad intentions, would."""

import json
import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlzoo.weights.torch_files import LEGACY


def text(value: str) -> bytes:
    """As Python 3 writes it."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def string(data: bytes) -> bytes:
    """As Python 2 writes it in protocol 2."""
    short = len(data) < 256
    return (b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data


def number(value: int) -> bytes:
    raw = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(items: dict[str, bytes], key: Any = text) -> bytes:
    inner = b"".join((key(k.encode()) if key is string else key(k)) + v for k, v in items.items())
    return b"}(" + inner + b"u"


def doubled(levels: int = 40) -> bytes:
    """A tuple that holds another twice, which holds another twice: of 2 ** levels strings."""
    return text("x") + b"q\xffh\xff\x86" * levels


def protocol2(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def dtype(code: str, order: str = "<", extra: bytes = b"NNN") -> bytes:
    made = name("numpy", "dtype") + tuple_of(string(code.encode()), b"K\x00", b"K\x01") + b"R"
    rest = b"J\xff\xff\xff\xff" * 2 + b"K\x00"
    return made + tuple_of(b"K\x03", string(order.encode()), extra, rest) + b"b"


def array2(value: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An array as numpy under Python 2 pickles it."""
    module = "numpy.core.multiarray"
    empty = name(module, "_reconstruct") + tuple_of(
        name("numpy", "ndarray"), b"K\x00\x85", string(b"b")
    )
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    state = tuple_of(
        b"K\x01",
        tuple_of(*map(number, value.shape if shape is None else shape)),
        dtype(value.dtype.str[1:], value.dtype.str[0]),
        b"\x88" if fortran else b"\x89",
        string(value.tobytes("A")),
    )
    return empty + b"R" + state + b"b"


def caffe2(blobs: dict[str, bytes]) -> bytes:
    return protocol2(mapping({"blobs": mapping(blobs, string)}, string))


def saved(content: Any, **options: Any) -> bytes:
    torch.save(content, file := BytesIO(), **options)
    return file.getvalue()


def legacy(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def zipped(pickled: bytes, entries: dict[str, bytes] | None = None, method: int = 0) -> bytes:
    """What `torch.save` writes, with another pickle and further entries."""
    with zipfile.ZipFile(file := BytesIO(), "w", method) as archive:
        for key, data in {"data.pkl": pickled, "version": b"3\n", **(entries or {})}.items():
            archive.writestr(f"archive/{key}", data)
    return file.getvalue()


def old(pickled: bytes, keys: tuple[str, ...] = (), data: bytes = b"") -> bytes:
    """A file of torch before 1.6 with this pickle."""
    head = LEGACY + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + pickled + pickle.dumps(list(keys), 2) + data


def tensor(count: int, shape: int, stride: int = 1, view: bytes = b"") -> bytes:
    """A pickled tensor (shape,) of a storage "0" of so many float32."""
    kind, floats = text("storage"), name("torch", "FloatStorage")
    storage = tuple_of(kind, floats, text("0"), text("cpu"), number(count), view) + b"Q"
    hooks = name("collections", "OrderedDict") + b")R"
    size, step = number(shape) + b"\x85", number(stride) + b"\x85"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + tuple_of(storage, b"K\x00", size, step, b"\x89", hooks) + b"R"


def header(tensors: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A file of safetensors."""
    raw = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: list[int], start: int, stop: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


def written(folder: Path, data: bytes, file: str = "weights.pth") -> Path:
    (folder / file).write_bytes(data)
    return folder / file
