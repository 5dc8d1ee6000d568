"""Files in chunks of LitData, in a folder or in an object store, read one at a time.

A streamed set looks like the folder that it was made of: its lists lie beside the chunks, and each
file has its old name. Nothing is kept on the disk: an object store is asked for the bytes of one
file, so that any order costs the same, and order and resuming stay those of files.
"""

import atexit
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

from nlzoo.files import read_text

MANIFEST = "stream.json"  # what is in the set; written before the chunks, finished after them
FOLDER = "chunks"  # of them; those of a split lie in a folder of its name
TRIES = 6
PAUSE = 1.0  # seconds after the first failure; then 2, 4, ...


@dataclass(frozen=True, slots=True)
class Streamed:
    """A file in a streamed set."""

    name: str  # with the folder or URL of the set
    chunks: str  # the folder or URL of its split
    index: str  # the folder of their index
    number: int

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """All of it.

        Raises:
            OSError: the store does not answer, or a chunk is missing or truncated.
        """
        return bytes(_retried(self._read, self._chunk))

    def _read(self) -> Any:
        return _dataset(self.chunks, self.index, os.getpid())[self.number]

    def _chunk(self) -> str:
        """Where its chunk is."""
        first = 0
        for chunk in _index(Path(self.index)):
            first += chunk["chunk_size"]
            if self.number < first:
                return f"{self.chunks}/{chunk['filename']}"
        return self.chunks


@dataclass(frozen=True)
class StreamedSet:
    """What a manifest says."""

    root: Path  # of the lists
    noun: str  # what a file is
    files: dict[str, Streamed]  # by the path that it would have below the root


def open_set(path: str) -> StreamedSet | None:
    """The streamed set in a folder or at a URL (s3://, gs://); None: another folder.

    Raises:
        FileNotFoundError: nothing at the URL, or a chunk of the folder is missing.
        OSError: the store does not answer.
        ValueError: the set is not finished, a chunk of the folder is truncated, no LitData.
    """
    remote = "://" in path
    if not remote and not Path(path, MANIFEST).is_file():
        return None
    import_litdata()
    base = path.rstrip("/") if remote else os.path.normpath(path)
    root = _download(base) if remote else Path(base)
    manifest = read_manifest(root)
    if not manifest["complete"]:
        raise ValueError(f"{base} is not finished: `python -m nlzoo.data.stream` again goes on")
    files = {}
    for split, listed in manifest["files"].items():
        folder = root / FOLDER / split
        for chunk in () if remote else _index(folder):
            _check_chunk(folder / chunk["filename"], chunk["chunk_bytes"])
        for number, (name, _) in enumerate(listed):
            where = f"{base}/{FOLDER}/{split}", str(folder)
            files[f"{root}{os.sep}{name}"] = Streamed(f"{base}/{name}", *where, number)
    return StreamedSet(root, manifest["noun"], files)


def read_manifest(root: Path) -> dict[str, Any]:
    """`complete`, `noun`, `lists` (names) and `files`: (name, bytes) by split.

    Raises:
        ValueError: it is no manifest.
    """
    try:
        manifest: dict[str, Any] = json.loads(read_text(root / MANIFEST))
        return {key: manifest[key] for key in ("complete", "noun", "lists", "files")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{root / MANIFEST} is not of a streamed set; make it again") from error


def _index(folder: Path) -> Iterator[dict[str, Any]]:
    yield from json.loads(read_text(folder / "index.json"))["chunks"]


def _check_chunk(chunk: Path, size: int) -> None:
    if not chunk.is_file():
        raise FileNotFoundError(f"{chunk} is missing: copy it again")
    if chunk.stat().st_size != size:
        raise ValueError(
            f"{chunk} has {chunk.stat().st_size} bytes instead of {size}: copy it again"
        )


# -- LitData --------------------------------------------------------------------------------


def import_litdata() -> ModuleType:
    """LitData, which is optional.

    Raises:
        ValueError: it is not installed.
    """
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it asks the package index
    try:
        import litdata
    except ImportError as error:
        raise ValueError('streamed sets need LitData: pip install "nlzoo[stream]"') from error
    module: ModuleType = litdata
    return module


@cache
def _dataset(chunks: str, index: str, process: int) -> Any:
    """One for each process: connections and open files are not for sharing."""
    litdata = import_litdata()
    from litdata.streaming.resolver import Dir

    where = Dir(path=index, url=chunks if "://" in chunks else None)
    return litdata.StreamingDataset(where, batch_decode=0, storage_options=_options(chunks))


def _options(url: str) -> dict[str, Any]:
    """Of a connection: as many tries as we say."""
    if not url.startswith("s3://"):
        return {}
    from botocore.config import Config

    return {
        "config": Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=30)
    }


def _download(url: str) -> Path:
    """Manifest, lists and indices of a set in a folder that this process keeps to its end."""
    from litdata.streaming.downloader import get_downloader

    if not url.startswith(("s3://", "gs://")):  # LitData takes whole chunks from others
        raise ValueError(f"{url}: expected a folder, or s3:// or gs://")
    root = Path(tempfile.mkdtemp(prefix="nlzoo-stream-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    store: Any = get_downloader(url, str(root), [], _options(url))

    def fetch(name: str) -> None:
        def read() -> bytes:
            store.download_fileobj(f"{url}/{name}", buffer := BytesIO())
            return buffer.getvalue()

        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_retried(read, lambda: f"{url}/{name}"))

    fetch(MANIFEST)
    manifest = read_manifest(root)
    if manifest["complete"]:
        for name in manifest["lists"]:
            fetch(name)
        for split in manifest["files"]:
            fetch(f"{FOLDER}/{split}/index.json")
    return root


def _retried(read: Callable[[], Any], name: Callable[[], str]) -> Any:
    """`read()`, again after pauses where it fails for a reason that may pass."""
    started, failures = time.monotonic(), 0
    while True:
        try:
            return read()
        except Exception as error:  # every store has its own
            failures += 1
            where, reason = name(), " ".join(str(error).split()) or type(error).__name__
            answer = getattr(error, "response", None) or {}  # of S3
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status == 404 or isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{where} is not there: {reason}") from error
            if "://" not in where or (400 <= status < 500 and status not in (408, 429)):
                raise OSError(f"{where} cannot be read: {reason}") from error
            if failures == TRIES:
                waited = f"{TRIES} times in {time.monotonic() - started:.0f} s"
                raise OSError(f"{where} cannot be read, tried {waited}: {reason}") from error
        time.sleep(PAUSE * 2 ** (failures - 1))
