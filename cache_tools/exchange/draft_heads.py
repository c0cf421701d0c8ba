"""A teacher's hidden states as files for the trainers of draft heads, each row checked against its log-probabilities.

The states are decoded, brought to the side of the final norm that the trainer expects, rounded to bfloat16, and
compared as that trainer will use them (``state_check``) before a file is written. A cache keeps the input of the output
matrix, which is behind the norm; for a trainer that applies the norm itself the state before it is computed, see
``models/final_norm``. Rejected: capturing that state as one more layer, which costs a third of the auxiliary layers'
bytes again and tells no trainer anything else.

The last token of a sequence has no prediction and no state, so it is left out; a sequence whose first tokens have no
states cannot be exported, because a draft head attends to all of them. Memory: the states of BLOCK_VALUES numbers, and
the tokens of a shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.exchange.finished_files import FinishedFiles, origin_of, size_and_hash
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
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.format.receipts import TARGETS
from cache_tools.format.sequences import Sequence
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.models.final_norm import FinalNorm, read_final_norm
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.draft_files import (
    AUXILIARY_LAYERS,
    SPECFORGE_SHIFT,
    DraftSample,
    Trainer,
    dataset_index,
    dataset_part,
    sample_file,
    sample_name,
    token_counts_file,
)
from cache_tools.separate_places import require_outside
from cache_tools.storage import StorePath, sha256
from cache_tools.store.predictions import hidden_array
from cache_tools.store.teacher import CachedTeacher

BLOCK_VALUES = 2**25
"""Numbers of all layers that are decoded at a time, where a sequence has no more."""

SPLIT_NAMES: dict[Split, str] = {"train": "train", "held_out": "test"}


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


@dataclass(frozen=True)
class DraftReport:
    """What an export of hidden states wrote.

    Attributes:
        format: The trainer.
        target: The folder.
        sequences: Files of states.
        tokens: Tokens with states.
        training_share: Share of the sequences that are of the training split; they come first.
        layer_ids: Numbers of the auxiliary layers as the trainer counts them.
        error_nats: Error of the row that is nearest its tolerance, of rows that were written by this command.
        tolerance_nats: That row's tolerance.
        bytes_per_value: Bytes of the files for each number of a state.
        cache_bytes_per_value: Bytes of the same layers in the cache for each number.
    """

    format: str
    target: str
    sequences: int
    tokens: int
    training_share: float
    layer_ids: tuple[int, ...]
    error_nats: float
    tolerance_nats: float
    bytes_per_value: float
    cache_bytes_per_value: float


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
class _Export:
    """An export that has been looked at.

    Attributes:
        teacher: Whose states.
        options: What was asked.
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


def export_states(teacher: CachedTeacher, target: StorePath, options: DraftOptions, reporter: Reporter) -> DraftReport:
    """Write a teacher's hidden states for a trainer of draft heads, or go on with an export that was stopped.

    Args:
        teacher: The teacher.
        target: The folder of the files: new, or that of the same export.
        options: What is asked.
        reporter: Shown what happens.

    Raises:
        ConfigError: the teacher does not keep what a draft head needs.
        IdentityError: states do not give the stored log-probabilities, or the folder holds something else.
        IncompleteError: a shard has not been captured.
        ModelError: the model's folder holds no final norm.
    """
    encoding = teacher.encoding
    require_outside(target, encoding.path.parent.parent, "the export")
    export = _looked_at(teacher, options)
    splits = [options.split] if options.split else [split for split in SPLITS if encoding.split_shards(split)]
    shards = [(split, shard) for split in splits for shard in encoding.split_shards(split)]
    for group in (TARGETS, *map(hidden_array, (*export.layers, "last"))):
        teacher.require_shards([shard for _, shard in shards], group)
    reporter.stage("reading tokens", len(shards), "shards")
    for _, shard in shards:
        _require_states(encoding.sequences(shard))
        reporter.advance(1)
    finished = FinishedFiles(target, _identity(export, splits))
    sequences = [encoding.shards[shard].sequences for _, shard in shards]
    firsts = np.cumsum([0, *sequences])[:-1].tolist()
    train = sum(count for (split, _), count in zip(shards, sequences, strict=True) if split == "train")
    reporter.stage(f"exporting hidden states of {teacher.name}", sum(e.positions for e in encoding.shards), "positions")
    size = 0
    for (split, shard), first in zip(shards, firsts, strict=True):
        number = first if options.trainer == "speculators" or split == "train" else first - train
        size += _write_shard(export, finished, split, shard, number)
        reporter.advance(encoding.shards[shard].positions)
    if options.trainer == "speculators":
        _write_dataset(export, finished, [shard for _, shard in shards])
    tokens = sum(encoding.shards[shard].positions for _, shard in shards)
    values = max(1, tokens * export.width * (len(export.layers) + 1))
    shift = SPECFORGE_SHIFT if options.trainer == "specforge" else 0
    return DraftReport(
        format=options.trainer,
        target=str(target),
        sequences=sum(sequences),
        tokens=tokens,
        training_share=train / max(1, sum(sequences)),
        layer_ids=tuple(int(layer) - shift for layer in export.layers),
        error_nats=export.worst.error_nats,
        tolerance_nats=export.worst.tolerance_nats,
        bytes_per_value=size / values,
        cache_bytes_per_value=_stored_bytes(export, [shard for _, shard in shards]) / values,
    )


