"""Text files as people have them; files that appear whole or not at all; the cache folder."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Packed(Protocol):
    """A file inside another one, as in a tar file; `str` is its path."""

    def read_bytes(self) -> bytes:
        """All of it; an error here is of what it lies in."""


def cache_folder() -> Path:
    """Where nlzoo keeps what it makes or fetches: $NLZOO_CACHE, or nlzoo in the user's cache."""
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("NLZOO_CACHE") or f"{users}/nlzoo").expanduser()


def offline() -> bool:
    """Whether $NLZOO_OFFLINE forbids the network."""
    return os.environ.get("NLZOO_OFFLINE", "0") not in ("", "0")


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is no such file.
    """
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8") from error


def sha256_of(path: str | Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`, which is made; rename it if all went well.

    The temporary name has the suffix of `path`, for writers that choose their format by it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        part.touch()  # what cannot be written is known before the work
        yield part
        part.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(part)):  # such as a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; rename it if all went well.

    Two processes may make it at once: the second one's is thrown away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    part = around / folder.name  # which others may read, unlike what mkdtemp makes
    part.mkdir()
    try:
        yield part
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(around, ignore_errors=True)


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write all of a file; text in UTF-8."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
