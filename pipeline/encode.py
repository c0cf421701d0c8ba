"""Documents become sequences, sequences fill shards, shards are written: the start of stage one.

Deterministic: the same documents, tokenizer and settings give the same bytes. The
encoding's manifest is written last, so an encoding exists whole or not at all; a killed
one is simply done again (it costs a tokeniser pass, nothing beside a teacher).

The two splits fill their own shards side by side, so no shard mixes them. Sequence ids
follow the order in which shards are written.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cache_tools import layout
from cache_tools.errors import IdentityError
from cache_tools.files import PARTIAL_SUFFIX, storage_errors
from cache_tools.fingerprint import differences, fingerprint
from cache_tools.manifest import EncodingManifest, Split, SplitTotals, read_manifest, write_manifest
from cache_tools.sequences import Sequence, write_sequences
from cache_tools.shards import ShardEntry, totals, write_shard_table
from pipeline.config import CaptureConfig, EncodingConfig
from pipeline.documents import Document, corpus_files, corpus_identity, read_documents
from pipeline.masking import draw_mask
from pipeline.pieces import Frame, Piece, frame_of, split_document
from pipeline.split import is_held_out
from pipeline.tokenizers import tokenizer_identity

Progress = Callable[[int], None]
"""Called with the number of tokens encoded since the last call."""


def encode(config: CaptureConfig, tokenizer: PreTrainedTokenizerFast, progress: Progress = lambda _: None) -> Path:
    """Encode the corpus into the cache, or check that it already is.

    Args:
        config: The capture file.
        tokenizer: The encoding's tokenizer.
        progress: Told how many tokens were encoded.

    Returns:
        The encoding's folder.

    Raises:
        CorpusError: a document cannot be read or encoded.
        IdentityError: the cache holds an encoding of this name from another corpus or other settings.
    """
    files = corpus_files(config.corpus)
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    identity = encoding_identity(config, files, tokenizer)
    if (folder / layout.MANIFEST).exists():
        _check_same(folder, identity)
        return folder
    _clear(folder)
    _save_tokenizer(tokenizer, layout.tokenizer_folder(folder))
    writer = _ShardWriter(folder, config.encoding.positions_per_shard)
    frame = frame_of(tokenizer, config.encoding)
    random_ids = _ordinary_ids(tokenizer)
    for document in read_documents(files, config.corpus):
        split: Split = "held_out" if is_held_out(document.group, config.corpus.held_out_fraction) else "train"
        for sequence in encode_document(document, tokenizer, frame, random_ids, config.encoding):
            writer.add(split, sequence)
            progress(len(sequence.input_ids))
    _commit(folder, writer.finish(), identity, len(tokenizer), config.encoding)
    return folder


def encoding_identity(config: CaptureConfig, files: list[Path], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return everything that determines the sequences; its hash is the encoding's fingerprint."""
    corpus = config.corpus.model_dump(mode="json", exclude={"paths"})
    encoding = config.encoding.model_dump(mode="json", exclude={"name", "tokenizer", "chunk_positions", "masking"})
    if config.encoding.objective == "masked":
        encoding["masking"] = config.encoding.masking.model_dump(mode="json")
    if config.corpus.messages_field:
        encoding["chat_template"] = fingerprint({"template": tokenizer.chat_template})
    return {
        "corpus": corpus_identity(files, config.corpus) | corpus,
        "encoding": encoding,
        "tokenizer": tokenizer_identity(tokenizer),
    }


def encode_document(
    document: Document,
    tokenizer: PreTrainedTokenizerFast,
    frame: Frame,
    random_ids: NDArray[np.uint32],
    config: EncodingConfig,
) -> Iterator[Sequence]:
    """Yield the sequences of one document; ids and rows are assigned when a shard is written.

    Raises:
        CorpusError: the document has no token that a teacher could predict.
    """
    for number, piece in enumerate(split_document(document, tokenizer, frame, config)):
        if config.objective == "causal":
            mask = np.append(piece.trainable[1:], False)
            yield _sequence(document, piece, piece.input_ids, mask, None)
            continue
        for copy in range(config.masking.copies):
            key = f"{document.id}\0{number}\0{copy}"
            assert tokenizer.mask_token_id is not None
            shown, slots = draw_mask(
                piece.input_ids, piece.trainable, tokenizer.mask_token_id, random_ids, config.masking, key
            )
            yield _sequence(document, piece, shown, slots, piece.input_ids)


