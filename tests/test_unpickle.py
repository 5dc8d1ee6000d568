"""Pickles in weight files: nothing runs, and memory is bounded by the size of the file."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from pickles import (
    array2,
    caffe2,
    doubled,
    dtype,
    entry,
    header,
    mapping,
    name,
    number,
    old,
    protocol2,
    saved,
    string,
    tensor,
    text,
    tuple_of,
    written,
    zipped,
)

from nlzoo.weights.load import read_weights
from nlzoo.weights.read import read_checkpoint
from nlzoo.weights.torch_files import LEGACY

LARGE = 10**10
DAMAGED = "is not a weights file, or is truncated; copy or download it again"
REFUSED = r"holds Python objects that are not weights \(.*\); refused, as loading it could run code"

# -- nothing runs -----------------------------------------------------------------------------

CALLS = {
    "system": name("posix", "system") + b"X\x04\x00\x00\x00CODE\x85R",
    "eval": name("builtins", "eval") + b"X\x04\x00\x00\x00EVAL\x85R",
    "exec": name("builtins", "exec") + b"X\x04\x00\x00\x00EVAL\x85R",
    "nested": b"](K\x01](" + name("posix", "system") + b"X\x04\x00\x00\x00CODE\x85Ree",
    "instance": b"(X\x04\x00\x00\x00CODEiposix\nsystem\n",
    "object": b"("
    + name("subprocess", "Popen")
    + b"](X\x05\x00\x00\x00touchX\x04\x00\x00\x00PATHeo",
    "state": name("collections", "OrderedDict")
    + b")R}X\x01\x00\x00\x00a"
    + name("posix", "system")
    + b"X\x04\x00\x00\x00CODE\x85Rsb",
    "stack": text("posix") + text("system") + b"\x93X\x04\x00\x00\x00CODE\x85R",
    "getattr": name("builtins", "getattr")
    + tuple_of(name("posix", "__dict__"), text("get"))
    + b"R"
    + text("system")
    + b"\x85RX\x04\x00\x00\x00CODE\x85R",
}
CONTAINERS = {
    "pickle": lambda call: protocol2(mapping({"state_dict": call})),
    "bare": protocol2,
    "zip": lambda call: zipped(protocol2(mapping({"state_dict": call}))),
    "legacy": lambda call: old(protocol2(mapping({"state_dict": call}))),
    "caffe2": lambda call: caffe2({"conv1_w": array2(np.ones(3, "f4")), "x": call}),
    "ours": lambda call: zipped(
        protocol2(mapping({"state_dict": mapping({"a": tensor(4, 4)}), "nlzoo": call})),
        {"data/0": bytes(16)},
    ),
}


def aimed(call: bytes, canary: Path) -> bytes:
    """The call, making `canary`."""
    for word, meant in {
        "CODE": f"touch {canary}",
        "EVAL": f"open({str(canary)!r}, 'w').close()",
        "PATH": str(canary),
    }.items():
        call = call.replace(b"X\x04\x00\x00\x00" + word.encode(), text(meant))
    return call


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_runs(tmp_path: Path, call: str, container: str) -> None:
    canary = tmp_path / "canary"
    path = written(tmp_path, CONTAINERS[container](aimed(CALLS[call], canary)))
    with pytest.raises(ValueError, match=REFUSED):
        read_weights(path)
    assert not canary.exists()


@pytest.mark.parametrize("call", CALLS)
def test_the_traps_are_traps(tmp_path: Path, call: str) -> None:
    made = pickle.loads(protocol2(aimed(CALLS[call], canary := tmp_path / "canary")))
    if isinstance(made, subprocess.Popen):
        made.wait()
    assert canary.exists()


def test_the_refused_name_is_told(tmp_path: Path) -> None:
    for container in CONTAINERS.values():
        with pytest.raises(ValueError, match=r"\('posix\.system'\); refused"):
            read_checkpoint(written(tmp_path, container(CALLS["system"])))


SCALAR, RECONSTRUCT = (name("numpy.core.multiarray", n) for n in ("scalar", "_reconstruct"))
NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")


@pytest.mark.parametrize(
    "call",
    {
        "objects": array2(np.ones(1)).replace(string(b"f8"), string(b"O8")),
        "structure": dtype("f8", extra=b"N" + b"(U\x01at" + b"}"),
        "another class": RECONSTRUCT + tuple_of(DTYPE, b"K\x00\x85", b"U\x01b") + b"R",
        "another codec": name("_codecs", "encode") + tuple_of(text("a"), text("zip")) + b"R",
        "scalar of a name": SCALAR + tuple_of(NDARRAY, string(b"")) + b"R",
        "state of a function": SCALAR + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b",
        "state of a class": NDARRAY + b"N}X\x06\x00\x00\x00tensor" + SCALAR + b"s\x86b",
        "state of a dict": b"}}b",
        "numpy's functions": name("numpy", "load") + string(b"x") + b"\x85R",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_admitted_cannot_be_turned(tmp_path: Path, call: tuple[str, bytes]) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        read_checkpoint(written(tmp_path, caffe2({"x": call[1]})))
    whole = read_checkpoint(written(tmp_path, caffe2({"x": array2(np.ones(3))})))
    assert whole["blobs"]["x"].sum() == 3  # and stays as it was


# -- memory -----------------------------------------------------------------------------------


def listed(data: bytes, **facts: object) -> bytes:
    """A zip file whose list of entries says this of the last one."""
    with zipfile.ZipFile(file := BytesIO(data), "a") as archive:
        for fact, value in facts.items():
            setattr(archive.infolist()[-1], fact, value)
        archive._didModify = True  # type: ignore[attr-defined]
    return file.getvalue()


def state(value: bytes) -> bytes:
    return protocol2(mapping({"a": value}))


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Name, file, and words of the answer."""
    one = {"data/0": bytes(4)}
    bytearray_, floats = name("builtins", "bytearray"), name("torch", "FloatTensor")
    big = number(LARGE) + b"\x85R"

    zeros = {"data/0": bytes(2**28)}
    yield "zip bomb", zipped(state(tensor(2**26, 2**26)), zeros, 8), "its entries claim 2684"
    yield "pickle bomb", zipped(bytes(2**28), method=8), "its entries claim 2684"
    yield "compressed", zipped(state(tensor(1, 1)), one, 8), "it is compressed"
    sound = zipped(state(tensor(1, 1)), one)
    large = listed(sound, file_size=LARGE, compress_size=LARGE)
    yield "entry", large, "its entries claim 100000"
    yield "folder", listed(sound, external_attr=0x10), "one of its folders has bytes"
    yield "zero in a name", listed(sound, filename="archive/data/0\0"), "has two names"
    other = zipped(state(tensor(9, 9)), {**one, "data/1": bytes(36)})
    path = b"\1" + struct.pack("<L", zlib.crc32(b"archive/data/1")) + b"archive/data/2"
    unicode_path = struct.pack("<HH", 0x7075, len(path)) + path
    told = "has two names" if sys.version_info >= (3, 12) else "storage '0' claims 36 bytes"
    yield "unicode path", listed(other, extra=unicode_path), told
    yield "name outside", listed(other, filename="0"), DAMAGED
    yield "zip storage", zipped(state(tensor(LARGE, LARGE)), one), "storage '0' claims 4000"
    yield "zip tensor", zipped(state(tensor(1, LARGE)), one), "reaches beyond its storage"
    yield "zip stride", zipped(state(tensor(1, 2, LARGE)), one), "reaches beyond its storage"
    yield "zip expanded", zipped(state(tensor(1, LARGE, 0)), one), "its tensors claim 4000"
    yield "zip byte array", zipped(state(bytearray_ + big), one), "builtins.bytearray"
    yield "zip constructor", zipped(state(floats + big), one), "torch.FloatTensor"
    yield "other zip", zipped(b"", {"x": b""}).replace(b"data.pkl", b"word.xml"), "something else"
    yield "two of a name", zipped(state(tensor(1, 1)), {**one, "DATA/0": b""}), "have one name"
    whole, far = saved({}), struct.pack("<QQ", 2**25, 4)
    yield "another list", whole[:-50] + far[:8] + whole[-42:], "list of entries is ambiguous"
    yield "list elsewhere", whole[:-34] + far[8:] + whole[-26:], "list of entries is ambiguous"
    yield "list not at the end", zipped(b"")[:-22] + b"x" + zipped(b"")[-22:], "is missing"
    end = struct.pack("<4s8sLLH", b"PK\x05\x06", bytes(8), 2**25, 4, 0)
    yield "long list", b"PK\x03\x04" + bytes(2**25) + end, "too many entries"
    stored = struct.pack("<q", 1) + bytes(4)

    def before(count: int, shape: int, stride: int = 1, view: bytes = b"N") -> bytes:
        return old(state(tensor(count, shape, stride, view)), ("0",), stored)

    view = tuple_of(text("1"), b"K\x00", number(LARGE))
    yield "legacy storage", before(LARGE, LARGE), "storage '0' claims 4000"
    yield "legacy storage of the file's size", before(50, 50), "its tensors claim 208 bytes"
    yield "legacy tensor", before(1, LARGE), "reaches beyond its storage"
    yield "legacy expanded", before(1, LARGE, 0), "its tensors claim 4000"
    yield "legacy view", before(1, 1, 1, view), "view '1' reaches beyond its storage"
    yield "legacy unset", old(state(tensor(1, 1, 1, b"N"))), "are not those of its tensors"
    yield "legacy byte array", old(state(bytearray_ + big)), "builtins.bytearray"
    few, wrong = np.ones(4, "f4"), "larger or smaller than its data"
    yield "array", caffe2({"a": array2(few, (LARGE,))}), wrong
    yield "array of zeros", caffe2({"a": array2(few, (LARGE, 0))}), wrong
    start = tuple_of(NDARRAY, number(LARGE) + b"\x85", b"U\x01b")
    yield "reconstruct", caffe2({"a": RECONSTRUCT + start + b"R"}), "_reconstruct of another"
    yield "ndarray", caffe2({"a": NDARRAY + big}), DAMAGED
    yield "bytes", caffe2({"a": name("__builtin__", "bytes") + big}), DAMAGED
    yield "string", protocol2(b"T" + struct.pack("<i", 2**31 - 1)), "a value claims 2147483647"
    for code in (b"\x8d", b"\x8e"):  # text, bytes
        claim = b"\x80\x04" + code + struct.pack("<Q", LARGE) + b"N."
        yield f"length {code!r}", claim, DAMAGED
    yield "byte array", b"\x80\x05\x96" + struct.pack("<Q", 2**29) + b".", DAMAGED
    yield "memo", protocol2(b"}r" + struct.pack("<I", 2**32 - 1)), "a dictionary of 0"
    yield "lists", b"\x80\x02" + b"]" * 10**7 + b".", "millions of values"
    yield "deep", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "holds a list"
    raw = b"\x80\x02" + string(bytes(10**6)) + b"q\x000"  # a megabyte, named again and again
    array = array2(np.zeros(0, "u1"), (10**6,)).replace(b"U\x00tb", b"h\x00tb")
    many = b"".join(string(str(k).encode()) + array for k in range(2000))
    yield "copies", raw + b"}(" + many + b"u.", "its arrays take more memory"
    encode = name("_codecs", "encode") + b"h\x00U\x06latin1\x86R"
    yield "encoded", raw + b"](" + encode * 2000 + b"e.", "much more memory than the file"
    yield "safetensors header", header({"a": entry([4], 0, 16)}, length=LARGE), "header too large"
    yield "safetensors tensor", header({"a": entry([LARGE], 0, 4 * LARGE)}), "not fully covered"
    yield "zeros", bytes(10**6), "it begins with zeros"
    yield "sparse string", protocol2(b"T" + struct.pack("<i", 2**30)), "Cannot allocate memory"
    yield "sparse storage", before(2**28, 2**28), "Cannot allocate memory"


