"""Cached sequences as a student with its own tokenizer reads them: its tokens, and the teacher's rows where there are.

Each position that the student is trained on has the teacher's row that predicts from the same bytes
(``cache_tools/alignments``), with the student's ids of its tokens; probabilities of tokens that the student does not
have are left-out mass. ``composed_tokens.py`` gives composed tokens their probability. A position without a row has a
row without tokens, with all the mass left out, which is what a cache holds where a teacher gave no numbers: its
divergence is 0 with the tails that ``verdicts/alignment.py`` accepts (with ``gold`` it is cross-entropy, as for any
mass that is left out), and its cross-entropy counts as everywhere. A sequence without any position is the next one.
For ``loss.ranks`` the kept tokens that the student does not have stay beside the row, without ids.

With the same tokenizer an item holds what ``CachedSequences`` holds, to the bit.

Cost: a sequence's rows are decoded once, as without an alignment, and gathered; see ``benchmarks/alignment.py``.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache_tools.alignments.matching import COMPOSED, KINDS, NO_ROW, OUTSIDE
from cache_tools.alignments.stored import AlignedSequence, Alignment
from cache_tools.alignments.token_ids import student_ids
from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.errors import ConfigError
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.manifest import Split
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import NO_ID, IdMaps
from trainer.data.binding import Binding, aligned_number
from trainer.data.cached_sequences import CachedSequences, Example, Reading, Shard, fit_vocabulary
from trainer.data.composed_tokens import with_composed
from trainer.data.translation import predicted_ids, translated_targets

TARGETS_ALONE = Reading()

TEXT_BYTES = "text_bytes"
"""Scalar of a position: bytes of text that its gold token covers."""


class AlignedSequences(CachedSequences):
    """The sequences of one split as a student reads them, with one teacher's predictions.

    Args:
        teacher: The teacher to learn from.
        alignment: The alignment of its encoding with the student's tokenizer.
        composed: Whether composed tokens get their probability by the product rule; it is one of temperature 1.
        keep_unmapped: Whether to give the probabilities of kept tokens that the student does not have, too.
        count_bytes: Whether to give the bytes of text that each gold token covers, as scalar ``TEXT_BYTES``.
        others: Arguments of ``CachedSequences``, but for ``to``, ``weights`` and ``rows``.

    Raises:
        IncompleteError: a shard of the split has not been captured or aligned.
        DamageError: a tokenizer's file is missing or not what was written.
    """

    def __init__(
        self,
        teacher: CachedTeacher,
        alignment: Alignment,
        split: Split,
        student_vocabulary_size: int,
        shards_in_memory: int = 4,
        reading: Reading = TARGETS_ALONE,
        other_positions: bool = False,
        composed: bool = True,
        keep_unmapped: bool = False,
        count_bytes: bool = False,
    ) -> None:
        super().__init__(
            teacher, split, student_vocabulary_size, shards_in_memory, reading, other_positions=other_positions
        )
        alignment.require_complete(self.shards.tolist())
        self.alignment, ids = alignment, student_ids(alignment)
        self.keep_unmapped, self.count_bytes = keep_unmapped, count_bytes
        if ids is not None and keep_unmapped:
            ids = with_ids_behind(ids, student_vocabulary_size)
        self.ids = None if ids is None else IdMaps(ids, ids)
        self.composed = composed and not alignment.is_same and GOLD_LOGPROB in teacher.manifest.scalars
        if not any(self._trained_positions(shard) for shard in self.shards.tolist()) and len(self):
            raise ConfigError(
                f"the student has no position to train on in the {split} split",
                where=alignment.path,
                why="its tokenizer covers none of the text at which predictions were kept",
                fix="Check with 'logitcask align' that this is the student's tokenizer",
            )
        self.source = aligned_number(self.source, alignment.manifest.fingerprint)

    @property
    def binding(self) -> Binding:
        """Which batches a loss on these sequences takes."""
        own = super().binding
        return replace(own, columns=own.columns | {"unmapped_log_probs"}) if self.keep_unmapped else own

    def __getitem__(self, index: int) -> Example:
        number, sequence = self._place(index)
        aligned = self.alignment.sequences(number)[sequence.sequence_id - self.encoding.shards[number].first_sequence]
        shard, positions = self._shard(number), aligned.positions()
        if not len(positions):  # a text of a single token; a step of such sequences alone would have no loss
            return self[(index + 1) % len(self)]
        start, stop = (row - self.teacher.shard_rows(number)[0] for row in sequence.rows)
        rows, gold_ids = aligned.first_rows[positions], aligned.input_ids[positions + 1]
        targets = gathered(self._translated(shard.targets.decode(start, stop)), rows)
        if self.composed:
            theirs = sequence.gold_ids(self.encoding.manifest.objective)
            first_ids = (theirs if self.ids is None else predicted_ids(theirs, self.ids))[rows]
            gold_log_probs = shard.scalars[GOLD_LOGPROB][start:stop]
            targets = with_composed(targets, _chains(aligned, positions), rows, gold_log_probs, first_ids, gold_ids)
        unmapped = None
        if self.keep_unmapped:
            unmapped = unmapped_log_probs(targets, self.student_vocabulary_size)
            targets = fit_vocabulary(targets, self.student_vocabulary_size)
        scalars = {name: _gathered_scalar(shard.scalars[name][start:stop], rows) for name in self.reading.scalars}
        if self.count_bytes:
            scalars[TEXT_BYTES] = aligned.byte_lengths[positions + 1].astype(np.float32)
        return Example(
            aligned.input_ids,
            positions,
            gold_ids,
            targets,
            scalars,
            source=self.source,
            unmapped=unmapped,
        )

    def positions_per_sequence(self) -> list[tuple[str, int]]:
        """Return the group of documents and the number of positions of each sequence, in the order of the items."""
        return [
            (sequence.group_id, len(aligned.positions()))
            for shard in self.shards.tolist()
            for sequence, aligned in zip(self.encoding.sequences(shard), self.alignment.sequences(shard), strict=True)
        ]

    def _trained_positions(self, shard: int) -> int:
        return sum(count for kind, count in self.alignment.receipts[shard].kinds.items() if kind != KINDS[OUTSIDE])

    def _translated(self, targets: Targets) -> Targets:
        translated = targets if self.ids is None else translated_targets(targets, self.ids)
        return translated if self.keep_unmapped else fit_vocabulary(translated, self.student_vocabulary_size)

    def _read_shard(self, shard: int) -> Shard:
        read = super()._read_shard(shard)
        if not self.composed:
            return read
        log_probs = self.teacher.scalar(GOLD_LOGPROB, *self.teacher.shard_rows(shard))
        return replace(read, scalars=read.scalars | {GOLD_LOGPROB: log_probs})


def with_ids_behind(ids: NDArray[np.uint32], student_vocabulary_size: int) -> NDArray[np.uint32]:
    """Return a map of ids in which each token that the student does not have has an id behind the student's."""
    behind = student_vocabulary_size + np.arange(len(ids), dtype=np.uint32)
    result: NDArray[np.uint32] = np.where(ids == NO_ID, behind, ids)
    return result


