"""A bucket on loopback: moto's S3 server, and a proxy before it that can misbehave.

The proxy passes HTTP through, so what a client meets is a real S3 dialogue; faults are chosen per
request: ``throttle`` (503 SlowDown), ``drop`` (the connection closes without an answer),
``cut`` (it closes in the middle of the answer) and ``stall`` (an upload is taken and never arrives).
"""

import http.client
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

from moto.server import ThreadedMotoServer

from cache_tools import storage
from cache_tools.requests import in_flight

HOP_HEADERS = {"connection", "content-length", "date", "server", "transfer-encoding"}
SHORT_PAUSES = {
    "backoff": {"init_backoff": timedelta(milliseconds=2), "max_backoff": timedelta(milliseconds=20), "base": 2}
}
"""Pauses of this process between the attempts of one request: the proxy recovers at once."""
Plan = Callable[[str, str, int], str | None]
"""(method, path, how often this was asked before) to a fault or None."""


class Bucket:
    """A running server with one bucket.

    Attributes:
        url: Its URL; no two servers have the same, for clients remember where a bucket was.
        endpoint: Address of the proxy.
        plan: What goes wrong; nothing at first.
        requests: Every (method, path) so far.
        stalled: Set when a request stalls.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests: list[tuple[str, str]] = []
        self.stalled = threading.Event()
        self._counts: Counter[tuple[str, str]] = Counter()
        self.plan: Plan = well
        name = f"tests-{upstream_port}"
        self.url = f"s3://{name}"
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{upstream_port}/{name}", method="PUT"))

    @contextmanager
    def failing(self, plan: Plan) -> Iterator[None]:
        """Let requests fail by a plan while the block runs."""
        self._counts.clear()
        self.plan = plan
        try:
            yield
        finally:
            self.plan = well

    def fault(self, method: str, path: str) -> str | None:
        """Record a request and return what shall go wrong with it."""
        self.requests.append((method, path))
        key = (method, path.split("?")[0])
        self._counts[key] += 1
        return self.plan(method, path, self._counts[key] - 1)


def well(method: str, path: str, count: int) -> str | None:
    """Let everything go well."""
    return None


def first(times: int, fault: str) -> Plan:
    """Let the first requests of every object go wrong."""
    return lambda method, path, count: fault if count < times else None


@contextmanager
def serve() -> Iterator[Bucket]:
    """Run the server and the proxy; meanwhile this process waits next to nothing before it asks again."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    bucket = Bucket(moto.get_host_and_port()[1])
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(bucket))
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    bucket.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    try:
        with patch.dict(storage.RETRIES, SHORT_PAUSES), patch.object(in_flight, "PAUSE_SECONDS", 0.002):
            yield bucket
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


def environment(bucket: Bucket) -> dict[str, str]:
    """Return the variables by which a client finds the bucket."""
    keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"}
    return keys | {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_ALLOW_HTTP": "true"}


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer would wait 40 ms for an acknowledgement

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            fault = bucket.fault(self.command, self.path)
            if fault == "stall":
                bucket.stalled.set()
                threading.Event().wait()
            elif fault == "drop":
                self.hang_up()
            elif fault == "throttle":
                self.answer(503, {}, b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>")
            else:
                self.forward(body, cut=fault == "cut")

        def forward(self, body: bytes, cut: bool) -> None:
            upstream = http.client.HTTPConnection("127.0.0.1", bucket.upstream_port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            content = response.read()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_HEADERS}
            size = int(response.headers.get("content-length") or 0) if self.command == "HEAD" else len(content)
            upstream.close()
            self.answer(response.status, headers, content[: size // 2] if cut else content, size)
            if cut and size > 1:
                self.hang_up()

        def answer(self, status: int, headers: dict[str, str], content: bytes, size: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content) if size is None else size))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def hang_up(self) -> None:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

    return Handler
