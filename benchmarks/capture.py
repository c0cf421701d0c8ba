"""Compare the time of a capture with the teacher's bare forward pass: ``python -m benchmarks.capture``.

Each row runs the same batches of the same text in a process of its own, so that each has its own
peak of memory. The rows take turns, and medians over the rounds are printed. On a CPU, one thread computes and its
processor time is counted, the writing thread's too, so that other programs hardly matter. The references:

- ``base model forward``: hidden states only, no output matrix;
- ``model forward``: the bare forward pass, as transformers runs it, with all logits;
- ``forward, chunked log-softmax``: the minimum that every capture must compute;
- ``naive``: all logits, log-softmax in float32, top-k, copied to the host.

The peak of memory counts weights and, on a CPU, what the host keeps. ``--model`` and ``--corpus`` name another teacher
and another text than the demo's; ``--random`` makes a teacher from random weights. What the steps of a capture cost by
themselves is printed by ``python -m benchmarks.capture_steps``.
"""

import gzip
import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import peak
from benchmarks.step import clock_of
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.root import create_cache
from pipeline.capture.declare import declare
from pipeline.capture.shards import capture_shards
from pipeline.capture.target import read_target
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.encode import encode
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.teachers.batches import Batch, pad, token_budget_batches
from pipeline.teachers.body_and_head import body_of, run_body, run_head
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.model_body import ModelBody
from pipeline.teachers.teacher import ComputedWeights, Head, ModelDescription, Teacher

K = 64
YARDSTICKS = ("base model forward", "model forward", "forward, chunked log-softmax", "naive: full logits, top-k")
OURS = {"logitcask, k = 64": [], "logitcask, k = 64 and last hidden": ["last"]}
COMPILED = "logitcask, k = 64, compiled"
OWN_CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Chunks of the yardstick: on a CPU it is fastest at half of ours, since it asks for fresh memory each time."""
BARE = "model forward"
DOCUMENT_CHARACTERS = 20_000


@dataclass(frozen=True)
class Job:
    """What the process of a row needs.

    Attributes:
        config: The capture file; its teacher's folder brings the tokenizer in any case.
        random: Keys of a configuration, for random weights instead of the folder's.
        limit_gb: Address space of a row on a CPU, so that the naive way cannot exhaust the machine's memory.
    """

    config: CaptureConfig
    random: dict[str, Any]
    limit_gb: float


def texts(corpus: Path | None) -> Iterator[str]:
    """Yield the texts of JSON lines with ``text``, or the demo's if there is no file."""
    if corpus is None:
        from pipeline.demo.corpus import topic_documents

        yield from (document["text"] for document in topic_documents())
        return
    opened = gzip.open if corpus.suffix == ".gz" else open
    with opened(corpus, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def make_encoding(folder: Path, model: Path | None, corpus: Path | None, tokens: int, **teacher: Any) -> CaptureConfig:
    """Encode about this many tokens and return the capture file; None stands for the demo's teacher and text."""
    from pipeline.demo.run import FILES

    path, characters, model = folder / "corpus.jsonl", 0, model or FILES / "teacher"
    with path.open("w") as file:
        for number, text in enumerate(texts(corpus)):
            if characters < 4 * tokens:
                file.write(json.dumps({"id": str(number), "text": text[:DOCUMENT_CHARACTERS]}) + "\n")
                characters += len(text[:DOCUMENT_CHARACTERS])
    config = CaptureConfig.model_validate(
        {
            "cache": str(folder / "cache"),
            "corpus": {"paths": [path], "held_out_fraction": 0},
            "encoding": {"max_length_tokens": 1024, "positions_per_shard": 32_768},
            "teachers": [{"name": "teacher", "model": str(model), "target": {"k": K}, **teacher}],
        }
    )
    create_cache(config.cache)
    encode(config.cache, Recipe(config.corpus, config.encoding, load_tokenizer(model)))
    return config


def load(job: Job) -> Teacher:
    """Return the teacher, or one of random weights in its place."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = job.config.teachers[0]
    if not job.random:
        return load_teacher(config, Path(config.model), "causal")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    torch.manual_seed(0)
    with device:
        made = AutoConfig.for_model(**job.random)
        model = AutoModelForCausalLM.from_config(made, dtype=dtype)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    name = str(dtype).removeprefix("torch.")
    description = ModelDescription("random", None, type(model).__name__, name, model.num_parameters())
    return Teacher(ModelBody(model, device), Head(model), ComputedWeights("random", name), description, device)


def batches(encoding: Encoding, budget_tokens: int) -> Iterator[Batch]:
    """Yield the batches that a capture runs."""
    for shard in range(len(encoding.shards)):
        sequences = encoding.sequences(shard)
        for indices in token_budget_batches([len(s.input_ids) for s in sequences], budget_tokens):
            yield pad(sequences, indices)


@torch.inference_mode()
def forward(teacher: Teacher, batch: Batch, name: str) -> None:
    """Run one batch as one of the references."""
    assert batch.attention_mask is not None
    ids, attention = batch.input_ids.to(teacher.device), batch.attention_mask.to(teacher.device)
    model = teacher.head.model
    if name == "model forward":
        model(input_ids=ids, attention_mask=attention)
    elif name.startswith("naive"):
        logits_BLV = model(input_ids=ids, attention_mask=attention).logits
        for kept in logits_BLV.float().log_softmax(-1).topk(K):
            kept.cpu()
    else:
        last_BLD, _ = run_body(model, ids, attention, hidden=False)
        if name != "base model forward":
            size = max(1, OWN_CHUNK_BYTES.get(teacher.device.type, 2**28) // (4 * teacher.head.vocabulary_size))
            for part_ND in last_BLD.flatten(0, 1)[batch.kept.to(teacher.device)].split(size):  # type: ignore[no-untyped-call]
                run_head(model, part_ND).logits.log_softmax(1)


def work_of(name: str, job: Job, teacher: Teacher) -> Callable[[], None]:
    """Return the work of a row."""
    encoding, config = Cache(job.config.cache).encoding(), job.config.teachers[0]
    if name.startswith("logitcask"):
        hidden = config.hidden.model_copy(update={"layers": tuple(OURS.get(name, ()))})
        config = config.model_copy(update={"name": f"run-{time.time_ns()}", "hidden": hidden})
        target, shards = read_target(config.target), list(range(len(encoding.shards)))
        cached = declare(encoding, teacher, config, target, 4096)
        return lambda: capture_shards(cached, shards, teacher, target.keep, config.batch_tokens)
    encoding_batches = list(batches(encoding, config.batch_tokens))

    def run() -> None:
        for batch in encoding_batches:
            forward(teacher, batch, name)

    return run


def measure(name: str, job: Job) -> dict[str, Any]:
    """Do the work of a row and return its seconds and peak; runs in a process of its own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    disable_progress_bar()
    before_bytes = peak.resident_bytes()
    if device.type == "cpu":
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (int(job.limit_gb * 2**30),) * 2)
    try:
        teacher = load(job)
        peak.reset(device)
        if name == COMPILED:
            body_of(teacher.head.model).compile(dynamic=True)
            warm_up = batches(Cache(job.config.cache).encoding(), job.config.teachers[0].batch_tokens)
            for batch, _ in zip(warm_up, range(2), strict=False):
                forward(teacher, batch, "base model forward")
        work = work_of(name, job, teacher)
        forward(teacher, next(batches(Cache(job.config.cache).encoding(), 1024)), "forward, chunked log-softmax")
        clock = clock_of(device.type)
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return {"seconds": clock() - started, "peak_bytes": peak.peak_bytes(device, before_bytes)}
    except (MemoryError, RuntimeError) as error:
        return {"failed": "out of memory" if "memory" in str(error) else str(error)}


