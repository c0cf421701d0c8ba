"""What one position takes on the host until its shard is written, and so how many positions a shard should have.

A shard is the unit of work, of retry and of memory. Small ones make many objects and receipts; large ones take memory
in every worker, and a failed one is read again as a whole. So the size follows the corpus: 131,072 positions where
there are enough of those for many workers to share, larger ones once there would be more than MOST_SHARDS, and never
more than HOST_BYTES of a worker's memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from transformers import PreTrainedModel

from cache_tools.format import layout
from cache_tools.format.manifest import EncodingManifest, Objective, read_manifest
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.limits import SHARD_POSITIONS
from cache_tools.storage import StorePath, object_exists
from pipeline.capture.target import ResolvedTeacher
from pipeline.config.encoding import EncodingConfig
from pipeline.config.engines import ServerConfig
from pipeline.corpus.documents import CorpusSource, corpus_sources
from pipeline.encoding.recipe import Recipe
from pipeline.teachers.body_and_head import vocabulary_of
from pipeline.teachers.loading import stated_vocabulary
from pipeline.teachers.tensor_plan import meta_model

SHARDS_IN_MEMORY = 2
"""One is being read while the one before is written."""

USUAL_POSITIONS = 131_072
"""Size of a shard where nothing speaks against it: objects of about 6 MB at k = 64."""

FEWEST_SHARDS, MOST_SHARDS = 64, 10_000
"""A smaller corpus gets smaller shards, so that workers can share it; a larger one larger shards."""

FEWEST_SEQUENCES = 8
"""Longest sequences that a shard holds: sequences are never divided, so rows at its end stay unused."""

HOST_BYTES = 4 * 2**30
"""Memory of a worker that kept predictions and their encoding may take."""

SAMPLE_DOCUMENTS = 1000
"""Documents from which the size of the corpus is estimated."""


@dataclass(frozen=True)
class ModelShape:
    """How large a teacher's outputs are.

    Attributes:
        vocabulary_size: Width of its logits.
        width: Width of its hidden states; 0 if it gives none.
    """

    vocabulary_size: int
    width: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelShape":
        """Return that of a model, with or without weights."""
        return cls(vocabulary_of(model), model.config.get_text_config().hidden_size)


def shape_of(teacher: ResolvedTeacher, objective: Objective) -> ModelShape:
    """Return how large a teacher's outputs are, from its configuration."""
    if isinstance(teacher.config.engine, ServerConfig):
        return ModelShape(stated_vocabulary(teacher.folder, teacher.config.trust_remote_code), 0)
    return ModelShape.of(meta_model(teacher.config, objective, teacher.folder))


def kept_bytes_per_position(teacher: ResolvedTeacher, shape: ModelShape) -> int:
    """Return the host's bytes for one position until its shard is written: ids, logs, scalars, float32 states."""
    keep, states = teacher.target.keep, shape.width * len(teacher.config.hidden.layers)
    numbers = 2 * keep.slots(shape.vocabulary_size) + 1 + len(keep.scalar_names) + states
    return int(4 * numbers)


def writing_bytes_per_position(teacher: ResolvedTeacher, shape: ModelShape) -> int:
    """Return the host's bytes for one position while its shard is encoded and written; groups follow each other."""
    codec, hidden = teacher.target.codec(shape.vocabulary_size), teacher.config.hidden
    value_bytes = HIDDEN_CODECS[hidden.stored_codec].encoding_value_bytes if hidden.layers else 0
    return int(max(codec.encoding_slot_bytes * codec.k, value_bytes * shape.width))


def sized(recipe: Recipe, cache: StorePath, teachers: Iterable[ResolvedTeacher]) -> Recipe:
    """Return a recipe with a number in place of ``positions_per_shard: auto``.

    An encoding that the cache holds keeps its own. Otherwise the number follows from the first documents, so that every
    run of the same file gives the same.

    Args:
        recipe: How documents become sequences.
        cache: Where the encoding is, or will be.
        teachers: Those of the capture file.

    Raises:
        CorpusError: a document cannot be read or encoded.
    """
    encoding = recipe.encoding
    if encoding.positions_per_shard != "auto":
        return recipe
    folder = layout.encoding_folder(cache, encoding.name)
    if object_exists(folder / layout.MANIFEST):
        size = read_manifest(folder, EncodingManifest).positions_per_shard
    else:
        positions = estimated_positions(recipe, corpus_sources(recipe.corpus).values())
        size = recommended_positions(positions, host_bytes_per_position(teachers, encoding), encoding)
    return replace(recipe, encoding=encoding.model_copy(update={"positions_per_shard": size}))


def host_bytes_per_position(teachers: Iterable[ResolvedTeacher], encoding: EncodingConfig) -> int:
    """Return what a position takes in the teacher that takes most."""
    sizes = []
    for teacher in teachers:
        shape = shape_of(teacher, encoding.objective)
        kept = SHARDS_IN_MEMORY * kept_bytes_per_position(teacher, shape)
        sizes.append(kept + writing_bytes_per_position(teacher, shape))
    return max(sizes)


def recommended_positions(positions: int | None, bytes_per_position: int, encoding: EncodingConfig) -> int:
    """Return how many positions a shard should have: ``chunk_positions`` times a power of two.

    Args:
        positions: Positions of the corpus; None if unknown.
        bytes_per_position: Memory of a worker for each position of a shard.
        encoding: For the size of a chunk and the longest sequence.
    """
    shared = USUAL_POSITIONS
    if positions is not None:
        shared = max(min(USUAL_POSITIONS, positions // FEWEST_SHARDS), positions // MOST_SHARDS)
    chunk = encoding.chunk_positions
    sizes = (chunk << power for power in count())
    least = max(FEWEST_SEQUENCES * encoding.max_length_tokens, min(shared, SHARD_POSITIONS // 2))
    size = next(size for size in sizes if size >= least)
    while size * bytes_per_position > HOST_BYTES and size // 2 >= max(chunk, encoding.max_length_tokens):
        size //= 2
    return size


def estimated_positions(recipe: Recipe, sources: Iterable[CorpusSource]) -> int | None:
    """Return about how many positions a corpus has, from its first documents; None if their share of it is unknown."""
    positions, documents = 0, set[str]()
    for document, sequence, _ in recipe.encode(sources, set()):
        if document.id not in documents and len(documents) == SAMPLE_DOCUMENTS:
            return round(positions / document.share_before) if document.share_before else None
        documents.add(document.id)
        positions += sequence.num_positions
    return positions
