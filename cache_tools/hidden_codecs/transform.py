"""Hidden states quantised to an error budget: a linear transform, one step, small integers.

Rounding a state h to a grid adds noise that is equally strong in every direction of the grid.
What such noise costs differs by direction, so we choose the grid: ``y = (h - mean) @ forward``
makes every direction of y equally sensitive, and ``q = rint(y / step)`` is stored. One number,
the step, then sets the error, and is tuned until the *measured* error meets a budget.

What makes directions equally sensitive depends on what the states are for:

- the last layer leads to logits. A small error d changes the distribution by
  ``KL = d @ G @ d / 2`` nats with G the Fisher metric of the head; y is measured
  in units of its square root (:func:`calibrate_last`);
- any other layer should be as exact, relative to its spread, in every channel. Then a few
  channels a thousand times larger than the rest (most large models have them) neither drown
  the others nor cost more than they do (:func:`calibrate_relative`).

A rotation leaves white noise white, so we are free to rotate y onto its principal axes:
neighbouring columns then have nearly the same variance and compress well together, and
directions far below the step become zeros. Nothing is dropped.

Stored: ``mean`` and ``basis`` once per teacher and layer, ``step`` once per shard, and q as
zigzag uint16 (0, -1, 1, -2, … are 0, 1, 2, 3, …). Decoding is one matrix product,
``h = mean + (q * step) @ basis``. A consumer that multiplies h by a matrix M can fold the basis into it, once:
``h @ M = mean @ M + q @ (step * basis @ M)``.

A transform is estimated from a few thousand positions, spread over many documents: that
matters more than their number. Shapes: n positions, d the width of a state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cache_tools.errors import FormatError
from cache_tools.hidden_codecs.channel_scales import channel_scales

LARGEST = 2**15 - 1
"""Largest absolute integer that zigzag fits into uint16."""

SAMPLE_ROWS = 512
"""Rows on which a shard's error is measured: the mean KL of 512 positions is within a few per cent of the shard's."""

CLOSE_ENOUGH = 0.97
"""A step whose error lies between this share of the budget and the budget is taken: 3 % of KL are 0.02 bits a value."""

MAX_TRIALS = 12
RIDGE = 0.01
"""Added to the metric as a share of its mean eigenvalue, so that no direction is free; measured to cost nothing."""

BLOCK_ROWS = 2048
"""Rows transformed at a time, so that scratch arrays stay near the core."""

CHUNK_COLUMNS = 32
"""Columns that are compressed together: their variances are near each other (measured: 7 % smaller than whole rows)."""

Floats = NDArray[np.float32]
ErrorOf = Callable[[Floats, Floats], float]
"""(true, decoded), both (m, d), to an error in the budget's unit."""


@dataclass(frozen=True, eq=False)
class Transform:
    """A basis in which noise of one strength does equal harm in every direction.

    Attributes:
        mean: (d,) float32.
        basis: (d, d) float32; row j is what one unit of y's column j adds to a state.
    """

    mean: Floats
    basis: Floats

    @cached_property
    def forward(self) -> Floats:
        """Inverse of the basis, (d, d): ``y = (h - mean) @ forward``."""
        return np.linalg.inv(self.basis.astype(np.float64)).astype(np.float32)


def calibrate_last(states: Floats, metric: NDArray[np.float64]) -> Transform:
    """Estimate the transform of the layer that the output matrix multiplies.

    Args:
        states: (n, d) sample, spread over many documents.
        metric: (d, d) Fisher metric of the head, see ``pipeline.capture.hidden_budget.fisher_metric``.

    Raises:
        ValueError: a value is not finite, or there are no states.
    """
    _refuse_non_finite(metric, "metric")
    values, vectors = np.linalg.eigh((metric + metric.T) / 2)
    values = np.maximum(values, 0)
    values += RIDGE * values.mean() if values.any() else 1
    return _calibrate(states, vectors * np.sqrt(values), (vectors / np.sqrt(values)).T)


def calibrate_relative(states: Floats) -> Transform:
    """Estimate the transform of any other layer from a sample (n, d): equal relative error in every channel.

    Raises:
        ValueError: a value is not finite, or there are no states.
    """
    _check_states(states)
    scales = channel_scales(states)
    return _calibrate(states, np.diag(1 / scales), np.diag(scales))


