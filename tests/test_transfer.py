"""Transfers from a real server on this machine, which breaks them in every way that servers do."""

import hashlib
import re
import resource
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from faulty_server import (
    BROKEN,
    DATA,
    HALF,
    NAME,
    SHA256,
    answer,
    but,
    check,
    chunked,
    endless,
    own_cache,  # noqa: F401 (a fixture)
    own_server,  # noqa: F401 (a fixture)
    refused,
    reset,
    serve,
    stall,
    visible,
)

from nlzoo.weights import transfer
from nlzoo.weights.download import fetch

# -- it comes whole ------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [SHA256, SHA256[:8].upper(), hashlib.sha1(DATA).hexdigest(), ""])
def test_a_file_comes_once(server, folder, digest):
    for _ in range(2):
        assert fetch(server.url, NAME, digest=digest) == folder / NAME
    assert (folder / NAME).read_bytes() == DATA
    assert len(server.seen) == 1


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("digest", [SHA256, ""])
def test_after_a_break_only_the_rest_comes(server, folder, fault, digest):
    server.faults = [BROKEN[fault]]
    fetch(server.url, NAME, digest=digest)
    check(folder)
    first, second = server.ranges
    here = int(re.fullmatch(r"bytes=(\d+)-", second)[1])
    assert first is None
    assert here == HALF if fault != "reset" else 0 < here <= HALF  # a reset drops what is under way
    assert server.seen[1][2] == len(DATA) - here


def test_the_rest_comes_in_a_later_call_too(server, folder, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.faults = [BROKEN["truncated"]]
    refused(ConnectionError, server.url, f"{HALF} bytes", "try again", server.url)
    assert not visible(folder)
    fetch(server.url, NAME)
    check(folder)
    assert server.sent == len(DATA)


def test_many_breaks_are_no_failure_while_something_comes(server, folder):
    server.faults = [but(end=30_000)] * 12
    fetch(server.url, NAME, digest=SHA256)
    check(folder)
    assert server.sent == len(DATA)


@pytest.mark.parametrize(
    "fault",
    [
        answer(500),
        answer(503),
        answer(429, Retry_After=0),
        answer(408),
        reset,
        stall,
        lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"),
        lambda handler: chunked(handler, end=HALF),
    ],
)
def test_what_passes_is_tried_again(server, folder, fault):
    server.faults = [fault, fault]
    fetch(server.url, NAME, digest=SHA256)
    check(folder)
    assert len(server.seen) == 3


def test_a_server_may_say_when(server, folder, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.faults = [answer(429, Retry_After=7), answer(503, Retry_After="soon")]
    fetch(server.url, NAME, digest=SHA256)
    assert waited[0] == 7
    assert 0 < waited[1] < 7
    server.faults = [answer(429, Retry_After=3600)]
    refused(ConnectionError, server.url, "HTTP 429", "3600 s", name="other")
    assert len(waited) == 2


def test_pauses_grow(folder, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(transfer, "PAUSE", 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        refused(ConnectionError, url, "refused", url)
    assert len(waited) == transfer.ATTEMPTS - 1
    assert all(0.5 <= pause / 2**n <= 1.5 for n, pause in enumerate(waited))


# -- halves of two files -------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize(
    ("then", "requests"),
    [
        (serve, 2),
        (lambda handler: handler.headers.replace_header("If-Range", '"2"') or serve(handler), 3),
        (but(ranges=False), 2),
        (answer(416), 3),
    ],
    ids=["whole", "If-Range is ignored", "ranges are ignored", "416"],
)
def test_a_file_that_changes_is_not_glued_to_the_old_half(server, folder, digest, then, requests):
    new = DATA[::-1]

    def change(handler):
        serve(handler, end=HALF)
        server.data, server.etag = new, '"2"'

    server.faults = [change, then]
    fetch(server.url, NAME, digest=hashlib.sha256(new).hexdigest() if digest else "")
    check(folder, new)
    assert len(server.seen) == requests


def test_without_a_version_the_hash_tells(server, folder):
    def change(handler):
        serve(handler, end=HALF)
        server.data = DATA[::-1]

    server.etag, server.faults = 'W/"1"', [change]
    fetch(server.url, NAME, digest=hashlib.sha256(DATA[::-1]).hexdigest())
    check(folder, DATA[::-1])
    assert server.ranges == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])  # a weak one says nothing about bytes
def test_without_version_and_hash_all_of_it_comes_again(server, folder, etag):
    server.etag, server.faults = etag, [BROKEN["truncated"]]
    fetch(server.url, NAME)
    check(folder)
    assert server.ranges == [None, None]


@pytest.mark.parametrize("span", [f"bytes 7-{len(DATA) - 1}/{len(DATA)}", "bytes */9", "", None])
def test_a_range_that_was_not_asked_for(server, folder, span):
    server.faults = [BROKEN["truncated"], but(Content_Range=span)]
    fetch(server.url, NAME)
    check(folder)
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_servers_without_ranges(server, folder):
    server.faults = [but(end=n, ranges=False) for n in (HALF, 2 * HALF)] + [but(ranges=False)]
    fetch(server.url, NAME)
    check(folder)


# -- what never gets the name --------------------------------------------------------------------


def test_wrong_bytes(server, folder):
    server.data = b"x" + DATA[1:]
    found = hashlib.sha256(server.data).hexdigest()
    for digest in (SHA256, SHA256[:8]):
        refused(ValueError, server.url, found, digest, digest=digest)
        assert {p.name for p in folder.iterdir()} == {f".{NAME}.lock"}
    assert len(server.seen) == 2


def test_wrong_lengths(server, folder):
    server.faults = [but(Content_Length=HALF)]  # and sends more
    refused(ValueError, server.url, SHA256, digest=SHA256)
    server.faults = [but(Content_Length=2 * len(DATA))] * 5  # and sends less
    refused(ConnectionError, server.url, "try again")
    assert not visible(folder)


def test_more_than_there_is_room_for_is_stopped(server, folder, monkeypatch):
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage)
    server.faults = [endless]
    refused(ValueError, server.url, "more than 1000000", digest=SHA256)
    assert server.sent < 20_000_000
    assert not (folder / f".{NAME}.part").exists()


