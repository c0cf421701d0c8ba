"""What a cache already holds of a planned capture. Reads manifests, the shard table and names of receipts only.

A teacher counts if it was captured from the same encoding with the same target and every layer asked
for; hashing its weights is left to the capture, which refuses other ones. What does not match counts
as nothing, so a plan errs towards more.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import TargetSpec
from cache_tools.storage import object_exists
from cache_tools.store.reader import Cache, Encoding
from pipeline.capture.declare import target_spec
from pipeline.config import CaptureConfig, TeacherConfig
from pipeline.encoding.encode import encoding_identity


@dataclass(frozen=True)
class Held:
    """A number of shards and what is in them."""

    tokens: int = 0
    positions: int = 0
    shards: int = 0


def held_encoding(config: CaptureConfig, tokenizer: PreTrainedTokenizerFast) -> Encoding | None:
    """Return the encoding that the cache holds under this name, if it was made with these settings."""
    name = config.encoding.name
    if not object_exists(layout.encoding_folder(config.cache, name) / layout.MANIFEST):
        return None
    encoding = Cache(config.cache).encoding(name)
    same = encoding.manifest.fingerprint == fingerprint(encoding_identity(config, tokenizer))
    return encoding if same else None


def held_teacher(encoding: Encoding | None, config: TeacherConfig, vocabulary: int) -> Held:
    """Return what is committed of one teacher."""
    if encoding is None or config.name not in encoding.teachers:
        return Held()
    teacher = encoding.teacher(config.name)
    manifest, layers = teacher.manifest, set(map(str, config.hidden.layers))
    if manifest.target != TargetSpec.model_validate(target_spec(config.target, vocabulary)):
        return Held()
    if not layers <= set(manifest.hidden):
        return Held()
    missing = set(teacher.missing_shards())
    entries = [entry for shard, entry in enumerate(encoding.shards) if shard not in missing]
    return Held(sum(entry.tokens for entry in entries), sum(entry.positions for entry in entries), len(entries))
