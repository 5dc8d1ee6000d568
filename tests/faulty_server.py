"""A server on this machine that fails in the ways that servers do, and what tests of it share."""

import hashlib
import http.server
import os
import re
import socket
import struct
import threading

import pytest

from nlzoo.program import one_line
from nlzoo.weights import transfer
from nlzoo.weights.download import fetch

DATA = bytes(range(256)) * 2000  # 512 kB
HALF = 200_000
NAME = "net.pth"
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; the first requests as `faults` say, one each, the others well."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.faults = DATA, '"1"', []
        self.seen = []  # (path, range, bytes of the body that were sent)
        self.free = threading.Event()  # lets those go on that stall
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.free.set()
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that go away are part of the tests."""

    @property
    def ranges(self):
        return [asked for _, asked, _ in self.seen]

    @property
    def sent(self):
        return sum(count for *_, count in self.seen)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers["Range"], 0))
        self.index = len(server.seen) - 1
        self.close_connection = True
        if server.faults:
            server.faults.pop(0)(self)
        else:
            serve(self)

    def start(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def body(self, data):
        for at in range(0, len(data), 1 << 14):
            block = data[at : at + (1 << 14)]
            self.wfile.write(block)
            path, asked, count = self.server.seen[self.index]
            self.server.seen[self.index] = path, asked, count + len(block)


def serve(handler, end=None, ranges=True, then=lambda handler: None, **changed):
    """The file, or its range, `end` bytes of it; `changed` are headers (None: without)."""
    server, data = handler.server, handler.server.data
    headers = {"ETag": server.etag, "Content_Length": len(data), "Content_Type": "x/y"}
    start, code = 0, 200
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    if asked and ranges and handler.headers["If-Range"] in (None, server.etag):
        start, code = int(asked[1]), 206
        headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["Content_Length"] = len(data) - start
        if start >= len(data):
            handler.start(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
            return
    handler.start(code, **headers | changed)
    handler.body(data[start:][:end])
    then(handler)


def but(**options):
    """`serve` with these options."""
    return lambda handler: serve(handler, **options)


def stall(handler):
    handler.server.free.wait(20)


def reset(handler):
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def answer(code, **headers):
    return lambda handler: handler.start(code, Content_Length=0, **headers)


def chunked(handler, end=None):
    """The whole file without a length, in pieces that tell theirs."""
    handler.start(200, Transfer_Encoding="chunked")
    for at in range(0, len(DATA[:end]), 100_000):
        piece = DATA[:end][at : at + 100_000]
        handler.body(b"%x\r\n%b\r\n" % (len(piece), piece))
    if end is None:
        handler.wfile.write(b"0\r\n\r\n")


def endless(handler):
    handler.start(200)
    while True:
        handler.body(DATA)


BROKEN = {
    "truncated": but(end=HALF),
    "stalls": but(end=HALF, then=stall),
    "reset": but(end=HALF, then=reset),
}


# -- of tests --------------------------------------------------------------------------------------


@pytest.fixture(name="folder")
def own_cache(tmp_path, monkeypatch):
    """A cache's folder of weights; short pauses; no proxy, mirror or network."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("NLZOO_MIRROR", "NLZOO_OFFLINE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    monkeypatch.setattr(transfer, "STALL", 1.0)
    return tmp_path / "cache" / "weights"


@pytest.fixture(name="server")
def own_server(folder):
    with Server() as made:
        yield made


def check(folder, data=DATA):
    """The file is whole, its hash is noted, nothing of the transfer is left but the lock."""
    assert (folder / NAME).read_bytes() == data
    assert (folder / f".{NAME}.verified").read_text().startswith(hashlib.sha256(data).hexdigest())
    assert {p.name for p in folder.iterdir()} == {NAME, f".{NAME}.verified", f".{NAME}.lock"}


def visible(folder):
    return [p.name for p in folder.glob("*") if not p.name.startswith(".")]


def refused(error, url, *words, name=NAME, **known):
    """`fetch` raises `error`, in one line that holds the words."""
    with pytest.raises(error) as caught:
        fetch(url, name, **known)
    line = one_line(caught.value)
    assert not [word for word in words if word not in line], line
    assert "\n" not in str(caught.value)