def unmapped_log_probs(targets: Targets, student_vocabulary_size: int) -> NDArray[np.float32]:
    """Return the log-probabilities of tokens behind the student's vocabulary, (p, k); -inf in other slots."""
    behind = (targets.ids >= student_vocabulary_size) & (targets.ids != EMPTY_ID)
    return np.where(behind, targets.log_probs, np.float32(-np.inf))


def gathered(targets: Targets, rows: NDArray[np.int32]) -> Targets:
    """Return some rows of targets; for NO_ROW a row without tokens, with all the mass left out."""
    without = rows == NO_ROW
    picked = np.where(without, 0, rows)
    return Targets(
        np.where(without[:, None], np.uint32(EMPTY_ID), targets.ids[picked]),
        np.where(without[:, None], np.float32(-np.inf), targets.log_probs[picked]),
        np.where(without, np.float32(0), targets.log_left_out[picked]),
    )


def _gathered_scalar(values: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return a scalar at some rows; 0 for NO_ROW, as at positions where a teacher gave no numbers."""
    return np.where(rows == NO_ROW, np.float32(0), values[np.where(rows == NO_ROW, 0, rows)])


def _chains(aligned: AlignedSequence, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many rows each position's composed token consists of, (p,); 0 for other tokens."""
    lengths = aligned.num_rows[positions].astype(np.int64)
    return np.where((aligned.kinds[positions] == COMPOSED) & (lengths > 1), lengths, 0)
