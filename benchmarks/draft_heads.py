"""Bytes per value and read speed of hidden states for draft heads: ``python -m benchmarks.draft_heads``.

A random Llama reads a small corpus; three auxiliary layers and the last are kept by each codec, and exported for
speculators and SpecForge. Read are all states of all sequences, in float32 from the cache and as speculators does from
its files, one process, files in the page cache. SpecForge's files are not read: they are pickles, which nothing here
opens. So narrow states compress better than real ones (``benchmarks.hidden``).
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import click
from safetensors.torch import load_file

from benchmarks.kills import make_config
from cache_tools.exchange.draft_heads import export_states
from cache_tools.exchange.draft_states import DraftOptions
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.draft_files import Trainer
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.run import Worker, run_capture

CODECS = {"float32": {}, "bfloat16": {}, "budget": {"max_kl_nats": 1e-4, "max_relative_error": 0.02}}
"""Codecs of the cache, with the budgets of the last."""

LAYERS = (1, 2, 3, "last")


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
        stored_as: The codec of the cache, or the trainer whose files are read.
        bytes_per_value: Bytes for each number of a state.
        values_per_second: Numbers read per second; 0 if not measured.
        export_values_per_second: Numbers exported per second, checks included; 0 for the cache itself.
    """

    stored_as: str
    bytes_per_value: float
    values_per_second: float
    export_values_per_second: float = 0.0


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long the second of two runs takes, the files of which are in memory."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def captured(folder: Path, codec: str, documents: int) -> CachedTeacher:
    """Capture the corpus with one codec of hidden states."""
    values = make_config(folder, codec, documents).model_dump(mode="json", exclude_unset=True)
    values["teachers"][0]["hidden"] = {"layers": list(LAYERS), "codec": codec, **CODECS[codec]}
    run_capture(CaptureConfig.model_validate(values), Worker(), Reporter())
    return Cache(folder / codec).encoding().teacher()


def read_cache(teacher: CachedTeacher) -> None:
    """Decode all states of a cache."""
    for shard in range(len(teacher.encoding.shards)):
        for layer in LAYERS:
            teacher.hidden(str(layer), *teacher.shard_rows(shard))


def read_files(folder: Path) -> None:
    """Read all states of an export for speculators as it does."""
    for path in folder.rglob("*.safetensors"):
        load_file(path)


@click.command()
@click.option("--documents", default=200, show_default=True, help="Documents of the corpus, 60 words each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(documents: int, as_json: bool) -> None:
    """Measure every codec and both trainers' files."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for codec in CODECS:
            teacher = captured(folder, codec, documents)
            seconds: dict[str, float] = {}
            for trainer in get_args(Trainer):
                started = time.perf_counter()
                options = DraftOptions(trainer, model=folder / "teacher")
                report = export_states(teacher, folder / f"{codec}-{trainer}", options, Reporter())
                seconds[trainer] = time.perf_counter() - started
                values = report.tokens * teacher.manifest.hidden["last"].width * len(LAYERS)
                if codec == "bfloat16":
                    reads = 0.0
                    if trainer == "speculators":
                        reads = values / seconds_of(lambda: read_files(folder / "bfloat16-speculators"))
                    rows.append(Measured(trainer, report.bytes_per_value, reads, values / seconds[trainer]))
            reading = seconds_of(lambda: read_cache(teacher))  # noqa: B023
            rows.append(Measured(f"cache, {codec}", report.cache_bytes_per_value, values / reading))
    for row in rows:
        click.echo(json.dumps(asdict(row)) if as_json else _words(row))


def _words(row: Measured) -> str:
    exported = f"  export {row.export_values_per_second / 1e6:6.1f} M/s" if row.export_values_per_second else ""
    speed = f"read {row.values_per_second / 1e6:8.1f} M values/s" if row.values_per_second else ""
    return f"{row.stored_as:18} {row.bytes_per_value:5.2f} bytes per value  {speed}{exported}"


if __name__ == "__main__":
    main()