def _sequence(
    document: Document,
    piece: Piece,
    input_ids: NDArray[np.uint32],
    position_mask: NDArray[np.bool_],
    original_ids: NDArray[np.uint32] | None,
) -> Sequence:
    unassigned = -1
    return Sequence(
        unassigned,
        document.id,
        document.group,
        unassigned,
        input_ids,
        position_mask,
        original_ids,
        piece.text,
        piece.byte_lengths,
    )


@dataclass
class _ShardWriter:
    """Fills one open shard per split and writes it when the next sequence would not fit."""

    folder: Path
    shard_rows: int
    open: dict[Split, list[Sequence]] = field(default_factory=lambda: {"train": [], "held_out": []})
    rows: dict[Split, int] = field(default_factory=lambda: {"train": 0, "held_out": 0})
    entries: list[ShardEntry] = field(default_factory=list)
    last_document: dict[Split, str] = field(default_factory=dict)

    def add(self, split: Split, sequence: Sequence) -> None:
        if self.rows[split] + sequence.num_positions > self.shard_rows:
            self._write(split)
        self.open[split].append(sequence)
        self.rows[split] += sequence.num_positions

    def finish(self) -> list[ShardEntry]:
        for split, sequences in self.open.items():
            if sequences:
                self._write(split)
        return self.entries

    def _write(self, split: Split) -> None:
        sequences, row = [], len(self.entries) * self.shard_rows
        first = sum(entry.sequences for entry in self.entries)
        for number, sequence in enumerate(self.open[split], first):
            sequences.append(replace(sequence, sequence_id=number, first_position=row))
            row += sequence.num_positions
        size, sha256 = write_sequences(layout.sequences_file(self.folder, len(self.entries)), sequences)
        self.entries.append(
            ShardEntry(
                split=split,
                documents=self._new_documents(split, sequences),
                sequences=len(sequences),
                first_sequence=first,
                tokens=sum(len(s.input_ids) for s in sequences),
                positions=sum(s.num_positions for s in sequences),
                bytes=size,
                sha256=sha256,
            )
        )
        self.open[split], self.rows[split] = [], 0

    def _new_documents(self, split: Split, sequences: list[Sequence]) -> int:
        """Count the documents that begin in this shard; one may have begun in the shard before."""
        ids = {sequence.document_id for sequence in sequences} - {self.last_document.get(split)}
        self.last_document[split] = sequences[-1].document_id
        return len(ids)


def _commit(
    folder: Path, entries: list[ShardEntry], identity: dict[str, Any], vocabulary_size: int, config: EncodingConfig
) -> None:
    """Write the shard table, then the manifest that makes the encoding exist."""
    splits: tuple[Split, ...] = ("train", "held_out")
    manifest = EncodingManifest(
        identity=identity,
        objective=config.objective,
        vocabulary_size=vocabulary_size,
        positions_per_shard=config.positions_per_shard,
        splits={split: SplitTotals(**totals(entries, split)) for split in splits},
        shards_sha256=write_shard_table(folder, entries),
    )
    write_manifest(folder, manifest)


def _check_same(folder: Path, identity: dict[str, Any]) -> None:
    stored = read_manifest(folder, EncodingManifest).identity
    if fingerprint(stored) != fingerprint(identity):
        raise IdentityError(
            "the cache holds this encoding from another corpus, tokenizer or settings",
            where=folder,
            expected="the corpus and settings it was made with",
            found="; ".join(differences(stored, identity)),
            why="old and new predictions would belong to different tokens",
            fix="Restore the corpus and settings, or choose another encoding.name or cache",
        )


def _clear(folder: Path) -> None:
    """Remove what a killed run left, perhaps with other settings; one process at a time encodes."""
    for part in (layout.sequences_file(folder, 0).parent, layout.tokenizer_folder(folder)):
        shutil.rmtree(part, ignore_errors=True)
    for leftover in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        leftover.unlink()


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Keep the tokenizer's own files in the cache, so that readers and students need no other copy."""
    with storage_errors(folder):
        folder.mkdir(parents=True)
        try:
            tokenizer.save_pretrained(str(folder))
        except Exception as error:  # the Rust part raises plain exceptions, with the error number in their text
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.uint32]:
    """Return every id that is not a special token: (m,) uint32, ascending."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids).astype(np.uint32)
