"""The codecs that store ids by rank: every bit of half-precision rows, the budget of others, and no way to mislead."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cache_tools.codecs.rank_tables import RankTables, learn_tables
from cache_tools.codecs.ranked_grid import FINEST
from cache_tools.codecs.ranked_ids import decode_ranks, encode_ranks
from cache_tools.codecs.registry import EMPTY_ID, DeltaPower, RankedGrid, RankedPower, Targets, kl_nats, narrow
from cache_tools.errors import FormatError
from kinds import bfloat16_of, gridded, log_probs_of, ragged

V = 1000
K = 10
DRAW = gridded(K, V)
SAMPLE = DRAW(np.random.default_rng(1), 3000)
TABLES = learn_tables(SAMPLE, V)
GRID, POWER = RankedGrid(K, V, tables=TABLES), RankedPower(K, V, tables=TABLES)
BOTH = pytest.mark.parametrize("codec", [GRID, POWER], ids=lambda codec: codec.name)


def rows_of(seed: int, n: int) -> Targets:
    return DRAW(np.random.default_rng(seed), n)


def sorted_bits(targets: Targets) -> tuple[list, list, list]:
    """Rows by ascending id, empty slots last, as bits."""
    ids = np.where(targets.log_probs == -np.inf, EMPTY_ID, targets.ids)
    order = np.argsort(ids, axis=1, kind="stable")
    logs = np.take_along_axis(targets.log_probs, order, axis=1)
    return (
        np.take_along_axis(ids, order, axis=1).tolist(),
        logs.view(np.uint32).tolist(),
        targets.log_left_out.view(np.uint32).tolist(),
    )


def logits_rows(logits: np.ndarray, rest: float = 0.1) -> Targets:
    """Rows whose log-probabilities are computed from these logits as a capture does."""
    total = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True)).sum(axis=1)
    ids = np.tile(np.arange(logits.shape[1], dtype=np.uint32) * 3, (len(logits), 1))
    logs = log_probs_of(logits, np.log(total / (1 - rest)).astype(np.float32))
    return Targets(ids, logs, np.full(len(logits), np.log(rest), np.float32))


# The grid


@given(seed=st.integers(0, 2**31), n=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_rows_come_back_with_every_bit_on_the_grid_or_off_it(seed, n):
    targets = rows_of(seed, n)
    encoded = GRID.encode(targets)
    assert sorted_bits(GRID.decode(encoded.arrays, encoded.parameters)) == sorted_bits(targets)
    assert encoded.kl_nats.max(initial=0) == 0


@given(
    st.lists(st.lists(st.floats(-60, 60, width=32), min_size=K, max_size=K, unique=True), min_size=1, max_size=20),
    st.sampled_from(["bfloat16", "float16", "float32"]),
)
@settings(max_examples=100, deadline=None)
def test_rows_of_any_logits_come_back_with_every_bit(logits, dtype):
    values = np.array(logits, np.float32)
    values = {"bfloat16": bfloat16_of(values), "float16": values.astype(np.float16), "float32": values}[dtype]
    targets = logits_rows(values.astype(np.float32))
    encoded = GRID.encode(targets)
    assert sorted_bits(GRID.decode(encoded.arrays, encoded.parameters)) == sorted_bits(targets)


def test_a_half_precision_row_takes_few_steps_and_a_float32_row_says_that_it_has_none():
    logits = np.random.default_rng(0).normal(12, 4, (200, K)).astype(np.float32)
    on, off = GRID.encode(logits_rows(bfloat16_of(logits))), GRID.encode(logits_rows(logits))
    assert np.median(on.arrays["grid"]) <= 5
    assert on.arrays["grid"].max() <= FINEST[0]
    assert not on.arrays["off_grid"].any()
    assert on.statistics["off_grid_positions"] == 0
    assert off.statistics["off_grid_positions"] == 200


def test_a_row_off_the_grid_does_not_make_its_neighbours_leave_it():
    targets = rows_of(0, 21)
    grid = GRID.encode(targets).arrays["grid"]
    assert (grid > FINEST[0]).sum() == 3
    assert (np.flatnonzero(grid > FINEST[0]) % 7 == 6).all()


# Ids


@given(data=st.data(), k=st.integers(1, 20), vocabulary=st.sampled_from([20, 300, 70_000, 2**20]))
@settings(max_examples=60, deadline=None)
def test_ranks_come_back(data, k, vocabulary):
    n = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    ranks = np.sort(np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(n)]), axis=1).astype(np.uint32)
    used = np.arange(k) < rng.integers(0, k + 1, n)[:, None]
    arrays, parameters = encode_ranks(np.where(used, ranks, EMPTY_ID), used, np.zeros(n, np.uint8), vocabulary)
    decoded = np.empty_like(ranks)
    decode_ranks(arrays, parameters["shifts"], slice(0, n), decoded)
    assert np.array_equal(decoded[used], ranks[used])
    assert not any(values[~used].any() for values in (arrays["ids"], arrays["ids_high"]))


def test_tables_are_orders_of_the_whole_vocabulary_and_their_file_gives_them_back():
    again = RankTables.from_bytes(TABLES.to_bytes(), V)
    assert np.array_equal(np.sort(TABLES.ids, axis=1), np.tile(np.arange(V), (len(TABLES.tables), 1)))
    assert np.array_equal(again.ids, TABLES.ids)
    assert TABLES.to_bytes() == learn_tables(SAMPLE, V).to_bytes()
    taken = np.take_along_axis(TABLES.ranks, TABLES.ids[0][:, None].astype(np.int64), axis=0)[:, 0]
    assert np.array_equal(taken, np.arange(V))


def test_what_is_predicted_often_comes_early():
    rng = np.random.default_rng(0)
    topics = np.array([rng.choice(V, 50, replace=False) for _ in range(4)])
    ids = np.stack([rng.choice(topics[i % 4], K, replace=False) for i in range(8000)]).astype(np.uint32)
    tables = learn_tables(Targets(ids, np.full(ids.shape, -3, np.float32), np.full(len(ids), -1, np.float32)), V)
    table = tables.cheapest(ids, np.ones(ids.shape, bool))
    ranks = tables.ranks[ids, table[:, None]]
    assert np.quantile(ranks, 0.9) < 60  # of 50 ids of the row's topic


@pytest.mark.parametrize(
    ("common", "tables", "why"),
    [
        (np.array([1, 1], np.uint16), np.array([[0]], np.uint16), "lists an id twice"),
        (np.array([1], np.uint16), np.array([[0, V]], np.uint16), "does not have"),
        (np.array([1], np.int64), np.array([[0]], np.uint16), "wrong tensors"),
        (np.array([1], np.uint16), np.zeros((0, 1), np.uint16), "wrong tensors"),
        (np.array([1], np.uint16), np.zeros((257, 1), np.uint16), "wrong tensors"),
        (np.array([[1]], np.uint16), np.array([[0]], np.uint16), "wrong tensors"),
    ],
)
def test_a_file_of_other_tables_is_refused(common, tables, why):
    with pytest.raises(FormatError, match=why):
        RankTables.from_bytes(save({"common": common, "tables": tables}), V)


def test_a_file_of_something_else_is_refused():
    for content in (b"", b"no safetensors", save({"weight": np.zeros(3, np.float32)})):
        with pytest.raises(FormatError, match="not a file of rank tables"):
            RankTables.from_bytes(content, V)


# The budget


@given(seed=st.integers(0, 2**31), n=st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_rows_by_rank_keep_the_budget_and_are_those_by_id(seed, n):
    targets = ragged(K, V)(np.random.default_rng(seed), n)
    encoded, plain = POWER.encode(targets), DeltaPower(K, V).encode(targets)
    decoded = POWER.decode(encoded.arrays, encoded.parameters)
    assert kl_nats(targets, decoded).mean() <= POWER.budget_nats
    expected = DeltaPower(K, V).decode(plain.arrays, plain.parameters)
    assert np.array_equal(decoded.ids, expected.ids)
    assert decoded.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
    low, high = POWER.bounds(encoded.arrays, encoded.parameters)
    assert ((low[:, :-1] <= decoded.log_probs + 1e-5) & (decoded.log_probs - 1e-5 <= high[:, :-1])).all()


@BOTH
@pytest.mark.parametrize("k", [1, 3, 9])
def test_narrowed_rows_keep_the_most_likely_entries(codec, k):
    targets = rows_of(3, 50)
    encoded = codec.encode(targets)
    whole = codec.decode(encoded.arrays, encoded.parameters)
    narrowed, arrays, parameters = narrow(codec, encoded.arrays, encoded.parameters, k)
    rows = narrowed.decode(arrays, parameters)
    best = -np.sort(-whole.log_probs, axis=1)[:, :k]
    kept = -np.sort(-rows.log_probs, axis=1)
    relative = 1e-5 if codec is POWER else 0  # what is left out is quantised again, which scales a row as a whole
    assert kept - kept[:, :1] == pytest.approx(best - best[:, :1], abs=relative)
    mass = np.exp(rows.log_probs, dtype=np.float64).sum(axis=1) + np.exp(rows.log_left_out, dtype=np.float64)
    assert mass == pytest.approx(1, abs=1e-5)


# What a stranger may have written


@BOTH
@given(seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_arrays_of_anything_decode_to_ids_and_no_overflow(codec, seed):
    rng = np.random.default_rng(seed)
    types = codec.array_types()
    arrays = {
        name: np.frombuffer(rng.bytes(5 * int(np.prod(row)) * dtype.itemsize), dtype).reshape(5, *row)
        for name, (row, dtype) in types.items()
    }
    parameters = {"shifts": rng.integers(0, 9, 2).tolist(), "levels": 300, "exponent": 0.3}
    with np.errstate(all="raise", under="ignore", invalid="ignore"):
        rows = codec.decode(arrays, parameters)
        codec.broken_rows(arrays, parameters)
    assert ((rows.ids < V) | (rows.ids == EMPTY_ID)).all()
    assert not np.isnan(rows.log_probs).any()
    assert (rows.log_probs <= 1).all()


@pytest.mark.parametrize("word", [0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000])
def test_nan_in_any_array_decodes_to_no_nan(word):
    encoded = GRID.encode(rows_of(0, 7))
    arrays = {name: values.copy() for name, values in encoded.arrays.items()}
    arrays["grid"][::2] = 255
    for name in ("off_grid", "normaliser", "left_out"):
        arrays[name].view(np.uint32)[...] = word
    rows = GRID.decode(arrays, encoded.parameters)
    assert not np.isnan(rows.log_probs).any()
    assert not np.isnan(rows.log_left_out).any()


@BOTH
@pytest.mark.parametrize("shifts", [None, 3, [1], [1, 2, 3], [1, 9], [1, -1], [1, True], ["1", "2"], [1.0, 2.0]])
def test_other_shifts_are_refused(codec, shifts):
    encoded = codec.encode(rows_of(0, 5))
    with pytest.raises(FormatError, match="'shifts' cannot be used"):
        codec.decode(encoded.arrays, encoded.parameters | {"shifts": shifts})


@BOTH
def test_ranks_and_tables_that_do_not_exist_are_told(codec):
    encoded = codec.encode(rows_of(0, 6))
    assert not any(rows.any() for rows in codec.broken_rows(encoded.arrays, encoded.parameters).values())
    arrays = {name: values.copy() for name, values in encoded.arrays.items()}
    arrays["table"][1], arrays["ids_high"][2, 0] = 200, 255
    broken = codec.broken_rows(arrays, encoded.parameters)
    assert broken["its rank table does not exist"].tolist() == [False, True, False, False, False, False]
    assert broken["a rank is not below the vocabulary size"].tolist() == [False, False, True, False, False, False]


def test_a_grid_that_does_not_exist_is_told():
    encoded = GRID.encode(rows_of(0, 6))
    arrays = encoded.arrays | {"grid": np.array([4, 22, 23, 254, 255, 0], np.uint8)}
    broken = GRID.broken_rows(arrays, encoded.parameters)["its grid does not exist"]
    assert broken.tolist() == [False, False, True, True, False, False]


@BOTH
def test_no_rows_are_no_problem(codec):
    encoded = codec.encode(Targets(*(values[:0] for values in vars(SAMPLE).values())))
    assert len(codec.decode(encoded.arrays, encoded.parameters).ids) == 0


@BOTH
def test_codecs_with_other_tables_are_the_same_codec_in_a_manifest(codec):
    assert replace(codec, tables=None) == codec
    assert "tables" not in codec.to_dict()


def test_tables_larger_than_memory_are_refused_before_they_are_built():
    with pytest.raises(FormatError, match="too large"):
        RankedGrid(K, 2**32 - 1).with_file(TABLES.to_bytes())
