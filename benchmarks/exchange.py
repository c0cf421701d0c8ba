"""Positions per second and bytes of every exchange format, both ways: ``python -m benchmarks.exchange``.

Rows of made-up distributions are exported from a cache into each format and imported again; one process, local disk.
Bytes are those of the files, tokens included, and those of the teacher in the cache.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers

from cache_tools.exchange.exporting import export_rows
from cache_tools.exchange.importing import import_rows
from cache_tools.exchange.plan import ImportOptions
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
from cache_tools.row_files.formats import Columns, FormatName, SourceFormat
from cache_tools.row_files.writing import CacheRows, table_of
from cache_tools.store.reader import Cache

VOCABULARY = 32_000
TOKENS = 513
"""Tokens of a sequence: 512 positions and the last token."""

EXPONENT = 1.1
"""Of the power law that rows follow, about that of a language model's predictions."""


def made_rows(positions: int, k: int) -> CacheRows:
    """Return about so many positions of made-up rows; the text is drawn from them, so their alignment can be told."""
    rng = np.random.default_rng(0)
    sequences = max(1, positions // (TOKENS - 1))
    total = sequences * (TOKENS - 1)
    ids = (rng.integers(0, VOCABULARY, (total, 1)) + np.arange(k) * 7 + rng.integers(0, 7, (total, k))) % VOCABULARY
    weights = np.arange(1, k + 1) ** -EXPONENT * rng.lognormal(0, 0.3, (total, k))
    mass = rng.uniform(0.8, 0.99, (total, 1))
    log_probs = np.sort(np.log(weights / weights.sum(axis=1, keepdims=True) * mass), axis=1)[:, ::-1]
    following = ids[np.arange(total), np.minimum(rng.geometric(0.4, total) - 1, k - 1)].reshape(sequences, -1)
    tokens = [np.append(0, row).astype(np.uint32) for row in following]
    rest = np.log1p(-mass[:, 0]).astype(np.float32)
    places = [np.arange(TOKENS - 1) for _ in tokens]
    names = [f"text-{number}" for number in range(sequences)]
    return CacheRows(tokens, places, names, None, ids.astype(np.uint32), log_probs.astype(np.float32), rest, {})


def measure(cache: Path, name: FormatName, folder: Path, codec: PackedCodec | LegacyCodec | None) -> dict[str, Any]:
    """Export a cache into a format, import it again, and return the row of the table."""
    started = time.perf_counter()
    report = export_rows(Cache(cache).encoding().teacher(), folder / "rows", name, Reporter(), codec=codec)
    middle = time.perf_counter()
    options = ImportOptions(str(folder.parent / "tokenizer"), mass_tolerance=0.1)
    back = import_rows(folder / "rows", folder / "cache", options, Reporter())
    ended = time.perf_counter()
    return {
        "format": name + (" (16 bfloat16 and a curve)" if name == "distillkit" and codec else ""),
        "export_positions_per_s": report.positions / (middle - started),
        "import_positions_per_s": report.positions / (ended - middle),
        "file_bytes_per_position": report.bytes_per_position,
        "cache_bytes_per_position": back.bytes_per_position,
    }


@click.command()
@click.option("--positions", default=65_536, show_default=True, help="Positions to move.")
@click.option("--k", default=64, show_default=True, help="Entries of a row.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(positions: int, k: int, as_json: bool) -> None:
    """Measure every format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        rows = made_rows(positions, k)
        (folder / "raw").mkdir()
        table = table_of(rows, SourceFormat("distillkit-raw", Columns()))
        pq.write_table(table, folder / "raw" / "data_0.parquet", row_group_size=64)
        import_rows(folder / "raw", folder / "cache", ImportOptions(str(folder / "tokenizer")), Reporter())
        curve = PackedCodec(
            d=VOCABULARY,
            k=k,
            exact_k=16,
            exact_dtype="bfloat16",
            polynomial_terms=(0, 1, 2, 3, 4, "sqrt"),
            delta_encoding=False,
            normalize_t=True,
        )
        legacy = LegacyCodec(k=k, exact_k=k // 2, polynomial_degree=8, vocab_size=VOCABULARY)
        work: list[tuple[FormatName, Any]] = [
            (name, None) for name in get_args(FormatName) if name != "distillkit-legacy"
        ]
        work += [("distillkit", curve), ("distillkit-legacy", legacy)]
        results = []
        for number, (format_name, codec) in enumerate(work):
            (folder / str(number)).mkdir()
            results.append(measure(folder / "cache", format_name, folder / str(number), codec))
    for result in results:
        click.echo(json.dumps(result) if as_json else "  ".join(_words(result)))


def _words(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['format']:40}",
        f"export {result['export_positions_per_s']:8,.0f}/s",
        f"import {result['import_positions_per_s']:8,.0f}/s",
        f"{result['file_bytes_per_position']:6.0f} B in files",
        f"{result['cache_bytes_per_position']:6.0f} B in the cache",
    ]


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of VOCABULARY words, each one token."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
