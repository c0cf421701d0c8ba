"""Time and memory of the commands that inspect a large cache: ``python -m benchmarks.inspection CACHE``.

Each command runs in a process of its own, as a user starts it; the clock includes the interpreter and imports. Peak
memory is the process's largest resident set, and processor seconds are user and system together, which other
work on the machine does not increase. Printed are medians of rounds, after one round that is not counted, so files
come from the system's cache. A cache of millions of positions is made by ``benchmarks.large_cache``.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from cache_tools.store.reader import Cache, Encoding

ROOT = Path(__file__).resolve().parents[1]


def commands(cache: str, encoding: Encoding, folder: Path) -> dict[str, list[str]]:
    """Return what is measured: a name and the arguments of ``logitcask``."""
    number = sum(totals.sequences for totals in encoding.manifest.splits.values()) // 2
    position = int(encoding.sequence(number).positions()[-1])
    return {
        "inspect --sample 0": ["inspect", cache, "--sample", "0"],
        "inspect": ["inspect", cache],
        "inspect --groups folder": ["inspect", cache, "--groups", "folder"],
        "show": ["show", cache, str(number)],
        "show --position": ["show", cache, str(number), "--position", str(position)],
        "show --highest-loss": ["show", cache, "--highest-loss"],
        "report": ["report", cache, "-o", str(folder / "report.html")],
    }


def run(arguments: list[str]) -> dict[str, float]:
    """Run a command once; return its seconds, processor seconds and peak bytes."""
    command = [sys.executable, "-c", "from logitcask import main; main()", *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"failed: logitcask {' '.join(arguments)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": float(used.ru_maxrss * unit),
    }


def measure(cache: str, rounds: int) -> list[dict[str, Any]]:
    """Measure every command."""
    encoding = Cache(cache).encoding()
    positions = sum(totals.positions for totals in encoding.manifest.splits.values())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands(cache, encoding, Path(folder)).items():
            _, *measured_runs = [run(arguments) for _ in range(rounds + 1)]
            medians = {key: statistics.median(measured[key] for measured in measured_runs) for key in measured_runs[0]}
            results.append({"command": name, "positions": positions} | medians)
    return results


@click.command()
@click.argument("cache")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each command.")
@click.option("--json", "as_json", is_flag=True, help="Print one list of objects.")
def main(cache: str, rounds: int, as_json: bool) -> None:
    """Measure commands that look at CACHE."""
    results = measure(str(Path(cache).resolve()) if "://" not in cache else cache, rounds)
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results[0]['positions']:,} positions")
    for heading in ("command", "seconds", "processor seconds", "peak MB"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for r in results:
        cells = (f"{r['seconds']:.2f}", f"{r['processor_seconds']:.2f}", f"{r['peak_bytes'] / 1e6:.0f}")
        table.add_row(r["command"], *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
