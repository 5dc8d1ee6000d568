"""Golden files: the output of a public implementation for weights that anyone can make again.

Tensors come from their names and the input from a seed, so that a file holds the output only.
"""

import json
import zlib
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIELDS = ("dialect", "config", "input", "kernel_gain", "state_dict", "output")
LIMIT = 2e-5  # relative L2 of a right implementation; unrelated ones differ by about 3e-7


def read_golden(path: str | Path) -> dict[str, Any]:
    """The content of a golden file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not one; names what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no golden file {path}; give a JSON file that exists")
    try:
        golden: Any = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    missing = [f for f in FIELDS if not isinstance(golden, dict) or f not in golden]
    if missing:
        raise ValueError(f"{path} is no golden file: {', '.join(missing)} missing")
    return dict(golden)


def make_state(golden: dict[str, Any]) -> dict[str, Tensor]:
    """The weights, float32, by their public names; an alias has the values of the name it is of.

    Raises:
        ValueError: an entry of another form, or of an unknown kind of tensor.
    """
    gain, entries = golden["kernel_gain"], golden["state_dict"]
    if wrong := [e for e in entries if not (isinstance(e, list) and len(e) in (3, 4))]:
        raise ValueError(f"{wrong[0]} is no [name, shape, kind] of a golden file's state_dict")
    return {entry[0]: _tensor(gain, *entry) for entry in entries}


def _tensor(gain: float, key: str, shape: list[int], kind: str, fill_key: str = "") -> Tensor:
    seed = zlib.crc32((fill_key or key).encode())
    # the generator that the files were made by; numpy's newer ones give other numbers
    noise = np.random.RandomState(seed).standard_normal(shape)
    if kind == "kernel":
        noise = noise * sqrt(gain / prod(shape[1:]))
    elif kind == "scale":
        noise = 0.5 + 0.1 * noise
    elif kind == "shift":
        noise = 0.1 * noise
    elif kind == "var":
        noise = 1 + 0.1 * np.abs(noise)
    elif kind == "count":
        noise = np.zeros(shape)
    else:
        raise ValueError(f"{key}: unknown kind of tensor {kind!r}")
    return torch.from_numpy(np.asarray(noise, np.float32))


def make_input(golden: dict[str, Any]) -> Tensor:
    """Standard normal noise, used as it is."""
    seed, shape = golden["input"]["seed"], golden["input"]["shape"]
    noise = np.random.RandomState(seed).standard_normal(shape)
    return torch.from_numpy(np.asarray(noise, np.float32))


def relative_error(golden: dict[str, Any], output: Tensor) -> float:
    """Relative L2 distance to the golden output; of a digest, the worst of its four parts.

    Raises:
        ValueError: another number of values.
    """
    got, want = output.double().flatten(), golden["output"]
    size = prod(want["shape"]) if isinstance(want, dict) else len(want)
    if len(got) != size:
        raise ValueError(f"the output has {len(got)} values, the golden one {size}")
    if not isinstance(want, dict):
        wanted = torch.tensor(want, dtype=torch.float64)
        return float((got - wanted).norm() / wanted.norm())
    norm = sqrt(want["sum_of_squares"])
    errors: list[float] = [abs(float(got.sum()) - want["sum"]) / (norm * sqrt(size))]
    errors.append(abs(float(got.norm()) - norm) / norm)
    for part, values in ((got[:64], want["first64"]), (got[-16:], want["last16"])):
        wanted = torch.tensor(values, dtype=torch.float64)
        errors.append(float((part - wanted).norm() / wanted.norm()))
    return max(errors)
