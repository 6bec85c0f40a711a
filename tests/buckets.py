"""Buckets on this machine: emulators of two services, behind a proxy that injects faults.

    def test_one(gcs):  # or s3, or bucket: the test runs with each
        gcs.url + "/runs/a"        # an address for the package; the environment is set
        gcs.faults.status = 503    # from now on; see Faults

Nothing leaves 127.0.0.1. A test of a service whose emulator is not installed is skipped.
"""

import dataclasses
import http.client
import importlib.util
import json
import logging
import os
import re
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from videomae_jax import paths

# They report every missing object, and every request.
for name in ("gcp_storage_emulator.storage", "api.object", "werkzeug"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

BUCKET = "videos-and-runs"
HOST = "127.0.0.1"


@dataclasses.dataclass
class Faults:
    """What the proxy does to requests whose method and address match; by default nothing.

    status: answer with it instead of asking. hang: seconds before the connection is closed without
    an answer. latency: seconds before every answer. match: a pattern of "METHOD ADDRESS".
    left: to so many requests, None for all.
    """

    status: int = 0
    hang: float = 0.0
    latency: float = 0.0
    match: str = ""
    left: int | None = None
    asked: int = 0  # requests seen

    def hit(self, request: str) -> bool:
        """Return whether the fault is for a request, and count it."""
        if not (self.status or self.hang) or not re.search(self.match, request):
            return False
        if self.left is not None:
            self.left -= 1
        return self.left is None or self.left >= 0


@dataclasses.dataclass
class Bucket:
    """A folder in a bucket.

    url: gs://NAME/FOLDER or s3://NAME/FOLDER. env: of processes that use it; this one has it.
    """

    url: str
    env: dict[str, str]
    faults: Faults


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Of the server's class:
    port: int
    faults: Faults
    lock: threading.Lock

    def log_message(self, format, *args):
        """Say nothing."""

    def _answer(self) -> None:
        body = self._read_body()
        faults = self.faults
        faults.asked += 1
        time.sleep(faults.latency)
        if faults.hit(f"{self.command} {self.path}"):
            time.sleep(faults.hang)
            self.close_connection = True
            if faults.status:
                self._send(faults.status, [], _refusal(faults.status))
            return
        known = self.generation_of(body)
        if known is None:
            self._send(*self._pass_on(body))
            return
        # The emulator knows no preconditions, and does not say the generation with the contents.
        with self.lock:
            generation = self._generation(known)
            query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
            if query.get("ifGenerationMatch", [generation]) != [generation]:
                found = (412, [], b"{}")
            elif query.get("ifGenerationNotMatch") == [generation]:
                found = (304, [], b"")
            else:
                status, headers, data = self._pass_on(body)
                found = status, [*headers, ("x-goog-generation", generation)], data
        self._send(*found)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _answer

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while count := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(count))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def generation_of(self, body: bytes) -> str | None:
        """Return the address of what a request reads or writes, None if it has no generation."""
        return None

    def _generation(self, address: str) -> str:
        status, _, data = self._forward("GET", address, b"", {})
        return json.loads(data)["generation"] if status == 200 else "0"

    def _pass_on(self, body: bytes):
        dropped = ("transfer-encoding", "connection", "expect", "content-length")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        return self._forward(self.command, self.path, body, headers)

    def _forward(self, method: str, path: str, body: bytes, headers: dict):
        upstream = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            upstream.request(method, path, body or None, headers | {"Content-Length": len(body)})
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _send(self, status: int, headers: list, data: bytes) -> None:
        try:
            self.send_response_only(status)
            length = str(len(data))
            for key, value in headers:
                if key.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(key, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # a client that was killed
            self.close_connection = True


class _GcsProxy(_Proxy):
    def _read_body(self) -> bytes:
        # gcsfs ends a file with a line feed alone. Behind a file that ends in a carriage return
        # the emulator would take both for the end of a line.
        body, end = super()._read_body(), b"\n--==0==--"
        return body.removesuffix(end) + b"\r" + end if body.endswith(end) else body

    def generation_of(self, body: bytes) -> str | None:
        asked = urllib.parse.urlparse(self.path)
        query = urllib.parse.parse_qs(asked.query)
        folder = f"/storage/v1/b/{BUCKET}/o/"
        if asked.path.startswith("/upload/"):
            name = query["name"][0] if "name" in query else _name_in(body)
            return folder + urllib.parse.quote(name, safe="")
        reads = self.command == "GET" and query.get("alt") == ["media"]
        return folder + asked.path.rpartition("/o/")[2] if reads else None


def _name_in(body: bytes) -> str:
    return json.loads(body.replace(b"\r", b"").split(b"\n\n", 1)[1].split(b"\n--", 1)[0])["name"]


def _refusal(status: int) -> bytes:
    """Return the body of a refused request, as both services word it."""
    code = {403: "AccessDenied", 404: "NoSuchBucket", 503: "ServiceUnavailable"}.get(
        status, "Error"
    )
    return f"<Error><Code>{code}</Code><Message>injected {status}</Message></Error>".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of a client that hung up: the tests read what commands say on stderr."""
        if not isinstance(sys.exception(), ConnectionResetError):
            super().handle_error(request, client_address)


@contextmanager
def _proxied(kind: type[_Proxy], port: int) -> Iterator[tuple[int, Faults]]:
    faults = Faults()
    members = {"port": port, "faults": faults, "lock": threading.Lock()}
    server = _Server((HOST, 0), type("Proxy", (kind,), members))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], faults
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _emulated_gcs() -> Iterator[Bucket]:
    from gcp_storage_emulator.server import create_server

    server = create_server(HOST, 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    while server._api._httpd is None:
        time.sleep(0.01)
    try:
        with _proxied(_GcsProxy, server._api._httpd.server_address[1]) as (port, faults):
            address = f"http://{HOST}:{port}"
            env = {
                "STORAGE_EMULATOR_HOST": address,
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            }
            yield Bucket(f"gs://{BUCKET}", env, faults)
    finally:
        server.stop()


@contextmanager
def _emulated_s3() -> Iterator[Bucket]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    upstream = server.get_host_and_port()[1]
    try:
        connection = http.client.HTTPConnection(HOST, upstream)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        with _proxied(_Proxy, upstream) as (port, faults):
            env = {
                "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
                "AWS_ACCESS_KEY_ID": "fake",
                "AWS_SECRET_ACCESS_KEY": "fake",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            yield Bucket(f"s3://{BUCKET}", env, faults)
    finally:
        server.stop()


def _needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Bucket]:
    """The emulated service; its environment is set until the end of all tests."""
    _needs("gcsfs", "gcp_storage_emulator")
    with _emulated_gcs() as served:
        os.environ.update(served.env)
        yield served


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Bucket]:
    """The emulated service; its environment is set until the end of all tests."""
    _needs("s3fs", "moto.server")
    with _emulated_s3() as served:
        os.environ.update(served.env)
        yield served


def _own_folder(server: Bucket) -> Iterator[Bucket]:
    """Give a folder of its own to a test, and take its faults back afterwards."""
    yield dataclasses.replace(server, url=f"{server.url}/{uuid.uuid4().hex[:8]}")
    for field in dataclasses.fields(Faults):
        setattr(server.faults, field.name, field.default)


@pytest.fixture
def gcs(gcs_server) -> Iterator[Bucket]:
    """A folder in a bucket of Google Cloud Storage."""
    yield from _own_folder(gcs_server)


@pytest.fixture
def s3(s3_server) -> Iterator[Bucket]:
    """A folder in a bucket of S3."""
    yield from _own_folder(s3_server)


@pytest.fixture(params=["gcs", "s3"])
def bucket(request) -> Bucket:
    """Either of them."""
    return request.getfixturevalue(request.param)


def upload(folder: str | os.PathLike, url: str) -> str:
    """Copy the files of a local folder to a folder in a bucket, and return its address."""
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            paths.write_whole(f"{url}/{file.relative_to(folder)}", file.read_bytes())
    return url


def download(url: str) -> dict[str, bytes]:
    """Return the contents of all objects of a folder in a bucket."""
    return {name: paths.read_bytes(f"{url}/{name}") for name in paths.find(url)}
