"""Published files: fetched once, and under their name only when whole and right.

Environment: `NLZOO_CACHE` is the folder that keeps them; `NLZOO_MIRROR`, a folder or an address,
is asked first for MIRROR/NAME, and what it lacks comes from its own address, as does all of a
mirror that does not answer; `NLZOO_OFFLINE=1` forbids the network; `HTTPS_PROXY`, `NO_PROXY` and
`REQUESTS_CA_BUNDLE` as everywhere.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from nlzoo.files import cache_folder, offline, write_whole
from nlzoo.weights.magic import mistake
from nlzoo.weights.transfer import ELSEWHERE, algorithm, transfer


def fetch(url: str, name: str, *, digest: str = "", show: bool = True) -> Path:
    """The file `name` in the cache's folder `weights`, fetched where it is not there yet.

    Many processes may ask at once: one fetches, the others wait. A file is hashed while it comes,
    or once if it was put there by hand, and `.NAME.verified` beside it says what was found; later
    calls compare size and time only. A file that was damaged since is fetched again, and one of
    unknown hash that is a web page or another text.

    Args:
        url: http or https.
        name: of the file, here and in a mirror.
        digest: SHA-256 or its first digits, as published; 40 digits are a SHA-1; "" if not known.
        show: progress on a terminal, a line elsewhere.

    Raises:
        FileNotFoundError: no source has it, or `NLZOO_OFFLINE` forbids to ask one.
        ValueError: what comes has another hash than expected, or is a web page or another text;
            nothing of it is kept.
        OSError: the connection or the disk failed; what has come is kept, to continue from.
    """
    file = _File(cache_folder() / "weights" / name, url, digest.lower())
    if not (wrong := file.wrong()):
        return file.path
    sources = _sources(url, name)
    if not sources:
        raise (ValueError if file.path.exists() else FileNotFoundError)(
            f"{file.path} {wrong}, and NLZOO_OFFLINE is set: unset it, or save {url} there"
        )
    file.path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file, show):
        if wrong := file.wrong():  # else another process was faster
            if file.path.exists():
                warnings.warn(f"{file.path} {wrong}: it is fetched again", stacklevel=2)
            found = _from_first(sources, file, show)
            file.beside("part").replace(file.path)
            file.note(found, file.stamp())
    return file.path


@dataclass(frozen=True)
class _File:
    """A place in the cache, and what is known about the file that belongs there."""

    path: Path
    url: str
    digest: str

    def beside(self, what: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{what}")

    def wrong(self) -> str:
        """What is wrong with the file that is there, "" where nothing."""
        if not self.path.exists():
            return "is not there"
        stamp, note = self.stamp(), self.beside("verified")
        known, _, then = (note.read_text() if note.exists() else "").partition(" ")
        if stamp == then and known.startswith(self.digest):
            return ""
        expected = self.digest or known
        if not expected and (what := _mistake(self.path)):
            return f"is not a weights file: {what}"
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm(expected)).hexdigest()
        if not found.startswith(expected):
            return f"has {algorithm(expected)} {found}, expected {expected}"
        self.note(found, stamp)
        return ""

    def note(self, found: str, stamp: str) -> None:
        """Remember the hash of the file, and when that was true."""
        with suppress(OSError):  # in a cache that cannot be written files are hashed each time
            write_whole(self.beside("verified"), f"{found} {stamp}")

    def stamp(self) -> str:
        """What changes when the file is changed."""
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"


@contextmanager
def _alone(file: _File, show: bool) -> Iterator[None]:
    """No other process fetches the file meanwhile."""
    lock = FileLock(file.beside("lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if show:
            sys.stderr.write(f"nlzoo: waiting for the process that fetches {file.path}\n")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sources(url: str, name: str) -> list[str | Path]:
    """The mirror, then the address itself; offline, no server."""
    mirror = os.environ.get("NLZOO_MIRROR", "")
    sources: list[str | Path] = [url]
    if mirror.startswith("file:"):
        sources.insert(0, Path(unquote(urlsplit(mirror).path)) / name)
    elif "://" in mirror:
        sources.insert(0, f"{mirror.rstrip('/')}/{quote(name)}")
    elif mirror:
        sources.insert(0, Path(mirror).expanduser() / name)
    for source in sources:
        if isinstance(source, str) and not source.startswith(("http://", "https://")):
            raise ValueError(f"{name}: {source!r} is no http or https address: {ELSEWHERE}")
    return [source for source in sources if isinstance(source, Path) or not offline()]


def _from_first(sources: list[str | Path], file: _File, show: bool) -> str:
    """Complete the part file from the first source that has the file; its hash."""
    terminal, lacking = show and sys.stderr.isatty(), []
    columns = *Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not terminal
    ) as progress:
        tick = partial(progress.update, progress.add_task(file.path.name, total=None))
        for source in sources:
            if show and not terminal:
                sys.stderr.write(f"nlzoo: fetching {source}\n")
            try:
                return _from(source, file, tick)
            except FileNotFoundError as error:
                lacking.append(str(error))
            except ConnectionError as error:
                if source == sources[-1]:
                    raise
                warnings.warn(f"{error}; {sources[-1]} is asked instead", stacklevel=3)
                lacking.append(str(error))
    raise FileNotFoundError(f"{'; '.join(lacking)}: {ELSEWHERE}; {file.url} belongs at {file.path}")


def _from(source: str | Path, file: _File, tick: Callable[..., object]) -> str:
    """The same from one source."""
    part = file.beside("part")
    found = transfer(source, part, file.digest, tick)
    if not file.digest and (what := _mistake(part)):
        part.unlink()
        raise ValueError(f"{source} is not a weights file: {what}: {ELSEWHERE}")
    return found


def _mistake(path: Path) -> str:
    """What is there in place of weights; "" where it may be weights."""
    with path.open("rb") as file:
        return mistake(file.read(4096))
