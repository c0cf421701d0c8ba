"""What each step of a capture costs: ``python -m benchmarks.capture_steps``.

One shard is captured in this process, step by step, under Python's profiler; what a step's function takes, with all
that it calls, is divided by the positions. The profiler's own cost is small beside operations on whole batches.
A capture encodes and writes a shard in another thread while the teacher reads the next one, so the last row is hidden
behind the others wherever a core is free. Torch runs on one thread unless ``--threads`` says otherwise.
"""

import cProfile
import json
import pstats
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.capture import CORPUS, DTYPE, MODEL, Job, K, load, make_encoding
from cache_tools.store.reader import Cache
from cache_tools.store.writer import commit_shard
from pipeline.capture import keep, predict
from pipeline.capture.declare import declare
from pipeline.capture.target import read_target
from pipeline.capture.topk import top_k
from pipeline.teachers.body_and_head import run_body, run_head

STEPS: dict[str, Callable[..., Any]] = {
    "body: tokens to states": run_body,
    "head: states to logits": run_head,
    "top-k": top_k,
    "softmax, entropy, left-out mass": keep._in_parts,
    "copies to the host": predict._Rows.put,
    "encoding and writing": commit_shard,
}
"""The function that does a step, which calls none of the others'."""
REST = "batches, conversion to float32, everything else"


def cumulative_seconds(profile: cProfile.Profile, function: Callable[..., Any]) -> float:
    """Return how long calls of a function took, with everything that they called."""
    code = getattr(function, "__wrapped__", function).__code__
    statistics = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return float(statistics[code.co_filename, code.co_firstlineno, code.co_name][3])


def measure(job: Job) -> dict[str, float]:
    """Return microseconds per position by step, of the first shard."""
    config = job.config.teachers[0]
    encoding, teacher, target = Cache(job.config.cache).encoding(), load(job), read_target(config.target)
    cached = declare(encoding, teacher, config, target, 4096)
    sequences, kept = encoding.sequences(0), predict.KeptOutputs(target.keep)
    predict.predict(sequences[:8], encoding.manifest.objective, teacher, kept, config.batch_tokens)
    with cProfile.Profile() as profile:
        predictions = predict.predict(sequences, encoding.manifest.objective, teacher, kept, config.batch_tokens)
        commit_shard(cached, 0, predictions, {"software": "benchmark"})
    seconds = {name: cumulative_seconds(profile, function) for name, function in STEPS.items()}
    total = cumulative_seconds(profile, predict.predict) + seconds["encoding and writing"]
    positions = encoding.shards[0].positions
    return {name: 1e6 * value / positions for name, value in {**seconds, REST: total - sum(seconds.values())}.items()}


@click.command()
@click.option("--tokens", default=40_000, show_default=True, help="About how many tokens are encoded.")
@click.option("--batch-tokens", default=4096, show_default=True, help="Tokens per forward pass.")
@click.option("--threads", default=1, show_default=True, help="Threads of torch.")
@DTYPE
@MODEL
@CORPUS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    tokens: int, batch_tokens: int, threads: int, dtype: str, model: Path | None, corpus: Path | None, as_json: bool
) -> None:
    """Measure what each step of a capture costs per position."""
    disable_progress_bar()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        config = make_encoding(Path(name), model, corpus, tokens, dtype=dtype, batch_tokens=batch_tokens)
        microseconds = measure(Job(config, {}, 0))
    if as_json:
        click.echo(json.dumps(microseconds))
        return
    total = sum(microseconds.values())
    for step, value in microseconds.items():
        click.echo(f"{step:48} {value:8.1f} us a position {value / total:6.1%}")
    click.echo(f"{f'all of it, k = {K}':48} {total:8.1f}")


if __name__ == "__main__":
    main()
