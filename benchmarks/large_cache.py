"""A cache of millions of positions, made by repeating a small one: ``python -m benchmarks.large_cache CACHE TARGET``.

The cost of inspecting a cache depends on its size and not on its content, so no teacher runs: each copy
becomes a part of the encoding, as if the same documents had been appended under other ids. A shard's sequences
are numbered anew, and the teachers' objects are the source's, byte for byte, under the new shard's keys. The
result is a real cache with an identity of its own that ``verify --deep`` accepts.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cache_tools.format import layout
from cache_tools.format.manifest import TeacherManifest, write_group, write_manifest
from cache_tools.format.receipts import write_receipt
from cache_tools.format.sequences import Sequence, read_recorded
from cache_tools.format.shards import read_file_tables, write_part, write_shard
from cache_tools.storage import StorePath, write_objects
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import declare_teacher


def repeat_cache(source: Cache, target: StorePath, copies: int) -> None:
    """Write a new cache with every document of a complete cache so many times."""
    create_cache(target)
    for name in source.encodings:
        encoding, folder = source.encoding(name), layout.encoding_folder(target, name)
        write_encoding(encoding, folder, copies)
        repeated = Encoding(folder, name)
        for teacher in map(encoding.teacher, encoding.teachers):
            write_teacher(teacher, repeated, copies)


def write_encoding(source: Encoding, folder: StorePath, copies: int) -> None:
    """Write the sequences of every copy as a part, then the manifest."""
    files, manifest = read_file_tables(source.path, source.manifest.parts), source.manifest
    records = manifest.files.items()
    write_objects(folder, {key: read_recorded(source.path / key, r.sha256, r.bytes) for key, r in records})
    parts = []
    for copy in range(copies):
        entries = []
        for shard, entry in enumerate(source.shards):
            number = copy * len(source.shards) + shard
            sequences = [moved(source, sequence, copy) for sequence in source.sequences(shard)]
            entries.append(write_shard(folder, number, entry.split, entry.documents, sequences))
        parts.append(write_part(folder, copy, {f"copy-{copy}/{file}": sha for file, sha in files.items()}, entries))
    identity = manifest.identity | {"repeated": {"of": manifest.contents_fingerprint, "copies": copies}}
    write_group(folder / "teachers")
    write_manifest(folder, manifest.model_copy(update={"identity": identity, "parts": tuple(parts)}))


def moved(source: Encoding, sequence: Sequence, copy: int) -> Sequence:
    """Return a sequence as it stands in a copy: with ids of its own, behind the rows of the copies before."""
    return replace(
        sequence,
        sequence_id=sequence.sequence_id + copy * sum(entry.sequences for entry in source.shards),
        document_id=f"{sequence.document_id}#{copy}",
        group_id=f"{sequence.group_id}#{copy}",
        first_position=sequence.first_position + copy * len(source.shards) * source.manifest.positions_per_shard,
    )


def write_teacher(source: CachedTeacher, encoding: Encoding, copies: int) -> None:
    """Declare a teacher of the repeated encoding and commit its shards, objects first."""
    stated: dict[str, Any] = source.manifest.model_dump(mode="json")
    stated["identity"] |= {"encoding": encoding.manifest.fingerprint}
    manifest = TeacherManifest.model_validate(stated)
    teacher = declare_teacher(encoding, source.name, manifest, {key: source.file(key) for key in manifest.files})
    shards = len(source.encoding.shards)
    for number in range(copies * shards):
        receipt = source.receipt(number % shards)
        if receipt is None:
            continue
        keys = {key: key_of_shard(key, number) for key in receipt.objects}
        write_objects(
            teacher.path,
            {keys[key]: read_recorded(source.path / key, r.sha256, r.bytes) for key, r in receipt.objects.items()},
        )
        changes = {
            "shard": number,
            "teacher_fingerprint": manifest.fingerprint,
            "sequences_sha256": encoding.shards[number].sha256,
            "objects": {keys[key]: record for key, record in receipt.objects.items()},
        }
        write_receipt(teacher.path, receipt.model_copy(update=changes))


def key_of_shard(key: str, shard: int) -> str:
    """Return an object's key with another shard's number: ``ids/c/3/0`` becomes ``ids/c/14/0``."""
    array, _, rest = key.rpartition("/c/")
    return layout.shard_key(array, shard, rest.count("/") + 1)


@click.command()
@click.argument("cache")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--copies", type=click.IntRange(1), default=8, show_default=True, help="How often to repeat it.")
def main(cache: str, target: Path, copies: int) -> None:
    """Write CACHE's documents and predictions into TARGET, a new place, several times over."""
    if target.exists():
        raise click.UsageError(f"{target} exists")
    repeat_cache(Cache(cache), target, copies)


if __name__ == "__main__":
    main()
