"""TensorRT 10 and 11 and TensorRT-RTX as they are installed: the module, and what it says."""

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from nlzoo.names import check_choice

BACKENDS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
INSTALL = {
    "tensorrt": "its libraries come from NVIDIA's own package index, see docs/deploy.md",
    "tensorrt_rtx": "pip install 'nlzoo[tensorrt]'",
}


def load_backend(name: str = "") -> Any:
    """The Python module; by default the first of `BACKENDS` that is installed.

    Raises:
        ValueError: an unknown name, or one that is not installed or does not load.
    """
    if name:
        check_choice("backend", name, BACKENDS)
    names = [name] if name else list(BACKENDS)
    for candidate in names:
        try:
            return importlib.import_module(candidate)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:  # its libraries
            raise ValueError(f"{BACKENDS[candidate]} does not load: {error}") from error
    missing = names[-1]  # without a wish the one that pip can install
    raise ValueError(f"{BACKENDS[missing]} is missing: {INSTALL[missing]}")


def title(trt: Any) -> str:
    """Name and version: `TensorRT-RTX 1.7.1.116`."""
    return f"{BACKENDS[trt.__name__]} {trt.__version__}"


def short(text: str) -> str:
    """A message without the places in the library's own source, and what follows from no GPU."""
    lines = [line for line in text.splitlines() if "cudaError" not in line]
    text = " ".join(dict.fromkeys(lines))
    text = re.sub(r"\[[\w./]+(::\w+)*:*\d*(: \w+)?\] |\w+::\w+: |Error Code \d+: ", "", text)
    text = re.sub(r" *In \w+ at /\S+:\d+|\(See https?://\S+ [^)]*\) ", "", text)
    return " ".join(text.split())


def make_log(trt: Any) -> Any:
    """A logger that keeps errors in its list `errors`, and nothing else."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            levels = trt.ILogger.Severity
            if severity in (levels.INTERNAL_ERROR, levels.ERROR):
                self.errors.append(message)

    return Log()


@contextmanager
def quiet() -> Iterator[IO[bytes]]:
    """Send the process's stderr to a file: parts of the builder write there past its logger."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(saved, 2)
            os.close(saved)
