"""The target codecs: budgets that hold, lossless kinds bit for bit, refusals by rule."""

import numpy as np
import pytest

from cache_tools.codec import DeltaCount, DeltaFloat32, DeltaPower, DenseFloat32, Targets, kl_nats, narrow
from store_fixtures import by_id, random_targets


@pytest.mark.parametrize("vocabulary", [131_071, 131_072, 151_936, 262_144])
@pytest.mark.parametrize("budget", [1e-3, 5e-5, 1e-7])
def test_the_budget_holds_and_ids_survive(vocabulary, budget):
    targets = random_targets(np.random.default_rng(0), 300, 8, vocabulary)
    codec = DeltaPower(8, vocabulary, budget)
    encoded = codec.encode(targets)
    decoded = codec.decode(encoded.arrays, encoded.parameters)
    assert encoded.kl_nats.mean() <= budget
    assert np.allclose(kl_nats(targets, decoded), encoded.kl_nats, rtol=0, atol=1e-7)
    assert [sorted(row) for row in by_id(targets)] == [list(row) for row in by_id(decoded)]


def test_float32_keeps_every_bit():
    targets = random_targets(np.random.default_rng(1), 100, 8, 1000)
    codec = DeltaFloat32(8, 1000)
    encoded = codec.encode(targets)
    decoded = codec.decode(encoded.arrays, encoded.parameters)
    assert by_id(decoded) == [dict(sorted(row.items())) for row in by_id(targets)]
    assert decoded.log_left_out.tobytes() == targets.log_left_out.tobytes()


def test_counts_come_back_exactly():
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[3, 1, 0, 1], [5, 0, 0, 0]]) / 5).astype(np.float32)
    targets = Targets(np.array([[9, 0, 0, 4], [0, 0, 0, 0]], np.uint32), log_probs, np.full(2, -np.inf, np.float32))
    codec = DeltaCount(4, 10, 5)
    encoded = codec.encode(targets)
    assert by_id(codec.decode(encoded.arrays, {})) == [dict(sorted(row.items())) for row in by_id(targets)]


def test_dense_rows_return_to_the_order_of_their_classes():
    probs = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    codec = DenseFloat32(3, 3)
    none = np.full(1, -np.inf, np.float32)
    decoded = codec.decode(codec.encode(Targets(np.array([[2, 0, 1]], np.uint32), probs, none)).arrays, {})
    assert decoded.ids.tolist() == [[0, 1, 2]]
    assert decoded.log_probs.tolist() == probs[:, [1, 2, 0]].tolist()


@pytest.mark.parametrize("codec", [DeltaPower(8, 1000), DeltaFloat32(8, 1000)])
def test_narrowing_keeps_the_likeliest(codec):
    encoded = codec.encode(random_targets(np.random.default_rng(2), 50, 8, 1000))
    whole = by_id(codec.decode(encoded.arrays, encoded.parameters))
    small, arrays, parameters = narrow(codec, encoded.arrays, encoded.parameters, 3)
    for kept, row in zip(by_id(small.decode(arrays, parameters)), whole, strict=True):
        assert set(kept) == set(sorted(row, key=lambda token: (-row[token], token))[:3])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_values_that_are_no_logs(value):
    targets = random_targets(np.random.default_rng(3), 5, 4, 100)
    targets.log_probs[2, 0] = value
    with pytest.raises(ValueError, match="row 2 cannot be stored"):
        DeltaPower(4, 100).encode(targets)
