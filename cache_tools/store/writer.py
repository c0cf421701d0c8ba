"""Writing a teacher into a cache: declare it once, then commit its shards in any order.

``declare_teacher`` is idempotent and refuses another teacher under the same name; it may add
layers of hidden states to one that is there. ``commit_shard`` writes the objects of one shard
and the receipt last; a process killed anywhere leaves either a committed shard or one that
does not exist. A group of arrays can be added to a committed shard: the receipt is replaced
by one that also lists the new objects, and until then the old one holds.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format import layout
from cache_tools.format.fingerprint import differences
from cache_tools.format.manifest import (
    ObjectRecord,
    TeacherManifest,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.format.receipts import TARGETS, Receipt, write_receipt
from cache_tools.format.zarr_arrays import ArrayLayout, read_layout
from cache_tools.hidden_codecs.transform import ErrorOf
from cache_tools.mappings import Provenance
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    read_object,
    remove_object,
    remove_partials,
    remove_tree,
    write_object,
    write_objects,
)
from cache_tools.store.claims import Claim, claimed
from cache_tools.store.gathered import gather_all
from cache_tools.store.predictions import (
    Group,
    Predictions,
    encode_hidden,
    encode_targets,
    group_layouts,
    hidden_array,
)
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher


def declare_teacher(
    encoding: Encoding, name: str, manifest: TeacherManifest, files: Mapping[str, bytes] | None = None
) -> CachedTeacher:
    """Create a teacher's folder and arrays, or check that the same teacher is already there.

    Layers of hidden states that the stored teacher lacks are added to it.

    Args:
        encoding: The committed encoding that the teacher reads.
        name: The teacher's name in the cache.
        manifest: What is to be captured.
        files: Contents of the files that the manifest lists.

    Raises:
        IdentityError: another teacher, or other capture parameters, under the same name.
        FormatError: predictions without a manifest lie there.
    """
    folder = layout.teacher_folder(encoding.path, name)
    if not _is_declared(name, folder, manifest):
        work = {"identity": manifest.identity, "hidden": manifest.model_dump(mode="json")["hidden"]}
        with claimed(folder, work, f"the cache already holds another teacher under the name {name!r}") as claim:
            if not _is_declared(name, folder, manifest):  # or another process has declared it in between
                _write_declaration(encoding, name, manifest, files or {}, claim)
    if manifest.hidden:
        write_group(folder / "hidden")
    write_array_metadata(encoding, folder, manifest)
    return encoding.teacher(name)


def _is_declared(name: str, folder: StorePath, manifest: TeacherManifest) -> bool:
    """Say whether the same teacher is there with all its layers; refuse another one."""
    if not object_exists(folder / layout.MANIFEST):
        return False
    stored = read_manifest(folder, TeacherManifest)
    _check_same(name, folder, stored, manifest)
    return set(manifest.hidden) <= set(stored.hidden)


def _write_declaration(
    encoding: Encoding, name: str, manifest: TeacherManifest, files: Mapping[str, bytes], claim: Claim
) -> None:
    """Write a teacher's files and its manifest, which comes last."""
    if object_exists(claim.folder / layout.MANIFEST):
        clear_remains(encoding.teacher(name), manifest)
    else:
        refuse_remains(name, claim.folder)
        write_group(claim.folder.parent)
    write_objects(claim.folder, files)
    claim.hold()
    write_manifest(claim.folder, manifest)


def clear_remains(teacher: CachedTeacher, manifest: TeacherManifest) -> None:
    """Delete the remains that an interrupted drop left of layers that are declared again."""
    for layer in manifest.hidden:
        if layer not in teacher.manifest.hidden and names(teacher.path / hidden_array(layer)):
            clear_hidden(teacher, layer)


def refuse_remains(name: str, folder: StorePath) -> None:
    """Refuse a folder whose receipts nothing vouches for: its manifest was lost, or a drop was killed."""
    if names(layout.receipts_folder(folder)):
        raise FormatError(
            f"the manifest of teacher {name!r} is gone, but predictions are there",
            where=folder,
            why="they may be another teacher's",
            fix=f"Restore {layout.MANIFEST} from a copy, or remove them with 'logitcask drop'",
        )


