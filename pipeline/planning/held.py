"""What a cache already holds of a planned capture. Reads manifests, the shard table and names of receipts only.

A cached teacher is subtracted if it was captured from the same encoding, with the same target and all requested layers.
Its weights are not hashed here: the capture does that, and refuses other weights. A teacher that does not match is
planned as if the cache lacked it; the plan is then too high, never too low.
"""

from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.storage import StorePath, object_exists
from cache_tools.store.reader import Cache, Encoding
from pipeline.capture.target import ResolvedTeacher
from pipeline.encoding.recipe import Recipe
from pipeline.planning.survey import Extent


def held_encoding(cache: StorePath, recipe: Recipe) -> Encoding | None:
    """Return the encoding that a cache holds under the recipe's name, if it was made by this recipe."""
    name = recipe.encoding.name
    if not object_exists(layout.encoding_folder(cache, name) / layout.MANIFEST):
        return None
    encoding = Cache(cache).encoding(name)
    return encoding if encoding.manifest.fingerprint == fingerprint(recipe.identity()) else None


def held_teacher(encoding: Encoding | None, teacher: ResolvedTeacher, vocabulary_size: int) -> Extent:
    """Return what is committed of one teacher.

    Args:
        encoding: The encoding that the cache holds, if any.
        teacher: The planned teacher.
        vocabulary_size: Width of its logits.
    """
    name, layers = teacher.config.name, set(map(str, teacher.config.hidden.layers))
    if encoding is None or name not in encoding.teachers:
        return Extent()
    cached = encoding.teacher(name)
    manifest = cached.manifest
    target = teacher.target.as_stored(manifest.target, vocabulary_size)
    if manifest.target != target.spec(vocabulary_size) or not layers <= set(manifest.hidden):
        return Extent()
    missing = set(cached.missing_shards())
    committed = [entry for shard, entry in enumerate(encoding.shards) if shard not in missing]
    return sum((Extent(entry.tokens, entry.positions, 1) for entry in committed), Extent())
