"""Check that a model's predictions depend only on their own sequence, and under the causal objective only on the past.

A cached row must follow from its sequence alone, and under the causal objective from the tokens up to its position.
Not every model satisfies this: many ``…ForCausalLM`` classes see later tokens unless their configuration says that they
are decoders, and in some architectures a sequence depends on its padding or on the other sequences of its batch
(convolutions and Fourier transforms over padding, experts that overflow, statistics of a batch). So a model is run a
few times on real rows before the first shard, or the first training step, and its last hidden states are compared.

**Rounding or leak?** If two runs have the same shapes and the same mask, and differ only in tokens that a position must
not see, its state is equal to the last bit in ordinary arithmetic. It differs a little if the other tokens change the
shape of a product (experts) or a scale (quantised activations). This noise is measured in the same runs, on a row whose
own tokens are the same while the other rows of its batch change. A leak is a difference above ``NOISE_FACTOR`` times
the noise plus ``rounding``: 64 steps of float32, and one number in 4,096 rounded to its other neighbour in the type of
the states. An attention that sees later tokens changes states by tenths of their size in a trained model, and by
thousandths in an untrained model.

If shapes differ (a row alone and in a padded batch), kernels add in another order; ``reshaped`` allows 16 steps of the
states' type, and 1,024 of float32, for that. If other tokens below the padding change a row within one shape, the model
reads the padding's content, and only ``rounding`` is allowed between the padded row and the row alone. Both comparisons
are needed, because some models read the padding only where it is zero.

Differences are rms values over the width, relative to the rms of the state, so that they are comparable for every width
and dtype. The median over positions is compared with the limits, because a single token that a router sends to another
expert changes by much without a leak. At the position where a leak would be strongest, right before the first changed
token, the median is taken over several cuts.

Measured over the architectures that transformers 5.23 builds at two layers, random weights, float32 and bfloat16, on
a CPU: models that keep the rules moved by exactly 0 within one shape, and by at most 3e-6 and 7e-2 between
shapes; those that break them by 1e-4 to 1.

Cost: six runs, over ``2 * (CUTS + 1) + 8`` rows of ``TOKENS`` tokens at most. Rejected: comparing likeliest tokens (a
leak moves them rarely in an untrained model), gradients (quantised models have none), one tolerance for
all (a leak of 1e-3 is below bfloat16's rounding between two shapes, and far above it within one).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective

Ids = NDArray[np.int64]
States = NDArray[np.float32]
StatesOf = Callable[[Ids, Ids], States]
"""Takes input ids and attention mask, both (B, L) with padding on the right, and returns the last hidden states
(B, L, D): whatever the prediction of a position is computed from, position by position."""

TOKENS, CUTS = 48, 5
"""Largest length of the probed row, and number of cuts: places from which on its tokens are changed."""
SHARES = (1.0, 0.6, 0.3)
"""Lengths of the padded rows, as shares of the longest."""
NOISE_FACTOR = 8
FLOAT32_STEP = 2.0**-23

STEPS = {"float64": 2.0**-52, "float32": FLOAT32_STEP, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Spacing of 1 and the next number, by dtype."""
PRODUCTS = {"highest": FLOAT32_STEP, "high": 2.0**-10, "medium": 2.0**-7}
"""The same of the products of float32 matrices, by torch's ``get_float32_matmul_precision``."""

# B: rows of a batch, L: length, D: width


@dataclass(frozen=True)
class Probe:
    """The rows that a model is run on, the conditions it must satisfy, and its arithmetic.

    Attributes:
        rows: Token ids of a few sequences of the kind that the model will read.
        causal: Whether a position may only see the tokens up to itself.
        batched: Whether sequences will be read together, padded to one length.
        step: Spacing of 1 and the next number of the type in which the states are computed, such as 2**-7 for bfloat16.
    """

    rows: Sequence[NDArray[Any]]
    causal: bool
    batched: bool
    step: float

    @property
    def rounding(self) -> float:
        """Largest relative difference that counts as rounding if all shapes are the same."""
        return 64 * FLOAT32_STEP + self.step / 64

    @property
    def reshaped(self) -> float:
        """Largest relative difference that counts as rounding if shapes differ."""
        return 1024 * FLOAT32_STEP + 16 * self.step


def step_of(dtype: str, device: str, precision: str) -> float:
    """Return the spacing of 1 and the next number in a model's arithmetic.

    Args:
        dtype: Type of its activations, by torch's name; the step of bfloat16 is used for an unknown name.
        device: Type of its device. Devices other than CPUs may compute float32 convolutions in a shorter type.
        precision: From torch's ``get_float32_matmul_precision``.
    """
    step = STEPS.get(dtype, STEPS["bfloat16"])
    if dtype != "float32":
        return step
    return max(step, PRODUCTS[precision], step if device == "cpu" else PRODUCTS["high"])


def check_model(states_of: StatesOf, probe: Probe, subject: str, model: str, objective: Objective) -> None:
    """Refuse a model whose rows depend on what they must not depend on.

    Args:
        states_of: Runs the model.
        probe: Rows and conditions.
        subject: The role of the model, such as ``teacher 'large'`` or ``the student``.
        model: Its class.
        objective: Objective of the encoding, for the message.

    Raises:
        ModelError: a later token changes an earlier prediction, or padding or other sequences change a row.
    """
    leak = _first_leak(states_of, probe)
    if leak is not None:
        raise ModelError(
            leak.kind.problem.format(subject=subject),
            where=f"{model}, objective {objective}",
            expected=f"a relative difference of at most {leak.limit:.1g}",
            found=f"{leak.difference:.2g}",
            why=leak.kind.why,
            fix=leak.kind.fix,
        )


