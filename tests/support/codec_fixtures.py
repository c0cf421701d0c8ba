"""What the tests of the codecs share: shards of every shape, and the stored formulas naively in float64."""

import math

import numpy as np

from cache_tools.codecs.registry import EMPTY_ID, Targets

EMPTY = float("-inf")


def targets_of(weights, vocabulary=50_000, seed=0):
    """Return targets with probabilities in proportion to ``weights`` (n, k + 1), the left-out mass last.

    Weight zero is an empty slot. Ids are random and in no order.
    """
    rng, (n, slots) = np.random.default_rng(seed), np.shape(weights)
    gaps = rng.integers(1, vocabulary // max(slots - 1, 1) + 1, (n, slots - 1))
    ids = rng.permuted(gaps.cumsum(axis=1) - 1, axis=1).astype(np.uint32)
    with np.errstate(divide="ignore"):
        logs = np.log(weights / np.sum(weights, axis=1, keepdims=True)).astype(np.float32)
    return Targets(ids, logs[:, :-1].copy(), logs[:, -1].copy())


def shards(n=300, k=8, seed=0):
    """Return the weights (n, k + 1) of shards of every shape, by name."""
    rng = np.random.default_rng(seed)
    heavy = np.exp(rng.normal(0, 3, (n, k + 1)))
    ragged = heavy * (rng.random((n, k + 1)) < 0.6)
    ragged[:, k] += 1e-6
    return {
        "random": heavy,
        "peaked": np.exp(rng.normal(0, 8, (n, k + 1))),
        "flat": 1 + 0.01 * rng.random((n, k + 1)),
        "ragged": ragged,
        "nothing left out": np.column_stack([heavy[:, :k], np.zeros(n)]),
        "one row": heavy[:1],
        "no row": heavy[:0],
        "one slot": heavy[:, :2],
    }


def coded(codec, targets):
    """Return (what ``encode`` stored, what ``decode`` makes of it)."""
    encoded = codec.encode(targets)
    return encoded, codec.decode(encoded.arrays, encoded.parameters)


def take(arrays, rows):
    """Return some rows of stored arrays."""
    return {name: values[rows] for name, values in arrays.items()}


def same(left, right):
    """Tell whether two Targets agree bit for bit."""
    return all(getattr(left, name).tobytes() == getattr(right, name).tobytes() for name in vars(left))


def naive_weights(arrays, parameters, row):
    """Return ({id: weight}, weight of the rest) of a row of delta-power, as FORMAT.md states it."""
    most, exponent = parameters["levels"], parameters["exponent"]
    kept, token = {}, 0
    floor = max(int(arrays["floor"][row]), 1)
    for slot in range(arrays["ids"].shape[1]):
        stored = int(arrays["levels"][row, slot]) + 256 * int(arrays["levels_high"][row, slot])
        if stored:
            token += int(arrays["ids"][row, slot]) + 256 * int(arrays["ids_high"][row, slot])
            kept[token] = ((stored - 1 + floor) / most) ** (1 / exponent)
    rest = int(arrays["left_out"][row])
    return kept, (rest / most) ** (1 / exponent) if rest else 0.0


def naive_row(targets, row):
    """Return ({id: probability}, probability of the rest) of a row in float64."""
    pairs = zip(targets.ids[row].tolist(), targets.log_probs[row].tolist(), strict=True)
    return {i: math.exp(v) for i, v in pairs if v > EMPTY}, math.exp(targets.log_left_out[row])


def naive_kl(true, decoded):
    """Return KL(true || decoded) of each row over its k + 1 outcomes, both renormalised."""
    found = []
    for row in range(len(true.ids)):
        (p, p_rest), (q, q_rest) = naive_row(true, row), naive_row(decoded, row)
        assert p.keys() == q.keys()
        pairs = [(p[i], q[i]) for i in p] + [(p_rest, q_rest)]
        p_sum, q_sum = (math.fsum(values) for values in zip(*pairs, strict=True))
        terms = (a / p_sum * math.log((a / p_sum) / (b / q_sum)) for a, b in pairs if a > 0)
        found.append(math.fsum(terms))
    return np.array(found)


def assert_canonical(decoded):
    """Check that ids ascend, with the empty slots as EMPTY_ID at the end."""
    empty = decoded.log_probs == EMPTY
    assert np.array_equal(empty, decoded.ids == EMPTY_ID)
    assert (empty[:, 1:] >= empty[:, :-1]).all()
    assert ((decoded.ids[:, 1:] > decoded.ids[:, :-1]) | empty[:, 1:]).all()
