"""Ask a model whether it is what a cache assumes: rows that depend on their own sequence, and causally.

A cached row must follow from its sequence alone, and under the causal objective from the tokens up to its position.
Not every model does that: many ``…ForCausalLM`` classes see later tokens unless their configuration says that they
are decoders, and some architectures mix a sequence with its padding or with its batch-mates (convolutions and
Fourier transforms over padding, experts that overflow, statistics of a batch). So a model is run a few times on real
rows before the first shard, or the first training step, and its last hidden states are compared.

**How rounding is told from a leak.** Where two runs have the same shapes and the same mask, and only tokens that a
position must not see are others, its state is the same to the last bit in ordinary arithmetic. It is not where other
tokens change the shape of a product (experts) or a scale (quantised activations). That noise is measured in the
same runs: a row whose own tokens stay, beside batch-mates whose tokens change, moves by it. A leak is what moves more
than ``NOISE_FACTOR`` times that, plus ``rounding``: 64 steps of float32, and one number in 4,096 rounded to its other
neighbour in the type of the states. An attention that sees later tokens moves states by tenths in a trained
model, and by thousandths of their size in an untrained one.

Where shapes differ (a row alone and in a padded batch), kernels add in another order; ``reshaped`` allows 16 steps
of the states' type, and 1,024 of float32, for that. If other tokens below the padding move a row within one shape,
its content is read, and only ``rounding`` is allowed between the padded row and the row alone. Both are needed: some
models read a padding that is zero, and that changes nothing.

Differences are rms values over the width, relative to the rms of the state, so they mean the same for every width and
dtype. The median over positions is judged, because one token that a router sends to another expert moves by much and
means nothing. Next to the place where a leak would be strongest, the median is taken over several cuts.

Measured over the architectures that transformers 5.23 builds at two layers, random weights, float32 and bfloat16, on
a CPU: models that keep the rules moved by exactly 0 within one shape, and by at most 3e-6 and 7e-2 between
shapes; those that break them by 1e-4 to 1.

Cost: six runs, over ``2 * (CUTS + 1) + 8`` rows of ``TOKENS`` tokens at most. Rejected: comparing likeliest tokens (a
leak moves them rarely in an untrained model), gradients (quantised models have none), one tolerance for
all (a leak of 1e-3 is below bfloat16's rounding between two shapes, and far above it within one).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
"""Length of the row that is probed, at most, and places from which on its tokens are changed."""
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
    """What is asked of a model, and in which arithmetic it answers.

    Attributes:
        rows: Token ids of a few sequences, such as the model will read.
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
        """Relative difference that is taken for rounding where all shapes are the same."""
        return 64 * FLOAT32_STEP + self.step / 64

    @property
    def reshaped(self) -> float:
        """Relative difference that is taken for rounding where shapes differ."""
        return 1024 * FLOAT32_STEP + 16 * self.step


def step_of(dtype: str, device: str, precision: str) -> float:
    """Return the spacing of 1 and the next number in a model's arithmetic.

    Args:
        dtype: Of its activations, by torch's name; bfloat16's step is taken for any other.
        device: Its device's type. Other devices than CPUs may shorten float32 in convolutions without being asked.
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
        probe: What to ask.
        subject: The model's part, such as ``teacher 'large'`` or ``the student``.
        model: Its class.
        objective: Objective of the encoding, for the message.

    Raises:
        ModelError: a later token moves an earlier prediction, or padding or batch-mates move a row.
    """
    finding = _finding(states_of, probe)
    if finding is None:
        return
    problem, measured, limit, why, fix = finding
    raise ModelError(
        problem.format(subject=subject),
        where=f"{model}, objective {objective}",
        expected=f"a relative difference of at most {limit:.1g}",
        found=f"{measured:.2g}",
        why=why,
        fix=fix,
    )


def _finding(states_of: StatesOf, probe: Probe) -> tuple[str, float, float, str, str] | None:
    """Return the first thing that is wrong, as the parts of a message; None if nothing is."""
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
        return BATCH_MATES[0], noise, probe.reshaped, *BATCH_MATES[1:]
    limit = NOISE_FACTOR * noise + probe.rounding
    if probe.causal and len(cuts):
        last = [differences(before[j, cut - 1], after[j, cut - 1]) for j, cut in enumerate(cuts, start=1)]
        moved = float(np.median(last))
        if not moved <= limit:
            return LATER_TOKENS[0], moved, limit, *LATER_TOKENS[1:]
    return _padding_finding(states_of, row, limit, probe) if probe.batched else None


def _padding_finding(
    states_of: StatesOf, row: Ids, limit: float, probe: Probe
) -> tuple[str, float, float, str, str] | None:
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
    return None if apart <= allowed else (PADDING[0], apart, allowed, *PADDING[1:])


def _moved(moved: list[NDArray[np.float64]]) -> float:
    """Return by how much padded rows moved: at half of the positions of one, or at the last position of all."""
    return float(max(*(np.median(row) for row in moved), min(row[-1] for row in moved)))


LATER_TOKENS = (
    "{subject} sees later tokens when it predicts earlier ones",
    "it would see the answers that it is asked to predict",
    "Use a model that is trained to predict the next token; for an encoder, set encoding.objective: masked; for a "
    "decoder of this architecture, set is_decoder: true in its configuration",
)
PADDING = (
    "the padding beside a sequence changes what {subject} predicts for it",
    "its predictions would depend on which sequences share a batch",
    "Use another model; a teacher can read one sequence at a time with batch_tokens: 1",
)
BATCH_MATES = (
    "other sequences of a batch change what {subject} predicts for a sequence",
    "its predictions would depend on which sequences share a batch",
    "Use another model; a teacher can read one sequence at a time with batch_tokens: 1",
)
"""What can be wrong: problem, reason, next step."""


def probe_row(rows: Sequence[NDArray[Any]]) -> Ids:
    """Return the beginning of the longest row: (L,), L at most TOKENS and no longer than what the model reads."""
    return np.asarray(max(rows, key=len, default=np.zeros(0)), dtype=np.int64)[:TOKENS]


def others(row: Ids) -> Ids:
    """Return another token for every place of a row, all from the row itself where it has two different ones.

    Tokens of the row are tokens of text; an id that is made up may be an image's.
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

    Infinite if only one side is a number; 0 if neither is, for a capture refuses or skips such a position itself.
    """
    states, reference = states.astype(np.float64), reference.astype(np.float64)
    numbers = np.isfinite(states).all(axis=-1), np.isfinite(reference).all(axis=-1)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.mean(np.square(states - reference), axis=-1))
        size = np.sqrt(np.mean(np.square(reference), axis=-1))
    relative = error / np.maximum(size, np.finfo(np.float64).tiny)
    result: NDArray[np.float64] = np.select([numbers[0] & numbers[1], numbers[0] | numbers[1]], [relative, np.inf], 0.0)
    return result