def write_array_metadata(encoding: Encoding, folder: StorePath, manifest: TeacherManifest) -> None:
    """Write the ``zarr.json`` of every array that has none, or another one than the encoding now needs."""
    rows_per_shard = encoding.manifest.positions_per_shard
    num_rows = rows_per_shard * len(encoding.shards)
    for group in group_layouts(manifest, rows_per_shard).values():
        for name, cut in group.items():
            path = layout.array_metadata_file(folder, name)
            if _stored_rows(path, cut) < num_rows:
                write_object(path, cut.metadata(num_rows))


def _stored_rows(metadata: StorePath, expected: ArrayLayout) -> int:
    """Return the length of an array's first axis; 0 if it has no readable metadata, or that of a dropped array."""
    try:
        stated = read_layout(read_object(metadata))
    except (OSError, ValueError):
        return 0
    return stated[1] if stated and stated[0] == expected else 0


def commit_shard(
    teacher: CachedTeacher,
    shard: int,
    predictions: Predictions,
    provenance: Provenance,
    errors: Mapping[str, ErrorOf] | None = None,
) -> Receipt:
    """Write one shard, or add groups of arrays to a committed one: every object, then the receipt.

    Args:
        teacher: The declared teacher.
        shard: Shard index.
        predictions: As many rows as the shard has positions, in position order; what is missing
            of them (the targets, or layers) is not written.
        provenance: Software, device and time, for the receipt.
        errors: How to measure the error of a layer of hidden states, by layer, if not relative.

    Raises:
        ValueError: a row cannot be stored.
        StorageError: the disk is full, or disk or bucket refuse.
    """
    return commit_groups(teacher, shard, _encode_groups(teacher, predictions, errors or {}), provenance)


def commit_groups(
    teacher: CachedTeacher, shard: int, groups: Iterable[tuple[str, Group]], provenance: Provenance
) -> Receipt:
    """Write encoded groups of arrays of one shard, one after another, so that no two need be in memory.

    Arguments and errors as for ``commit_shard``.
    """
    entry = teacher.encoding.shards[shard]
    receipt = teacher.receipt(shard) or Receipt(
        shard=shard,
        positions=entry.positions,
        tokens=entry.tokens,
        teacher_fingerprint=teacher.manifest.fingerprint,
        sequences_sha256=entry.sha256,
        groups={},
        objects={},
        statistics={},
        provenance={},
    )
    for name, group in groups:
        assert all(len(rows) == entry.positions for rows in group.arrays.values())
        objects = _write_group(teacher, shard, name, group)
        receipt = _with_group(receipt, name, group, objects, provenance)
        del group  # or it would live until the next is made
    write_receipt(teacher.path, receipt)
    return receipt


def remove_leftovers(teacher: CachedTeacher, shards: Iterable[int]) -> None:
    """Remove the temporary files that killed writers left of some shards.

    A run calls this once for the shards that it is about to write: each folder is listed once, and a commit costs the
    same however many shards there are. Another process may write other shards meanwhile.

    Args:
        teacher: The declared teacher.
        shards: Shards that nobody else writes.
    """
    if not isinstance(teacher.path, Path):
        return
    numbers = set(map(str, shards))
    remove_partials(
        layout.receipts_folder(teacher.path),
        {layout.receipt_name(int(number)) for number in numbers},
    )
    for group in group_layouts(teacher.manifest, teacher.encoding.manifest.positions_per_shard).values():
        for name, cut in group.items():
            folder = layout.objects_folder(teacher.path, name)
            if cut.type.row:  # a shard has a folder of its own, and so do only few that are not committed
                for number in numbers.intersection(names(folder)):
                    remove_partials(folder / number, {"0"})
            else:
                remove_partials(folder, numbers)


