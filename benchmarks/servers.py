"""A server beside transformers, as teachers of one cache: CPU seconds on both sides, bytes on the wire, agreement.

One corpus is encoded and captured by transformers in this process, and by the server once for each k. CPU seconds are
those of this process and, separately, of the server's processes on this machine, because a wall clock says little where
other work runs. With the Python of an environment with vLLM, the hidden states of its engine are a further teacher, of
the same model. Every teacher is compared with transformers at every position, and the rows of the largest k are audited
by transformers. ``docs/how-to/servers.md`` says how to start a server.

Example: python -m benchmarks.servers --url http://127.0.0.1:8000/v1 --served-model NAME --model MODEL --corpus CORPUS
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils.logging import disable_progress_bar

from cache_tools.comparison.pair import compare
from cache_tools.maintenance.verify import verify
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from pipeline.audit.run import run_audit
from pipeline.capture.declare import declare
from pipeline.capture.shards import capture_shards
from pipeline.capture.target import resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.encoding.encode import encode
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.engines.engine_body import EngineBody
from pipeline.engines.opening import open_teacher
from pipeline.engines.server_rows import ServerRows
from pipeline.teachers.teacher import AnyTeacher, RowTeacher, Teacher

HERE = "transformers"


@dataclass(frozen=True)
class Capture:
    """What capturing with one teacher took.

    Attributes:
        teacher: Its name.
        tokens_per_cpu_second: Tokens by the CPU seconds of both sides, until everything was written.
        own_cpu_seconds: CPU seconds of this process.
        server_cpu_seconds: CPU seconds of the server's or the engine's processes.
        seconds: Seconds by the clock.
        wire_bytes_per_position: Bytes that the server sent for each position; 0 for others.
        stored_bytes_per_position: Bytes in the cache for each position.
        kl_nats: KL from transformers' rows to these, over all positions; None for transformers itself.
        same_top1: Share of positions with the same likeliest token.
    """

    teacher: str
    tokens_per_cpu_second: float
    own_cpu_seconds: float
    server_cpu_seconds: float
    seconds: float
    wire_bytes_per_position: float
    stored_bytes_per_position: float
    kl_nats: float | None
    same_top1: float | None


def tree_cpu_seconds(root: int | None) -> float:
    """Return the CPU seconds of a process and of all that it has started and not yet seen the end of."""
    if root is None:
        return 0.0
    ticks, parents = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(folder.name)], ticks[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    inside = {root}
    while more := {process for process, parent in parents.items() if parent in inside} - inside:
        inside |= more
    return sum(ticks.get(process, 0) for process in inside) / os.sysconf("SC_CLK_TCK")


def served_by(teacher: AnyTeacher, server_pid: int | None) -> int | None:
    """Return the process whose CPU seconds count besides this one's."""
    if isinstance(teacher, Teacher):
        return teacher.body.process.pid if isinstance(teacher.body, EngineBody) else None
    return server_pid


def received_bytes(teacher: AnyTeacher) -> int:
    """Return what a server has sent so far."""
    is_server = isinstance(teacher, RowTeacher) and isinstance(teacher.rows, ServerRows)
    return teacher.rows.client.received_bytes if is_server else 0  # type: ignore[union-attr]


def capture(config: CaptureConfig, block: TeacherConfig, server_pid: int | None) -> Capture:
    """Capture the whole encoding with one teacher, and compare it with transformers' capture."""
    encoding = Cache(config.cache).encoding()
    resolved = resolve_teacher(block)
    teacher = open_teacher(block, resolved.folder, "causal", config.encoding.max_length_tokens)
    cached = declare(encoding, teacher, block, resolved.target, config.encoding.chunk_positions)
    process, shards = served_by(teacher, server_pid), list(range(len(encoding.shards)))
    before = time.process_time(), tree_cpu_seconds(process), time.monotonic(), received_bytes(teacher)
    capture_shards(cached, shards, teacher, resolved.target.keep, block.batch_tokens)
    after = time.process_time(), tree_cpu_seconds(process), time.monotonic(), received_bytes(teacher)
    own, server, seconds, received = (end - start for start, end in zip(before, after, strict=True))
    positions = sum(entry.positions for entry in encoding.shards)
    receipts = [receipt for shard in shards if (receipt := cached.receipt(shard))]
    stored = sum(part.bytes for receipt in receipts for part in receipt.objects.values())
    difference = None
    if block.name != HERE:
        difference = compare(encoding.teacher(HERE), encoding.teacher(block.name), shards=None, seed=0, worst=0).all
    return Capture(
        teacher=f"{block.name}, {teacher.software}",
        tokens_per_cpu_second=sum(entry.tokens for entry in encoding.shards) / (own + server),
        own_cpu_seconds=own,
        server_cpu_seconds=server,
        seconds=seconds,
        wire_bytes_per_position=received / positions,
        stored_bytes_per_position=stored / positions,
        kl_nats=None if difference is None else difference.kl_ab_nats,
        same_top1=None if difference is None else difference.same_top1,
    )


