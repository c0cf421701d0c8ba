"""Measure a teacher on a sample before it reads a corpus: its speed, and what each k would cost and keep.

The sample is read in a random order, each sequence once, at the largest k, until the sample or the time is used up.
Whether to stop depends only on the sequences that were read, never on the next one. So the sums over them have the
expectations of a random sample of that size (Wald's identity), and stopping early adds no bias.

Memory: the rows of one block at the largest k, 134 MB, beside what a capture needs.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Targets
from cache_tools.format.manifest import Kind, Objective
from cache_tools.format.sequences import Sequence
from cache_tools.progress.reporter import Advance, Reporter
from cache_tools.store.predictions import Predictions
from pipeline.capture.predict import KeptOutputs, predict
from pipeline.capture.target import ResolvedTeacher
from pipeline.planning.choices import CHUNK_ROWS, KChoice, Tally, choices_of
from pipeline.teachers.teacher import AnyTeacher

BLOCK_ROWS = 16 * CHUNK_ROWS
"""Rows that are compressed together."""

GROUP_BATCHES = 8
"""Batches of a group at most: enough to put sequences of similar lengths together, as a capture does."""

MEASURED_SECONDS = 60.0

SEED = 0
"""Seed of the order in which the sample is read."""

Read = Callable[[list[Sequence], Advance], Predictions]
"""Runs the teacher over sequences."""


@dataclass(frozen=True)
class Sample:
    """What a teacher read to be measured.

    Attributes:
        sequences: Number of sequences.
        positions: Number of kept positions.
        tokens: Number of tokens.
        seconds: How long the teacher read.
        whole_sample: Whether the time sufficed for the whole sample.
    """

    sequences: int
    positions: int
    tokens: int
    seconds: float
    whole_sample: bool


@dataclass(frozen=True)
class Measurement:
    """What a teacher showed on a sample.

    Attributes:
        tokens_per_s: Its speed.
        bytes_per_position: Bytes of the planned target and scalars.
        scalar_bytes_per_position: Bytes of the scalars among them.
        measured_on: What was read.
        choices: The table of k; empty for kinds that are not defined by k.
    """

    tokens_per_s: float
    bytes_per_position: float
    scalar_bytes_per_position: float
    measured_on: Sample
    choices: tuple[KChoice, ...]


def drawn_order(sequences: list[Sequence]) -> list[Sequence]:
    """Return sequences in a random order that depends on their number alone."""
    return [sequences[i] for i in np.random.default_rng(SEED).permutation(len(sequences))]


def measure(
    teacher: AnyTeacher,
    resolved: ResolvedTeacher,
    objective: Objective,
    sequences: list[Sequence],
    max_seconds: float = MEASURED_SECONDS,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Run a teacher over a sample, or as much of it as there is time for.

    Args:
        teacher: The loaded teacher.
        resolved: The same teacher as the capture file describes it.
        objective: Objective of the encoding.
        sequences: The sample, in random order; at least one is read.
        max_seconds: How long the teacher reads; a group that it has begun is finished.
        reporter: Shows the progress.
        clock: Returns seconds; only differences count.
    """
    reporter, name, batch_tokens = reporter or Reporter(), resolved.config.name, resolved.config.batch_tokens
    vocabulary_size = teacher.vocabulary_size
    ks = choices_of(resolved.target.keep, vocabulary_size)
    widest = replace(resolved.target.keep, kind=Kind.TOPK, k=ks[-1]) if ks else resolved.target.keep

    def read(group: list[Sequence], progress: Advance) -> Predictions:
        return predict(group, objective, teacher, KeptOutputs(widest), batch_tokens, progress)

    tally, block, groups = Tally(resolved.target, vocabulary_size, ks), Block(), []
    reporter.stage(f"measuring teacher {name}", None)
    for group in _read_groups(read, sequences, GROUP_BATCHES * batch_tokens, max_seconds, reporter, clock):
        groups.append((sum(map(_length, group.sequences)), group.seconds))
        block.add(group.predictions, group.sequences)
        if block.rows >= BLOCK_ROWS:
            tally.add(*block.take())
    reporter.stage(f"compressing what teacher {name} predicted")
    if block.rows:
        tally.add(*block.take())
    return _measurement(tally, groups, len(sequences))


