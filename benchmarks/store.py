"""Bytes, error and speed of the store and of the usual alternatives: ``python -m benchmarks.store``.

One core, local disk, warm page cache; seconds are CPU time. What is learned once for a teacher (rank tables) counts
in the bytes and not in the speed. ``KL`` is over the k kept tokens and the rest, true rows against what is read back.
Speeds are the best of several passes, reading ends at ids and float32 log-probabilities in memory; ``window`` is the
median of random reads of 2,048 positions.
"""

import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numcodecs import blosc

from benchmarks.layouts import LAYOUTS, Layout, LogitcaskSampled
from benchmarks.rows import Rows, rows_to_measure, sampled
from cache_tools.codecs.registry import Targets, kl_nats
from cache_tools.format import zarr_arrays

WINDOW = 2048
PASSES = 5
DRAWS = 50
"""Draws of a sampled row, as in the paper that proposes them (RS-KD)."""


def measure(layout_type: type[Layout], rows: Rows, k: int) -> dict[str, Any]:
    """Write and read rows in one layout and return the table's row."""
    num_positions = len(rows.targets.ids)
    with tempfile.TemporaryDirectory() as name:
        layout = layout_type(Path(name), k, rows.vocabulary_size)
        layout.prepare(rows.targets)
        write_seconds = min(_seconds(lambda: layout.write(rows.targets)) for _ in range(PASSES))
        stored = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
        error = kl_nats(rows.targets, _by_id(layout.read(0, num_positions)))
        read_seconds = min(_seconds(lambda: layout.read(0, num_positions)) for _ in range(PASSES))
        starts = np.random.default_rng(0).integers(0, num_positions - WINDOW, 4 * PASSES)
        windows = [_seconds(lambda at=int(start): layout.read(at, at + WINDOW)) for start in starts]  # type: ignore[misc]
        peak = _peak_bytes(lambda: layout.read(0, num_positions))
    return {
        "name": layout_type.name,
        "rows": rows.name,
        "k": k,
        "vocabulary": rows.vocabulary_size,
        "bytes_per_position": stored / num_positions,
        "kl_mean_nats": float(error.mean()),
        "kl_p999_nats": float(np.quantile(error, 0.999)),
        "write_positions_per_s": num_positions / write_seconds,
        "read_positions_per_s": num_positions / read_seconds,
        "window_ms": float(np.median(windows)) * 1000,
        "read_peak_bytes_per_position": peak / num_positions,
    }


def _by_id(targets: Targets) -> Targets:
    order = np.argsort(targets.ids, axis=1)
    ids = np.take_along_axis(targets.ids, order, axis=1)
    return Targets(ids, np.take_along_axis(targets.log_probs, order, axis=1), targets.log_left_out)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()  # which a machine's other work does not change
    work()
    return time.process_time() - started


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@click.command()
@click.option(
    "--k", "ks", type=int, multiple=True, default=(64, 128), show_default=True, help="Kept tokens; repeatable."
)
@click.option(
    "--rows",
    "files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Recorded rows, see benchmarks/rows.py; repeatable. Default: rows of the demo's teacher.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(ks: tuple[int, ...], files: tuple[Path, ...], as_json: bool) -> None:
    """Measure every layout on every set of rows."""
    blosc.set_nthreads(1)
    zarr_arrays.THREADS = 1
    work = [(layout, rows, k) for k in ks for rows in rows_to_measure(files, k) for layout in LAYOUTS]
    work += [(LogitcaskSampled, sampled(rows, DRAWS), DRAWS) for rows in rows_to_measure(files, 128)]
    results = []
    for layout, rows, k in work:
        print(f"{rows.name}, k = {k}: {layout.name}", file=sys.stderr)
        results.append(measure(layout, rows, k))
    if as_json:
        for result in results:
            click.echo(json.dumps(result))
    else:
        _print_table(results)


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("rows", "k", "layout", "bytes", "KL mean", "KL 99.9 %", "write/s", "read/s", "window ms"):
        table.add_column(heading, justify="left" if heading in ("rows", "layout") else "right", no_wrap=True)
    for r in results:
        table.add_row(
            r["rows"],
            str(r["k"]),
            r["name"],
            f"{r['bytes_per_position']:.1f}",
            f"{r['kl_mean_nats']:.1e}",
            f"{r['kl_p999_nats']:.1e}",
            f"{r['write_positions_per_s'] / 1e3:,.0f} k",
            f"{r['read_positions_per_s'] / 1e3:,.0f} k",
            f"{r['window_ms']:.1f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
