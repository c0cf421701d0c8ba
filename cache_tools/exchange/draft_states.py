"""The hidden states of a teacher as a trainer of draft heads uses them, each row checked against its log-probabilities.

The states are decoded, brought to the side of the final norm that the trainer expects, rounded to bfloat16, and
compared as that trainer will use them (``state_check``) before they are yielded. A cache keeps the input of the output
matrix, which is behind the norm; for a trainer that applies the norm itself the state before it is computed, see
``models/final_norm``. Rejected: capturing that state as one more layer, which costs a third of the auxiliary layers'
bytes again and tells no trainer anything else.

The last token of a sequence has no prediction and no state, so it is left out; a sequence whose first tokens have no
states cannot be exported, because a draft head attends to all of them. Memory: the states of BLOCK_VALUES numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.exchange.state_check import (
    KeptEntries,
    OutputHead,
    Rounding,
    RowErrors,
    compare,
    likely_cause,
    open_head,
    too_many,
)
from cache_tools.format.manifest import Split
from cache_tools.format.sequences import Sequence
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.models.final_norm import FinalNorm, read_final_norm
from cache_tools.row_files.draft_files import AUXILIARY_LAYERS, DraftSample, Trainer
from cache_tools.store.teacher import CachedTeacher

BLOCK_VALUES = 2**25
"""Numbers of all layers that are decoded at a time, where a sequence has no more."""


@dataclass(frozen=True)
class DraftOptions:
    """What a user asks of an export.

    Attributes:
        trainer: Who reads the files.
        layers: Auxiliary layers; None for the three that the cache keeps.
        model: Folder of the teacher, which holds its final norm; None if unknown.
        split: One split; None for both.
    """

    trainer: Trainer
    layers: tuple[str, ...] | None = None
    model: Path | None = None
    split: Split | None = None


@dataclass
class _Worst:
    """The checked row that is nearest its tolerance."""

    error_nats: float = 0.0
    tolerance_nats: float = np.inf

    def add(self, errors: RowErrors) -> None:
        row = int(np.argmax(errors.error_nats / errors.tolerance_nats))
        error, tolerance = float(errors.error_nats[row]), float(errors.tolerance_nats[row])
        if error * self.tolerance_nats > self.error_nats * tolerance or not np.isfinite(self.tolerance_nats):
            self.error_nats, self.tolerance_nats = error, tolerance


@dataclass(frozen=True)
class DraftStates:
    """The states of a teacher that a trainer of draft heads reads.

    Attributes:
        teacher: The teacher.
        options: What the user asks of the export.
        layers: Auxiliary layers by rising number.
        head: The output matrix.
        norm: The final norm; None if its folder was not named.
        worst: Filled as rows are checked.
    """

    teacher: CachedTeacher
    options: DraftOptions
    layers: tuple[str, ...]
    head: OutputHead
    norm: FinalNorm | None
    worst: _Worst = field(default_factory=_Worst)

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.teacher.manifest.hidden["last"].width


def open_states(teacher: CachedTeacher, options: DraftOptions) -> DraftStates:
    """Select the layers of an export, and read the matrix and the norm that the trainer will use.

    Raises:
        ConfigError: the teacher does not keep what a draft head needs, or the model is not this teacher.
        ModelError: the model's folder holds no final norm.
    """
    if teacher.encoding.manifest.objective != "causal":
        raise ConfigError("draft heads predict next tokens, and this teacher masked ones", where=teacher.path)
    head = open_head(teacher)
    layers = _auxiliary_layers(teacher, options.layers)
    if options.model is None and options.trainer == "speculators":
        raise ConfigError(
            "the final norm of the teacher is needed",
            where="--model",
            why="speculators applies the norm itself, and the cache keeps states behind it",
            fix="Name the teacher's folder with --model",
        )
    norm = None if options.model is None else read_final_norm(options.model)
    width = teacher.manifest.hidden["last"].width
    if norm is not None and (len(norm.weight) != width or int(layers[-1]) >= norm.num_layers):
        raise ConfigError(
            "the model is not this teacher, or a layer is behind its final norm",
            where=options.model,
            expected=f"a width of {width} and more than {layers[-1]} layers",
            found=f"a width of {len(norm.weight)} and {norm.num_layers} layers",
            fix="Name the teacher's own folder, and layers below its last one",
        )
    return DraftStates(teacher, options, layers, head, norm)


def _auxiliary_layers(teacher: CachedTeacher, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return three numbered layers, ascending, of the width of the last."""
    hidden = teacher.manifest.hidden
    numbered = sorted((name for name in hidden if name.isdecimal()), key=int)
    layers = numbered if asked is None else sorted(set(asked) & set(numbered), key=int)
    widths = {hidden[name].width for name in (*layers, "last")}
    if len(layers) != AUXILIARY_LAYERS or len(widths) > 1 or (asked is not None and set(asked) != set(layers)):
        raise ConfigError(
            f"a draft head needs {AUXILIARY_LAYERS} auxiliary layers",
            where=teacher.path if asked is None else "--layers",
            expected="three of the numbered layers that the teacher keeps, as wide as 'last'",
            found=f"{', '.join(asked)} of {', '.join(numbered)}" if asked else ", ".join(numbered) or "none",
            fix="Choose them with --layers; a layer that is missing can be added to hidden.layers and captured alone",
        )
    return tuple(layers)


