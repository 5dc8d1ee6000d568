"""Files of `torch.save`: what they claim is compared with what they have, then torch loads them."""

import struct
from collections.abc import Callable
from io import BytesIO
from math import prod
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZipFile

import torch
from torch.serialization import StorageType, safe_globals

from nlzoo.weights.caffe2 import SCALARS
from nlzoo.weights.unpickle import Malformed, Unpickler

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a pickled magic number
EXPANDED = 2**31  # bytes that views of a smaller file may have, if copied
DIRECTORY = 2**24  # bytes: 150,000 entries


def read_torch(file: BinaryIO, size: int) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        file: at its beginning.
        size: of the file in bytes.

    Raises:
        Refused: it holds anything but tensors, numbers of numpy, plain values and containers.
        Malformed: it claims more bytes than it has, or they are not those of its checksums.
    """
    (_check_zip if file.read(4) == ZIP else _check_legacy)(file, size)
    file.seek(0)
    with safe_globals([(stand_in, name) for name, stand_in in SCALARS.items()]):
        return torch.load(file, map_location="cpu", weights_only=True)


class _Storage(NamedTuple):
    size: int  # bytes
    item: int  # bytes


class _Claims(Unpickler):
    """A pickle of torch, without its tensors: each must lie within its storage."""

    def __init__(self, file: BinaryIO, size: int, room: Callable[[str], int]) -> None:
        admitted = {
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": lambda data, grad=False, hooks=None: data,
            "torch.device": lambda kind, index=0: None,
        }
        super().__init__(file, size, SCALARS | admitted, "utf-8")
        self.room = room  # bytes of a storage in the file, by its key
        self.roots: dict[str, int] = {}  # bytes of storages that are no view of another
        self.storages: dict[str, _Storage] = {}
        self.expanded = 0

    def find_class(self, module: str, name: str) -> Any:
        """Types of numbers, and what else is admitted. Raises Refused."""
        found = vars(torch).get(name) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if found is not None and name.endswith("Storage"):
            return StorageType(name).dtype
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, or a view of it. Raises Malformed."""
        if type(pid) is not tuple or len(pid) not in (5, 6):
            raise Malformed("it names a storage that is none")
        kind, dtype, key, _, count, view = (*pid, None)[:6]
        if kind != "storage" or type(key) is not str or not isinstance(dtype, torch.dtype):
            raise Malformed("it names a storage that is none")
        item, (count,) = dtype.itemsize, _whole(count)
        if count * item > (has := self.room(key)):
            raise Malformed(f"storage {key[:9]!r} claims {count * item} bytes, the file has {has}")
        if key not in self.storages:
            self.storages[key] = _Storage(count * item, item)
            self.roots[key] = count * item
        storage = self.storages[key]
        if view is None:
            return storage
        if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str:
            raise Malformed("it names a view that is none")
        key, (offset, count) = view[0], _whole(*view[1:])
        if (offset + count) * item > storage.size:
            raise Malformed(f"view {key[:9]!r} reaches beyond its storage")
        return self.storages.setdefault(key, _Storage(count * item, item))

    def tensor(
        self,
        storage: _Storage,
        offset: int,
        shape: Any,
        stride: Any,
        requires_grad: object = False,
        hooks: object = None,
    ) -> None:
        """Check a tensor. Raises Malformed."""
        if type(storage) is not _Storage or not len(shape) == len(stride) <= 64:
            raise Malformed("a tensor has no storage or no shape")
        _whole(offset, *shape, *stride)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        count = prod(shape)
        if count and (last + 1) * storage.item > storage.size:
            raise Malformed(f"a tensor {tuple(shape)} reaches beyond its storage")
        self.expanded += count * storage.item
        if self.expanded > max(EXPANDED, 4 * self.size):
            raise Malformed(f"its tensors claim {self.expanded} bytes, the file has {self.size}")


def _whole(*numbers: Any) -> tuple[int, ...]:
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise Malformed("a size or place is no number, or negative")
    return numbers


def _check_legacy(file: BinaryIO, size: int) -> None:
    file.seek(len(LEGACY))
    protocol, _ = (Unpickler(file, size, {}, "utf-8").load() for _ in ("protocol", "system"))
    if type(protocol) is not int:
        raise Malformed("its protocol is no number")
    claims = _Claims(file, size, lambda key: size)
    claims.load()
    keys = Unpickler(file, size, {}, "utf-8").load()
    claimed = sum(claims.roots.values()) + 8 * len(claims.roots)  # each follows its length
    has = size - file.tell()
    fit = type(keys) is list and all(type(key) is str for key in keys)
    if not fit or sorted(keys) != sorted(claims.roots):
        raise Malformed("its storages are not those of its tensors")
    if claimed > has:
        raise Malformed(f"its tensors claim {claimed} bytes, the file has {has}")


def _check_zip(file: BinaryIO, size: int) -> None:
    _check_directory(file, size)
    with ZipFile(file) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > size:
            raise Malformed(f"its entries claim {total} bytes, the file has {size}")
        if any(e.compress_type or e.file_size != e.compress_size for e in entries):
            raise Malformed("it is compressed, which torch.save never does")
        if any(e.filename != e.orig_filename for e in entries):
            raise Malformed("one of its entries has two names")
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise Malformed("two of its entries have one name")
        folders = (e for e in entries if e.filename.endswith("/") or e.external_attr & 0x10)
        if any(folder.file_size for folder in folders):
            raise Malformed("one of its folders has bytes")  # torch would leave them unset
        if bad := archive.testzip():  # torch does not look at checksums
            raise Malformed(f"the bytes of its entry {bad[-40:]!r} are damaged")
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)  # reads names as torch.load will
    if "data.pkl" not in reader.get_all_records():
        raise Malformed("it is a zip file of something else than torch.save")
    pickled = BytesIO(reader.get_record("data.pkl"))
    _Claims(pickled, size, lambda key: reader.get_record_size(f"data/{key}")).load()


def _check_directory(file: BinaryIO, size: int) -> None:
    """Torch and `zipfile` must see the same entries, so the list of them stands where both look."""
    file.seek(max(size - 98, 0))
    tail = file.read().rjust(98, b"\0")
    mark, _, length, start, comment = struct.unpack("<4s8sLLH", tail[-22:])
    end, told = size - 22, (length, start)
    if tail[56:60] == b"PK\x06\x07":  # zip64, as torch writes always
        length, start = struct.unpack("<QQ", tail[40:56])
        (end,) = struct.unpack("<Q", tail[64:72])
        shown = min(length, 2**32 - 1), min(start, 2**32 - 1)
        if end != size - 98 or tail[:4] != b"PK\x06\x06" or told != shown:
            raise Malformed("its list of entries is ambiguous")
    if mark != b"PK\x05\x06" or comment or start + length != end:
        raise Malformed("its list of entries is missing")
    if length > DIRECTORY:
        raise Malformed("it has too many entries")
