"""Remove a teacher, or one of its layers of hidden states, from a cache.

The manifest or its entry is removed first. If the process is killed after that, objects remain that no reader sees;
running the same command again removes them, and so does a capture that adds the layer again, even with another codec.
"""

from cache_tools.errors import FormatError
from cache_tools.format import layout
from cache_tools.format.manifest import write_manifest
from cache_tools.storage import names, remove_object, remove_tree
from cache_tools.store.predictions import hidden_array
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import clear_hidden, own_files


def drop_teacher(encoding: Encoding, name: str) -> None:
    """Delete a teacher with all its predictions.

    Raises:
        FormatError: there is no such teacher, and no remains of one.
    """
    folder = layout.teacher_folder(encoding.path, name)
    if not names(folder):
        encoding.teacher(name)  # raises an error that lists the teachers
    remove_object(folder / layout.MANIFEST)
    remove_tree(folder)


def drop_hidden(teacher: CachedTeacher, layer: str) -> None:
    """Delete one layer of hidden states; everything else of the teacher stays as it is.

    Raises:
        FormatError: the teacher has no such layer, and no remains of one.
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
    lost = own_files(layer)
    files = {key: record for key, record in teacher.manifest.files.items() if key not in lost}
    write_manifest(teacher.path, teacher.manifest.model_copy(update={"hidden": hidden, "files": files}))
    clear_hidden(teacher, layer)