def require_states(sequences: list[Sequence]) -> None:
    """Refuse sequences whose first tokens have no states.

    Raises:
        ConfigError: naming the first such sequence.
    """
    for sequence in sequences:
        positions = sequence.positions()
        if not len(positions) or positions[-1] != len(positions) - 1:
            raise ConfigError(
                "the first tokens of a sequence have no states",
                where=f"sequence {sequence.sequence_id}, document {sequence.document_id!r}",
                why="a draft head attends to every token of a sequence",
                fix="Capture the corpus with predictions at all tokens, in an encoding of its own",
            )


def samples_of(export: DraftStates, shard: int) -> Iterator[DraftSample]:
    """Yield the states of each sequence of a shard, in order, after their check.

    Raises:
        IdentityError: the states of a sequence do not give its stored log-probabilities.
    """
    teacher, rounding = export.teacher, Rounding.of_shard(export.teacher, shard)
    sequences = teacher.encoding.sequences(shard)
    rows = max(1, BLOCK_VALUES // (export.width * (len(export.layers) + 1)))
    for block in _blocks(sequences, rows):
        start, stop = block[0].rows[0], block[-1].rows[1]
        last = teacher.hidden("last", start, stop)
        if export.options.trainer == "speculators" and export.norm is not None:
            last = export.norm.undo(last)
        bits = to_bfloat16(last)
        entries = KeptEntries.of(teacher.targets(start, stop))
        auxiliary = np.stack([to_bfloat16(teacher.hidden(layer, start, stop)) for layer in export.layers], axis=1)
        for sequence in block:
            own = slice(sequence.rows[0] - start, sequence.rows[1] - start)
            rows_of = KeptEntries(entries.ids[own], entries.log_probs[own])
            _check(export, sequence, bits[own], rows_of, rounding)
            tokens = sequence.input_ids[: sequence.num_positions].astype(np.int64)
            yield DraftSample(tokens, auxiliary[own], bits[own])


def _blocks(sequences: list[Sequence], rows: int) -> Iterator[list[Sequence]]:
    """Yield runs of sequences of about so many rows, at least one sequence each."""
    starts = [0]
    for number, sequence in enumerate(sequences):
        if sequence.rows[1] - sequences[starts[-1]].rows[0] > rows and number > starts[-1]:
            starts.append(number)
    for start, stop in pairwise([*starts, len(sequences)]):
        yield sequences[start:stop]


def _check(
    export: DraftStates, sequence: Sequence, last: NDArray[np.uint16], entries: KeptEntries, rounding: Rounding
) -> None:
    """Compare the last states of a sequence, as the trainer will use them, with their rows."""
    states = from_bfloat16(last)
    if export.options.trainer == "speculators" and export.norm is not None:
        states = export.norm.apply(states)
    errors = compare(export.head, states, entries, rounding)
    if not too_many(errors, rounding):
        export.worst.add(errors)
        return
    stored = export.teacher.hidden("last", *sequence.rows)
    if export.options.trainer == "speculators" and not too_many(
        compare(export.head, stored, entries, rounding), rounding
    ):
        cause = "the states of the cache give them, but not through the norm of --model: it is another model's"
    else:
        cause = likely_cause(export.head, stored, entries, rounding, export.norm)
    row = int(np.argmax(errors.error_nats / errors.tolerance_nats))
    raise IdentityError(
        "the last hidden states do not give the stored log-probabilities",
        where=f"teacher {export.teacher.name!r}, sequence {sequence.sequence_id}, row {row}",
        expected=f"at most {errors.tolerance_nats[row]:.2g} nats of difference",
        found=f"{errors.error_nats[row]:.2g} nats; {cause}",
        why="a draft head would learn another distribution than its target model's",
        fix="Check the model folder, and run 'logitcask audit' on the cache",
    )
