"""Aligning an encoding with a student's tokenizer, shard by shard: no teacher, no torch.

Each shard's sequences are read, tokenised again together and matched; a table and its receipt are written. Memory is
that of one shard. A process that is killed leaves whole shards, and the same command continues; when documents were
appended to the encoding, it aligns the new shards.

Where both tokenizers are the same, nothing is tokenised: the student's tokens are the cache's, and every row belongs to
its own position. So the loss is that of training without an alignment, bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cache_tools.alignments.matching import (
    NO_ROW,
    NONE,
    ONE,
    OUTSIDE,
    Matches,
    at_positions,
    match,
    teacher_rows,
)
from cache_tools.alignments.spans import Bools, Ints, Spans, TokenBytes, token_spans
from cache_tools.alignments.stored import (
    VERSION,
    AlignedSequence,
    Alignment,
    AlignmentManifest,
    write_shard,
)
from cache_tools.alignments.student_tokenizer import StudentText, StudentTokenizer, student_texts
from cache_tools.errors import ConfigError, DamageError, IdentityError
from cache_tools.format import layout
from cache_tools.format.manifest import ObjectRecord, read_manifest, write_group, write_manifest
from cache_tools.format.sequences import Sequence
from cache_tools.format.tokenizer_files import SETTINGS, is_tokenizer_file
from cache_tools.format.vocabulary import vocabulary_fingerprint
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.storage import StorePath, object_exists, object_sha256, object_size, remove_object, write_objects
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.folder import OpenTokenizer, open_tokenizer
from cache_tools.vocabularies.same_tokenizer import canonical_rules
from cache_tools.vocabularies.tokenizer_folder import TokenizerFolder, settings_of
from cache_tools.vocabularies.tokens import Token, tokens_of

BATCH_SEQUENCES = 1024
"""Sequences that are tokenised together."""


@dataclass(frozen=True)
class Pairing:
    """The two tokenizers of an alignment.

    Attributes:
        student: The student's.
        teacher: The bytes of the teacher's tokens.
        student_special: (V,) a number for each special or added token of the student, that of the same token of the
            teacher; 0 for ordinary ids.
        teacher_special: (V,) likewise for the teacher.
        same: Whether both turn the same text into the same ids.
    """

    student: StudentTokenizer
    teacher: TokenBytes
    student_special: Ints
    teacher_special: Ints
    same: bool

    @classmethod
    def between(cls, teacher: OpenTokenizer, student: TokenizerFolder) -> "Pairing":
        """Compare the tokenizer of an encoding with a student's.

        Raises:
            FormatError: a tokenizer writes its tokens in an unknown way.
        """
        numbers: dict[Token, int] = {}
        theirs = _special_numbers(tokens_of(teacher.tokenizer, teacher.settings), numbers)
        own = _special_numbers(tokens_of(student.tokenizer, settings_of(student.files[SETTINGS])), numbers)
        same = _is_same(teacher.tokenizer, student.tokenizer)
        return cls(StudentTokenizer.of(student), TokenBytes.of(teacher.tokenizer), own, theirs, same)


def align_encoding(encoding: Encoding, name: str, folder: TokenizerFolder, progress: Advance = ignore) -> Alignment:
    """Align an encoding with a student's tokenizer, or go on where an earlier call stopped.

    Args:
        encoding: The encoding.
        name: Name of the alignment.
        folder: The student's tokenizer.
        progress: Called with the tokens of each shard.

    Raises:
        ConfigError: the encoding has no text, or its teachers are masked language models.
        IdentityError: the name is that of an alignment with another tokenizer.
        FormatError: the encoding keeps no tokenizer, or a tokenizer writes its tokens in an unknown way.
        DamageError: sequences or the tokenizer are missing or not what was written.
        StorageError: a disk or bucket refused.
    """
    _check_alignable(encoding)
    pairing = Pairing.between(open_tokenizer(encoding), folder)
    alignment = _declared(encoding, name, folder)
    for shard, entry in enumerate(encoding.shards):
        if not _is_done(alignment, shard):
            write_shard(alignment, shard, list(aligned_sequences(encoding.student_sequences(shard), pairing)))
        progress(entry.tokens)
    return alignment


def aligned_sequences(sequences: list[Sequence], pairing: Pairing) -> Iterator[AlignedSequence]:
    """Yield sequences as a student reads them, with the teacher's rows."""
    if pairing.same:
        yield from (_unchanged(sequence, pairing.teacher) for sequence in sequences)
        return
    for start in range(0, len(sequences), BATCH_SEQUENCES):
        batch = sequences[start : start + BATCH_SEQUENCES]
        ends = [_ends_document(sequence, pairing.teacher) for sequence in batch]
        texts = student_texts(pairing.student, [sequence.text for sequence in batch], ends)
        for sequence, end, text in zip(batch, ends, texts, strict=True):
            yield _aligned(sequence, end, text, pairing)


def cached_spans(sequence: Sequence, tokens: TokenBytes) -> Spans:
    """Return the bytes that each token of a cached sequence covers."""
    framing, content = _framing(sequence, tokens), sequence.text.encode()
    return token_spans(sequence.input_ids, framing, content, tokens, lambda: sequence.byte_lengths.astype(np.int64))


def _framing(sequence: Sequence, tokens: TokenBytes) -> Bools:
    framing: Bools = tokens.special[sequence.input_ids] & (sequence.byte_lengths == 0)
    return framing


