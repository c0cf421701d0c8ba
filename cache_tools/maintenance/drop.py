"""Removing a teacher, or one of its layers of hidden states, from a cache.

What says that something exists goes first: a process killed in the middle leaves remains
that no reader sees, and the same command removes them, as does a capture that adds the
layer again, perhaps with another codec.
"""

from cache_tools.errors import FormatError
from cache_tools.format import layout
from cache_tools.format.manifest import write_manifest
from cache_tools.format.receipts import write_receipt
from cache_tools.storage import names, remove_object, remove_tree
from cache_tools.store.predictions import hidden_array
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher


def drop_teacher(encoding: Encoding, name: str) -> None:
    """Delete a teacher with everything it said.

    Raises:
        FormatError: there is no such teacher, nor the remains of one.
    """
    folder = layout.teacher_folder(encoding.path, name)
    if not names(folder):
        encoding.teacher(name)  # raises, naming those that there are
    remove_object(folder / layout.MANIFEST)
    remove_tree(folder)


def drop_hidden(teacher: CachedTeacher, layer: str) -> None:
    """Delete one layer of hidden states; everything else of the teacher stays as it is.

    Raises:
        FormatError: the teacher has no such layer, nor the remains of one.
    """
    group = hidden_array(layer)
    if layer not in teacher.manifest.hidden and not names(teacher.path / group):
        raise FormatError(
            f"teacher {teacher.name!r} has no hidden states of layer {layer!r}",
            where=teacher.path,
            expected=f"one of: {', '.join(teacher.manifest.hidden) or 'none are kept'}",
            found=layer,
        )
    hidden = {name: spec for name, spec in teacher.manifest.hidden.items() if name != layer}
    own_files = _own_files(layer)
    files = {key: record for key, record in teacher.manifest.files.items() if key not in own_files}
    write_manifest(teacher.path, teacher.manifest.model_copy(update={"hidden": hidden, "files": files}))
    clear_hidden(teacher, layer)


def clear_hidden(teacher: CachedTeacher, layer: str) -> None:
    """Delete what there is of a layer that the teacher's manifest does not name: in receipts first, then the files."""
    group = hidden_array(layer)
    for shard in range(len(teacher.encoding.shards)):
        receipt = teacher.receipt(shard)
        if receipt and group in receipt.groups:
            kept = {
                "groups": {name: values for name, values in receipt.groups.items() if name != group},
                "objects": {key: o for key, o in receipt.objects.items() if not key.startswith(f"{group}/c/")},
                "statistics": {n: v for n, v in receipt.statistics.items() if not n.startswith(f"hidden_{layer}_")},
                "provenance": {name: value for name, value in receipt.provenance.items() if name != group},
            }
            write_receipt(teacher.path, receipt.model_copy(update=kept))
    for key in _own_files(layer):
        remove_object(teacher.path / key)
    remove_tree(teacher.path / group)


def _own_files(layer: str) -> set[str]:
    """Return the keys of the files that only this layer needs."""
    return {layout.transform_key(layer)} | ({layout.HEAD} if layer == "last" else set())
