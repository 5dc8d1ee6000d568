"""Weight files of any kind, told by their content; what cannot be read is told in one line."""

import pickle
import struct
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickles import (
    array2,
    caffe2,
    dtype,
    entry,
    header,
    legacy,
    mapping,
    name,
    protocol2,
    saved,
    string,
    tuple_of,
    written,
)

from nlzoo.weights.load import read_weights
from nlzoo.weights.read import read_checkpoint, read_metadata, warn_not_finite

DAMAGED = "is not a weights file, or is truncated; copy or download it again"

# -- all kinds are read -----------------------------------------------------------------------

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b.num": torch.tensor(3)}
KINDS = {
    "zip": saved(STATE),
    "legacy": legacy(STATE),
    "safetensors": safetensors.torch.save(STATE),
    "caffe2": protocol2(mapping({k: array2(v.numpy()) for k, v in STATE.items()}, string)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl", ""])
def test_content_says_how_to_read(tmp_path: Path, kind: str, suffix: str) -> None:
    read = read_checkpoint(written(tmp_path, KINDS[kind], f"weights{suffix}"))
    assert read.keys() == STATE.keys()
    for key, value in STATE.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value)
        read[key] += 1  # what is read can be written


@pytest.mark.parametrize("kind", KINDS)
def test_weights_outlive_their_file(tmp_path: Path, kind: str) -> None:
    read = read_checkpoint(path := written(tmp_path, KINDS[kind]))
    written(tmp_path, b"", path.name)
    assert torch.equal(read["a"], STATE["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind]
    for length in {*range(0, len(data), 37), len(data) - 1}:
        with pytest.raises(ValueError, match=DAMAGED):
            read_checkpoint(written(tmp_path, data[:length]))


def test_damaged_bytes_inside(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(4000)) + 2000] = 1  # one bit of a weight
    path.write_bytes(data)
    with pytest.raises(ValueError, match="the bytes of its entry 'w/data/0' are damaged"):
        read_checkpoint(path)


def test_metadata(tmp_path: Path) -> None:
    told = {"classes": '["a"]'}
    path = written(tmp_path, safetensors.torch.save(STATE, told))
    assert read_metadata(path) == told
    assert read_metadata(written(tmp_path, KINDS["safetensors"])) == {}
    assert read_metadata(written(tmp_path, KINDS["zip"])) == {}
    with pytest.raises(ValueError, match=DAMAGED):
        read_metadata(written(tmp_path, header(b"{nope")))
    with pytest.raises(FileNotFoundError, match="give a checkpoint that exists"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("write", [saved, legacy])
def test_what_checkpoints_hold_beside_weights(tmp_path: Path, write: Any) -> None:
    plain = {
        "lr": np.float32(0.5),
        "step": np.int64(7),
        "on": np.bool_(True),
        "names": ("a", None, {"b": [1, 2.5]}),
        "milestones": Counter({30: 1}),
        "kind": torch.float16,
        "place": torch.device("cpu"),
        "meta": OrderedDict(x=1),
    }
    shared = torch.arange(12.0)
    model = torch.nn.BatchNorm1d(3)
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "half": torch.ones(2).bfloat16(),
        "none": torch.zeros(0, 4),
        "part": shared[3:7],
        "whole": shared,
        "expanded": torch.zeros(()).expand(400, 2048),
        "parameter": model.weight,
    }
    read = read_checkpoint(
        written(tmp_path, write({**plain, **tensors, "model": model.state_dict()}))
    )
    assert {k: read[k] for k in plain} == plain
    assert all(torch.equal(read[k], v) for k, v in tensors.items())
    assert read["model"].keys() == model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("write", [saved, legacy, safetensors.torch.save])
def test_weights_of_16_bits(tmp_path: Path, write: Any, dtype: torch.dtype) -> None:
    state = torch.nn.Conv1d(2, 3, 1).to(dtype).state_dict()
    read = read_weights(written(tmp_path, write(dict(state)))).state
    assert all(torch.equal(read[k], v) and read[k].dtype == dtype for k, v in state.items())


# -- Caffe2 -----------------------------------------------------------------------------------

ARRAYS = {
    "float": np.random.default_rng(0).standard_normal((3, 4, 5)).astype("<f4"),
    "big_endian": np.arange(7, dtype=">f8"),
    "bytes_above_127": np.arange(256, dtype="u1"),
    "fortran": np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4)),
    "number": np.array(2.5, "<f8"),
    "empty": np.zeros((0, 3), "<f4"),
    "flags": np.array([True, False]),
}


def python3(blobs: dict[str, Any], protocol: int = 2) -> bytes:
    return pickle.dumps({"blobs": blobs}, protocol)