def test_a_length_that_nobody_tells(server, folder):
    unknown = but(Content_Length=None)
    server.faults = [unknown]
    refused(ValueError, server.url, "no length")
    assert not visible(folder)
    server.faults = [unknown]
    fetch(server.url, NAME, digest=SHA256)
    server.faults = [chunked]
    fetch(server.url, "other", digest=SHA256)
    assert (folder / NAME).read_bytes() == (folder / "other").read_bytes() == DATA


def test_a_claim_larger_than_the_disk(server, folder):
    server.faults = [but(Content_Length=1 << 60)]
    refused(OSError, server.url, "make room", str(folder))
    assert not visible(folder)
    assert not (folder / f".{NAME}.part").exists()


def test_a_full_disk(server, folder):
    code = f"from nlzoo.weights.download import fetch; fetch({server.url!r}, {NAME!r})"

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF))

    ran = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, preexec_fn=small_files_only
    )
    assert re.search(rf"OSError: .*File too large: '{folder}/", ran.stderr)
    assert not visible(folder)
    fetch(server.url, NAME)
    check(folder)
    assert server.ranges[0] is None
    assert server.ranges[1].startswith("bytes=")


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 416])
def test_what_a_server_does_not_have(server, folder, code):
    server.faults = [answer(code)]
    refused(FileNotFoundError, server.url, f"HTTP {code}", server.url, str(folder))
    assert len(server.seen) == 1
    assert not visible(folder)


@pytest.mark.parametrize("status", [500, 429])
def test_what_does_not_pass(server, folder, status):
    server.faults = [answer(status)] * 9
    refused(ConnectionError, server.url, f"HTTP {status}", server.url)
    assert len(server.seen) == transfer.ATTEMPTS
    assert not visible(folder)


def test_a_web_page_is_no_file(server, folder):
    server.faults = [but(Content_Type="text/html; charset=utf-8")]
    refused(ValueError, server.url, "web page")
    assert not visible(folder)


@pytest.mark.parametrize("digest", [SHA256, ""])
def test_an_encoded_file_is_none(server, folder, digest):
    server.faults = [but(Content_Encoding="gzip"), but(Content_Encoding="identity")]
    refused(ValueError, server.url, "encoded as gzip", digest=digest)
    assert not visible(folder)
    fetch(server.url, NAME, digest=digest)
    check(folder)
