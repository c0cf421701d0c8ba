"""What a capture will cost, before it is paid for: sequences, bytes, objects, hours, bandwidth.

The whole corpus is read once to count its documents and characters; only a sample, spread evenly
over it, is tokenised, and the rest follows in proportion. Bytes per position are rules of thumb
from measured caches until a teacher is measured on part of the sample (see ``measure.py``).
What the cache already holds is subtracted (``held.py``). Nothing is written.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from cache_tools.errors import StorageError
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.format.sequences import Sequence, sequences_bytes
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from pipeline.capture.declare import codec_of_target, keep_of, scalar_names
from pipeline.config import CaptureConfig, HiddenConfig, TeacherConfig
from pipeline.corpus.documents import Document, corpus_sources, read_documents
from pipeline.encoding.held_out import NOTHING_HELD_OUT, is_held_out
from pipeline.encoding.sequences import encode_documents
from pipeline.planning.held import held_teacher

logger = logging.getLogger(__name__)

SCALAR_BYTES = 1.8
"""Of one stored scalar, measured."""

"""Per value of a hidden state, measured; a budget's own size depends on the budget."""


@dataclass(frozen=True)
class Survey:
    """What the corpus becomes.

    Attributes:
        documents: In the whole corpus.
        sequences: In the sample, numbered as if they were all.
        exact: Whether the sample is everything.
        totals: Tokens, positions and shards of the whole corpus, by split.
        sequence_bytes: Of the encoding's own files, per position.
    """

    documents: int
    sequences: list[Sequence]
    exact: bool
    totals: dict[Split, dict[str, int]]
    sequence_bytes: float

    def total(self, key: str) -> int:
        """Return ``tokens``, ``positions`` or ``shards`` over both splits."""
        return sum(totals[key] for totals in self.totals.values())

    def of_size(self, tokens: float, positions_per_shard: int) -> "Survey":
        """Return the survey of a corpus like this one with so many tokens."""
        scale, totals = tokens / self.total("tokens"), {}
        for split, found in self.totals.items():
            scaled = {key: round(scale * found[key]) for key in ("tokens", "positions")}
            totals[split] = scaled | {"shards": -(-scaled["positions"] // positions_per_shard)}
        return replace(self, documents=round(scale * self.documents), exact=False, totals=totals)


def survey(
    config: CaptureConfig, tokenizer: PreTrainedTokenizerFast, sample_documents: int, reporter: Reporter | None = None
) -> Survey:
    """Read the corpus and tokenise an even sample of it.

    Args:
        config: The capture file.
        tokenizer: The encoding's.
        sample_documents: How many documents to tokenise.
        reporter: Shown how much has been read.

    Raises:
        CorpusError: a document cannot be read or encoded.
    """
    reporter = reporter or Reporter()
    reporter.stage("reading the corpus", None, "documents")
    sizes, fraction, holds_out = [], config.corpus.held_out_fraction, False
    for document in _documents(config):
        sizes.append(_characters(document))
        holds_out = holds_out or is_held_out(document.group, fraction)
        reporter.advance(1, document.share_before)
    if fraction and not holds_out:
        logger.warning(NOTHING_HELD_OUT, fraction)
    step = -(-len(sizes) // sample_documents)
    reporter.stage("tokenising a sample of the corpus", None)
    chosen = (document for i, document in enumerate(_documents(config)) if i % step == 0)
    found: dict[Split, list[Sequence]] = {split: [] for split in SPLITS}
    for document, sequence, _ in encode_documents(chosen, tokenizer, config.encoding):
        reporter.advance(len(sequence.input_ids), document.share_before)
        held_out = is_held_out(document.group, config.corpus.held_out_fraction)
        found["held_out" if held_out else "train"].append(sequence)
    scale = sum(sizes) / sum(sizes[::step])
    totals = {}
    for name, sequences in found.items():
        positions = round(scale * sum(sequence.num_positions for sequence in sequences))
        totals[name] = {
            "tokens": round(scale * sum(len(sequence.input_ids) for sequence in sequences)),
            "positions": positions,
            "shards": -(-positions // config.encoding.positions_per_shard),
        }
    sequences = list(_numbered([*found["train"], *found["held_out"]]))
    stored = len(sequences_bytes(sequences)) / sum(sequence.num_positions for sequence in sequences)
    return Survey(len(sizes), sequences, step == 1, totals, stored)


def plan_encoding(found: Survey, encoding: Encoding | None) -> dict[str, Any]:
    """Return what the sequences take: ``stored_bytes`` and ``objects``, and of both what the cache lacks."""
    held = encoding.shards if encoding else []
    stored, objects = round(found.sequence_bytes * found.total("positions")), found.total("shards")
    return {
        "sequence_bytes_per_position": found.sequence_bytes,
        "stored_bytes": stored,
        "objects": objects,
        "remaining": {
            "stored_bytes": max(0, stored - sum(entry.bytes for entry in held)),
            "objects": max(0, objects - len(held)),
        },
    }


def known_totals(found: Survey, encoding: Encoding) -> Survey:
    """Return the survey with the exact totals of an encoding that holds the whole corpus."""
    splits = encoding.manifest.splits
    totals = {split: splits[split].model_dump(include={"tokens", "positions", "shards"}) for split in SPLITS}
    return replace(found, exact=True, totals=totals)


def plan_teacher(
    config: TeacherConfig,
    folder: Path,
    found: Survey,
    measured: dict[str, Any] | None,
    tokens_per_s: float | None,
    encoding: Encoding | None = None,
) -> dict[str, Any]:
    """Return what one teacher costs one worker.

    Args:
        config: Its block of the capture file.
        folder: Its model folder.
        found: The surveyed corpus.
        measured: What ``plan_measure.measure`` returned, if it was asked for.
        tokens_per_s: Speed to plan with; the measured one by default.
        encoding: What the cache already holds of the corpus.

    Returns:
        Sizes and times in all, and under ``remaining`` those of what the cache lacks.
    """
    model = AutoConfig.from_pretrained(str(folder), trust_remote_code=config.trust_remote_code).get_text_config()
    targets = measured["bytes_per_position"] if measured else rough_target_bytes(config, model.vocab_size)
    scalars = measured["scalar_bytes_per_position"] if measured else SCALAR_BYTES * _num_scalars(config)
    hidden = _hidden_bytes(config.hidden, model.hidden_size)
    speed = tokens_per_s or (measured["tokens_per_s"] if measured else None)
    arrays = len(codec_of_target(config.target, model.vocab_size).array_types()) + _num_scalars(config)
    held = held_teacher(encoding, config, model.vocab_size)

    def cost(tokens: int, positions: int, shards: int) -> dict[str, Any]:
        return {
            "stored_bytes": round((targets + hidden) * positions),
            "objects": shards * (arrays + len(config.hidden.layers) + 1),
            "hours": tokens / speed / 3600 if speed else None,
        }

    whole = {key: found.total(key) for key in ("tokens", "positions", "shards")}
    left = {key: max(0, value - getattr(held, key)) for key, value in whole.items()}
    return {
        "name": config.name,
        "measured": measured is not None,
        "measured_on": measured["measured_on"] if measured else None,
        "target_bytes_per_position": targets,
        "scalar_bytes_per_position": scalars,
        "hidden_bytes_per_position": hidden,
        **cost(**whole),
        "tokens_per_s": speed,
        "remaining": left | cost(**left),
        "choices": measured["choices"] if measured else [],
    }


def rough_target_bytes(config: TeacherConfig, vocabulary_size: int) -> float:
    """Return about how many bytes a position takes without hidden states, from caches of other teachers."""
    codec = codec_of_target(config.target, vocabulary_size)
    return SCALAR_BYTES * _num_scalars(config) + codec.rough_row_bytes


def require_space(cache: StorePath, needed_bytes: int) -> int | None:
    """Return the free bytes where a cache shall lie; None for a bucket.

    Raises:
        StorageError: they would not suffice.
    """
    if not isinstance(cache, Path):
        return None
    place = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise StorageError(
            "the cache would not fit",
            where=cache,
            expected=f"{needed_bytes / 1e9:,.1f} GB",
            found=f"{free / 1e9:,.1f} GB free",
            fix="Keep less (a smaller target.k, fewer hidden layers), or choose another 'cache:'",
        )
    return free


def _documents(config: CaptureConfig) -> Iterator[Document]:
    return read_documents(corpus_sources(config.corpus).values(), config.corpus, set())


def _characters(document: Document) -> int:
    if document.text is not None:
        return len(document.text) + 1
    return sum(len(str(message)) for message in document.messages or ()) + len(document.ids or ()) + 1


def _numbered(sequences: list[Sequence]) -> Iterator[Sequence]:
    row = 0
    for number, sequence in enumerate(sequences):
        yield replace(sequence, sequence_id=number, first_position=row)
        row += sequence.num_positions


def _num_scalars(config: TeacherConfig) -> int:
    return len(scalar_names(keep_of(config.target)))


def _hidden_bytes(config: HiddenConfig, width: int) -> float:
    return len(config.layers) * width * HIDDEN_CODECS[config.stored_codec].rough_value_bytes
