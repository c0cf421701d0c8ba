"""Time and memory of the viewer: ``python -m benchmarks.viewing CACHE``.

``logitcask view`` is started on a cache, in a process of its own, and gets the requests of its page. Printed: seconds
from the command to the first page with everything on it (page, script, style, summary and first list); milliseconds
of a sequence that no request touched before, of one beside it, and of a distribution, each the median and the
worst of many at random places; seconds of a search by text; and the largest resident memory of the server (Linux).
"""

import json
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import click

STATIC = ("view.css", "view.js", "page.js", "heat.js", "list.js", "distribution.js", "overview.js")
NOWHERE = "text that is in no document"


class Visitor:
    """Sends the requests of the viewer's page.

    Args:
        address: The viewer's.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **query: str | int) -> bytes:
        with urllib.request.urlopen(f"{self._address}{path}?{urllib.parse.urlencode(query)}") as answer:
            content: bytes = answer.read()
        return content

    def first_page(self) -> dict[str, Any]:
        """Load what the page loads before anything is clicked; return the summary."""
        self.get("")
        for name in STATIC:
            self.get(f"static/{name}")
        summary: dict[str, Any] = json.loads(self.get("api/summary"))
        self.get(f"api/{summary['encodings'][0]['name']}/find", by="all", after=0)
        return summary

    def timed(self, path: str, **query: str | int) -> float:
        """Return how many milliseconds an answer took."""
        started = time.perf_counter()
        self.get(path, **query)
        return (time.perf_counter() - started) * 1e3


def measure(cache: str, looks: int) -> dict[str, float]:
    """Start a viewer, send requests, and return the figures."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "logitcask", "view", cache, "--port", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        visitor = Visitor(process.stdout.readline().strip())
        try:
            served = time.perf_counter()
            encoding = visitor.first_page()["encodings"][0]
            ready = time.perf_counter()
            figures = {
                "positions": sum(totals["positions"] for totals in encoding["splits"].values()),
                "start_seconds": served - started,
                "first_page_seconds": ready - served,
            }
            return figures | _looks(visitor, encoding, looks) | {"peak_resident_bytes": _peak_bytes(process.pid)}
        finally:
            process.terminate()


def _looks(visitor: Visitor, encoding: dict[str, Any], looks: int) -> dict[str, float]:
    base, rng = f"api/{encoding['name']}", random.Random(0)
    sequences = sum(totals["sequences"] for totals in encoding["splits"].values())
    places = [rng.randrange(sequences - 1) for _ in range(looks)]
    far, near, distributions = [], [], []
    for place in places:
        far.append(visitor.timed(f"{base}/sequences/{place}"))
        near.append(visitor.timed(f"{base}/sequences/{place + 1}"))
        tokens = json.loads(visitor.get(f"{base}/sequences/{place}"))["tokens"]
        position = rng.choice([token["position"] for token in tokens if token["position"] is not None])
        distributions.append(visitor.timed(f"{base}/sequences/{place}/{position}"))
    search = visitor.timed(f"{base}/find", by="text", query=NOWHERE) / 1e3
    loss = visitor.timed(f"{base}/find", by="loss", teacher=encoding["teachers"][0]["name"]) / 1e3
    rows = {"sequence_far": far, "sequence_near": near, "distribution": distributions}
    middle = {f"{name}_median_ms": statistics.median(values) for name, values in rows.items()}
    worst = {f"{name}_worst_ms": max(values) for name, values in rows.items()}
    return middle | worst | {"text_request_seconds": search, "loss_request_seconds": loss}


def _peak_bytes(process: int) -> int:
    """Return the largest resident set of a process so far; 0 where the system does not say."""
    status = Path(f"/proc/{process}/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) * 1024 if match else 0


@click.command()
@click.argument("cache")
@click.option("--looks", type=click.IntRange(1), default=40, show_default=True, help="Sequences to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(cache: str, looks: int, as_json: bool) -> None:
    """Measure a viewer of CACHE."""
    figures = measure(cache, looks)
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        shown = f"{value / 1e6:,.0f} MB" if name.endswith("_bytes") else f"{value:,.{0 if name == 'positions' else 2}f}"
        click.echo(f"{name.removesuffix('_bytes').replace('_', ' '):28} {shown:>12}")


if __name__ == "__main__":
    main()
