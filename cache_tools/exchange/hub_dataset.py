"""A teacher's predictions as a dataset of the library ``datasets``, read from the cache when rows are asked for.

::

    from cache_tools.exchange.hub_dataset import to_dataset
    from cache_tools.store.reader import Cache

    dataset = to_dataset(Cache("runs/demo/cache").encoding().teacher(), "train")
    row = next(iter(dataset))  # input_ids, positions, token_ids, logprobs, left_out, document_id, scalars

A row is a sequence, with the columns that ``logitcask export --format rows`` writes. The streaming dataset writes
nothing and is split by shard for workers and ranks; memory is one shard. The other one is written by ``datasets`` into
its own folder once, as Arrow. This is the only module of the store that imports ``datasets``, when it is called.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cache_tools.exchange.exporting import export_format, shard_rows, with_split
from cache_tools.format.manifest import Split
from cache_tools.mappings import JsonObject
from cache_tools.row_files.writing import table_of
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher


def to_dataset(teacher: CachedTeacher, split: Split, streaming: bool = True) -> Any:
    """Return a split of a teacher as a dataset.

    Args:
        teacher: The teacher.
        split: ``train`` or ``held_out``.
        streaming: Return an ``IterableDataset`` that reads the cache as it goes; else a ``Dataset`` with random access.

    Returns:
        A dataset whose features are those of the exported Parquet files.

    Raises:
        IncompleteError: a shard has not been captured.
        ValueError: the split is empty.
    """
    import datasets

    shards = teacher.encoding.split_shards(split)
    if not shards:
        raise ValueError(f"the split {split!r} of {teacher.encoding.path} has no sequences")
    teacher.require_shards(shards)
    schema = _shard_table(teacher, shards[0], split).schema
    features = datasets.Features.from_arrow_schema(schema)
    place = (str(teacher.encoding.path.parent.parent), teacher.encoding.name, teacher.name)
    arguments = {"shards": shards, "place": place, "split": split}
    if streaming:
        return datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs=arguments)
    arguments["fingerprint"] = teacher.manifest.fingerprint  # so that datasets makes another copy for another teacher
    arguments["sequences"] = teacher.encoding.manifest.contents_fingerprint
    return datasets.Dataset.from_generator(_rows, features=features, gen_kwargs=arguments, split=split)


def _rows(shards: list[int], place: tuple[str, str, str], split: Split, **_: str) -> Iterator[JsonObject]:
    """Yield the rows of some shards, for ``datasets``, which may call this in other processes."""
    cache, encoding, name = place
    teacher = Cache(cache).encoding(encoding).teacher(name)
    for shard in shards:
        table = _shard_table(teacher, shard, split)
        for row in range(table.num_rows):
            yield table.slice(row, 1).to_pylist()[0]


def _shard_table(teacher: CachedTeacher, shard: int, split: Split) -> pa.Table:
    return table_of(shard_rows(teacher, shard), with_split(export_format(teacher, "rows"), teacher, split))