def encode(transform: Transform, states: Floats, step: float) -> NDArray[np.uint16]:
    """Quantise states (n, d) to (n, d) zigzag integers.

    Raises:
        ValueError: the step is not above zero, a state is not finite, or an integer would
            not fit: a larger step is needed.
    """
    if not (np.isfinite(step) and np.float32(step) > 0):
        raise ValueError(f"a step must be a number above zero, not {step}")
    stored = np.empty(states.shape, dtype=np.uint16)
    for start in range(0, len(states), BLOCK_ROWS):
        with np.errstate(over="ignore"):
            q = np.rint(_project(transform, states[start : start + BLOCK_ROWS]) / np.float32(step))
        if np.abs(q).max(initial=0) > LARGEST:
            raise ValueError(f"a state does not fit into 16 bits at step {step:g}; take a larger one")
        stored[start : start + BLOCK_ROWS] = _zigzag(q.astype(np.int32))
    return stored


def decode(transform: Transform, stored: NDArray[np.uint16], step: float, out: Floats | None = None) -> Floats:
    """Return the states (n, d) that stored integers stand for, in ``out`` if given; 2 d**2 operations a position."""
    result = np.empty(stored.shape, dtype=np.float32) if out is None else out
    with np.errstate(over="ignore", invalid="ignore"):  # verify tells of states that are not finite
        scaled = transform.basis * np.float32(step)
        for start in range(0, len(stored), BLOCK_ROWS):
            part = result[start : start + BLOCK_ROWS]
            np.matmul(_unzigzag(stored[start : start + BLOCK_ROWS]), scaled, out=part)
            part += transform.mean
    return result


def choose_step(transform: Transform, states: Floats, error_of: ErrorOf, budget: float) -> tuple[float, float]:
    """Find about the largest step whose error on SAMPLE_ROWS evenly spaced rows meets the budget.

    The error grows as a power of the step, read off two trials; three or four are usual.

    Args:
        transform: The layer's transform.
        states: (n, d) all states of the shard; none may overflow at the step chosen.
        error_of: Measures the error of decoded rows.
        budget: Largest allowed error, above zero.

    Returns:
        The step, exactly a float32, and the error measured with it.

    Raises:
        ValueError: a state or an error is not finite, or no step that fits into 16 bits meets the budget.
    """
    if not budget > 0:
        raise ValueError(f"a budget must be above zero, not {budget}")
    _check_states(states)
    smallest, start = _step_range(transform, states)
    sample = states[np.unique(np.linspace(0, len(states) - 1, SAMPLE_ROWS).astype(np.int64))]

    def error_at(step: float) -> float:
        error = error_of(sample, decode(transform, encode(transform, sample, step), step))
        if not np.isfinite(error):
            raise ValueError("the error of decoded states is not a number")
        return max(error, 0.0)  # rounding may take a tiny one below zero

    step, measured = _search(error_at, smallest, start, budget)
    if measured > budget:
        raise ValueError(f"no 16-bit step keeps the error below {budget:g}; the best has {measured:g}")
    return step, measured


def relative_error(true: Floats, decoded: Floats, scales: NDArray[np.float64] | None = None) -> float:
    """Return the largest over channels of rms error / scale of the channel.

    The worst, not the mean: one useless channel would hide among thousands of good ones.

    Args:
        true: (n, d).
        decoded: (n, d).
        scales: (d,) those of ``true`` by default; from more rows than these they are steadier
            where single tokens are huge.
    """
    if scales is None:
        scales = channel_scales(true)
    squares = np.square(true.astype(np.float64) - decoded).mean(axis=0)
    return float((np.sqrt(squares) / scales).max())


def transform_bytes(transform: Transform) -> bytes:
    """Return a transform as a safetensors file; the same transform gives the same bytes."""
    tensors = {"basis": transform.basis, "mean": transform.mean}
    return save({name: np.ascontiguousarray(tensor, dtype="<f4") for name, tensor in tensors.items()})


