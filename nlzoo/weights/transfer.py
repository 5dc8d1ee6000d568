"""One file over breaking connections: continued where it stopped, hashed while it comes."""

import errno
import hashlib
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3

ATTEMPTS = 5  # in a row that bring nothing more
PAUSE = 1.0  # seconds before the second of them; then 2, 4, ...
LONGEST = 60.0  # seconds that a server may ask to wait
STALL = 15.0  # seconds without a byte
BLOCK = 1 << 20  # bytes
BREAKS = (  # after which another attempt may do better
    ConnectionError,
    requests.ConnectionError,
    requests.HTTPError,
    requests.Timeout,
    urllib3.exceptions.HTTPError,
)

ELSEWHERE = "get it elsewhere, or set NLZOO_MIRROR to a place that has it"


def algorithm(digest: str) -> str:
    """Which hash a published one is: 40 digits are a SHA-1, others (the start of) a SHA-256."""
    return "sha1" if len(digest) == 40 else "sha256"


def transfer(source: str | Path, part: Path, digest: str, tick: Callable[..., object]) -> str:
    """Bring all of a file into `part`, after what an earlier, broken transfer left there.

    Args:
        source: an http(s) address, or a file.
        part: where to; stays after a break, so that the next call continues.
        digest: expected hash, or its first digits; "" for any.
        tick: called with `completed` and `total` bytes.

    Returns:
        The hash of the file.

    Raises:
        FileNotFoundError: the source does not have it.
        ValueError: it has another hash, which is named, or is no file.
        OSError: several attempts in a row brought nothing more, or the disk is full.
    """
    longest = failures = 0
    while True:
        try:
            return _attempt(source, part, digest, tick)
        except BREAKS as error:
            length = part.stat().st_size if part.exists() else 0
            failures = 1 if length > longest else failures + 1
            longest = max(longest, length)
            pause = _pause(error, failures)
            if failures >= ATTEMPTS or pause > LONGEST:
                when = f"in {pause:.0f} s" if pause > LONGEST else "later"
                more = f", it continues after {length} bytes" if length else ""
                raise ConnectionError(
                    f"{source}: {_cause(error)}: try again {when}{more}"
                ) from None  # whose causes are the same thing four times
            time.sleep(pause)
        except requests.RequestException as error:  # such as a redirect to another scheme
            raise ValueError(f"{source} cannot be followed: {error}: {ELSEWHERE}") from error
        except OSError as error:
            if error.errno and error.filename is None:  # such as a full disk
                raise OSError(error.errno, error.strerror, str(part)) from error
            raise


def _cause(error: Exception) -> object:
    """That of an error of requests, without its own words."""
    what = error.args[0] if error.args else error
    return getattr(what, "reason", what)


def _pause(error: Exception, failures: int) -> float:
    """Seconds: what the server asks for, or ever more, and not the same for many processes."""
    response = getattr(error, "response", None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else PAUSE * 2**failures * random.uniform(0.25, 0.75)


def _attempt(source: str | Path, part: Path, digest: str, tick: Callable[..., object]) -> str:
    note = part.with_suffix(".etag")  # the version that the part is of
    offset = part.stat().st_size if part.exists() else 0
    version = note.read_text() if note.exists() else ""
    if not (version or digest):  # nothing would tell whether two halves belong together
        offset = 0
    with _opened(source, offset, version) as (blocks, start, total, now):
        if start not in (0, offset) or (start and version and now not in ("", version)):
            part.unlink(missing_ok=True)
            raise ConnectionError("what comes does not continue what is here")
        limit, exact = _limit(source, part, start, total, digest)
        with part.open("r+b" if start else "w+b") as file:
            if not start:
                note.write_text(now)
            hashed, length = hashlib.file_digest(file, algorithm(digest)), start
            for block in blocks:
                length += len(block)
                if length > limit:
                    break
                file.write(block)
                hashed.update(block)
                tick(completed=length, total=limit if exact else None)
    if exact and length < limit:
        raise ConnectionError(f"ends after {length} of {limit} bytes")
    note.unlink(missing_ok=True)
    found = hashed.hexdigest()
    if length <= limit and found.startswith(digest):
        return found
    part.unlink()
    if length > limit:
        raise ValueError(f"{source} sends more than {limit} bytes: {ELSEWHERE}")
    # Two halves may be of two versions: only a file that came at once is what the source has.
    raise (ConnectionError if start else ValueError)(
        f"{source} has {hashed.name} {found}, expected {digest}: {ELSEWHERE}"
    )


def _limit(
    source: str | Path, part: Path, start: int, total: int | None, digest: str
) -> tuple[int, bool]:
    """How long the file may become, and whether it must; raises where that cannot be."""
    free = shutil.disk_usage(part.parent).free
    if total is None and not digest:
        raise ValueError(f"{source} tells no length, so a broken file looks whole: {ELSEWHERE}")
    if total is None:
        return start + free, False
    if total - start > free:
        text = f"{total - start} bytes to come, {free} free: make room or set NLZOO_CACHE"
        raise OSError(errno.ENOSPC, text, str(part))
    return total, True


class _Opened(NamedTuple):
    blocks: Iterator[bytes]
    start: int  # where in the file they begin
    total: int | None  # bytes of the whole file
    version: str  # a strong ETag, or ""


@contextmanager
def _opened(source: str | Path, offset: int, version: str) -> Iterator[_Opened]:
    """What a source has, from `offset` on where it is still of that version."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            size = source.stat().st_size
            yield _Opened(iter(partial(file.read, BLOCK), b""), 0, size, "")
        return
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        headers |= {"If-Range": version} if version else {}
    with requests.Session() as session:
        if source.startswith("https:"):
            del session.adapters["http://"]  # refuses a redirect there, as to any other scheme
        with session.get(source, headers=headers, stream=True, timeout=STALL) as response:
            start, total = _extent(source, response, offset)
            etag = response.headers.get("ETag", "")
            blocks = iter(partial(response.raw.read1, BLOCK, decode_content=False), b"")
            # A weak ETag does not stand for every byte.
            yield _Opened(blocks, start, total, etag if etag.startswith('"') else "")


def _extent(source: str, response: requests.Response, offset: int) -> tuple[int, int | None]:
    """Where the body begins in the file (-1: nowhere), and the file's length."""
    code, reason, headers = response.status_code, response.reason, response.headers
    if code in (408, 425, 429) or code >= 500:
        raise requests.HTTPError(f"HTTP {code} {reason}", response=response)
    if code == 416 and offset:
        return -1, None
    if code not in (200, 206):
        raise FileNotFoundError(f"{source} answers HTTP {code} {reason}")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise ValueError(f"{source} answers with a web page, not a file: {ELSEWHERE}")
    if (coded := headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise ValueError(f"{source} sends the file encoded as {coded}: {ELSEWHERE}")
    if code == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        return (int(span[1]), int(span[2])) if span else (-1, None)
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None