def _measurement(tally: Tally, groups: list[tuple[int, float]], sample_size: int) -> Measurement:
    """Return the results, from the tokens and seconds of each group and the number of sequences in the sample."""
    steady = groups[1:] or groups  # the first pass warms up
    rows, (tokens, seconds) = sum(tally.positions), map(sum, zip(*groups, strict=True))
    steady_tokens, steady_seconds = map(sum, zip(*steady, strict=True))
    return Measurement(
        steady_tokens / max(steady_seconds, 1e-9),
        (tally.target_bytes + tally.scalar_bytes) / rows,
        tally.scalar_bytes / rows,
        Sample(len(tally.positions), rows, tokens, seconds, len(tally.positions) == sample_size),
        tally.choices(),
    )


@dataclass(frozen=True)
class _Group:
    """Sequences that were read together.

    Attributes:
        sequences: The sequences.
        predictions: Their predictions, in the same order.
        seconds: How long the teacher took.
    """

    sequences: list[Sequence]
    predictions: Predictions
    seconds: float


def _read_groups(
    read: Read,
    sequences: list[Sequence],
    most_tokens: int,
    max_seconds: float,
    reporter: Reporter,
    clock: Callable[[], float],
) -> Iterator[_Group]:
    """Read groups of sequences until none is left or the time is up.

    The first group is a single sequence, whose speed says how many fit into the time. Later ones are of
    ``most_tokens`` at most, and take about half of the time left, down to a single sequence: speed varies, and a group
    that was begun is finished.
    """
    all_tokens, tokens, spent, room, began = sum(map(_length, sequences)), 0, 0.0, 1.0, 0.0

    def advance(count: int, share_done: float | None = None, /) -> None:
        nonlocal tokens
        tokens += count
        share = max(tokens / all_tokens, (spent + clock() - began) / max_seconds)
        reporter.advance(count, min(1.0, share))

    left = sequences
    while left and spent < max_seconds:
        group = _first_tokens(left, room)
        began = clock()
        predictions = read(group, advance)
        seconds = clock() - began
        left, spent = left[len(group) :], spent + seconds
        speed = sum(map(_length, group)) / max(seconds, 1e-9)
        room = min(most_tokens, speed * (max_seconds - spent) / 2)
        yield _Group(group, predictions, seconds)


def _length(sequence: Sequence) -> int:
    return len(sequence.input_ids)


def _first_tokens(sequences: list[Sequence], tokens: float) -> list[Sequence]:
    """Return sequences from the first on until they reach so many tokens, at least one."""
    group: list[Sequence] = []
    for sequence in sequences:
        if group and tokens <= 0:
            break
        group.append(sequence)
        tokens -= _length(sequence)
    return group


class Block:
    """Collects predictions until there are enough to be compressed together, as they would be in a cache."""

    def __init__(self) -> None:
        self.rows, self._parts, self._sequences = 0, list[Predictions](), list[Sequence]()

    def add(self, predictions: Predictions, sequences: list[Sequence]) -> None:
        """Collect the predictions of some more sequences."""
        self.rows += sum(sequence.num_positions for sequence in sequences)
        self._parts.append(predictions)
        self._sequences += sequences

    def take(self) -> tuple[Predictions, list[int]]:
        """Return everything collected, in the order of the corpus, with each sequence's positions; and begin again.

        Neighbours in a corpus are alike, so they compress better together.
        """
        parts, sequences = self._parts, self._sequences
        self.rows, self._parts, self._sequences = 0, [], []
        positions = [sequence.num_positions for sequence in sequences]
        starts = np.cumsum([0, *positions])
        order = sorted(range(len(sequences)), key=lambda i: sequences[i].sequence_id)
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order])
        return _joined(parts, rows), [positions[i] for i in order]


def _joined(parts: list[Predictions], rows: NDArray[np.int64]) -> Predictions:
    """Return these rows of predictions, one after the other."""
    targets = [part.targets for part in parts if part.targets is not None]
    joined = Targets(
        np.concatenate([part.ids for part in targets])[rows],
        np.concatenate([part.log_probs for part in targets])[rows],
        np.concatenate([part.log_left_out for part in targets])[rows],
    )
    scalars = {name: np.concatenate([part.scalars[name] for part in parts])[rows] for name in parts[0].scalars}
    return Predictions(joined, scalars)
