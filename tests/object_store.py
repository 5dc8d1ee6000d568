"""An object store on this machine (moto's S3), behind a line that drops connections."""

import logging
import socket
import socketserver
import threading

import pytest

BUCKET = "bucket"


class Line(socketserver.ThreadingTCPServer):
    """Forwards to `target`; each new connection breaks after as many bytes as `breaks` says."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Forward)
        self.target, self.breaks, self.broken = target, [], 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Broken connections are what it is for."""


class Forward(socketserver.BaseRequestHandler):
    def handle(self):
        left = self.server.breaks.pop(0) if self.server.breaks else float("inf")
        with socket.create_connection(self.server.target) as store:
            threading.Thread(target=self.ask, args=(store,), daemon=True).start()
            while (data := store.recv(1 << 14)) and left > 0:
                self.request.sendall(data[: int(min(left, len(data)))])
                left -= len(data)
        if left <= 0:
            self.server.broken += 1
            self.request.shutdown(socket.SHUT_RDWR)

    def ask(self, store):
        try:
            while data := self.request.recv(1 << 14):
                store.sendall(data)
        except OSError:
            pass
        finally:
            store.close()


class Store:
    """A bucket, and the line to it."""

    def __init__(self, line, client):
        self.line, self.client = line, client

    def sync(self, folder, name):
        """What `aws s3 sync FOLDER s3://BUCKET/NAME` does; the URL."""
        for file in folder.rglob("*"):
            if file.is_file():
                key = f"{name}/{file.relative_to(folder)}"
                self.client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        return f"s3://{BUCKET}/{name}"


@pytest.fixture(scope="session", name="store")
def own_store():
    """For the whole session; clients reach it through the line."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch, Line(server.get_host_and_port()) as line:
        for name, value in (names | {"AWS_ENDPOINT_URL": line.url}).items():
            patch.setenv(name, value)
        threading.Thread(target=line.serve_forever, args=(0.01,)).start()
        direct = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=direct, region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield Store(line, client)
        line.shutdown()
    server.stop()
