"""What a cache costs as its shards become many: ``python -m benchmarks.growth --shards 100 --shards 10000``.

Caches of 256 positions a shard are made on the disk (see ``growth_cache.py``), and each operation runs in a process of
its own, so that its memory is its own. The clock starts when its modules are imported. With ``--bucket-delay-ms``
the same folder is also served as a bucket on loopback whose requests take that long each, and are counted.

``commit``: seconds and processor seconds of one shard, mean of the last ``COMMITS`` of the cache; ``open``: cache,
encoding and teacher, and whether every shard of the training split is there; ``first batch``: that, and a batch of
eight sequences; ``inspect``: with the default sample; ``verify``: structure, not values; ``page``: what the viewer's
first page shows at once; ``token``: the predictions at one position, opened for it alone.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.bucket import CountingBucket
from benchmarks.folder_bucket import FolderBucket
from benchmarks.growth_cache import make_growth_cache, predictions
from benchmarks.peak import resident_bytes

COMMITS = 100
BATCH, WINDOW_SHARDS = 8, 4
SAMPLE_POSITIONS = 65_536


@dataclass(frozen=True)
class Growth:
    """One operation on one cache.

    Attributes:
        operation: Its name.
        place: ``disk`` or ``bucket``.
        shards: Shards of the cache.
        seconds: How long it took; of ``commit``, for one shard.
        processor_seconds: User and system time of its process alone.
        requests: Requests to the bucket; 0 on the disk.
        peak_bytes: Largest resident memory of its process, imports included.
        imports_bytes: The same after its imports.
    """

    operation: str
    place: str
    shards: int
    seconds: float
    processor_seconds: float
    requests: int
    peak_bytes: int
    imports_bytes: int


def commit(place: str, shards: int) -> Callable[[], object]:
    """Return a function that commits the last shards of a cache, which were not captured."""
    import numpy as np

    from cache_tools.store.reader import Cache
    from cache_tools.store.writer import commit_shard

    teacher = Cache(place).encoding().teacher()
    rows = predictions(np.random.default_rng(1))
    len(teacher.encoding.shards)  # reading the table belongs to opening

    def run() -> None:
        for shard in range(shards - COMMITS, shards):
            commit_shard(teacher, shard, rows, {"software": "benchmark", "device": "none", "seconds": 1.0})

    return run


def gather(place: str, shards: int) -> Callable[[], object]:
    """Return a function that gathers all receipts that are not gathered yet."""
    from cache_tools.store.gathered import gather_all
    from cache_tools.store.reader import Cache

    teacher = Cache(place).encoding().teacher()
    return lambda: gather_all(teacher.path, shards)


def open_teacher(place: str, _: int) -> Callable[[], object]:
    """Return a function that opens a teacher for training."""
    from cache_tools.store.reader import Cache

    def run() -> None:
        teacher = Cache(place).encoding().teacher()
        teacher.require_complete("train")

    return run


def first_batch(place: str, _: int) -> Callable[[], object]:
    """Return a function that opens a teacher and reads the first batch of a training."""
    from itertools import islice

    from cache_tools.store.reader import Cache
    from trainer.data.cached_sequences import CachedSequences, collate
    from trainer.data.sampler import ShardWindowSampler

    def run() -> None:
        teacher = Cache(place).encoding().teacher()
        data = CachedSequences(teacher, "train", teacher.manifest.vocabulary_size, WINDOW_SHARDS)
        sampler = ShardWindowSampler(data.shard_sizes, WINDOW_SHARDS, 0, BATCH)
        collate([data[index] for index in islice(sampler, BATCH)])

    return run


def inspect(place: str, _: int) -> Callable[[], object]:
    """Return a function that describes a cache as ``logitcask inspect`` does."""
    from cache_tools.inspection.summary import summarise
    from cache_tools.store.reader import Cache

    return lambda: summarise(Cache(place), SAMPLE_POSITIONS)


def verify(place: str, _: int) -> Callable[[], object]:
    """Return a function that checks structure and sizes."""
    from cache_tools.maintenance.verify import verify as check
    from cache_tools.storage import store_path

    def run() -> None:
        problems = check(store_path(place))
        assert not problems, problems[:3]

    return run


def page(place: str, _: int) -> Callable[[], object]:
    """Return a function that opens a cache for the viewer and describes it."""
    from cache_tools.storage import store_path
    from cache_tools.viewer.pages import OpenCache

    return lambda: OpenCache(store_path(place)).summary()


def token(place: str, shards: int) -> Callable[[], object]:
    """Return a function that opens a cache and reads the predictions at one position."""
    from cache_tools.store.reader import Cache

    def run() -> None:
        encoding = Cache(place).encoding()
        sequence = encoding.sequence(shards)
        encoding.teacher().targets(sequence.rows[0], sequence.rows[0] + 1)

    return run


OPERATIONS = {
    "commit": commit,
    "gather": gather,
    "open": open_teacher,
    "first batch": first_batch,
    "inspect": inspect,
    "verify": verify,
    "page": page,
    "token": token,
}


def run_alone(operation: str, place: str, shards: int, answer: Any) -> None:
    """Measure an operation in this process and send (seconds, processor seconds, peak, after imports)."""
    run = OPERATIONS[operation](place, shards)
    imported, began, used = resident_bytes("VmHWM"), time.perf_counter(), time.process_time()
    run()
    answer.send((time.perf_counter() - began, time.process_time() - used, resident_bytes("VmHWM"), imported))


def measure(operation: str, kind: str, place: str, shards: int, bucket: CountingBucket | None) -> Growth:
    """Run an operation in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    before = bucket.requests if bucket else 0
    process = context.Process(target=run_alone, args=(operation, place, shards, sender))
    process.start()
    sender.close()
    try:
        seconds, processor_seconds, peak, imported = answer.recv()
    except EOFError:
        raise click.ClickException(f"{operation} failed on {place}") from None
    process.join()
    each = COMMITS if operation == "commit" else 1
    requests = (bucket.requests - before) // each if bucket else 0
    return Growth(operation, kind, shards, seconds / each, processor_seconds / each, requests, peak, imported)