def summarise(measured: dict[str, list[dict[str, Any]]], tokens: int) -> list[dict[str, Any]]:
    """Return the table's rows: medians over the rounds, and the speed beside the bare forward's of the same round."""
    rows = []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    for name, rounds in measured.items():
        row: dict[str, Any] = {"name": name, "device": device}
        row |= {"tokens_per_s": None, "peak_bytes": None, "ratio_to_bare_forward": None}
        if any("failed" in result for result in rounds):
            rows.append(row | {"failed": next(result["failed"] for result in rounds if "failed" in result)})
            continue
        row["tokens_per_s"] = tokens / statistics.median(result["seconds"] for result in rounds)
        row["peak_bytes"] = statistics.median(result["peak_bytes"] for result in rounds)
        for key, yardstick in (("bare_forward", BARE), ("chunked_log_softmax", YARDSTICKS[2])):
            pairs = [pair for pair in zip(measured[yardstick], rounds, strict=True) if "seconds" in pair[0]]
            ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
            row[f"ratio_to_{key}"] = statistics.median(ratios) if ratios else None
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"one pass over the same batches, {rows[0]['device']}")
    headings = (
        "",
        "tokens/s" if torch.cuda.is_available() else "tokens per CPU second",
        "peak GB",
        "x bare forward",
        "x chunked log-softmax",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        if "failed" in row:
            table.add_row(row["name"], row["failed"])
            continue
        ratios = [row["ratio_to_bare_forward"], row["ratio_to_chunked_log_softmax"]]
        cells = [f"{row['tokens_per_s']:,.0f}", f"{row['peak_bytes'] / 1e9:.2f}"]
        table.add_row(row["name"], *cells, *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios))
    Console(width=110).print(table)


DTYPE = click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
MODEL = click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="Model folder; default: the demo's teacher."
)
CORPUS = click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="JSON lines with 'text', or .gz; default: the demo's text.",
)


@click.command()
@click.option("--tokens", type=int, default=150_000, show_default=True, help="About how many tokens are read.")
@click.option("--batch-tokens", type=int, default=16_384, show_default=True, help="Tokens per forward pass.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Rows take turns this many times.")
@DTYPE
@click.option("--compile", "compiled", is_flag=True, help="Add a row with the teacher's body compiled.")
@click.option("--random", metavar="JSON", default="{}", help="Configuration keys: a teacher of random weights.")
@click.option("--limit-gb", type=float, default=16.0, show_default=True, help="Address space of a row on a CPU.")
@MODEL
@CORPUS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(
    tokens: int,
    batch_tokens: int,
    rounds: int,
    dtype: str,
    compiled: bool,
    random: str,
    limit_gb: float,
    model: Path | None,
    corpus: Path | None,
    as_json: bool,
) -> None:
    """Measure speed and peak memory of a capture beside the bare forward pass."""
    titles = (*YARDSTICKS, *OURS, *([COMPILED] if compiled else []))
    results_by_title: dict[str, list[dict[str, Any]]] = {title: [] for title in titles}
    with tempfile.TemporaryDirectory() as name:
        config = make_encoding(Path(name), model, corpus, tokens, dtype=dtype, batch_tokens=batch_tokens)
        job = Job(config, json.loads(random), limit_gb)
        read = sum(shard.tokens for shard in Cache(config.cache).encoding().shards)
        for number in range(rounds):
            for title, results in results_by_title.items():
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    results.append(pool.submit(measure, title, job).result())
                measured = results[-1].get("seconds")
                outcome = results[-1]["failed"] if measured is None else f"{measured:.1f} s"
                click.echo(f"round {number + 1} of {rounds}: {title}: {outcome}", err=True)
    rows = summarise(results_by_title, read)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    else:
        show(rows)


if __name__ == "__main__":
    main()