class Condition(NamedTuple):
    """A condition that a model can violate, as the parts of a message."""

    problem: str
    why: str
    fix: str


class Leak(NamedTuple):
    """A violated condition: the relative difference of states that was measured, and its limit."""

    kind: Condition
    difference: float
    limit: float


def _first_leak(states_of: StatesOf, probe: Probe) -> Leak | None:
    row = probe_row(probe.rows)
    if not len(row):
        return None
    other = others(row)
    cuts = np.unique(np.linspace(1, len(row) - 1, CUTS).astype(int)) if len(row) > 1 else np.zeros(0, int)
    mates = np.stack([row] * (len(cuts) + 1))
    changed = np.stack([row, *(np.concatenate([row[:cut], other[cut:]]) for cut in cuts)])
    before, after = (states_of(ids, np.ones_like(ids)) for ids in (mates, changed))
    noise = float(np.median(differences(before[0], after[0])))
    if probe.batched and not noise <= probe.reshaped:
        return Leak(BATCH_MATES, noise, probe.reshaped)
    limit = NOISE_FACTOR * noise + probe.rounding
    if probe.causal and len(cuts):
        last = [differences(before[j, cut - 1], after[j, cut - 1]) for j, cut in enumerate(cuts, start=1)]
        moved = float(np.median(last))
        if not moved <= limit:
            return Leak(LATER_TOKENS, moved, limit)
    return _padding_leak(states_of, row, limit, probe) if probe.batched else None


def _padding_leak(states_of: StatesOf, row: Ids, limit: float, probe: Probe) -> Leak | None:
    """Compare rows that are padded together with each row alone, and with other tokens below the padding."""
    lengths = sorted({max(1, round(share * len(row))) for share in SHARES}, reverse=True)
    mask = (np.arange(len(row)) < np.array(lengths)[:, None]).astype(np.int64)
    empty, filled = (states_of(np.where(mask == 1, row, below), mask) for below in (0, others(row)))
    rows = list(enumerate(lengths))[1:]  # the first has no padding
    if not rows:
        return None
    below = _moved([differences(empty[i, :n], filled[i, :n]) for i, n in rows])
    alone = [states_of(row[None, :n], np.ones((1, n), np.int64))[0] for _, n in rows]
    apart = _moved([differences(empty[i, :n], states) for (i, n), states in zip(rows, alone, strict=True)])
    allowed = probe.reshaped if below <= limit else limit
    return None if apart <= allowed else Leak(PADDING, apart, allowed)


def _moved(moved: list[NDArray[np.float64]]) -> float:
    """Return how much padded rows changed: the largest median of a row, or the least change at a last position."""
    return float(max(*(np.median(row) for row in moved), min(row[-1] for row in moved)))


LATER_TOKENS = Condition(
    "{subject} sees later tokens when it predicts earlier ones",
    "it would see the tokens that it must predict",
    "Use a model that is trained to predict the next token; for an encoder, set encoding.objective: masked; for a "
    "decoder of this architecture, set is_decoder: true in its configuration",
)
PADDING = Condition(
    "the padding beside a sequence changes what {subject} predicts for it",
    "its predictions would depend on which sequences share a batch",
    "Use another model; a teacher can read one sequence at a time with batch_tokens: 1",
)
BATCH_MATES = Condition(
    "other sequences of a batch change what {subject} predicts for a sequence",
    "its predictions would depend on which sequences share a batch",
    "Use another model; a teacher can read one sequence at a time with batch_tokens: 1",
)


def probe_row(rows: Sequence[NDArray[Any]]) -> Ids:
    """Return the beginning of the longest row: (L,), at most TOKENS tokens."""
    return np.asarray(max(rows, key=len, default=np.zeros(0)), dtype=np.int64)[:TOKENS]


def others(row: Ids) -> Ids:
    """Return another token for every place of a row, all from the row itself if it has two different tokens.

    Tokens of the row are tokens of text, whereas an invented id may denote an image.
    """
    distinct = np.unique(row)
    if len(distinct) == 1:
        return np.where(row > 0, row - 1, row + 1)
    place = np.searchsorted(distinct, row)
    shift = max(1, len(distinct) // 2)
    moved: Ids = distinct[(place + shift) % len(distinct)]
    return moved


def differences(states: States, reference: States) -> NDArray[np.float64]:
    """Return the rms difference of states (…, D) relative to the rms of the reference: (…,).

    Infinite if only one side is finite; 0 if neither is, because a capture refuses or skips such a position itself.
    """
    states, reference = states.astype(np.float64), reference.astype(np.float64)
    numbers = np.isfinite(states).all(axis=-1), np.isfinite(reference).all(axis=-1)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.mean(np.square(states - reference), axis=-1))
        size = np.sqrt(np.mean(np.square(reference), axis=-1))
    relative = error / np.maximum(size, np.finfo(np.float64).tiny)
    result: NDArray[np.float64] = np.select([numbers[0] & numbers[1], numbers[0] | numbers[1]], [relative, np.inf], 0.0)
    return result
