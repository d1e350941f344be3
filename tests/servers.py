"""A real S3 server on loopback (SeaweedFS), a proxy that fails in several ways, and small HTTP servers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pyarrow.fs as pafs

KEY, SECRET, BUCKET = "test-key", "test-secret-0123456789", "bucket"
RENEWED_KEY, KEY_WITHOUT_LIST = "test-key-renewed", "test-key-without-list"  # with the same secret
PUBLIC_BUCKET = "public"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
STARTS_WITHIN_S = 60

Mode = Literal["well", "503", "reset", "hang", "cut", "expired"]
XML = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>{}</Message></Error>'


class S3Server:
    """``weed server -s3`` with keys, a bucket, and a bucket that all may read. ``kill`` and ``start`` keep the port."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder, self.address = folder, address
        folder.mkdir(parents=True, exist_ok=True)
        self.port, *self._others = free_ports(4)
        identities = [
            {
                "name": "t", "credentials": [{"accessKey": key, "secretKey": SECRET} for key in (KEY, RENEWED_KEY)],
                "actions": ["Admin"],
            },
            {
                "name": "without list", "credentials": [{"accessKey": KEY_WITHOUT_LIST, "secretKey": SECRET}],
                "actions": [f"Read:{BUCKET}", f"Write:{BUCKET}"],
            },
            {"name": "anonymous", "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"]},
        ]  # fmt: skip
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        master, volume, filer = self._others
        weed = Path(sysconfig.get_path("scripts")) / "weed"
        command = [
            str(weed), "server", f"-dir={self.folder}", f"-ip={self.address}", f"-ip.bind={self.address}", "-s3",
            f"-s3.config={self.folder}/s3.json", f"-s3.port={self.port}", f"-master.port={master}",
            f"-volume.port={volume}", f"-filer.port={filer}", "-master.telemetry=false", "-volume.max=100",
            "-s3.port.lance=0", "-s3.port.iceberg=0",  # otherwise these two listen on fixed ports
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        client = pafs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=f"{self.address}:{self.port}", scheme="http",
            region="us-east-1", allow_bucket_creation=True, connect_timeout=1, request_timeout=5,
        )  # fmt: skip
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                for bucket in (BUCKET, PUBLIC_BUCKET):
                    client.create_dir(bucket)
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
            time.sleep(0.3)

    def kill(self) -> None:
        """Kill the server at once; its data is lost. An orderly shutdown takes half a minute."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def s3_server(folder: Path, address: str = "127.0.0.1") -> Iterator[S3Server]:
    server = S3Server(folder, address)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Proxy:
    """Forwards TCP to a port, or answers with an HTTP 503, a reset, no answer, or a reset during an upload.

    ``expired``: requests with KEY are answered as AWS answers expired credentials; others are forwarded.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode: Mode = "well"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def uri(self, prefix: str, bucket: str = BUCKET) -> str:
        return f"s3://{bucket}/{prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def become(self, mode: Mode) -> None:
        self.mode = mode
        for connection in list(self._open):
            self._reset(connection)

    def close(self) -> None:
        self.become("reset")
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near:
            if self.mode == "reset":
                self._reset(near)
            elif self.mode == "hang":
                while self.mode == "hang" and near in self._open:
                    time.sleep(0.1)
            elif self.mode == "503":
                near.recv(65536)
                near.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                with socket.create_connection(("127.0.0.1", self.target)) as far:
                    self._forward(near, far)
        self._open.discard(near)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        sent = 0
        while True:
            for source in select.select([near, far], [], [], 1)[0]:
                content = source.recv(65536)
                if not content:
                    return
                if source is near and self.mode == "expired" and f"Credential={KEY}/".encode() in content:
                    body = XML.format("ExpiredToken", "The provided token has expired.")
                    near.sendall(_answer(400, "" if content.startswith(b"HEAD") else body))
                    return
                (far if source is near else near).sendall(content)
                sent += len(content) if source is near else 0
                if self.mode == "cut" and sent > 200_000:
                    self._reset(near)
                    return
            if near not in self._open:
                return

    def _reset(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends RST
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextlib.contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class RecordingProxy:
    """An HTTP proxy that forwards nothing. ``requests``: the first line and all headers of what it received."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.port = 0

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        received = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                received.append(f"{self.requestline}\n{self.headers}")
                connect = self.command == "CONNECT"
                self.send_response(502 if connect else 200)
                self.end_headers()
                self.wfile.write(b"" if connect else b"from the proxy")

            do_CONNECT = do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        with http_server(Handler) as url:
            self.port = int(url.rpartition(":")[2])
            yield


def _answer(status: int, body: str, content_type: str = "application/xml") -> bytes:
    head = f"HTTP/1.1 {status} status\r\nContent-Type: {content_type}\r\nContent-Length: {len(body.encode())}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


@contextlib.contextmanager
def answering(status: int, body: str, content_type: str = "application/xml") -> Iterator[int]:
    """An HTTP server that answers every request alike; a HEAD request without the body. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    request = connection.recv(65536)
                    connection.sendall(_answer(status, "" if request.startswith(b"HEAD") else body, content_type))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):  # else a reset could overtake the answer
                        pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def free_ports(count: int) -> list[int]:
    """Free ports outside the ranges that the system and Ray assign, so that they stay free until they are used.

    The S3 server's gRPC ports are 10,000 higher and also outside the system's range.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 22_700)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports
