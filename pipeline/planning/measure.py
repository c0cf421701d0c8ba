"""A teacher measured on a sample before it reads a corpus: its speed, and what each k would cost and keep.

For a choice of k, three numbers say what it means: the mass that the k tokens hold, the bytes that
a position takes, and the KL floor, the divergence from the teacher's distribution to the best that
can be rebuilt from the row (the tokens kept, and the rest spread evenly over all others).

The sample is read in a random order, each sequence once: the largest k is taken from it, and the rows of every smaller
one, and of ``topp``, are the beginnings of those. Reading ends with the sample or with the time. What ends it depends
on the sequences read and never on the next one, so the sums over them have the expectations of a random sample of that
size (Wald's identity): stopping early adds no bias. The standard errors are those of a ratio of sums over
sequences, because neighbouring positions are alike; from a few dozen sequences they are too small where a few documents
are unlike the rest. Scalars of the tail are those outside the largest k; their size
hardly depends on it.

Memory: the rows of one block at the largest k, 134 MB, beside what a capture needs.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Codec, Targets
from cache_tools.format.manifest import Kind, Objective, TeacherManifest
from cache_tools.format.receipts import TARGETS
from cache_tools.format.sequences import Sequence
from cache_tools.progress.reporter import Reporter
from cache_tools.store.predictions import SCALAR_STEP_NATS, Predictions
from pipeline.capture.declare import codec_of_target, keep_of, scalar_names
from pipeline.capture.keep import Keep
from pipeline.capture.predict import Wanted, predict, vocabulary_of
from pipeline.config import TargetConfig, TeacherConfig
from pipeline.planning.rows import CHUNK_ROWS, Block, as_asked, first_entries, scalar_bytes, target_bytes
from pipeline.teachers.loading import Teacher

CHOICES = (8, 16, 32, 64, 128, 256)
"""Values of k that are compared, besides the one asked for."""

BLOCK_ROWS = 16 * CHUNK_ROWS
"""Rows that are compressed together."""

GROUP_BATCHES = 8
"""Batches of a group at most: enough to put sequences of similar lengths together, as a capture does."""

MEASURED_SECONDS = 60.0

FEWEST_SEQUENCES = 10
"""From fewer than these, a standard error would itself be a guess, and none is given."""

SEED = 0
"""Of the order in which the sample is read."""


def drawn_order(sequences: list[Sequence]) -> list[Sequence]:
    """Return sequences in a random order that depends on their number alone."""
    return [sequences[i] for i in np.random.default_rng(SEED).permutation(len(sequences))]


def measure(
    teacher: Teacher,
    config: TeacherConfig,
    objective: Objective,
    sequences: list[Sequence],
    max_seconds: float = MEASURED_SECONDS,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Run a teacher over a sample, or as much of it as there is time for.

    Args:
        teacher: The loaded teacher.
        config: Its block of the capture file.
        objective: Of the encoding.
        sequences: The sample, in random order; at least one is read.
        max_seconds: How long the teacher reads; what it reads when the time is up is finished.
        reporter: Shown what happens.
        clock: Returns seconds; only differences count.

    Returns:
        ``tokens_per_s``, ``bytes_per_position`` of the target and scalars asked for, and of these
        ``scalar_bytes_per_position``; ``measured_on``: ``sequences``, ``positions``, ``tokens``, ``seconds`` and
        ``whole_sample``; and ``choices``: for kinds that keep the most likely tokens, ``k``, ``kept_mass``,
        ``kl_floor_nats``, ``bytes_per_position``, and the standard errors of the first two, None from fewer than
        FEWEST_SEQUENCES.
    """
    vocabulary = vocabulary_of(teacher)
    keep, ks = _widest(config.target, vocabulary)
    tally, waiting = Tally(config.target, vocabulary, ks), Block()
    tokens, seconds = [], []
    reporter = reporter or Reporter()
    reporter.stage(f"measuring teacher {config.name}", None)
    read = partial(predict, objective=objective, teacher=teacher, wanted=_wanted(config, keep, vocabulary))
    read = partial(read, batch_tokens=config.batch_tokens)
    most_tokens = GROUP_BATCHES * config.batch_tokens
    for group, predictions, spent in _read(read, sequences, most_tokens, max_seconds, reporter, clock):
        tokens.append(sum(map(_length, group)))
        seconds.append(spent)
        waiting.add(predictions, group)
        if waiting.rows >= BLOCK_ROWS:
            tally.add(*waiting.take())
    reporter.stage(f"compressing what teacher {config.name} predicted")
    if waiting.rows:
        tally.add(*waiting.take())
    steady = slice(1, None) if len(tokens) > 1 else slice(None)  # the first pass warms up
    return {
        "tokens_per_s": sum(tokens[steady]) / max(sum(seconds[steady]), 1e-9),
        **tally.sizes(),
        "measured_on": {
            "sequences": len(tally.positions),
            "positions": int(sum(tally.positions)),
            "tokens": sum(tokens),
            "seconds": sum(seconds),
            "whole_sample": len(tally.positions) == len(sequences),
        },
        "choices": tally.choices(),
    }


def _read(
    read: Callable[..., Predictions],
    sequences: list[Sequence],
    most_tokens: int,
    max_seconds: float,
    reporter: Reporter,
    clock: Callable[[], float],
) -> Iterator[tuple[list[Sequence], Predictions, float]]:
    """Read groups of sequences until none is left or the time is up.

    The first group is a single sequence, whose speed says how many fit into the time. Later ones are of
    ``most_tokens`` at most, and take about half of the time left, down to a single sequence: speed varies, and what
    is begun is finished.

    Yields:
        The group, what was predicted, and the seconds it took.
    """
    all_tokens, tokens, spent, room, began = sum(map(_length, sequences)), 0, 0.0, 1.0, 0.0

    def advance(count: int, share_done: float | None = None, /) -> None:
        nonlocal tokens
        tokens += count
        share = max(tokens / all_tokens, (spent + clock() - began) / max_seconds)
        reporter.advance(count, min(1.0, share))

    left = sequences
    while left and spent < max_seconds:
        group = _group(left, room)
        began = clock()
        predictions = read(group, progress=advance)
        seconds = clock() - began
        left, spent = left[len(group) :], spent + seconds
        speed = sum(map(_length, group)) / max(seconds, 1e-9)
        room = min(most_tokens, speed * (max_seconds - spent) / 2)
        yield group, predictions, seconds


def _length(sequence: Sequence) -> int:
    return len(sequence.input_ids)


def _group(sequences: list[Sequence], tokens: float) -> list[Sequence]:
    """Return sequences from the first on until they reach so many tokens, at least one."""
    group: list[Sequence] = []
    for sequence in sequences:
        if group and tokens <= 0:
            break
        group.append(sequence)
        tokens -= _length(sequence)
    return group


def _widest(target: TargetConfig, vocabulary: int) -> tuple[Keep, list[int]]:
    """Return what to keep so that every k can be told from it, and these k; none of kinds that are not told by k."""
    keep = keep_of(target)
    if not keep.kind.is_ranked:
        return keep, []
    most = keep.tokens(vocabulary)
    ks = sorted({min(k, most) for k in (*CHOICES, keep.k) if k <= most or k == keep.k})
    return replace(keep, kind=Kind.TOPK, k=ks[-1]), ks


def _wanted(config: TeacherConfig, keep: Keep, vocabulary: int) -> Wanted:
    """Return what ``predict`` keeps, with a manifest that no cache will hold."""
    codec: Codec = codec_of_target(config.target, vocabulary)
    if keep.kind.is_ranked:
        codec = replace(codec, k=keep.slots(vocabulary))
    manifest = TeacherManifest.describe(
        {},
        {},
        CHUNK_ROWS,
        vocabulary_size=vocabulary,
        target={"kind": keep.kind, "k": keep.slots(vocabulary), "codec": codec.to_dict()},
        scalar_step_nats=SCALAR_STEP_NATS,
        scalars=scalar_names(keep),
    )
    return Wanted(manifest, [TARGETS], keep)


@dataclass
class Tally:
    """Sums over the blocks of a sample.

    Attributes:
        target: The target asked for.
        vocabulary: Width of the teacher's logits.
        ks: The choices of k.
        positions: Of each sequence.
        sums: For each k, (sequences, 2) float64: kept mass, and KL floor in nats, summed over a sequence.
        bytes_of_k: For each k, of all rows.
        target_bytes: Of the target asked for, of all rows.
        scalar_bytes: Of the scalars, of all rows.
    """

    target: TargetConfig
    vocabulary: int
    ks: list[int]
    positions: list[int] = field(default_factory=list)
    sums: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)
    bytes_of_k: dict[int, int] = field(default_factory=dict)
    target_bytes: int = 0
    scalar_bytes: int = 0

    def add(self, block: Predictions, positions: list[int]) -> None:
        """Count a block of predictions of whole sequences."""
        assert block.targets is not None
        self.positions += positions
        self.scalar_bytes += scalar_bytes(block)
        codec = codec_of_target(self.target, self.vocabulary)
        asked = as_asked(block.targets, self.target) if self.ks else block.targets
        self.target_bytes += target_bytes(codec, asked)
        starts = np.cumsum([0, *positions[:-1]])
        for k in self.ks:
            targets = first_entries(block.targets, k)
            mass = np.exp(targets.log_probs, dtype=np.float64).sum(axis=1)
            floor = kl_floor_rows(targets, block.scalars["entropy"], self.vocabulary)
            of_sequences = np.add.reduceat(np.stack([mass, floor], axis=1), starts)
            self.sums.setdefault(k, []).append(of_sequences)
            size = target_bytes(replace(codec, k=k), targets)
            self.bytes_of_k[k] = self.bytes_of_k.get(k, 0) + size

    def sizes(self) -> dict[str, float]:
        """Return the bytes per position of what was asked for."""
        rows = sum(self.positions)
        return {
            "bytes_per_position": (self.target_bytes + self.scalar_bytes) / rows,
            "scalar_bytes_per_position": self.scalar_bytes / rows,
        }

    def choices(self) -> list[dict[str, Any]]:
        """Return the table of k."""
        positions = np.array(self.positions, np.float64)
        rows = []
        for k in self.ks:
            (mass, floor), (mass_error, floor_error) = ratios(np.concatenate(self.sums[k]), positions)
            rows.append(
                {
                    "k": k,
                    "kept_mass": mass,
                    "kept_mass_standard_error": mass_error,
                    "kl_floor_nats": floor,
                    "kl_floor_standard_error_nats": floor_error,
                    "bytes_per_position": (self.bytes_of_k[k] + self.scalar_bytes) / sum(self.positions),
                }
            )
        return rows


def ratios(sums_NM: NDArray[np.float64], positions_N: NDArray[np.float64]) -> tuple[list[float], list[float | None]]:
    """Return means over positions and their standard errors, from sums over N sequences drawn at random.

    From fewer than FEWEST_SEQUENCES there are no errors.

    Args:
        sums_NM: Of M quantities over each sequence.
        positions_N: Number of positions of each sequence.
    """
    total, count = positions_N.sum(), len(positions_N)
    means_M = sums_NM.sum(axis=0) / total
    if count < FEWEST_SEQUENCES:
        return means_M.tolist(), [None] * len(means_M)
    squares_M = np.square(sums_NM - positions_N[:, None] * means_M).sum(axis=0)
    return means_M.tolist(), (np.sqrt(squares_M * count / (count - 1)) / total).tolist()


def kl_floor(targets: Targets, entropy: Any, vocabulary: int) -> float:
    """Return the mean over rows of ``kl_floor_rows``."""
    return float(kl_floor_rows(targets, entropy, vocabulary).mean())


def kl_floor_rows(targets: Targets, entropy: Any, vocabulary: int) -> NDArray[np.float64]:
    """Return the KL from the teacher to each row with the rest spread evenly, in nats: (N,).

    With r the left-out mass over V - k tokens, ``KL = sum over the tail of p ln p - r ln (r / (V - k))``,
    and the tail's sum is minus the whole entropy less the kept tokens' part of it.
    """
    logs = targets.log_probs.astype(np.float64)
    kept = np.where(logs > -np.inf, np.exp(logs) * np.where(logs > -np.inf, logs, 0), 0).sum(axis=1)
    log_rest = targets.log_left_out.astype(np.float64)
    rest = np.exp(log_rest)
    others = max(1, vocabulary - logs.shape[1])
    spread = np.where(rest > 0, rest * (np.where(rest > 0, log_rest, 0) - np.log(others)), 0)
    floor: NDArray[np.float64] = np.maximum(-np.asarray(entropy, dtype=np.float64) - kept - spread, 0)
    return floor
