"""Other people's rows become a teacher of ours: declared once, then committed shard by shard.

An import reads the files twice: their tokens, which fix the shards, and then the predictions. A shard is committed when
all its rows were read, and row groups of committed shards are not read again, so an import that was stopped goes on
where it was, to the same bytes. Memory: two open shards and a batch.

A row that is no distribution ends the import with its file and row; nothing is skipped or mended silently.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Targets, codec_for, codec_from_dict
from cache_tools.errors import FormatError
from cache_tools.exchange.encoding import write_encoding
from cache_tools.exchange.plan import ImportOptions, ImportPlan, plan_import
from cache_tools.exchange.summary import ImportReport, summarise
from cache_tools.format.layout import checked_name
from cache_tools.format.manifest import IMPORTED, SOFTWARE, Kind, TeacherManifest
from cache_tools.format.receipts import TARGETS
from cache_tools.limits import CHUNK_ENTRIES
from cache_tools.mappings import JsonObject
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.alignment import read_tokens
from cache_tools.row_files.source_rows import Marks, checked_targets, columns_to_read, read_rows
from cache_tools.separate_places import require_outside
from cache_tools.storage import StorePath
from cache_tools.store.gathered import gather_all
from cache_tools.store.predictions import Group, codec_of, to_steps
from cache_tools.store.reader import Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import commit_groups, declare_teacher, remove_leftovers


def import_rows(source: Path, cache: StorePath, options: ImportOptions, reporter: Reporter) -> ImportReport:
    """Import rows of predictions into a cache, or go on with an import that was stopped.

    Args:
        source: A file, or a folder of files.
        cache: A new place, or a cache that gains a teacher.
        options: What is asked.
        reporter: Shown what happens.

    Returns:
        What was met and what was written.

    Raises:
        ConfigError: nothing is there to import, or an option is missing or does not belong to the format.
        FormatError: a file or row cannot be imported, or a name is not legal.
        IdentityError: the tokenizer is another one, or the cache holds something else under these names.
    """
    for name in (options.encoding, options.teacher):
        checked_name(name)  # before the files are read, which may take an hour
    if source.is_dir():
        require_outside(cache, source, "the cache")
    plan = plan_import(source, options, reporter)
    create_cache(cache)
    imported = write_encoding(cache, plan, reporter)
    manifest = _manifest(imported.encoding, plan, imported.widest)
    teacher = declare_teacher(imported.encoding, options.teacher, manifest)
    missing = set(teacher.missing_shards())
    remove_leftovers(teacher, missing)
    shards = imported.encoding.shards
    reporter.stage(
        f"importing teacher {options.teacher}",
        sum(entry.positions for entry in shards),
        "positions",
        done=sum(entry.positions for shard, entry in enumerate(shards) if shard not in missing),
    )
    for shard, rows in _filled_shards(plan, imported.encoding, manifest, missing):
        _commit(teacher, shard, rows, plan)
        reporter.advance(shards[shard].positions)
    gather_all(teacher.path, len(shards))
    return summarise(teacher, plan)


def _manifest(encoding: Encoding, plan: ImportPlan, widest: int) -> TeacherManifest:
    """Return the teacher's manifest; an export of ours comes back as the target that it was."""
    options, note, size = plan.options, plan.source.note, plan.vocabulary_size
    k = note.target["k"] if note else min(plan.source.k or widest, size)
    target: JsonObject = dict(note.target) if note else {"kind": "topk", "k": k, "settings": {}}
    if not note or (options.exact and Kind(target["kind"]).has_head):
        target["codec"] = codec_for(k, size, exact=options.exact, max_kl_nats=options.max_kl_nats).to_dict()
    elif codec_from_dict(target["codec"], k, size).file is not None:  # a table learned from the cache that was exported
        target["codec"] = codec_for(k, size, exact=True).to_dict()
    chunk = min(options.chunk_positions, options.positions_per_shard)
    while chunk * k > CHUNK_ENTRIES and chunk % 2 == 0:
        chunk //= 2
    about = {
        "name": options.teacher,
        "architecture": f"imported from {plan.source.name} rows",
        "files": len(plan.files),
    }
    return TeacherManifest.describe(
        {IMPORTED: plan.identity(), "encoding": encoding.manifest.fingerprint},
        about,
        chunk,
        vocabulary_size=size,
        target=target,
        scalar_step_nats=note.scalar_step_nats if note else 0.0,
        scalars=note.scalars if note else [],
    )


