"""Files of the cache: mirrors, no network, many processes, what is there already."""

import hashlib
import itertools
import os
import pty
import shutil
import signal
import ssl
import subprocess
import sys
import time
from functools import partial

import pytest
from faulty_server import (
    BROKEN,
    DATA,
    HALF,
    NAME,
    SHA256,
    Server,
    answer,
    check,
    own_cache,  # noqa: F401 (a fixture)
    own_server,  # noqa: F401 (a fixture)
    refused,
    reset,
    visible,
)

from nlzoo.weights.download import fetch

# -- addresses -----------------------------------------------------------------------------------


def test_redirects(server, folder):
    server.faults = [answer(302, Location="/elsewhere"), answer(307, Location=server.url)]
    fetch(server.url, NAME, digest=SHA256)
    check(folder)
    assert [path for path, *_ in server.seen] == [f"/{NAME}", "/elsewhere", f"/{NAME}"]


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://:x/"])
def test_redirects_to_elsewhere(server, folder, location):
    server.faults = [answer(302, Location=location)]
    refused(ValueError, server.url, server.url)
    assert len(server.seen) == 1
    assert not visible(folder)


def test_redirects_without_end(server, folder):
    server.faults = [answer(302, Location=server.url)] * 50
    refused(ValueError, server.url, "redirects")


def test_https_may_be_reached_but_not_left(server, folder, tmp_path, monkeypatch):
    program, pem = shutil.which("openssl"), tmp_path / "own.pem"
    if not program:
        pytest.skip("makes its certificate with openssl, which is not here")
    made = "req -x509 -newkey rsa:2048 -nodes -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    command = [program, *made.split(), "-keyout", tmp_path / "key", "-out", pem]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, tmp_path / "key")
    secure = Server()
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    url = secure.url.replace("http:", "https:")
    with secure:
        secure.faults = [answer(302, Location=server.url)]
        refused(ValueError, url, url, server.url)
        assert not server.seen
        server.faults = [answer(302, Location=url)]
        fetch(server.url, NAME)
        check(folder)


@pytest.mark.parametrize("url", ["", "ftp://host/x", "/etc/passwd", "file:///etc/passwd"])
def test_only_http(folder, url):
    refused(ValueError, url, repr(url))


def test_proxies_of_the_environment(server, folder, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    fetch("http://nowhere.invalid/x", NAME)
    check(folder)
    assert [path for path, *_ in server.seen] == ["http://nowhere.invalid/x"]


def test_mirrors(server, folder, tmp_path, monkeypatch):
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / NAME).write_bytes(DATA)
    nowhere = "http://nowhere.invalid/x"
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    for value in (str(mirror), mirror.as_uri()):
        monkeypatch.setenv("NLZOO_MIRROR", value)
        fetch(nowhere, NAME, digest=SHA256)
        check(folder)
        (folder / NAME).unlink()
    monkeypatch.setenv("NLZOO_OFFLINE", "0")
    monkeypatch.setenv("NLZOO_MIRROR", server.url + "/below/")
    fetch(nowhere, "a b#1.pth")
    fetch(nowhere, NAME)
    assert [path for path, *_ in server.seen] == [
        f"/{NAME}/below/{n}" for n in ("a%20b%231.pth", NAME)
    ]
    assert [p.name for p in mirror.iterdir()] == [NAME]


