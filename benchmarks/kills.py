"""Kill the workers of a capture 100 times and compare the result: ``python -m benchmarks.kills``.

Two workers share a small capture, and one of them is killed by SIGKILL at random moments. A
finished capture must pass ``verify --deep`` and equal, byte for byte, an uninterrupted
one (of receipts all but when and where they were written); then the next begins, until
there were enough kills. ``local``: processes with ``--rank 0`` and ``1``, which the benchmark starts
again. They are forked from one that has imported torch, and the clock of a kill runs only while some
worker reads shards (its victim may be another), so half of the kills and more strike at work and not
at start-up. ``ray``: actors, which Ray starts again if there is work left for them.

``--engine`` lets each worker read with an engine in a process of its own, the tests' stand-in for vLLM, and every
second kill strikes that process instead of its worker. A worker whose engine dies ends with an error and is started
again; an engine whose worker dies must end by itself.

``--gathered-shards`` lets so few receipts lie in one file of gathered receipts (instead of 1,024) that workers
gather all the time and are killed while they do; ``verify --deep`` then also compares every copy with its receipt.

Printed: kills, how many of them hit a worker that was reading a shard (the shard is redone), restarts,
captures, shards committed, whether all results are equal, and engines that outlived their workers. Exits 1 if a result
differs or an engine is left.
"""

import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cache_tools.errors import ModelError
from cache_tools.maintenance.verify import verify
from cache_tools.progress.reporter import Reporter
from cache_tools.store import gathered
from pipeline.config.capture_file import CaptureConfig
from pipeline.run import Worker, run_capture

WORKERS, SHARD_POSITIONS = 2, 256
DOCUMENTS = {"local": 400, "ray": 3000}
"""On Ray a worker takes so long to start that a small capture is over before many can be killed."""
PAUSE_SECONDS = {"local": 0.5, "ray": 4.0}
"""Mean time from a worker that reads shards to a kill; on Ray each kill is followed by an import of torch."""

ENGINE_SHARE = 0.5
"""Share of the kills that strike an engine, where workers have one."""

END_SECONDS = 20
"""How long an engine may take to end after its worker."""

PROCESSES = multiprocessing.get_context("forkserver")


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    in_a_shard: int = 0
    restarts: int = 0
    captures: int = 0
    shards: int = 0
    gathered_files: int = 0
    equal: bool = True
    engine_kills: int = 0
    engines_left: int = 0


class Marker(Reporter):
    """A worker's reporter, which leaves a file when the worker begins to read shards."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stage(self, name: str, *_: Any, **__: Any) -> None:
        """Leave it when a teacher begins."""
        if name.startswith("teacher"):
            self._path.touch()


def engine_python(folder: Path) -> Path:
    """Return a Python whose environment has the tests' stand-in for vLLM."""
    path, packages = folder / "engine-python", Path(__file__).resolve().parents[1] / "tests/support/fake_engine"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def make_config(folder: Path, cache: str, documents: int, engine: bool = False) -> CaptureConfig:
    """Make a tiny random teacher and a corpus in a folder, unless they are there, and describe their capture."""
    words = [f"{stem}{ending}" for stem in ("shard", "token", "mass", "row") for ending in ("s", "ing", "ed", "")]
    texts = [" ".join(random.Random(i).choices(words, k=60)) for i in range(documents)]
    if not (folder / "teacher").exists():
        (folder / "corpus.jsonl").write_text(
            "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
        )
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
            ),
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
        tokenizer.save_pretrained(folder / "teacher")
        shape: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "teacher")
    teacher: dict[str, Any] = {"name": "toy", "model": str(folder / "teacher"), "dtype": "float32", "device": "cpu"}
    if engine:
        teacher["engine"] = {"kind": "vllm", "python": str(engine_python(folder))}
    sizes = {"max_length_tokens": 64, "positions_per_shard": SHARD_POSITIONS, "chunk_positions": SHARD_POSITIONS}
    return CaptureConfig.model_validate(
        {
            "cache": str(folder / cache),
            "corpus": {"paths": [str(folder / "corpus.jsonl")]},
            "encoding": sizes,
            "teachers": [teacher | {"target": {"k": 16}, "hidden": {"layers": ["last"]}, "batch_tokens": 64}],
        }
    )


def contents(cache: Path) -> dict[str, bytes]:
    """Return every file of a cache but the gathered receipts; of receipts all but when and where they were written."""
    files = (path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".partial"))
    files = (path for path in files if path.parent.name != "gathered")
    return {str(path.relative_to(cache)): path.read_bytes().split(b'"provenance"')[0] for path in files}


def gather_often(shards: int) -> None:
    """Let a file of gathered receipts hold so few, in this process."""
    gathered.GATHERED_SHARDS, gathered.FEWEST_SHARDS = shards, min(shards, gathered.FEWEST_SHARDS)


def work(config: CaptureConfig, rank: int, marker: Path, gathered_shards: int) -> None:
    """Be one worker."""
    gather_often(gathered_shards)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        run_capture(config, Worker(rank, WORKERS), Marker(marker))
    except ModelError as error:  # its engine was killed
        raise SystemExit(1) from error


