"""Read windows from a bucket, compared with a disk and with zarr-python: ``python -m benchmarks.bucket``.

The bucket is moto's S3 server on loopback, so a request costs milliseconds of Python and
no network: the number of requests and their bytes matter. ``--delay-ms`` adds a round trip to each.
Both readers use the same client.
"""

import asyncio
import json
import logging
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr
from obstore.store import from_url
from werkzeug.serving import make_server

from benchmarks.layouts import Logitcask
from benchmarks.rows import demo_rows
from cache_tools.storage import StorePath, store_path

K, WINDOW, WINDOWS = 64, 2048, 20


class CountingBucket:
    """An S3 server on loopback, counting and delaying requests.

    Args:
        delay_seconds: What is added to each request.
        application: A WSGI application that answers them; by default moto's.

    Attributes:
        requests: How many there were.
    """

    def __init__(self, delay_seconds: float, application: Any = None) -> None:
        self.requests, self._delay = 0, delay_seconds
        self._application = application or _moto()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{self._server.port}"
        keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"}
        os.environ.update(keys | {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"})
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT"))

    def _serve(self, environ: Any, start_response: Any) -> Any:
        self.requests += 1
        time.sleep(self._delay)
        return self._application(environ, start_response)


def _moto() -> Any:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


def measure(name: str, bucket: CountingBucket, read: Callable[[int], object], starts: list[int]) -> dict[str, Any]:
    """Read windows and return the table's row."""
    seconds, requests = [], []
    for start in starts:
        before, began = bucket.requests, time.perf_counter()
        read(start)
        seconds.append(time.perf_counter() - began)
        requests.append(bucket.requests - before)
    return {
        "name": name,
        "k": K,
        "first_window_ms": seconds[0] * 1000,
        "window_ms": float(np.median(seconds[1:])) * 1000,
        "first_window_requests": requests[0],
        "window_requests": float(np.mean(requests[1:])),
    }


def zarr_reader(folder: StorePath, names: list[str]) -> Callable[[int], object]:
    """Return a function that reads a window of all arrays with zarr-python, all arrays at once."""
    store = str(folder) if isinstance(folder, Path) else zarr.storage.ObjectStore(from_url(str(folder)), read_only=True)
    group = [zarr.open_array(store=store, path=name, mode="r") for name in names]

    async def together(start: int) -> list[Any]:
        return await asyncio.gather(*(array._async_array.getitem(slice(start, start + WINDOW)) for array in group))

    return lambda start: zarr.core.sync.sync(together(start))


@click.command()
@click.option("--delay-ms", type=float, default=0.0, show_default=True, help="Delay that is added to every request.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(delay_ms: float, as_json: bool) -> None:
    """Measure random windows of 2,048 positions, k = 64."""
    rows, bucket = demo_rows(K), CountingBucket(delay_ms / 1000)
    starts = np.random.default_rng(0).integers(0, len(rows.targets.ids) - WINDOW, WINDOWS + 1).tolist()
    results = []
    with tempfile.TemporaryDirectory() as name:
        for place, folder in (("bucket", store_path("s3://bench/cache")), ("disk", store_path(name))):
            ours = Logitcask(folder, K, rows.vocabulary_size)  # type: ignore[arg-type]
            ours.prepare(rows.targets)
            ours.write(rows.targets)
            results.append(measure(f"logitcask, {place}", bucket, lambda at: ours.read(at, at + WINDOW), starts))  # noqa: B023
            theirs = zarr_reader(folder, [array.name for array in ours.arrays])
            results.append(measure(f"zarr-python, not decoded, {place}", bucket, theirs, starts))
    for result in results:
        if as_json:
            click.echo(json.dumps(result))
        else:
            click.echo(
                f"{result['name']:34} first window {result['first_window_ms']:6.1f} ms"
                f" ({result['first_window_requests']} requests), then {result['window_ms']:6.1f} ms"
                f" ({result['window_requests']:.1f} requests)"
            )


if __name__ == "__main__":
    main()