def test_what_a_mirror_lacks_comes_from_its_address(server, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_MIRROR", str(tmp_path))
    fetch(server.url, NAME)
    check(folder)
    (folder / NAME).unlink()
    with Server() as lacking:
        lacking.faults = [answer(404)]
        monkeypatch.setenv("NLZOO_MIRROR", lacking.url)
        fetch(server.url, NAME)
        check(folder)
        assert len(lacking.seen) == 1
    monkeypatch.setenv("NLZOO_MIRROR", str(tmp_path))
    server.faults = [answer(404)]
    refused(FileNotFoundError, server.url, str(tmp_path), "HTTP 404", name="other")


@pytest.mark.parametrize("fault", [reset, answer(503), answer(429, Retry_After=3600)])
def test_a_dead_mirror_is_passed_by(server, folder, monkeypatch, fault):
    with Server() as dead:
        dead.faults = [fault] * 99
        monkeypatch.setenv("NLZOO_MIRROR", dead.url)
        with pytest.warns(UserWarning, match=f"{dead.url}.*{server.url} is asked instead") as told:
            fetch(server.url, NAME)
        assert len(told) == 1
        check(folder)
        assert dead.seen
        server.faults = [answer(404)]
        with pytest.warns(UserWarning, match="is asked instead"):
            refused(FileNotFoundError, server.url, dead.url, "HTTP 404", name="other")
        server.faults = [reset] * 9
        with pytest.warns(UserWarning, match="is asked instead"):
            refused(ConnectionError, server.url, server.url, "try again", name="other")


def test_a_bad_mirror_is_an_error(server, folder, tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(b"bad")
    monkeypatch.setenv("NLZOO_MIRROR", str(tmp_path))
    refused(ValueError, server.url, str(tmp_path / NAME), digest=SHA256)
    (tmp_path / NAME).write_bytes(b"<html>not here")
    refused(ValueError, server.url, str(tmp_path / NAME), "web page")
    monkeypatch.setenv("NLZOO_MIRROR", "s3://bucket")
    refused(ValueError, server.url, "s3://bucket")
    assert not server.seen
    assert not visible(folder)


def test_offline(server, folder, monkeypatch):
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    words = "NLZOO_OFFLINE", str(folder / NAME), server.url
    refused(FileNotFoundError, server.url, *words)
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(DATA)
    assert fetch(server.url, NAME, digest=SHA256) == folder / NAME
    (folder / NAME).write_bytes(b"bad")
    bad = hashlib.sha256(b"bad").hexdigest()
    refused(ValueError, server.url, *words, SHA256, bad, digest=SHA256)
    assert (folder / NAME).read_bytes() == b"bad"  # the user's to remove
    assert not server.seen


# -- what is there already -----------------------------------------------------------------------


def test_a_file_is_hashed_once(server, folder):
    folder.mkdir(parents=True)
    path = folder / NAME
    path.write_bytes(DATA)
    fetch(server.url, NAME, digest=SHA256)
    stat = path.stat()
    with path.open("r+b") as file:  # same size and time: only another reading would tell
        file.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fetch(server.url, NAME, digest=SHA256)
    assert not server.seen
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.warns(UserWarning, match=SHA256):
        fetch(server.url, NAME, digest=SHA256)
    assert path.read_bytes() == DATA
    assert len(server.seen) == 1


def test_a_damaged_file_is_fetched_again(server, folder):
    fetch(server.url, NAME)  # nobody published its hash, but it was noted
    (folder / NAME).write_bytes(DATA[:-1])
    with pytest.warns(UserWarning, match="fetched again"):
        fetch(server.url, NAME)
    check(folder)
    with pytest.warns(UserWarning, match="sha256"):
        refused(ValueError, server.url, SHA256, "00000000", digest="00000000")


@pytest.mark.parametrize("mistake", [b"<!DOCTYPE html>\n404", b"", bytes(9), b"Not found"])
def test_what_was_put_there_by_mistake(server, folder, monkeypatch, mistake):
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(mistake)
    monkeypatch.setenv("NLZOO_OFFLINE", "1")
    refused(ValueError, server.url, str(folder / NAME), "is not a weights file: it ")
    monkeypatch.delenv("NLZOO_OFFLINE")
    with pytest.warns(UserWarning, match=r"is not a weights file: it .*: it is fetched again"):
        fetch(server.url, NAME)
    check(folder)
    server.data = mistake or b"\n"
    refused(ValueError, server.url, server.url, "is not a weights file: it ", name="other")
    assert visible(folder) == [NAME]


def test_a_cache_that_cannot_be_written(server, folder):
    fetch(server.url, NAME)
    (folder / f".{NAME}.verified").unlink()
    (folder / f"..{NAME}.{os.getpid()}.part.verified").mkdir()  # stops root too
    assert fetch(server.url, NAME, digest=SHA256).read_bytes() == DATA
    assert not (folder / f".{NAME}.verified").exists()


# -- several processes, and their end ------------------------------------------------------------


def start(url):
    """Another process that fetches."""
    code = f"from nlzoo.weights.download import fetch; print(fetch({url!r}, {NAME!r}))"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # it may be ignored
    )


def test_eight_processes_make_one_transfer(server, folder):
    server.faults = [BROKEN["stalls"]]
    jobs = [start(server.url) for _ in range(8)]
    waiting = f"nlzoo: waiting for the process that fetches {folder / NAME}\n"
    said = sorted(job.stderr.readline() for job in jobs)
    assert said == [f"nlzoo: fetching {server.url}\n", *[waiting] * 7]
    server.free.set()
    for job in jobs:
        out, err = job.communicate(timeout=60)
        assert (job.returncode, out.strip(), err) == (0, str(folder / NAME), "")
    check(folder)
    assert server.sent == len(DATA)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_while_it_downloads(server, folder, how):
    server.faults = [BROKEN["stalls"]]
    job, part = start(server.url), folder / f".{NAME}.part"
    until(lambda: part.exists() and part.stat().st_size > HALF - 9000)
    assert not visible(folder)
    job.send_signal(how)
    job.communicate()
    assert not visible(folder)
    here = part.stat().st_size
    fetch(server.url, NAME, digest=SHA256)
    check(folder)
    assert server.seen[1][1:] == (f"bytes={here}-", len(DATA) - here)


def until(condition):
    for _ in itertools.takewhile(lambda _: not condition(), range(3000)):
        time.sleep(0.01)
    assert condition()


def test_progress(server, folder, capfd):
    fetch(server.url, NAME, show=False)
    assert capfd.readouterr() == ("", "")
    fetch(server.url, "other")
    assert capfd.readouterr() == ("", f"nlzoo: fetching {server.url}\n")
    code = f"from nlzoo.weights.download import fetch; fetch({server.url!r}, 'third')"
    terminal, inside = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=inside, check=True)
    os.close(inside)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "third" in shown
    assert "MB" in shown or "kB" in shown