def capture_with_processes(config: CaptureConfig, tally: Tally, num_kills: int, pauses: Iterator[float]) -> None:
    """Capture with one process per rank; kill one after each pause and start it again."""
    markers = [Path(f"{config.cache}.{rank}") for rank in range(WORKERS)]

    def start(rank: int) -> Any:
        markers[rank].unlink(missing_ok=True)
        process = PROCESSES.Process(target=work, args=(config, rank, markers[rank], gathered.GATHERED_SHARDS))
        process.start()
        return process

    engines: set[Any] = set()
    workers, next_kill = [start(rank) for rank in range(WORKERS)], None
    while any(worker.exitcode != 0 for worker in workers):
        time.sleep(0.01)
        running = [rank for rank, worker in enumerate(workers) if worker.is_alive()]
        if next_kill is None and any(markers[rank].exists() for rank in running):
            next_kill = time.monotonic() + next(pauses)
        if tally.kills < num_kills and running and next_kill and time.monotonic() > next_kill:
            rank, next_kill = random.choice(running), None
            engines.update(own := engines_of(workers[rank].pid))
            if own and random.random() < ENGINE_SHARE:
                own[-1].kill()
                tally.engine_kills += 1
            else:
                workers[rank].kill()
            workers[rank].join()
            if workers[rank].exitcode:  # or it had just finished
                tally.kills, tally.in_a_shard = tally.kills + 1, tally.in_a_shard + markers[rank].exists()
        for rank, worker in enumerate(workers):
            if worker.exitcode not in (None, 0):
                workers[rank], tally.restarts = start(rank), tally.restarts + 1
    tally.engines_left += len(psutil.wait_procs(engines, END_SECONDS)[1])


def engines_of(worker: int) -> list[Any]:
    """Return the processes that a worker has started: its engine, or none."""
    with suppress(psutil.NoSuchProcess):
        return list(psutil.Process(worker).children())
    return []


def capture_with_actors(config: CaptureConfig, tally: Tally, num_kills: int, pauses: Iterator[float]) -> None:
    """Capture on Ray; kill an actor after each pause."""
    from pipeline.ray_executor import run_capture_on_ray

    finished = threading.Event()

    def actors() -> dict[Any, str]:
        titles = {}
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                titles[process] = process.name()
        return {process: title for process, title in titles.items() if title.startswith("ray::ShardReader")}

    def kill() -> None:
        while tally.kills < num_kills:
            while not any(title.endswith("capture") for title in actors().values()):
                if finished.wait(0.01):
                    return
            if finished.wait(next(pauses)):
                return
            alive = list(actors().items())
            if alive:
                actor, title = random.choice(alive)
                actor.kill()
                tally.kills, tally.restarts = tally.kills + 1, tally.restarts + 1
                tally.in_a_shard += title.endswith("capture")

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_capture_on_ray(config, "local", WORKERS, Marker(Path(f"{config.cache}.driver")))
    finally:
        finished.set()
        killer.join()


def connect() -> None:
    """Start a Ray on this machine that serves all captures."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


@click.command()
@click.option(
    "--kills", type=click.IntRange(1), default=100, show_default=True, help="Number of kills, over all captures."
)
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--engine", is_flag=True, help="Let an engine read in a process of its own, and kill that too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random times and victims.")
@click.option(
    "--gathered-shards", type=click.IntRange(2), default=1024, show_default=True, help="Receipts that lie in one file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(kills: int, executor: str, engine: bool, seed: int, gathered_shards: int, as_json: bool) -> None:
    """Kill the workers of a capture at random, until it finishes."""
    if engine and executor == "ray":
        raise click.UsageError("--engine needs --executor local.")
    random.seed(seed)
    if executor == "local":  # actors have the real number
        gather_often(gathered_shards)
    PROCESSES.set_forkserver_preload(["pipeline.run", "transformers.models.llama.modeling_llama"])
    captures: dict[str, Callable[..., None]] = {"local": capture_with_processes, "ray": capture_with_actors}
    moments, tally = random.Random(seed), Tally()
    pauses = iter(lambda: moments.uniform(0, 2 * PAUSE_SECONDS[executor]), None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        straight = make_config(folder, "straight", DOCUMENTS[executor], engine)
        run_capture(straight, Worker(), Marker(folder / "marker"))
        if executor == "ray":
            connect()
        while tally.kills < kills:
            config = make_config(folder, f"cache{tally.captures}", DOCUMENTS[executor], engine)
            captures[executor](config, tally, kills, pauses)
            tally.captures += 1
            tally.shards += sum("receipts" in key for key in contents(config.cache))
            tally.gathered_files += len(list(config.cache.rglob("gathered/*.arrow")))
            tally.equal &= contents(config.cache) == contents(straight.cache) and not verify(config.cache, deep=True)
            click.echo(f"capture {tally.captures}: {tally.kills} of {kills} kills, equal: {tally.equal}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(tally)))
    else:
        for title, value in asdict(tally).items():
            click.echo(f"{title.replace('_', ' '):12} {value}")
    raise SystemExit(not tally.equal or tally.engines_left > 0)


if __name__ == "__main__":
    main()