def trees() -> Iterator[tuple[str, bytes, str]]:
    """What names one tuple again and again is small only while nobody walks through it."""
    tree, plain, text_ = doubled(), name("collections", "OrderedDict"), text("k")
    counter, encode = name("collections", "Counter"), name("_codecs", "encode")
    types, refused = DTYPE + tuple_of(tree, b"K\x00", b"K\x01") + b"R", "('a key of type tuple')"
    values = {
        "value": (tree, "hold one another millions of times"),
        "type": (types, "('numpy.dtype of other things than numbers')"),
        "codec": (encode + text_ + tree + b"\x86R", "('_codecs.encode to another encoding')"),
        "key": (b"}" + tree + b"Ns", refused),
        "keys": (b"}(" + text_ + b"N" + tree + b"Nu", refused),
        "ordered": (plain + b"](" + tree + b"N\x86e\x85R", refused),
        "attributes": (plain + b")R](" + tree + b"N\x86eb", "('the state of a OrderedDict')"),
        "counted": (counter + b"](" + text_ + tree + b"\x86e\x85R", DAMAGED),
        "set": (b"\x8f(" + tree + b"\x90", DAMAGED),
        "frozen set": (b"(" + tree + b"\x91", DAMAGED),
        "numbers of one hash": (b"}(" + number(2**61 - 1) + b"Nu", "('a key of type int')"),
    }
    for value, (raw, words) in values.items():
        yield f"{value} of Caffe2", caffe2({"a": raw}), words
        yield f"{value} of a zip file", zipped(state(raw)), words
    order = dtype("f4").replace(string(b"<"), tree)
    yield "byte order", caffe2({"a": order}), "has no byte order"

    def before(tensor_: bytes, keys: bytes = b"]") -> bytes:
        return old(state(tensor_) + protocol2(keys))

    one, place = tensor(1, 1, 1, b"N"), b"K\x00K\x01"
    yield "view", before(tensor(1, 1, 1, tuple_of(tree, place))), "names a view that is none"
    yield "storage", before(one.replace(text("0"), tree)), "names a storage that is none"
    yield "storages", before(one, b"](" + tree + tree + b"e"), "are not those of its tensors"
    rest = protocol2(b"}") * 2 + protocol2(b"]")
    yield "protocol", LEGACY + protocol2(tree) + rest, "its protocol is no number"
    metadata = tensor(1, 1).removesuffix(b"tR") + b"}" + text_ + tree + b"stR"
    yield "metadata", zipped(state(metadata), {"data/0": bytes(4)}), DAMAGED
    many = b"}q\x00(" + b"".join(number(k) + b"N" for k in range(2000)) + b"u"
    copies = b"](" + many + (plain + b")Rh\x00b") * 2000 + b"e"
    yield "attributes copied", zipped(state(copies)), "much more memory than the file"


RUN = """
import resource, sys
from pathlib import Path
from nlzoo.weights.read import read_checkpoint
read_checkpoint(sys.argv[1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        answer = f"a dictionary of {len(read_checkpoint(path))}"
    except (ValueError, OSError) as error:
        answer = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(f"{grown // 1024} {answer}\\n")
"""
BOMBS = {bomb: (data, words) for bomb, data, words in (*bombs(), *trees())}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What reading each bomb says, after the megabytes that it took, with 1 GiB to take."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [written(folder, data, bomb) for bomb, (data, _) in BOMBS.items()]
    for path in paths:
        if path.name.startswith("sparse "):
            os.truncate(path, 2**31)  # as large as it claims, without taking the disk
    first = written(folder, saved({"a": torch.ones(3)}))
    command = [sys.executable, "-c", RUN, first, *paths]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    return dict(zip(BOMBS, out.splitlines(), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_is_bounded(answers: dict[str, str], bomb: str) -> None:
    grown, answer = answers[bomb].split(" ", 1)
    assert BOMBS[bomb][1] in answer
    assert int(grown) < 200
