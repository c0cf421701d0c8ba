"""Hidden states: error within budget, noise where it does no harm, and nothing stored that cannot be read back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cache_tools.errors import FormatError
from cache_tools.hidden_codecs.channel_scales import channel_scales
from cache_tools.hidden_codecs.transform import (
    LARGEST,
    Transform,
    calibrate_last,
    calibrate_relative,
    choose_step,
    decode,
    encode,
    relative_error,
    transform_bytes,
    transform_from_bytes,
)
from hidden_fixtures import HEADS, VOCABULARY, WIDTH, entropy_bits, exact_kl, states_of, torch_head
from numpy_head import Head, fisher_metric, mean_kl
from pipeline.capture import hidden_budget
from tolerances import rounding


def round_trip(transform: Transform, states: np.ndarray, step: float) -> np.ndarray:
    return decode(transform, encode(transform, states, step), step)


# The metric


@pytest.mark.parametrize("head", HEADS)
def test_the_metric_is_the_second_derivative_of_the_kl(head: Head) -> None:
    states = states_of(3)
    double = torch_head(head, torch.float64)
    expected = np.zeros((WIDTH, WIDTH))
    for row in torch.from_numpy(states).double():
        log_p = torch.log_softmax(double.logits(row)[0], dim=-1)

        def kl(other: torch.Tensor, log_p: torch.Tensor = log_p) -> torch.Tensor:
            return (log_p.exp() * (log_p - torch.log_softmax(double.logits(other)[0], dim=-1))).sum()

        expected += torch.autograd.functional.hessian(kl, row).numpy() / len(states)
    assert fisher_metric(head, states) == pytest.approx(
        expected, rel=0, abs=rounding(torch.float32, VOCABULARY + len(states), expected)
    )


@pytest.mark.parametrize("head", HEADS)
def test_torch_and_numpy_agree(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hidden_budget.CHUNK_BYTES, "cpu", 4 * VOCABULARY * 7)
    monkeypatch.setattr("numpy_head.CHUNK_VALUES", VOCABULARY * 5)
    states, others = states_of(40), states_of(40) + np.float32(0.01)
    metric = fisher_metric(head, states)
    assert hidden_budget.fisher_metric(torch_head(head), states) == pytest.approx(
        metric, rel=0, abs=rounding(torch.float32, VOCABULARY + len(states), metric)
    )
    exact = exact_kl(head, states, others)
    assert mean_kl(head, states, others) == pytest.approx(exact, rel=1e-3)
    assert hidden_budget.kl_error(torch_head(head))(states, others) == pytest.approx(exact, rel=1e-3)


class HalvedLogits(torch.nn.Module):
    """What a model shows of its head, with logits of half the products of its output matrix."""

    base_model_prefix = "body"

    def __init__(self, matrix: torch.nn.Linear) -> None:
        super().__init__()
        self.matrix, self.body = matrix, torch.nn.Identity()

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.matrix

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        states = torch.zeros(*input_ids.shape, WIDTH, dtype=self.matrix.weight.dtype)
        return SimpleNamespace(logits=0.5 * self.matrix(states))


@torch.inference_mode()
def test_the_head_of_a_model_is_float32_and_complete() -> None:
    matrix = torch.nn.Linear(WIDTH, VOCABULARY, dtype=torch.bfloat16)
    model = HalvedLogits(matrix)
    last = torch.from_numpy(states_of(5)).bfloat16()
    head = hidden_budget.OutputHead.of(model, SimpleNamespace(last=last, logits=0.5 * matrix(last).float()))
    assert (head.weight.dtype, head.logit_scale, head.softcap) == (torch.float32, 0.5, 0.0)
    assert head.bias is not None
    assert torch.allclose(head.logits(last.float())[0], 0.5 * matrix(last).float(), atol=0.1)


# The budget


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("budget", [1e-3, 1e-4, 1e-6])
def test_decoded_states_keep_the_kl_budget(head: Head, budget: float) -> None:
    states = states_of(1500, seed=2)
    transform = calibrate_last(states_of(800), fisher_metric(head, states_of(800)))
    step, measured = choose_step(transform, states, lambda a, b: mean_kl(head, a, b), budget)
    assert 0.9 * budget < measured <= budget
    assert exact_kl(head, states, round_trip(transform, states, step)) == pytest.approx(measured, rel=0.15)


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 9),
    rows=st.integers(1, 40),
    budget=st.sampled_from([0.2, 0.01, 0.001]),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 9),
)
def test_any_states_keep_the_relative_budget(width: int, rows: int, budget: float, size: float, seed: int) -> None:
    states = states_of(rows, seed, width) * np.float32(size)
    transform = calibrate_relative(states)
    step, measured = choose_step(transform, states, relative_error, budget)
    decoded = round_trip(transform, states, step)
    error = np.sqrt(np.square(states.astype(np.float64) - decoded).mean(axis=0)) / channel_scales(states)
    assert error.max() == pytest.approx(measured)
    assert measured <= budget


def test_the_step_is_a_float32_and_the_search_is_short() -> None:
    states, calls = states_of(700), []

    def error_of(true: np.ndarray, decoded: np.ndarray) -> float:
        calls.append(len(true))
        return relative_error(true, decoded)

    step, _ = choose_step(calibrate_relative(states), states, error_of, 0.01)
    assert step == float(np.float32(step))
    assert calls[0] == 512
    assert len(calls) <= 4


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_an_error_without_a_value_is_refused(error: float) -> None:
    states = states_of(20)
    with pytest.raises(ValueError, match="not a number"):
        choose_step(calibrate_relative(states), states, lambda *_: error, 0.01)


# Where the noise goes


def test_noise_is_white_in_the_metric() -> None:
    states, head = states_of(20_000), HEADS[0]
    metric = fisher_metric(head, states[:2000])
    transform = calibrate_last(states[:2000], metric)
    step = 0.01
    noise = (round_trip(transform, states, step) - states).astype(np.float64)
    values, vectors = np.linalg.eigh(metric)
    strength = np.square(noise @ vectors * np.sqrt(values)).mean(axis=0) / (step**2 / 12)
    strong = values > 0.1 * values.mean()  # the ridge holds the rest down
    assert strong.sum() > WIDTH / 3
    assert strength[strong] == pytest.approx(1, abs=0.15)
    assert (strength < 1.15).all()


def test_variance_falls_along_the_columns() -> None:
    states = states_of(3000)
    transform = calibrate_last(states, fisher_metric(HEADS[0], states[:300]))
    variance = ((states - transform.mean) @ transform.forward).var(axis=0)
    assert (variance[1:] <= variance[:-1] * 1.001).all()


def test_outlier_channels_neither_hurt_the_others_nor_cost_more() -> None:
    plain = states_of(4000)
    loud = plain.copy()
    loud[:, [3, 11]] *= 1000
    bits = []
    for states in (plain, loud):
        transform = calibrate_relative(states)
        step, _ = choose_step(transform, states, relative_error, 0.01)
        error = np.sqrt(np.square(round_trip(transform, states, step) - states).mean(axis=0)) / states.std(axis=0)
        assert error.max() < 0.0105
        assert error.min() > 0.008
        bits.append(entropy_bits(encode(transform, states, step)))
    assert bits[1] == pytest.approx(bits[0], abs=0.05)


# Odd inputs


@pytest.mark.parametrize(
    "metric", [np.zeros((WIDTH, WIDTH)), np.ones((WIDTH, WIDTH)), np.diag([1.0] + [0.0] * (WIDTH - 1))]
)
def test_a_singular_metric_still_gives_every_direction_a_place(metric: np.ndarray) -> None:
    states = states_of(200)
    transform = calibrate_last(states, metric)
    assert np.isfinite(transform.forward).all()
    assert round_trip(transform, states, 0.01) == pytest.approx(states, abs=1)


def test_fewer_rows_than_channels() -> None:
    states = states_of(5)
    transform = calibrate_last(states, fisher_metric(HEADS[0], states))
    others = states_of(600, seed=3)
    step, measured = choose_step(transform, others, lambda a, b: mean_kl(HEADS[0], a, b), 1e-4)
    assert measured <= 1e-4
    assert exact_kl(HEADS[0], others, round_trip(transform, others, step)) < 1.2e-4


def test_constant_and_dead_channels_come_back_and_may_wake_up() -> None:
    states = states_of(500)
    states[:, 0], states[:, 1] = 0, 70
    transform = calibrate_relative(states)
    step, _ = choose_step(transform, states, relative_error, 0.01)
    decoded = round_trip(transform, states, step)
    assert decoded[:, 0] == pytest.approx(0, abs=1e-3)
    assert decoded[:, 1] == pytest.approx(70, abs=1e-2)
    awake = states_of(500, seed=4)
    awake[:, 1] += 70
    assert choose_step(transform, awake, relative_error, 0.01)[1] <= 0.01


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_states_that_never_change(value: float) -> None:
    states = np.full((9, 4), value, dtype=np.float32)
    transform = calibrate_relative(states)
    step, measured = choose_step(transform, states, relative_error, 0.01)
    assert measured == 0
    assert np.array_equal(round_trip(transform, states, step), states)


# The integers


def test_decoded_states_encode_to_the_same_integers() -> None:
    states = states_of(5000)
    transform = calibrate_last(states, fisher_metric(HEADS[0], states))
    stored, out = encode(transform, states, 0.05), np.full_like(states, np.nan)
    assert decode(transform, stored, 0.05, out) is out
    assert np.array_equal(encode(transform, out, 0.05), stored)
    assert np.array_equal(decode(transform, stored, 0.05), out)


def test_extreme_integers_survive_and_larger_ones_are_refused() -> None:
    transform = Transform(np.zeros(1, np.float32), np.ones((1, 1), np.float32))
    states = np.array([[0], [-1], [1], [LARGEST], [-LARGEST]], dtype=np.float32)
    stored = encode(transform, states, 1.0)
    assert stored[:, 0].tolist() == [0, 1, 2, 2 * LARGEST, 2 * LARGEST - 1]
    assert np.array_equal(decode(transform, stored, 1.0), states)
    with pytest.raises(ValueError, match="larger"):
        encode(transform, states + 1, 1.0)


def test_a_step_that_would_overflow_is_raised_or_the_budget_refused() -> None:
    states = states_of(600)
    transform = calibrate_relative(states)
    states[77] *= 100_000  # not among the sampled rows
    step, _ = choose_step(transform, states, relative_error, 0.5)
    assert np.isfinite(round_trip(transform, states, step)).all()
    with pytest.raises(ValueError, match="16-bit"):
        choose_step(transform, states, relative_error, 1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused(bad: float) -> None:
    states = states_of(50)
    transform = calibrate_relative(states)
    states[20, 3] = bad
    for refuse in (
        lambda: encode(transform, states, 0.1),
        lambda: calibrate_relative(states),
        lambda: calibrate_last(states, np.eye(WIDTH)),
        lambda: calibrate_last(states_of(50), np.full((WIDTH, WIDTH), bad)),
        lambda: choose_step(transform, states, relative_error, 0.01),
        lambda: encode(transform, states_of(5), bad),
    ):
        with pytest.raises(ValueError, match=r"NaN|above zero"):
            refuse()


def test_no_states_no_step_no_budget() -> None:
    transform = calibrate_relative(states_of(50))
    for empty in (states_of(0), np.zeros((3, 0), np.float32), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match="above zero"):
            calibrate_relative(empty)
    for zero in (0.0, -1.0):
        with pytest.raises(ValueError, match="above zero"):
            encode(transform, states_of(2), zero)
        with pytest.raises(ValueError, match="above zero"):
            choose_step(transform, states_of(2), relative_error, zero)
    assert encode(transform, states_of(0), 0.1).shape == (0, WIDTH)


# The file


def test_a_transform_has_canonical_bytes() -> None:
    one, again = calibrate_relative(states_of(300)), calibrate_relative(states_of(300))
    content = transform_bytes(one)
    assert content == transform_bytes(again) == transform_bytes(transform_from_bytes(content))
    strided = Transform(one.mean, np.asfortranarray(one.basis))
    assert transform_bytes(strided) == content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense, but long enough",
        save({"mean": np.zeros(2, np.float32)}),
        save({"mean": np.zeros(2, np.float32), "basis": np.zeros((2, 3), np.float32)}),
        save({"mean": np.zeros(2), "basis": np.zeros((2, 2))}),
    ],
)
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(FormatError, match="transform"):
        transform_from_bytes(content)