def configuration(folder: Path, corpus: Path, documents: int, teachers: list[dict[str, Any]]) -> CaptureConfig:
    """Return a capture file over the first documents of a corpus."""
    with corpus.open() as lines:
        (folder / "corpus.jsonl").write_text("".join(islice(lines, documents)))
    return CaptureConfig.model_validate(
        {
            "cache": str(folder / "cache"),
            "corpus": {"paths": [str(folder / "corpus.jsonl")], "held_out_fraction": 0},
            "encoding": {"max_length_tokens": 512, "positions_per_shard": 8192},
            "teachers": teachers,
        }
    )


@click.command()
@click.option("--url", required=True, help="Address of the server.")
@click.option("--request", "request_kind", default="prompt_logprobs", show_default=True, help="How rows are asked for.")
@click.option("--served-model", required=True, help="Name of the model at the server.")
@click.option("--server-pid", type=int, help="First process of the server, if it runs on this machine.")
@click.option("--engine-python", help="Python of an environment with vLLM, for the states of its engine as well.")
@click.option("--engine-options", default="{}", help="Options of that engine as JSON.")
@click.option("--model", required=True, type=click.Path(exists=True, file_okay=False), help="Model folder.")
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path), help="A .jsonl file.")
@click.option("--documents", default=10, show_default=True, help="Documents to read.")
@click.option("--k", "ks", default="1,16,64", show_default=True, help="Values of k, the largest last.")
@click.option("--in-flight", default=8, show_default=True, help="Requests at a time.")
def main(
    url: str,
    request_kind: str,
    served_model: str,
    server_pid: int | None,
    engine_python: str | None,
    engine_options: str,
    model: str,
    corpus: Path,
    documents: int,
    ks: str,
    in_flight: int,
) -> None:
    """Capture a corpus several times and compare; prints one JSON object a line."""
    disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    block: dict[str, Any] = {"model": model, "dtype": "bfloat16"}
    server: dict[str, Any] = {"kind": "server", "url": url, "request": request_kind, "served_model": served_model}
    server["requests_in_flight"] = in_flight
    k_values = [int(k) for k in ks.split(",")]
    teachers: list[dict[str, Any]] = [block | {"name": HERE, "target": {"k": k_values[-1]}, "batch_tokens": 4096}]
    if engine_python:
        engine = {"kind": "vllm", "python": engine_python, "options": json.loads(engine_options)}
        teachers.append(teachers[0] | {"name": "engine", "engine": engine})
    teachers += [block | {"name": f"server-{k}", "target": {"k": k}, "engine": server} for k in k_values]
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), corpus, documents, teachers)
        create_cache(config.cache)
        encode(config.cache, Recipe(config.corpus, config.encoding, load_tokenizer(Path(model))))
        for teacher in config.teachers:
            click.echo(json.dumps(asdict(capture(config, teacher, server_pid))))
        asked = config.teachers[-1].model_copy(update={"engine": None})
        report = run_audit(config.model_copy(update={"teachers": (asked,)}), None, Reporter()).teachers[0]
        checks = {check.name: {"found": check.value, "limit": check.limit} for check in report.checks}
        tokens = sum(entry.tokens for entry in Cache(config.cache).encoding().shards)
        problems = len(verify(config.cache, deep=True))
        click.echo(json.dumps({"tokens": tokens, "problems": problems, "passed": report.passed, "checks": checks}))


if __name__ == "__main__":
    main()
