"""The recipe of an encoding: everything that decides how a document becomes sequences.

The same recipe and the same documents give the same bytes. Its identity is what the encoding's manifest records, and
the hash of that is the encoding's fingerprint.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import Split
from cache_tools.mappings import Identity
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.config import CorpusConfig
from pipeline.corpus.documents import CorpusSource, Document, read_documents
from pipeline.encoding.held_out import is_held_out
from pipeline.encoding.sequences import EncodedSequence, SkippedDocuments, encode_documents
from pipeline.encoding.tokenizer import separator_of, tokenizer_identity


@dataclass(frozen=True)
class Recipe:
    """How documents become sequences.

    Attributes:
        corpus: The ``corpus:`` block of the capture file: which fields of a record are read.
        encoding: The ``encoding:`` block.
        tokenizer: The encoding's tokenizer.
    """

    corpus: CorpusConfig
    encoding: EncodingConfig
    tokenizer: PreTrainedTokenizerFast

    def identity(self) -> Identity:
        """Return everything that determines the sequences, as plain JSON."""
        settings = self.encoding.model_dump(
            mode="json", exclude={"name", "tokenizer", "chunk_positions", "masking", "segments"}
        )
        if self.encoding.segments:
            settings["segments"] = {"separator": separator_of(self.tokenizer)}
        if self.encoding.objective == "masked":
            settings["masking"] = self.encoding.masking.identity()
        if self.corpus.messages_field:
            settings["chat_template"] = fingerprint({"template": self.tokenizer.chat_template})
        return {
            "corpus": self.corpus.identity(),
            "encoding": settings,
            "tokenizer": tokenizer_identity(self.tokenizer),
        }

    def encode(
        self, sources: Iterable[CorpusSource], seen_ids: set[str], skipped: SkippedDocuments | None = None
    ) -> Iterator[EncodedSequence]:
        """Yield the sequences of all documents of some sources.

        Args:
            sources: What to read.
            seen_ids: Document ids that are taken; those that are read are added.
            skipped: Counts documents without a token to predict.

        Raises:
            CorpusError: a document cannot be read or encoded.
        """
        documents = read_documents(sources, self.corpus, seen_ids)
        yield from encode_documents(documents, self.tokenizer, self.encoding, skipped)

    def split(self, document: Document) -> Split:
        """Return the split that a document belongs to."""
        return "held_out" if is_held_out(document.group, self.corpus.held_out_fraction) else "train"
