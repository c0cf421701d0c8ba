"""Several teachers of one encoding: their predictions at the same positions, side by side.

An item is like that of one teacher with more slots: the teachers' slots of a position are concatenated in
``targets``, ``log_left_out`` has a column for each teacher, scalars are named ``<number of the teacher>/<name>``,
hidden states ``<teacher>/<layer>``, and one more scalar, ``weights``, holds the file's weights for the document's
group. For weights by sequence, ``<number of the teacher>/mean_<name>`` holds the scalar's mean over the sequence, for
weights by the other positions ``others_<name>`` its mean over all but the row's own. So
padding, packing and moving between devices work as for one teacher.

In the control (``other_positions``) every teacher's predictions are rolled by the same half shard, with their scalars:
a position gets the whole mixture of another one. The file's weights stay those of the document's own group.

Cost: each teacher's stored integers of a window of shards in memory; sequences are held once. Work per position is that
of one teacher, times their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cache_tools.codecs.registry import Targets
from cache_tools.errors import ConfigError
from cache_tools.format.manifest import Split
from cache_tools.store.teacher import CachedTeacher
from trainer.config.mixture import PREFIX, SCALAR, MixedTeacher, MixtureConfig, Per
from trainer.config.student_file import LossConfig, state_name
from trainer.data.binding import Binding, joined_number
from trainer.data.cached_sequences import CachedSequences, Example, Reading
from trainer.data.position_weights import PositionWeights
from trainer.verdicts.compatibility import TargetSummary

# T: teachers


class MixedSequences(Dataset[Example]):
    """The sequences of a split of an encoding with several teachers' predictions.

    Args:
        teachers: T teachers of one encoding, by the names of ``mixed``, in its order.
        mixed: Their weights.
        readings: What is read from each in addition to its targets.
        student_vocabulary_size: As of ``CachedSequences``.
        shards_in_memory: The same.
        weights: The same.
        split: The same.
        mean_of: Name of a scalar whose mean over each sequence is given too; by default none.
        per: Over which positions: ``sequence`` or ``others``.
        other_positions: As of ``CachedSequences``.

    Raises:
        IncompleteError: a teacher's capture is not finished.
    """

    def __init__(
        self,
        teachers: Sequence[CachedTeacher],
        mixed: Sequence[MixedTeacher],
        readings: Sequence[Reading],
        student_vocabulary_size: int,
        shards_in_memory: int,
        weights: PositionWeights | None = None,
        split: Split = "train",
        mean_of: str | None = None,
        per: Per = "sequence",
        other_positions: bool = False,
    ) -> None:
        self.mixed, self.mean_of, self.per = tuple(mixed), mean_of, per
        self.parts = [
            CachedSequences(
                teacher,
                split,
                student_vocabulary_size,
                shards_in_memory,
                reading,
                other_positions=other_positions,
                weights=weights,
            )
            for teacher, reading in zip(teachers, readings, strict=True)
        ]
        self.shard_sizes = self.parts[0].shard_sizes
        self.source = joined_number(part.source for part in self.parts)

    @property
    def binding(self) -> Binding:
        """Which batches a loss on these sequences takes."""
        columns = {"scalars/weights"}
        for number, (teacher, part) in enumerate(zip(self.mixed, self.parts, strict=True)):
            columns |= {f"scalars/{number}/{name}" for name in part.reading.scalars}
            columns |= set() if self.mean_of is None else {f"scalars/{number}/{PREFIX[self.per]}{self.mean_of}"}
            columns |= {f"hidden/{state_name(teacher.name, layer)}" for layer in part.reading.layers}
        own = {name for name in self.parts[0].binding.columns if "/" not in name}
        return Binding(frozenset({self.source}), frozenset(own | columns))

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> Example:
        examples = [part[index] for part in self.parts]
        targets = [example.targets for example in examples]
        together = Targets(
            np.concatenate([sparse.ids for sparse in targets], axis=1),
            np.concatenate([sparse.log_probs for sparse in targets], axis=1),
            np.stack([sparse.log_left_out for sparse in targets], axis=1),
        )
        scalars = {f"{t}/{name}": x for t, example in enumerate(examples) for name, x in example.scalars.items()}
        if self.mean_of is not None:
            of_rows = MEANS[self.per]
            means_TN = np.stack([of_rows(example.scalars[self.mean_of], example.targets) for example in examples])
            missing_N = np.isnan(means_TN).any(axis=0)  # then no teacher's mean counts there
            for t, mean_N in enumerate(np.where(missing_N, np.float32(0), means_TN)):
                scalars[f"{t}/{PREFIX[self.per]}{self.mean_of}"] = mean_N
        hidden = {
            state_name(teacher.name, layer): states
            for teacher, example in zip(self.mixed, examples, strict=True)
            for layer, states in example.hidden.items()
        }
        weights = np.tile(self._weights(self.parts[0].sequence(index).group_id), (len(together.ids), 1))
        scalars["weights"] = weights
        return replace(examples[0], targets=together, scalars=scalars, hidden=hidden, source=self.source)

    def _weights(self, group: str) -> NDArray[np.float32]:
        """Return the given weight of each teacher on documents of a group: (T,)."""
        weights = np.array([teacher.weight_on(group) for teacher in self.mixed], np.float32)
        if not weights.any():
            raise ConfigError(
                "all teachers have weight 0 on this group of documents",
                where="teachers",
                found=f"group {group!r}",
                fix="Give at least one teacher a weight above 0 on this group",
            )
        return weights


def mean_over_rows(scalar_N: NDArray[np.float32], targets: Targets) -> NDArray[np.float32]:
    """Return the mean of a scalar at each row: (N,), all alike; rows without targets do not count."""
    counted_N = scalar_N[_has_targets(targets)]
    return np.full_like(scalar_N, counted_N.mean(dtype=np.float64) if len(counted_N) else 0)


def mean_over_other_rows(scalar_N: NDArray[np.float32], targets: Targets) -> NDArray[np.float32]:
    """Return the mean of a scalar over all rows but one, at each row: (N,); NaN where no other row has targets."""
    has_targets_N = _has_targets(targets)
    counted_N = np.where(has_targets_N, scalar_N, 0).astype(np.float64)
    others_N = has_targets_N.sum() - has_targets_N
    return np.where(others_N > 0, (counted_N.sum() - counted_N) / np.maximum(others_N, 1), np.nan).astype(np.float32)


def _has_targets(targets: Targets) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(targets.log_probs).any(axis=1))


MEANS: dict[Per, Callable[[NDArray[np.float32], Targets], NDArray[np.float32]]] = {
    "sequence": mean_over_rows,
    "others": mean_over_other_rows,
}


def mixed_reading(loss: LossConfig, mixture: MixtureConfig, teacher: CachedTeacher) -> Reading:
    """Return what is read from one of several teachers in addition to its targets."""
    layers = tuple(sorted({pair.layer for pair in loss.of_teacher(teacher.name).hidden}))
    if loss.kd_weight == 0:
        return Reading(layers=layers)
    tempering = TargetSummary.of(teacher.manifest, loss).scalars_for(loss) or ()
    return Reading(tuple(name for name in (*tempering, SCALAR[mixture.weights]) if name is not None), layers)
