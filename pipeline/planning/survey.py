"""Survey a corpus: how many tokens, positions and shards it becomes, from a sample of its documents.

The whole corpus is read once to count its documents and characters; only a sample, spread evenly over it, is
tokenised, and the rest follows in proportion.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cache_tools.errors import CorpusError
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.format.sequences import Sequence, sequences_bytes
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Encoding
from pipeline.corpus.documents import CorpusSource, Document, read_documents
from pipeline.encoding.held_out import NOTHING_HELD_OUT, is_held_out
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.sequences import SkippedDocuments, encode_documents

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extent:
    """How much of a corpus something covers.

    Attributes:
        tokens: Tokens that a teacher reads.
        positions: Positions whose predictions are kept.
        shards: Shards that hold them.
    """

    tokens: int = 0
    positions: int = 0
    shards: int = 0

    def __add__(self, other: "Extent") -> "Extent":
        """Return both together."""
        return Extent(self.tokens + other.tokens, self.positions + other.positions, self.shards + other.shards)

    def without(self, part: "Extent") -> "Extent":
        """Return what is left after a part is done; never below 0, because an estimate may be too small."""
        return Extent(
            max(0, self.tokens - part.tokens),
            max(0, self.positions - part.positions),
            max(0, self.shards - part.shards),
        )

    def scaled(self, factor: float, positions_per_shard: int) -> "Extent":
        """Return the extent of a corpus like this one that is ``factor`` times as large."""
        positions = round(factor * self.positions)
        return Extent(round(factor * self.tokens), positions, -(-positions // positions_per_shard))


@dataclass(frozen=True)
class Survey:
    """What a corpus becomes.

    Attributes:
        documents: Number of documents in the whole corpus.
        sequences: Sequences of the sample, numbered as if they were all.
        exact: Whether the totals are counted and not estimated.
        totals: Extent of the whole corpus by split.
        sequence_bytes: Bytes per position of the encoding's own files.
    """

    documents: int
    sequences: list[Sequence]
    exact: bool
    totals: dict[Split, Extent]
    sequence_bytes: float

    @property
    def total(self) -> Extent:
        """Extent of both splits together."""
        return sum(self.totals.values(), Extent())

    def of_size(self, tokens: float, positions_per_shard: int) -> "Survey":
        """Return the survey of a corpus like this one with so many tokens."""
        factor = tokens / self.total.tokens
        totals = {split: extent.scaled(factor, positions_per_shard) for split, extent in self.totals.items()}
        return replace(self, documents=round(factor * self.documents), exact=False, totals=totals)

    def as_encoded(self, encoding: Encoding) -> "Survey":
        """Return the survey with the exact totals of an encoding that holds the whole corpus."""
        splits = encoding.manifest.splits
        totals = {
            split: Extent(splits[split].tokens, splits[split].positions, splits[split].shards) for split in SPLITS
        }
        return replace(self, exact=True, totals=totals)


def survey(
    recipe: Recipe, sources: Iterable[CorpusSource], sample_documents: int, reporter: Reporter | None = None
) -> Survey:
    """Read the corpus and tokenise an even sample of it.

    Args:
        recipe: How documents become sequences.
        sources: The files and datasets of the corpus.
        sample_documents: How many documents to tokenise at most.
        reporter: Shows how much has been read.

    Raises:
        CorpusError: a document cannot be read or encoded.
    """
    reporter, sources = reporter or Reporter(), list(sources)
    characters = _count_characters(recipe, sources, reporter)
    step = -(-len(characters) // sample_documents)
    samples = _encode_sample(recipe, sources, step, reporter)
    factor = sum(characters) / sum(characters[::step])
    sizes = {
        split: Extent(sum(len(s.input_ids) for s in sequences), sum(s.num_positions for s in sequences))
        for split, sequences in samples.items()
    }
    totals = {split: size.scaled(factor, recipe.encoding.shard_positions) for split, size in sizes.items()}
    numbered = list(_numbered([sequence for split in SPLITS for sequence in samples[split]]))
    if not numbered:
        raise CorpusError(
            "no document of the sample has a token that a teacher could predict",
            where=", ".join(source.where for source in sources),
            found=f"{-(-len(characters) // step)} documents",
            fix="Raise --sample-documents, if other documents have text",
        )
    stored = len(sequences_bytes(numbered)) / sum(sequence.num_positions for sequence in numbered)
    return Survey(len(characters), numbered, step == 1, totals, stored)


def _count_characters(recipe: Recipe, sources: list[CorpusSource], reporter: Reporter) -> list[int]:
    """Return about how many characters each document has; warn if none is held out."""
    reporter.stage("reading the corpus", None, "documents")
    characters, fraction, holds_out = [], recipe.corpus.held_out_fraction, False
    for document in read_documents(sources, recipe.corpus, set()):
        characters.append(_characters(document))
        holds_out = holds_out or is_held_out(document.group, fraction)
        reporter.advance(1, document.share_before)
    if fraction and not holds_out:
        logger.warning(NOTHING_HELD_OUT, fraction)
    return characters


def _encode_sample(
    recipe: Recipe, sources: list[CorpusSource], step: int, reporter: Reporter
) -> dict[Split, list[Sequence]]:
    """Return the sequences of every ``step``-th document, by split."""
    reporter.stage("tokenising a sample of the corpus", None)
    documents = read_documents(sources, recipe.corpus, set())
    sample = (document for i, document in enumerate(documents) if i % step == 0)
    sequences: dict[Split, list[Sequence]] = {split: [] for split in SPLITS}
    skipped = SkippedDocuments()
    for document, sequence, _ in encode_documents(sample, recipe.tokenizer, recipe.encoding, skipped):
        reporter.advance(len(sequence.input_ids), document.share_before)
        sequences[recipe.split(document)].append(sequence)
    skipped.warn()
    return sequences


def _characters(document: Document) -> int:
    context = 0 if document.context is None else sum(len(str(value)) for value in document.context.fields.values())
    if document.text is not None:
        return len(document.text) + context + 1
    return sum(len(str(message)) for message in document.messages or ()) + len(document.ids or ()) + context + 1


def _numbered(sequences: list[Sequence]) -> Iterator[Sequence]:
    row = 0
    for number, sequence in enumerate(sequences):
        yield replace(sequence, sequence_id=number, first_position=row)
        row += sequence.num_positions