@dataclass
class _OpenShard:
    """Rows of a shard that is being read."""

    sequences: int = 0
    targets: list[Targets] = field(default_factory=list)
    marks: list[Marks] = field(default_factory=list)
    scalars: list[dict[str, NDArray[np.float32]]] = field(default_factory=list)


def _filled_shards(
    plan: ImportPlan, encoding: Encoding, manifest: TeacherManifest, missing: set[int]
) -> Iterator[tuple[int, _OpenShard]]:
    """Yield each missing shard when all its rows have been read."""
    open_shards: dict[int, _OpenShard] = {}
    for number, shard_of in enumerate(_shards_of_rows(plan, encoding)):
        file, source = plan.files[number], plan.formats[number]
        is_missing = np.isin(shard_of, list(missing))

        def needed(first: int, stop: int, is_missing: NDArray[np.bool_] = is_missing) -> bool:
            return bool(is_missing[first:stop].any())

        for place, batch in file.batches(columns_to_read(source, file.schema), needed):
            tokens = read_tokens(batch, place, source, plan.first_token, plan.tokenizer.size)
            rows = read_rows(batch, place, source).select(tokens.positions >= 0)
            k, size = manifest.target.k, manifest.vocabulary_size
            targets, marks = checked_targets(rows, source, k, size, plan.mass_tolerance)
            ends = np.cumsum([0, *rows.counts])
            of_batch = shard_of[place.first_row : place.first_row + batch.num_rows].tolist()
            for shard, run in groupby(range(batch.num_rows), lambda row, of=of_batch: of[row]):  # type: ignore[misc]
                if shard not in missing:
                    continue
                run_rows = list(run)
                part = slice(int(ends[run_rows[0]]), int(ends[run_rows[-1] + 1]))
                waiting = open_shards.setdefault(shard, _OpenShard())
                waiting.sequences += len(run_rows)
                waiting.targets.append(_sliced(targets, part))
                waiting.marks.append(_sliced(marks, part))
                waiting.scalars.append({name: values[part] for name, values in rows.scalars.items()})
                if waiting.sequences == encoding.shards[shard].sequences:
                    yield shard, open_shards.pop(shard)


def _shards_of_rows(plan: ImportPlan, encoding: Encoding) -> Iterator[NDArray[np.int64]]:
    """Yield for each file (rows,) the shard of each of its rows: shards of a split take its rows in order."""
    ends, taken = {}, {False: 0, True: 0}
    for held in (False, True):
        own = encoding.split_shards("held_out" if held else "train")
        ends[held] = (np.array(own, np.int64), np.cumsum([encoding.shards[shard].sequences for shard in own]))
    for held_out in plan.held_out:
        shard_of = np.zeros(len(held_out), np.int64)
        for held in (False, True):
            rows = np.flatnonzero(held_out == held)
            if len(rows):
                numbers = taken[held] + np.arange(len(rows))
                shard_of[rows] = ends[held][0][np.searchsorted(ends[held][1], numbers, side="right")]
                taken[held] += len(rows)
        yield shard_of


def _commit(teacher: CachedTeacher, shard: int, rows: _OpenShard, plan: ImportPlan) -> None:
    """Encode and commit a shard."""
    manifest = teacher.manifest
    targets, marks = _joined(rows.targets), _joined(rows.marks)
    try:
        encoded = codec_of(manifest).encode(targets)
        arrays = dict(encoded.arrays)
        for name in manifest.scalars:
            values = np.concatenate([part[name] for part in rows.scalars])
            arrays[name] = to_steps(values, manifest.scalar_step_nats)
    except ValueError as error:
        raise FormatError(
            "the predictions of a shard cannot be stored",
            where=f"teacher {teacher.name!r}, shard {shard}",
            found=error,
            fix="Check the rows of the files, or import them with --exact",
        ) from error
    statistics = marks.statistics() | {
        "codec_kl_nats": float(encoded.kl_nats.mean()),
        "codec_kl_nats_max": float(encoded.kl_nats.max()),
    }
    group = Group(arrays, dict(encoded.parameters), statistics)
    provenance = {"software": SOFTWARE, "device": "none", "imported": plan.source.name}
    commit_groups(teacher, shard, [(TARGETS, group)], provenance)


def _sliced(rows: Any, part: slice) -> Any:
    """Return a dataclass of arrays with some of its rows."""
    return type(rows)(*(getattr(rows, column.name)[part] for column in fields(rows)))


def _joined(parts: list[Any]) -> Any:
    """Return dataclasses of arrays joined into one."""
    names = [column.name for column in fields(parts[0])]
    return type(parts[0])(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
