"""A smaller cache from a larger one, without a teacher: fewer teachers, documents or entries per row.

Each source shard becomes at most one shard, so rows are taken as stored integers and nothing
is quantised again, but for the left-out mass when entries are dropped. Errors that were
measured over all rows of a shard are not claimed for a choice of them: such statistics are left out.
A subset is a cache of its own, with identities that say what it was taken from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import narrow
from cache_tools.codecs.rows import Targets
from cache_tools.errors import ConfigError, IdentityError
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import (
    EncodingManifest,
    Split,
    TeacherManifest,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.format.receipts import TARGETS, Receipt
from cache_tools.format.sequences import Sequence, read_recorded
from cache_tools.format.shards import ShardEntry, read_file_tables, write_part, write_shard
from cache_tools.mappings import Identity
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.separate_places import require_apart
from cache_tools.storage import StorePath, object_exists, write_objects
from cache_tools.store.gathered import gather_all
from cache_tools.store.predictions import MEAN_SCALARS, Group, from_steps, hidden_array
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.stored_rows import StoredTargets
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import commit_groups, declare_teacher, remove_leftovers


@dataclass(frozen=True)
class Choice:
    """What a subset keeps.

    Attributes:
        teachers: Names of teachers; None for all.
        documents: Document ids; None for all.
        split: A split; None for both.
        k: Entries per row; None for all of them.
    """

    teachers: tuple[str, ...] | None = None
    documents: frozenset[str] | None = None
    split: Split | None = None
    k: int | None = None


@dataclass(frozen=True)
class _Kept:
    """Rows of one source shard that become one shard of the subset."""

    shard: int
    rows: NDArray[np.int64]
    whole: bool


def subset_cache(source: Cache, target: StorePath, choice: Choice, progress: Advance = ignore) -> None:
    """Write a subset of a cache, or continue a subset that was stopped.

    Args:
        source: The cache to read.
        target: A new place, or an unfinished subset by the same choice.
        choice: What to keep.
        progress: Called after each shard of each teacher.

    Raises:
        ConfigError: the target is the source, or one lies inside the other; nothing matches the choice; or rows cannot
            be narrowed to ``k`` entries.
        IdentityError: the target holds another encoding or the subset of another choice.
        IncompleteError: a shard has not been captured.
    """
    require_apart(target, source.path)
    for encoding in map(source.encoding, source.encodings):
        for teacher in _teachers(encoding, choice):
            _check_k(teacher, choice.k)
    create_cache(target)
    for name in source.encodings:
        encoding = source.encoding(name)
        folder = layout.encoding_folder(target, name)
        kept = _write_sequences(encoding, folder, choice)
        subset = Encoding(folder, name)
        for teacher in _teachers(encoding, choice):
            _write_teacher(teacher, subset, kept, choice.k, progress)


def _teachers(encoding: Encoding, choice: Choice) -> list[CachedTeacher]:
    names = choice.teachers if choice.teachers is not None else encoding.teachers
    return [encoding.teacher(name) for name in names]


def _check_k(teacher: CachedTeacher, k: int | None) -> None:
    """Refuse, before anything is written, to remove entries from rows of which only all entries have a meaning."""
    if k is not None and k < teacher.codec.k and not _can_narrow(teacher):
        raise ConfigError(
            f"rows of teacher {teacher.name!r} cannot be narrowed",
            where=teacher.path,
            found=f"{teacher.manifest.target.kind} targets, whose rows are only valid with all their entries",
            fix="Leave out --k, or choose other teachers with --teacher",
        )


def _can_narrow(teacher: CachedTeacher) -> bool:
    """Say whether a row stays valid when entries are removed; a row of draws does not."""
    return not teacher.manifest.target.kind.is_drawn and teacher.codec.can_narrow


def _write_sequences(source: Encoding, folder: StorePath, choice: Choice) -> list[_Kept]:
    """Write the chosen sequences as an encoding of one part; return where its rows come from."""
    size, entries = source.manifest.positions_per_shard, list[ShardEntry]()
    kept: list[_Kept] = []
    first_sequence, unseen, begun = 0, set(choice.documents or ()), set[str]()
    exists = object_exists(folder / layout.MANIFEST)
    for shard, entry in enumerate(source.shards):
        if choice.split not in (None, entry.split):
            continue
        sequences = source.sequences(shard)
        selected = [s for s in sequences if choice.documents is None or s.document_id in choice.documents]
        unseen -= {sequence.document_id for sequence in selected}
        if not selected:
            continue
        rows = np.concatenate([np.arange(*s.rows) for s in selected]) - shard * size
        moved = list(_renumbered(selected, first_sequence, len(kept) * size))
        if not exists:
            entries.append(_entry(folder, len(kept), moved, entry, begun))
        first_sequence += len(selected)
        kept.append(_Kept(shard, rows, len(selected) == len(sequences)))
    if unseen or not kept:
        missing = f"no document {sorted(unseen)[0]!r}" if unseen else "no shard of this split"
        raise ConfigError(f"the cache has {missing}", where=source.path, found=f"{len(unseen)} unknown documents")
    identity = source.manifest.identity | {"subset": _described(source, choice)}
    if exists:
        _check_same(folder, identity)
    else:
        _commit(source, folder, identity, entries)
    return kept


def _described(source: Encoding, choice: Choice) -> dict[str, str | None]:
    documents = None if choice.documents is None else fingerprint({"documents": sorted(choice.documents)})
    return {"of": source.manifest.contents_fingerprint, "documents": documents, "split": choice.split}


def _renumbered(sequences: list[Sequence], first_sequence: int, row: int) -> Iterator[Sequence]:
    for number, sequence in enumerate(sequences, first_sequence):
        yield replace(sequence, sequence_id=number, first_position=row)
        row += sequence.num_positions


def _entry(folder: StorePath, shard: int, sequences: list[Sequence], source: ShardEntry, begun: set[str]) -> ShardEntry:
    """Write one shard's sequences; ``begun`` are the documents of earlier shards, which these join."""
    documents = {sequence.document_id for sequence in sequences} - begun
    begun |= documents
    return write_shard(folder, shard, source.split, len(documents), sequences)


