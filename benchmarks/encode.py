"""Compare encoding with the tokenizer alone, in speed and memory: ``python -m benchmarks.encode``.

The corpus is this interpreter's documentation and source code, over and over: each round has its own ids
and shifts every document by a few lines, so that no two documents are alike. Three processes read it one after another:

- ``tokenizer, one by one``: ``tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)``,
- ``tokenizer, in batches``: the same with lists of as many characters as ``encode`` takes at a time,
- ``encode``: everything from the hash of the file to the encoding's manifest.

Only the calls of the tokenizer are timed in the first two, and all of the third. On a busy machine,
compare ``cpu_seconds`` (all threads) rather than ``seconds``. A batch is tokenised on all
cores unless TOKENIZERS_PARALLELISM=false, in all three alike. ``peak_bytes`` is the largest
resident memory of a process, ``grown_bytes`` that without what was resident before the first document.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from benchmarks.peak import resident_bytes
from pipeline.demo.corpus import docstring_documents, source_documents, standard_library, topic_documents

TOKENIZER = Path(__file__).resolve().parents[1] / "configs" / "demo" / "teacher"

TIMES = ("seconds", "seconds_of_batches", "cpu_seconds", "cpu_seconds_of_batches")


class Clock:
    """Adds up the time of its ``with`` blocks: on the wall, and of all threads."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


def write_corpus(path: Path, size_bytes: int) -> None:
    """Write JSON lines of at least ``size_bytes``."""
    root = standard_library()
    documents = [*topic_documents(), *docstring_documents(root), *source_documents(root)]
    with path.open("w", encoding="utf-8") as file:
        turn = 0
        while file.tell() < size_bytes:
            for document in documents:
                lines = document["text"].splitlines(keepends=True)
                at = turn % len(lines)
                text = "".join([*lines[at:], *lines[:at]])
                file.write(json.dumps({"id": f"{turn}/{document['id']}", "text": text}, ensure_ascii=False) + "\n")
                if file.tell() >= size_bytes:
                    break
            turn += 1


def tokenizer_one_by_one(corpus: Path, tokenizer_folder: Path) -> dict[str, float]:
    """Time the tokenizer over each document by itself."""
    return _tokenizer_alone(([text] for text in _texts(corpus)), tokenizer_folder, single=True)


def tokenizer_in_batches(corpus: Path, tokenizer_folder: Path) -> dict[str, float]:
    """Time the tokenizer over lists of documents, as large as those that ``encode`` makes."""
    from pipeline.encoding.sequences import batches_of

    return _tokenizer_alone(batches_of(_texts(corpus), len), tokenizer_folder, single=False)


def encode_corpus(corpus: Path, tokenizer_folder: Path) -> dict[str, float]:
    """Time ``encode`` from the corpus file to the manifest."""
    from pipeline.config.capture_file import CaptureConfig
    from pipeline.encoding.encode import encode
    from pipeline.encoding.recipe import Recipe
    from pipeline.encoding.tokenizer import load_tokenizer

    tokenizer, before, tokens = load_tokenizer(tokenizer_folder), resident_bytes("VmHWM"), [0]

    def count(num_tokens: int, _: float | None = None, /) -> None:
        tokens[0] += num_tokens

    with tempfile.TemporaryDirectory(dir=corpus.parent) as cache:
        blocks = {"cache": cache, "corpus": {"paths": [corpus]}, "teachers": [{"name": "none", "model": "none"}]}
        config, clock = CaptureConfig.model_validate(blocks), Clock()
        with clock:
            encode(config.cache, Recipe(config.corpus, config.encoding, tokenizer), progress=count)
        return _row(tokens[0], clock, before)


def _tokenizer_alone(batches: Iterator[list[str]], tokenizer_folder: Path, single: bool) -> dict[str, float]:
    from pipeline.encoding.tokenizer import load_tokenizer

    tokenizer, before = load_tokenizer(tokenizer_folder), resident_bytes("VmHWM")
    num_tokens, clock = 0, Clock()
    for batch in batches:
        texts = batch[0] if single else batch
        with clock:
            encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        num_tokens += sum(len(text_encoding) for text_encoding in encoded.encodings or ())
    return _row(num_tokens, clock, before)


def _texts(corpus: Path) -> Iterator[str]:
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _row(num_tokens: int, clock: Clock, bytes_before: int) -> dict[str, float]:
    peak = resident_bytes("VmHWM")
    return {
        "tokens": num_tokens,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "tokens_per_s": num_tokens / clock.seconds,
        "peak_bytes": peak,
        "grown_bytes": peak - bytes_before,
    }


def _in_own_process(job: Callable[[Path, Path], dict[str, float]], corpus: Path, folder: Path) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return {"name": job.__name__.replace("_", " "), **processes.submit(job, corpus, folder).result()}


@click.command()
@click.option("--megabytes", default=1000.0, show_default=True, help="Size of the corpus.")
@click.option("--tokenizer", type=click.Path(path_type=Path), default=TOKENIZER, help="Folder; default: the demo's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def main(megabytes: float, tokenizer: Path, as_json: bool) -> None:
    """Measure the tokenizer alone and encode on the same documents."""
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        write_corpus(corpus, round(megabytes * 1e6))
        jobs = (tokenizer_one_by_one, tokenizer_in_batches, encode_corpus)
        rows = [_in_own_process(job, corpus, tokenizer) for job in jobs]
    for row in rows:
        for key in ("seconds", "cpu_seconds"):
            row[f"{key}_of_batches"] = row[key] / rows[1][key]
    if as_json:
        cores, parallel = os.cpu_count(), os.environ.get("TOKENIZERS_PARALLELISM", "not set")
        click.echo(
            json.dumps({"megabytes": megabytes, "cores": cores, "TOKENIZERS_PARALLELISM": parallel, "rows": rows})
        )
        return
    head = ("tokens/s", "seconds", "of batches", "CPU seconds", "of batches", "peak MB", "grown MB")
    click.echo(f"{'':22}" + "".join(f"{title:>13}" for title in head))
    for row in rows:
        figures = (
            f"{row['tokens_per_s']:,.0f}",
            *(f"{row[key]:.2f}×" if key.endswith("batches") else f"{row[key]:.1f}" for key in TIMES),
            *(f"{row[key] / 1e6:,.0f}" for key in ("peak_bytes", "grown_bytes")),
        )
        click.echo(f"{row['name']:<22}" + "".join(f"{figure:>13}" for figure in figures))


if __name__ == "__main__":
    main()