@pytest.mark.parametrize(
    "data",
    [
        caffe2({k: array2(v) for k, v in ARRAYS.items()}),
        protocol2(mapping({k: array2(v) for k, v in ARRAYS.items()}, string)),
        *(python3(ARRAYS, protocol) for protocol in (2, 3, 4)),
        python3(ARRAYS).replace(b"numpy._core", b"numpy.core"),
    ],
    ids=["python2", "flat", "python3", "protocol3", "protocol4", "numpy1"],
)
def test_caffe2_arrays_are_equal_bit_by_bit(tmp_path: Path, data: bytes) -> None:
    raw = read_checkpoint(written(tmp_path, data))
    blobs = raw.get("blobs", raw)
    assert blobs.keys() == ARRAYS.keys()
    for key, value in ARRAYS.items():
        assert blobs[key].is_contiguous()
        assert blobs[key].shape == value.shape
        assert blobs[key].numpy().tobytes() == value.astype(value.dtype.newbyteorder("=")).tobytes()


def test_numpy_reads_the_pickles_of_this_test() -> None:
    read = pickle.loads(caffe2({k: array2(v) for k, v in ARRAYS.items()}), encoding="latin1")
    assert all(np.array_equal(read["blobs"][k], v) for k, v in ARRAYS.items())


def test_caffe2_numbers_stay_plain(tmp_path: Path) -> None:
    blobs = {"model_iter": b"J\x40\x42\x0f\x00", "name": string(b"r50"), "lr": array2(np.ones(1))}
    number = name("numpy.core.multiarray", "scalar")
    blobs["scalar"] = number + tuple_of(dtype("f4"), string(struct.pack("<f", 0.5))) + b"R"
    read = read_checkpoint(written(tmp_path, caffe2(blobs)))["blobs"]
    assert read.pop("lr") == torch.ones(1)
    assert read == {"model_iter": 1_000_000, "name": "r50", "scalar": 0.5}


def test_nan_is_warned_of(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")]), "n": torch.tensor(1)}
    with pytest.warns(UserWarning, match=r"weights\.pth: b has values that are NaN or infinite"):
        read_weights(written(tmp_path, saved(state)))
    state["b"][1] = -float("inf")
    with pytest.warns(UserWarning, match="x: b has"):
        warn_not_finite(state, "x")


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux has no bytes for")
def test_a_disk_that_fails_is_no_damaged_file() -> None:
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        read_checkpoint("/proc/self/mem")


# -- other files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (bytes(5000), "it begins with zeros"),
        (b"\n<!DOCTYPE html>\n<title>404", "it is a web page, such as a server's error message"),
        (b"<HTML><body>Sign in", "it is a web page"),
        (b"<?xml version='1.0'?><Error>", "it is XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "get the file by `git lfs pull`"),
        (b"\x1f\x8b\x08" + bytes(20), "it is a gzip archive, unpack it first"),
        (b"BZh91AY&SY", "it is a bzip2 archive"),
        (b"\xfd7zXZ\0", "it is an xz archive"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
        (b"storages".ljust(257, b"\0") + b"ustar\x0000", "save the weights again by torch.save"),
        (b"epoch 3", "it is a text"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_a_file_seems_to_be(tmp_path: Path, data: bytes, words: str, suffix: str) -> None:
    with pytest.raises(ValueError, match=f"{DAMAGED}: .*{words}"):
        read_checkpoint(written(tmp_path, data, "weights" + suffix))


def test_other_bytes_seem_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{DAMAGED}$"):
        read_checkpoint(written(tmp_path, b"\xff\xd8\xff\xe0 a picture"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header({"a": entry([4], 0, 16)}, length=2**63), "header too large"),
        (header({"a": entry([4], 0, 16)}, length=1000), "invalid header length"),
        (header(b"{nope}"), "invalid JSON in header: key must be a string"),
        (header(b"{" + b"[" * 10**5), "invalid JSON"),
        (header(b'{"\xff": 1}'), "invalid UTF-8"),
        (header({"a": entry([8], 0, 32)}), "not fully covered"),
        (header({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}), "invalid offset for tensor `b`"),
        (header({"a": entry([2], 8, 16)}), "invalid offset for tensor `a`"),
        (header({"a": entry([5], 0, 16)}), "invalid shape, data type, or offset"),
        (header({"a": entry([2**62, 4], 0, 0)}, b""), "overflow"),
        (header({"a": entry([4], 0, 16, "Q7")}), "unknown variant `Q7`"),
        (header({"a": entry([4], 0, 16), "__metadata__": {"k": 1}}), "expected a string"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_broken_headers_of_safetensors(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=f"{DAMAGED}: .*{words}"):
        read_checkpoint(written(tmp_path, data))


FUZZED = [
    caffe2({"a": array2(np.arange(6, dtype="f4").reshape(2, 3)), "n": b"K\x05"}),
    pickle.dumps({"blobs": {"a": np.arange(6, dtype="f4"), "n": np.float64(2)}}, 2),
    legacy({"a": torch.arange(3.0), "lr": np.float32(1)}),
]


@given(st.data())
@settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.filterwarnings("ignore")
def test_changed_pickles_make_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(FUZZED)))
    place = st.integers(2, len(changed) - 1)
    for at in data.draw(st.lists(place, max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        at = data.draw(place)
        changed[at:at] = data.draw(st.binary(max_size=8))
    if data.draw(st.booleans()):
        start, length = data.draw(place), data.draw(st.integers(0, 30))
        changed[start : start + length] = b""
    path = written(tmp_path, bytes(changed))
    try:
        assert isinstance(read_checkpoint(path), dict)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
