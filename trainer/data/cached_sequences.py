"""Cached sequences as a map-style dataset, and batches of them as tensors.

An item is a whole sequence with the teacher's predictions at its kept positions, so sequences can be batched, shuffled
and repeated in any way. Sparse targets are always read; scalars and hidden states, which may be thirty times larger,
only if the loss needs them (``Reading``).
The sequences and stored integers of the last few shards stay in memory and are decoded per sequence:
a shuffled reader stays inside a window of shards (see ``sampler.py``), so each shard is read about
once per epoch.

Batches are padded on the right; predictions of all sequences are concatenated, in the order in which
``gold_ids != -100`` lists their positions, and bound to them (``binding.py``). The gold tokens are not named
``labels``: a model of transformers would shift those once more, and return a loss without the teacher.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.format.layout import ENTROPY
from cache_tools.format.manifest import Split, TeacherManifest
from cache_tools.format.sequences import Sequence
from cache_tools.mappings import ModelInputs
from cache_tools.store.predictions import hidden_array
from cache_tools.store.stored_rows import StoredHidden, StoredTargets
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import IdMaps
from trainer.config.student_file import LossConfig
from trainer.data.binding import COLUMNS, IGNORED, Binding, source_number, target_fingerprints
from trainer.data.position_weights import PositionWeights
from trainer.data.translation import translated_ids, translated_targets
from trainer.verdicts.compatibility import TargetSummary

Batch: TypeAlias = ModelInputs
"""A batch of :func:`collate`: tensors by name, and below ``scalars`` and ``hidden`` dictionaries of tensors. It is a
dictionary because the Trainer moves it between devices and passes it to the module as keyword arguments."""


@dataclass(frozen=True)
class Reading:
    """What is read in addition to the sparse targets.

    Attributes:
        scalars: Names of per-position scalars.
        layers: Names of layers of hidden states.
    """

    scalars: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: TeacherManifest, loss: LossConfig) -> "Reading":
        """Return what a loss needs of a teacher.

        ``entropy``, where the teacher keeps it, turns a loss on draws into a KL divergence for the log.
        """
        layers = {pair.layer for pair in loss.hidden}
        if loss.kd_weight == 0:
            return cls(layers=tuple(sorted(layers)))
        source = TargetSummary.of(manifest, loss)
        scalars = source.scalars_for(loss) or ()
        if source.family == "hidden":
            layers.add("last")
        if source.family == "drawn" and loss.divergence == "forward_kl":
            scalars = (ENTROPY,) if ENTROPY in manifest.scalars else ()
        return cls(scalars, tuple(sorted(layers)))


@dataclass(frozen=True)
class Example:
    """One cached sequence.

    Attributes:
        input_ids: (n,) uint32.
        positions: (p,) int64, token indices of the kept positions.
        gold_ids: (p,) uint32, the token that each kept position should predict.
        targets: The teacher's predictions at the p positions.
        scalars: (p,) float32 by name, nats.
        hidden: (p, width) float32 by layer.
        weights: (p,) float32, weight of each position in the loss; None where all are 1.
        source: Number of the teacher, see ``binding.py``.
        unmapped: (p, k) float32, log-probabilities of the kept tokens that the student does not have, -inf in other
            slots; None where they are not read.
    """

    input_ids: NDArray[np.uint32]
    positions: NDArray[np.int64]
    gold_ids: NDArray[np.uint32]
    targets: Targets
    scalars: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    hidden: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    weights: NDArray[np.float32] | None = None
    source: int = 0
    unmapped: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Shard:
    """The content of a shard that stays in memory; rows are counted from its first."""

    sequences: list[Sequence]
    targets: StoredTargets
    scalars: dict[str, NDArray[np.float32]]
    hidden: dict[str, StoredHidden]

    def rolled(self, rows: int) -> "Shard":
        """Return the same sequences, each with the predictions of ``rows`` rows before; the first rows get the last."""
        arrays = {name: np.roll(values, rows, axis=0) for name, values in self.targets.arrays.items()}
        return replace(
            self,
            targets=replace(self.targets, arrays=arrays),
            scalars={name: np.roll(values, rows, axis=0) for name, values in self.scalars.items()},
            hidden={
                layer: replace(states, values=np.roll(states.values, rows, axis=0))
                for layer, states in self.hidden.items()
            },
        )


class CachedSequences(Dataset[Example]):
    """The sequences of one split with one teacher's predictions.

    Args:
        teacher: The teacher to learn from.
        split: ``train`` or ``held_out``.
        student_vocabulary_size: Width of the student's logits. Predicted ids beyond it (vocabulary
            padding) are moved into the left-out mass.
        shards_in_memory: How many shards' sequences and stored integers to keep.
        reading: What to read besides the targets.
        to: The student's ids, where its tokenizer is not the cache's (see ``translation.py``).
        other_positions: Give each position the prediction of a position half a shard away: a negative control.
        weights: Weights of positions in the loss, where they are not all 1.
        rows: Which kept positions of each sequence to give: by default all; of labelled ones ``slice(0, 1)`` is the
            label alone.

    Raises:
        IncompleteError: a shard of the split has not been captured, or lacks a layer.
    """

    def __init__(
        self,
        teacher: CachedTeacher,
        split: Split,
        student_vocabulary_size: int,
        shards_in_memory: int = 4,
        reading: Reading = Reading(),
        to: IdMaps | None = None,
        other_positions: bool = False,
        weights: PositionWeights | None = None,
        rows: slice = slice(None),
    ) -> None:
        teacher.require_complete(split)
        for layer in reading.layers:
            teacher.require_complete(split, hidden_array(layer))
        self.reading, self.to, self.other_positions = reading, to, other_positions
        self.weights, self.rows = weights, rows
        self.teacher, self.encoding = teacher, teacher.encoding
        self.student_vocabulary_size = student_vocabulary_size
        self.source = source_number(teacher, student_vocabulary_size, to)
        self.shards = self.encoding.shards.of_split(split)
        self.shard_sizes = self.encoding.shards.numbers("sequences")[self.shards]
        self._ends = np.cumsum(self.shard_sizes)
        self._shards_in_memory = shards_in_memory
        self._shard = lru_cache(shards_in_memory)(self._read_shard)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def binding(self) -> Binding:
        """Which batches a loss on these sequences takes."""
        columns = {f"scalars/{name}" for name in self.reading.scalars} | {f"hidden/{x}" for x in self.reading.layers}
        columns |= set() if self.weights is None else {"position_weights"}
        return Binding(frozenset({self.source}), COLUMNS | columns)

    def sequence(self, index: int) -> Sequence:
        """Return the sequence behind an item."""
        return self._place(index)[1]

    def __getitem__(self, index: int) -> Example:
        number, sequence = self._place(index)
        shard = self._shard(number)
        first, kept = sequence.first_position - self.teacher.shard_rows(number)[0], self.rows
        start, stop = (first + end for end in kept.indices(sequence.num_positions)[:2])
        input_ids, gold_ids = sequence.input_ids, sequence.gold_ids(self.encoding.manifest.objective)[kept]
        weights = None if self.weights is None else self.weights.of_sequence(sequence.num_positions)[kept]
        targets = shard.targets.decode(start, stop)
        if self.to is not None:
            input_ids, gold_ids = translated_ids(input_ids, self.to), translated_ids(gold_ids, self.to)
            targets = translated_targets(targets, self.to)
        return Example(
            input_ids,
            sequence.positions()[kept],
            gold_ids,
            fit_vocabulary(targets, self.student_vocabulary_size),
            {name: values[start:stop] for name, values in shard.scalars.items()},
            {layer: stored.decode(start, stop) for layer, stored in shard.hidden.items()},
            weights,
            self.source,
        )

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the shards in memory, when a loader worker is started."""
        return {name: value for name, value in self.__dict__.items() if name != "_shard"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._shard = lru_cache(self._shards_in_memory)(self._read_shard)

    def _place(self, index: int) -> tuple[int, Sequence]:
        """Return the shard of an item, and its sequence."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard, first = int(self.shards[number]), int(self._ends[number - 1]) if number else 0
        return shard, self._shard(shard).sequences[index - first]

    def _read_shard(self, shard: int) -> Shard:
        positions = self.encoding.shards[shard].positions
        read = Shard(
            self.encoding.student_sequences(shard),
            self.teacher.stored_targets(shard, 0, positions),
            {name: self.teacher.scalar(name, *self.teacher.shard_rows(shard)) for name in self.reading.scalars},
            {layer: self.teacher.stored_hidden(layer, shard, 0, positions) for layer in self.reading.layers},
        )
        return read.rolled(positions // 2) if self.other_positions else read


def fit_vocabulary(targets: Targets, vocabulary_size: int) -> Targets:
    """Move predicted ids at or above ``vocabulary_size`` into the left-out mass.

    Models pad their vocabulary by different amounts; padding ids mean nothing and carry
    next to no probability, but a student that lacks them must not be indexed with them.
    """
    beyond = (targets.ids >= vocabulary_size) & (targets.ids != EMPTY_ID)
    if not beyond.any():
        return targets
    moved = np.exp(np.where(beyond, targets.log_probs, -np.inf)).sum(axis=1)
    with np.errstate(divide="ignore"):
        left_out = np.log(np.exp(targets.log_left_out) + moved).astype(np.float32)
    return Targets(
        np.where(beyond, np.uint32(EMPTY_ID), targets.ids),
        np.where(beyond, np.float32(-np.inf), targets.log_probs),
        left_out,
    )


def collate(examples: list[Example]) -> Batch:
    """Pad examples into one batch.

    Returns:
        input_ids, attention_mask, gold_ids: (B, L) int64, gold_ids IGNORED outside kept positions;
        target_ids (P, k) int64, 0 in empty slots; target_log_probs (P, k) and
        target_log_left_out (P,) float32, -inf where there is nothing; P positions in all.
        Where they were read: scalars, (P,) float32 by name, and hidden, (P, width) float32 by layer. Where
        positions have weights: position_weights, (P,) float32. Where they were read: unmapped_log_probs,
        (P, k). And target_fingerprints (P,) and target_sources (B,)
        int64, see ``binding.py``.
    """
    length = max(len(example.input_ids) for example in examples)
    input_ids = np.zeros((len(examples), length), dtype=np.int64)
    attention_mask, gold_ids = np.zeros_like(input_ids), np.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        attention_mask[row, : len(example.input_ids)] = 1
        gold_ids[row, example.positions] = example.gold_ids
    ids = np.concatenate([example.targets.ids for example in examples])
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "gold_ids": gold_ids,
        "target_ids": np.where(ids == EMPTY_ID, 0, ids).astype(np.int64),
        "target_log_probs": np.concatenate([example.targets.log_probs for example in examples]),
        "target_log_left_out": np.concatenate([example.targets.log_left_out for example in examples]),
        "target_sources": np.array([example.source for example in examples]),
    }
    for name, columns in (
        ("position_weights", [example.weights for example in examples if example.weights is not None]),
        ("unmapped_log_probs", [example.unmapped for example in examples if example.unmapped is not None]),
    ):
        if columns:
            batch[name] = np.concatenate(columns)
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return tensors | {"target_fingerprints": target_fingerprints(tensors)} | _extras(examples)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    return {
        name: to_device(value, device) if isinstance(value, dict) else value.to(device) for name, value in batch.items()
    }


def _extras(examples: list[Example]) -> dict[str, dict[str, Tensor]]:
    """Return what was read besides the targets, of all examples one after another; nothing if nothing was."""
    columns = {"scalars": [e.scalars for e in examples], "hidden": [e.hidden for e in examples]}
    return {
        kind: {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
        for kind, parts in columns.items()
        if parts[0]
    }