def _with_group(
    receipt: Receipt, name: str, group: Group, objects: Mapping[str, ObjectRecord], provenance: Provenance
) -> Receipt:
    """Return a receipt that also lists a group of arrays whose objects are written."""
    return Receipt(
        shard=receipt.shard,
        positions=receipt.positions,
        tokens=receipt.tokens,
        teacher_fingerprint=receipt.teacher_fingerprint,
        sequences_sha256=receipt.sequences_sha256,
        groups={**receipt.groups, name: group.parameters},
        objects={**receipt.objects, **objects},
        statistics={**receipt.statistics, **group.statistics},
        provenance={**receipt.provenance, name: provenance},
    )


def _encode_groups(
    teacher: CachedTeacher, predictions: Predictions, errors: Mapping[str, ErrorOf]
) -> Iterator[tuple[str, Group]]:
    if predictions.targets is not None:
        yield TARGETS, encode_targets(teacher.manifest, teacher.codec, predictions)
    for layer, states in predictions.hidden.items():
        spec = teacher.manifest.hidden[layer]
        yield hidden_array(layer), encode_hidden(layer, spec, states, teacher.transform(layer), errors.get(layer))


def _write_group(teacher: CachedTeacher, shard: int, name: str, group: Group) -> dict[str, ObjectRecord]:
    """Write the object of each array of a group, and return their records by key; one of fill values is not stored."""
    layouts = group_layouts(teacher.manifest, teacher.encoding.manifest.positions_per_shard)[name]
    objects = {
        layout.shard_key(array, shard, rows.ndim): layouts[array].encode(rows) for array, rows in group.arrays.items()
    }
    for key, content in objects.items():
        if not content:  # whatever a killed run left there is not this shard's
            remove_object(teacher.path / key)
    stored = {key: content for key, content in objects.items() if content}
    write_objects(teacher.path, stored)
    return {key: ObjectRecord.of(content) for key, content in stored.items()}


def _check_same(name: str, folder: StorePath, stored: TeacherManifest, declared: TeacherManifest) -> None:
    """Refuse to go on with another teacher, or without a layer that its shards have so far."""
    layers = {layer: spec.model_dump() for layer, spec in stored.hidden.items()}
    declared_layers = {layer: spec.model_dump() for layer, spec in declared.hidden.items()}
    same_layers = {layer: declared_layers.get(layer) for layer in layers}
    if stored.fingerprint != declared.fingerprint or same_layers != layers:
        changes = differences(stored.identity, declared.identity) + differences(layers, same_layers, "hidden.")
        raise IdentityError(
            f"the cache already holds another teacher under the name {name!r}",
            where=folder,
            found="; ".join(changes),
            expected="the same weights and capture parameters",
            why="half of its shards would come from one teacher and half from the other",
            fix="Restore the old settings, give the new teacher another name, or remove it with 'logitcask drop'",
        )


def clear_hidden(teacher: CachedTeacher, layer: str) -> None:
    """Delete what there is of a layer that the teacher's manifest does not name: in receipts first, then the files."""
    group = hidden_array(layer)
    for receipt in teacher.receipts():
        if group in receipt.groups:
            kept = {
                "groups": {name: values for name, values in receipt.groups.items() if name != group},
                "objects": {key: o for key, o in receipt.objects.items() if not key.startswith(f"{group}/c/")},
                "statistics": {n: v for n, v in receipt.statistics.items() if not n.startswith(f"hidden_{layer}_")},
                "provenance": {name: value for name, value in receipt.provenance.items() if name != group},
            }
            write_receipt(teacher.path, receipt.model_copy(update=kept))
    for key in own_files(layer):
        remove_object(teacher.path / key)
    remove_tree(teacher.path / group)
    gather_all(teacher.path, len(teacher.encoding.shards))


def own_files(layer: str) -> set[str]:
    """Return the keys of the files that only this layer needs."""
    return {layout.transform_key(layer)} | ({layout.HEAD} if layer == "last" else set())