def _ends_document(sequence: Sequence, tokens: TokenBytes) -> bool:
    """Say whether a sequence ends with a token behind its text."""
    framing = _framing(sequence, tokens)
    return bool(framing[-1]) and not framing.all()


def _aligned(sequence: Sequence, ended: bool, text: StudentText, pairing: Pairing) -> AlignedSequence:
    spans = cached_spans(sequence, pairing.teacher)
    rows = teacher_rows(sequence.position_mask)
    own, theirs = pairing.student_special[text.input_ids], pairing.teacher_special[sequence.input_ids]
    matches = match(text.spans, spans, rows, own, theirs)
    if ended and pairing.student.end is not None:
        _match_end(matches, int(rows[-1]), same=own[-1] == theirs[-1])
    kinds, first_rows, num_rows = at_positions(matches)
    return AlignedSequence(sequence.sequence_id, text.input_ids, _lengths(text.spans), kinds, first_rows, num_rows)


def _match_end(matches: Matches, row: int, same: bool) -> None:
    """Match the tokens that end a document, in place: they cover no text, and are the same if both are the EOS."""
    if row != NO_ROW:
        matches.kinds[-1] = ONE if same else NONE
        matches.first_rows[-1] = row if same else NO_ROW
        matches.num_rows[-1] = 1 if same else 0


def _unchanged(sequence: Sequence, tokens: TokenBytes) -> AlignedSequence:
    """Return a sequence that the student reads as the teacher did."""
    has_row = sequence.position_mask
    rows = np.where(has_row, np.cumsum(has_row) - 1, NO_ROW).astype(np.int32)
    kinds = np.where(has_row, ONE, OUTSIDE).astype(np.uint8)
    lengths = _lengths(cached_spans(sequence, tokens))
    return AlignedSequence(sequence.sequence_id, sequence.input_ids, lengths, kinds, rows, has_row.astype(np.uint16))


def _lengths(spans: Spans) -> NDArray[np.uint32]:
    return (spans.ends - spans.starts).astype(np.uint32)


def _check_alignable(encoding: Encoding) -> None:
    if encoding.manifest.objective != "causal":
        raise ConfigError(
            "masked language models cannot be aligned",
            where=encoding.path,
            expected="an encoding for causal language models",
            why="the tokens that were masked for the teacher are no tokens of the student",
        )
    sample = encoding.sequences(0)[0] if len(encoding.shards) else None
    if sample is not None and not sample.text:
        raise ConfigError(
            "this encoding has no text to align",
            where=encoding.path,
            why="its corpus was given as token ids",
            fix="Capture the corpus as text",
        )


def _declared(encoding: Encoding, name: str, folder: TokenizerFolder) -> Alignment:
    """Write the manifest and the tokenizer of an alignment, unless they are there."""
    path = layout.alignment_folder(encoding.path, name)
    identity = {"version": VERSION, "encoding": encoding.manifest.fingerprint, "tokenizer": folder.identity}
    files = {f"{layout.TOKENIZER}/{file}": content for file, content in folder.files.items() if is_tokenizer_file(file)}
    manifest = AlignmentManifest(
        identity=identity,
        vocabulary_size=folder.size,
        files={key: ObjectRecord.of(content) for key, content in files.items()},
    )
    if not object_exists(path / layout.MANIFEST):
        write_group(layout.alignments_folder(encoding.path))
        write_objects(path, files)
        write_manifest(path, manifest)
    stored = read_manifest(path, AlignmentManifest)
    if stored.fingerprint != manifest.fingerprint:
        raise IdentityError(
            f"the alignment {name!r} was made with another tokenizer",
            where=path,
            expected=f"vocabulary {stored.vocabulary.fingerprint[:12]}… ({stored.vocabulary.size} ids)",
            found=f"{manifest.vocabulary.fingerprint[:12]}… ({manifest.vocabulary.size} ids)",
            why="one alignment would hold the tokens of two tokenizers",
            fix="Choose another name with --name",
        )
    if stored.files == manifest.files:  # a file that was damaged since comes back
        write_objects(
            path, {key: files[key] for key, record in stored.files.items() if not _is_whole(path / key, record)}
        )
    return Alignment(encoding, name)


def _is_done(alignment: Alignment, shard: int) -> bool:
    """Say whether a shard is aligned and undamaged; a receipt that cannot be used is removed."""
    try:
        receipt = alignment.receipt(shard)
    except DamageError:
        receipt = None
        remove_object(layout.receipt_file(alignment.path, shard))
    return receipt is not None and _is_whole(layout.alignment_table_file(alignment.path, shard), receipt.table)


def _is_whole(path: StorePath, record: ObjectRecord) -> bool:
    return object_size(path) == record.bytes and object_sha256(path, record.bytes) == record.sha256


def _is_same(first: Tokenizer, second: Tokenizer) -> bool:
    vocabularies = [vocabulary_fingerprint(tokenizer.get_vocab()) for tokenizer in (first, second)]
    return vocabularies[0] == vocabularies[1] and canonical_rules(first) == canonical_rules(second)


def _special_numbers(tokens: dict[int, Token], numbers: dict[Token, int]) -> NDArray[np.int64]:
    """Number special and added tokens, equal ones of both tokenizers alike; ``numbers`` is extended."""
    result = np.zeros(max(tokens) + 1, np.int64)
    for token_id, token in tokens.items():
        if token.kind in ("special", "added"):
            result[token_id] = numbers.setdefault(token, len(numbers) + 1)
    return result
