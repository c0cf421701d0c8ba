"""The sizes of very many objects: a disk is asked for each, quickly, and a bucket lists a thousand per request."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.format import layout
from cache_tools.storage import BUCKETS, StorePath, listed_objects, object_size
from cache_tools.store.predictions import group_layouts
from cache_tools.store.teacher import CachedTeacher


def sizes_below(folder: StorePath) -> dict[str, int] | None:
    """Return the sizes of all that is below a folder of a bucket, by key; None for other places."""
    return {key: size for key, size, _ in listed_objects(folder)} if _is_bucket(folder) else None


def _is_bucket(folder: StorePath) -> bool:
    return not isinstance(folder, Path) and folder.protocol in BUCKETS


class ObjectSizes:
    """The sizes of a teacher's objects. Of a listing, 8 bytes for each object stay in memory.

    Args:
        teacher: The teacher, whose arrays are listed at once if it lies in a bucket.
    """

    def __init__(self, teacher: CachedTeacher) -> None:
        self._teacher, self._listed = teacher.path, dict[str, NDArray[np.int64]]()
        groups = group_layouts(teacher.manifest, teacher.encoding.manifest.positions_per_shard)
        for name in [array for group in groups.values() for array in group] if _is_bucket(teacher.path) else []:
            sizes = self._listed[name] = np.full(len(teacher.encoding.shards), -1, np.int64)
            for key, size, _ in listed_objects(layout.objects_folder(teacher.path, name)):
                number, _, rest = key.partition("/")
                if number.isdecimal() and int(number) < len(sizes) and rest in ("", "0"):
                    sizes[int(number)] = size

    def of(self, key: str, shard: int) -> int | None:
        """Return the size of an object of a shard, by its key; None if there is none."""
        array, _, rest = key.partition("/c/")
        sizes = self._listed.get(array)
        if sizes is None or rest.partition("/")[0] != str(shard):
            return object_size(self._teacher / key)
        return int(sizes[shard]) if sizes[shard] >= 0 else None