def measure_all(
    folder: Path, sizes: tuple[int, ...], operations: tuple[str, ...], bucket: CountingBucket | None
) -> list[Growth]:
    """Make the caches below ``folder``, unless they are there, and measure."""
    results = []
    for shards in sizes:
        cache = folder / "bench" / f"shards-{shards}"
        if not cache.exists():
            click.echo(f"making {shards:,} shards", err=True)
            make_growth_cache(cache, shards, shards - COMMITS)
            results.append(show(measure("commit", "disk", str(cache), shards, None)))
            results.append(show(measure("gather", "disk", str(cache), shards, None)))
        for operation in operations:
            results.append(show(measure(operation, "disk", str(cache), shards, None)))
            if bucket is not None:
                url = f"s3://bench/shards-{shards}"
                results.append(show(measure(operation, "bucket", url, shards, bucket)))
    return results


def show(result: Growth) -> Growth:
    """Print a row."""
    click.echo(
        f"{result.operation:12} {result.place:7} {result.shards:8,} {result.seconds:10.4f} s"
        f" {result.processor_seconds:10.4f} s CPU {result.requests:8,} requests"
        f" {result.peak_bytes / 1e6:7.0f} MB, {(result.peak_bytes - result.imports_bytes) / 1e6:6.0f} MB its own",
        err=True,
    )
    return result


def plot(results: list[Growth], path: Path) -> None:
    """Draw processor seconds on the disk, and requests to the bucket, against the number of shards."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    places = (("disk", "processor_seconds", "processor seconds, disk"), ("bucket", "requests", "requests, bucket"))
    for axis, (place, key, label) in zip(axes, places, strict=True):
        for number, operation in enumerate(OPERATIONS):
            own = [result for result in results if (result.operation, result.place) == (operation, place)]
            points = sorted((result.shards, getattr(result, key)) for result in own)
            if points and operation != "gather":
                axis.loglog(*zip(*points, strict=True), marker="o", color=f"C{number}", label=operation)
        axis.set(xlabel="shards", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


@click.command()
@click.option(
    "--shards", "sizes", type=click.IntRange(COMMITS), multiple=True, help="Number of shards; default: 100 and 1,000."
)
@click.option(
    "--operation", "operations", type=click.Choice(list(OPERATIONS)), multiple=True, help="Measure only these."
)
@click.option("--bucket-delay-ms", type=float, help="Also measure a bucket whose requests take this long.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where caches lie, and stay; by default a temporary one."
)
@click.option("--read", "read", type=click.Path(path_type=Path), multiple=True, help="Add what --json printed before.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the results.")
@click.option("--json", "as_json", is_flag=True, help="Print one list of objects.")
def main(
    sizes: tuple[int, ...],
    operations: tuple[str, ...],
    bucket_delay_ms: float | None,
    folder: Path | None,
    read: tuple[Path, ...],
    picture: Path | None,
    as_json: bool,
) -> None:
    """Measure what caches of so many shards cost."""
    sizes = sizes or (() if read else (100, 1000))
    own = None if folder else tempfile.mkdtemp()
    root = Path(folder or own or "")
    try:
        (root / "bench").mkdir(parents=True, exist_ok=True)
        bucket = None
        if bucket_delay_ms is not None:
            bucket = CountingBucket(bucket_delay_ms / 1000, FolderBucket(root))
        selected_operations = operations or tuple(name for name in OPERATIONS if name not in ("commit", "gather"))
        results = [Growth(**row) for path in read for row in json.loads(path.read_text())]
        results += measure_all(root, sizes, selected_operations, bucket)
    finally:
        if own:
            shutil.rmtree(own)
    if picture:
        plot(results, picture)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