def transform_from_bytes(content: bytes) -> Transform:
    """Read what :func:`transform_bytes` wrote.

    Raises:
        FormatError: it is something else.
    """
    try:
        tensors = load(content)
        transform = Transform(tensors["mean"], tensors["basis"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(
            "this is not a transform of hidden states", found=f"{type(error).__name__}: {error}"
        ) from error
    shapes = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    d = transform.mean.size
    if shapes.get("mean") != ("float32", (d,)) or shapes.get("basis") != ("float32", (d, d)):
        raise FormatError(
            "a transform of hidden states has the wrong tensors",
            expected="float32 mean (d,) and basis (d, d)",
            found=shapes,
        )
    if not (np.isfinite(transform.mean).all() and np.isfinite(transform.basis).all()):
        raise FormatError("a transform of hidden states holds numbers that are not finite")
    return transform


def _calibrate(states: Floats, forward: NDArray[np.float64], backward: NDArray[np.float64]) -> Transform:
    """Rotate a transform and its inverse, both (d, d), onto the principal axes of the states; variance falls."""
    _check_states(states)
    mean = states.mean(axis=0, dtype=np.float64)
    y = (states.astype(np.float64) - mean) @ forward
    rotation = np.linalg.eigh(y.T @ y)[1][:, ::-1]
    basis = rotation.T @ backward
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=1)[:, None], axis=1)
    basis *= np.where(largest < 0, -1, 1)  # an axis' sign is arbitrary: make it one
    return Transform(mean.astype(np.float32), basis.astype(np.float32))


def _project(transform: Transform, states: Floats) -> Floats:
    """Return y (n, d) float32; refuse what is not finite before or after."""
    with np.errstate(over="ignore", invalid="ignore"):
        y: Floats = np.matmul(states - transform.mean, transform.forward)
    _refuse_non_finite(y, "hidden state")
    return y


def _zigzag(q: NDArray[np.int32]) -> NDArray[np.uint16]:
    return ((q << 1) ^ (q >> 31)).astype(np.uint16)


def _unzigzag(stored: NDArray[np.uint16]) -> Floats:
    signs = (stored & np.uint16(1)).astype(np.int16)
    return ((stored >> np.uint16(1)).astype(np.int16) ^ -signs).astype(np.float32)


def _step_range(transform: Transform, states: Floats) -> tuple[float, float]:
    """Return the smallest step at which no state overflows, and one to start the search at."""
    largest, squares = 0.0, 0.0
    for start in range(0, len(states), BLOCK_ROWS):
        y = _project(transform, states[start : start + BLOCK_ROWS])
        largest = max(largest, float(np.abs(y).max()))
        squares += float(np.square(y, dtype=np.float64).sum())
    if largest == 0:
        return 1.0, 1.0
    smallest = max(largest / (LARGEST - 1), float(np.finfo(np.float32).tiny))
    return smallest, max(smallest, (squares / states.size) ** 0.5 / 16)


def _search(error_at: Callable[[float], float], smallest: float, step: float, budget: float) -> tuple[float, float]:
    """Return (step, error) of the largest step tried that meets the budget, else of the smallest tried."""
    trials: dict[float, float] = {}
    power = 2.0
    for _ in range(MAX_TRIALS):
        step = float(np.float32(min(max(step, smallest), 4 * LARGEST * smallest)))  # beyond, all is zero
        if step in trials:
            break
        error = trials[step] = error_at(step)
        if CLOSE_ENOUGH * budget <= error <= budget or error == 0:
            break
        power = _power(trials, power)
        step *= float(np.clip((0.985 * budget / error) ** (1 / power), 1 / 64, 64))
    good = [step for step, error in trials.items() if error <= budget]
    best = max(good, default=min(trials))
    return best, trials[best]


def _power(trials: dict[float, float], otherwise: float) -> float:
    """Return the exponent with which the error grew between the last two trials, kept within reason."""
    if len(trials) < 2:
        return otherwise
    (step_a, error_a), (step_b, error_b) = list(trials.items())[-2:]
    return float(np.clip(np.log(error_b / error_a) / np.log(step_b / step_a), 0.5, 2.5))


def _check_states(states: Floats) -> None:
    if states.ndim != 2 or states.size == 0:
        raise ValueError(f"hidden states must be (n, d) with n and d above zero, not {states.shape}")
    _refuse_non_finite(np.array([states.min(), states.max()]), "hidden state")  # NaN if one is, and no array of flags


def _refuse_non_finite(values: NDArray[np.floating], what: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"a {what} is NaN or infinite")