def _commit(source: Encoding, folder: StorePath, identity: Identity, entries: list[ShardEntry]) -> None:
    files = source.manifest.files
    write_objects(folder, {key: read_recorded(source.path / key, r.sha256, r.bytes) for key, r in files.items()})
    written_by = tuple(entry for part in source.manifest.parts for entry in part.written_by)
    tables = read_file_tables(source.path, source.manifest.parts)
    part = write_part(folder, 0, tables, entries, written_by=written_by)
    write_group(folder / "teachers")
    write_manifest(folder, source.manifest.model_copy(update={"identity": identity, "parts": (part,)}))


def _check_same(folder: StorePath, identity: Identity) -> None:
    stored = read_manifest(folder, EncodingManifest)
    if stored.identity != identity:
        raise IdentityError(
            "the target holds another encoding or another choice",
            where=folder,
            expected=f"{fingerprint(identity)[:12]}…",
            found=f"{stored.fingerprint[:12]}…",
            fix="Choose another target",
        )


def _write_teacher(
    source: CachedTeacher, encoding: Encoding, kept: list[_Kept], k: int | None, progress: Advance
) -> None:
    source.require_shards([source_rows.shard for source_rows in kept])
    manifest = _manifest(source, encoding, k)
    teacher = declare_teacher(encoding, source.name, manifest, {key: source.file(key) for key in manifest.files})
    remove_leftovers(teacher, range(len(kept)))
    for shard, source_rows in enumerate(kept):
        if teacher.receipt(shard) is None:
            receipt = source.receipt(source_rows.shard)
            assert receipt is not None
            provenance = {"subset_of": source.manifest.fingerprint, "shard": source_rows.shard}
            commit_groups(teacher, shard, _groups(source, receipt, source_rows, k).items(), provenance)
        progress(1)
    gather_all(teacher.path, len(encoding.shards))


def _manifest(source: CachedTeacher, encoding: Encoding, k: int | None) -> TeacherManifest:
    """Return the source's manifest with another encoding and, if asked, a smaller k."""
    stated = source.manifest.model_dump(mode="json")
    identity = stated["identity"] | {"encoding": encoding.manifest.fingerprint}
    if k is not None and k < source.codec.k:
        stated["target"] |= {"k": k}
        identity |= {"target": stated["target"], "narrowed_from": source.manifest.fingerprint}
    return TeacherManifest.model_validate(stated | {"identity": identity})


def _groups(source: CachedTeacher, receipt: Receipt, kept: _Kept, k: int | None) -> dict[str, Group]:
    """Return the groups of arrays of one shard of the subset, as stored integers."""
    groups = {TARGETS: _target_group(source, receipt, kept, k)}
    stop = source.encoding.shards[kept.shard].positions
    for name in map(hidden_array, source.manifest.hidden):
        if name in receipt.groups:
            states = source.stored_rows([name], kept.shard, 0, stop)[name][kept.rows]
            groups[name] = Group({name: states}, receipt.groups[name], {})
    return groups


def _target_group(source: CachedTeacher, receipt: Receipt, kept: _Kept, k: int | None) -> Group:
    """Return targets and scalars; a shard that is kept as it is keeps its receipt's statistics."""
    stop = source.encoding.shards[kept.shard].positions
    stored = source.stored_targets(kept.shard, 0, stop)
    arrays = {name: values[kept.rows] for name, values in stored.arrays.items()}
    codec, parameters = stored.codec, stored.parameters
    narrowed = k is not None and k < source.codec.k
    if narrowed:
        assert k is not None
        codec, arrays, parameters = narrow(stored.codec, arrays, parameters, k)
    names = list(source.manifest.scalars)
    all_scalars = source.stored_rows(names, kept.shard, 0, stop) if names else {}
    scalars = {name: values[kept.rows] for name, values in all_scalars.items()}
    if kept.whole and not narrowed and receipt.statistics:
        return Group(arrays | scalars, parameters, receipt.statistics)
    targets = StoredTargets(codec, parameters, arrays).decode(0, len(kept.rows))
    return Group(arrays | scalars, parameters, _means(targets, scalars, source.manifest.scalar_step_nats))


def _means(targets: Targets, scalars: dict[str, NDArray[Any]], step_nats: float) -> dict[str, float]:
    """Return the statistics that can be computed from stored rows; a mean that is not finite is left out."""
    means = {"kept_mass": float(np.exp(targets.log_probs, dtype=np.float64).sum(axis=1).mean())}
    for statistic, name, sign in MEAN_SCALARS:
        if name in scalars:
            values = from_steps(scalars[name], step_nats)
            if not np.isnan(values).any() and values.max() < np.inf:
                means[statistic] = sign * float(values.mean(dtype=np.float64))
    return means