def _looked_at(teacher: CachedTeacher, options: DraftOptions) -> _Export:
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
    return _Export(teacher, options, layers, head, norm)


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


def _require_states(sequences: list[Sequence]) -> None:
    for sequence in sequences:
        positions = sequence.positions()
        if not len(positions) or positions[-1] != len(positions) - 1:
            raise ConfigError(
                "the first tokens of a sequence have no states",
                where=f"sequence {sequence.sequence_id}, document {sequence.document_id!r}",
                why="a draft head attends to every token of a sequence",
                fix="Capture the corpus with predictions at all tokens, in an encoding of its own",
            )


def _identity(export: _Export, splits: list[Split]) -> dict[str, object]:
    teacher, norm = export.teacher, export.norm
    return {
        "format": export.options.trainer,
        "layers": list(export.layers),
        "teacher": {"name": teacher.name, "fingerprint": teacher.manifest.fingerprint},
        "sequences": teacher.encoding.manifest.contents_fingerprint,
        "splits": list(splits),
        "norm": None if norm is None else {"weight": sha256(norm.weight.tobytes()), "epsilon": norm.epsilon},
    }


def _write_shard(export: _Export, finished: FinishedFiles, split: Split, shard: int, first: int) -> int:
    """Write the files of a shard's sequences unless they are finished; return their bytes."""
    part, origin = f"states-{shard:05d}", origin_of(export.teacher, shard, first=first)
    size = finished.finished_bytes(part, origin)
    if size is not None:
        return size
    contents: dict[str, tuple[int, str]] = {}
    for number, sample in enumerate(_samples(export, shard), first):
        name = sample_name(export.options.trainer, SPLIT_NAMES[split], number)
        content = sample_file(export.options.trainer, sample)
        finished.write(name, content)
        contents[name] = size_and_hash(content)
    return finished.finish(part, origin, contents)


def _samples(export: _Export, shard: int) -> Iterator[DraftSample]:
    """Yield the checked states of each sequence of a shard, in order."""
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
    export: _Export, sequence: Sequence, last: NDArray[np.uint16], entries: KeptEntries, rounding: Rounding
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


def _write_dataset(export: _Export, finished: FinishedFiles, shards: list[int]) -> None:
    """Write the dataset of tokens, one part for each shard, and how often each token occurs."""
    encoding = export.teacher.encoding
    counts = np.zeros(encoding.manifest.vocabulary_size, np.int64)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        tokens = [s.input_ids[: s.num_positions].astype(np.int64) for s in encoding.sequences(shard)]
        counts += np.bincount(np.concatenate(tokens), minlength=len(counts))
        finished.write(name, dataset_part(tokens))
    rows = fingerprint({"sequences": encoding.manifest.contents_fingerprint, "shards": shards})
    for name, content in (dataset_index(names, rows) | {"token_freq.pt": token_counts_file(counts)}).items():
        finished.write(name, content)


def _stored_bytes(export: _Export, shards: list[int]) -> int:
    """Return the bytes of the exported layers in the cache."""
    arrays = tuple(f"{hidden_array(layer)}/" for layer in (*export.layers, "last"))
    receipts = [export.teacher.receipt(shard) for shard in shards]
    return sum(
        o.bytes for receipt in receipts if receipt for key, o in receipt.objects.items() if key.startswith(arrays)
    )
