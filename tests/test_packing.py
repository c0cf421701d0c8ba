"""Packed sequences train as padded ones do, and models that would mix them are refused."""

import copy
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

import tiny
from cache_tools.errors import ConfigError, ModelError
from cache_tools.store.reader import Cache
from student_fixtures import (
    BERT,
    GRADIENT_ROUNDING,
    LLAMA,
    LOSS_ROUNDING,
    assert_same_run,
    curve,
    largest_difference,
    train,
    train_and_stop,
    weights,
)
from tolerances import loss_rounding
from trainer.config.student_file import LossConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.data.packing import first_fit_decreasing, pack
from trainer.student import student as student_module
from trainer.student.head import StudentHead
from trainer.student.packing_check import check_packing
from trainer.student.student import distilled

GPT2 = {"n_embd": 32, "n_head": 2, "n_layer": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
STUDENTS = {"llama": {}, "qwen3": {}, "gpt2": GPT2, "gemma3_text": {"head_dim": 16, "sliding_window": 8}}
"""Positions that rotate or are learned, a norm of queries, and a window shorter than the sequences."""
RECURRENT = {
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_n_heads": 2, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_d_head": 32},
}
"""A body without attention, and one with both."""
PACKED = {"packing": {"row_tokens": 96}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def examples(cache):
    """Eleven sequences of different lengths, not sorted."""
    dataset = CachedSequences(Cache(cache).encoding().teacher(), "train", 300)
    chosen = [dataset[i] for i in (3, 40, 0, 17, 8, 21, 33, 5, 60, 12, 50)]
    assert len({len(example.input_ids) for example in chosen}) > 4
    return chosen


def student(model_type, **changes):
    return tiny.model(model_type, bos_token_id=1, eos_token_id=2, **changes).train()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 70))
def test_every_sequence_stands_once_in_a_row_with_room_for_it_and_no_two_rows_fit_into_one(lengths, row_tokens):
    rows = first_fit_decreasing(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    fills, room = sorted(sum(lengths[i] for i in row) for row in rows), max(row_tokens, *lengths)
    assert fills[-1] <= room
    assert len(fills) == 1 or fills[0] + fills[1] > room
    assert rows == first_fit_decreasing(lengths, row_tokens)


def unpacked(batch):
    """Return the sequences of a packed batch: ids, kept positions, gold ids, targets; found by positions alone."""
    found, first = [], 0
    for ids, mask, labels, positions in zip(
        *(batch[name].numpy() for name in ("input_ids", "attention_mask", "gold_ids", "position_ids")), strict=True
    ):
        starts = np.flatnonzero(positions == 0)
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:stop].tolist() == list(range(stop - start))
            assert len(set(mask[start:stop])) == 1
            kept = np.flatnonzero(labels[start:stop] != IGNORED)
            if not mask[start]:
                assert not len(kept)
                continue
            targets = [
                batch[name][first : first + len(kept)].numpy().tobytes()
                for name in ("target_ids", "target_log_probs", "target_log_left_out")
            ]
            first += len(kept)
            found.append((ids[start:stop].tolist(), kept.tolist(), labels[start:stop][kept].tolist(), targets))
    assert first == len(batch["target_ids"])
    return found


@pytest.mark.parametrize("row_tokens", [1, 60, 96, 10_000, None])
def test_a_packed_batch_holds_every_sequence_whole_with_its_own_targets(examples, row_tokens):
    packed = pack(examples, row_tokens)
    alone = [unpacked(pack([example], row_tokens))[0] for example in examples]
    assert sorted(unpacked(packed)) == sorted(alone)
    longest, (rows, width) = max(len(example.input_ids) for example in examples), packed["input_ids"].shape
    assert width <= max(longest, row_tokens or 10_000)
    assert (rows == 1) == (row_tokens in (10_000, None))
    assert rows * width <= collate(examples)["input_ids"].numel()
    if rows == 1:
        assert packed["attention_mask"].all()


@pytest.mark.parametrize("row_tokens", [1, 96, None])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", STUDENTS)
def test_packed_loss_and_gradients_equal_padded_ones(examples, model_type, attention, row_tokens):
    padded = distilled(student(model_type, **STUDENTS[model_type]), LossConfig(kd_weight=0.5))
    padded.student.set_attn_implementation(attention)
    packed = copy.deepcopy(padded)
    losses = [padded(**collate(examples)), packed(**pack(examples, row_tokens))]
    config = padded.student.config
    with torch.no_grad():
        logits = padded.student(collate(examples)["input_ids"]).logits
    for name in losses[0]:  # sums over positions, of more than a nat each
        torch.testing.assert_close(
            losses[1][name], losses[0][name], rtol=loss_rounding(config, 48, logits), atol=LOSS_ROUNDING
        )
    for loss in losses:
        loss["loss"].backward()
    for (name, left), right in zip(padded.named_parameters(), packed.parameters(), strict=True):
        assert (left.grad - right.grad).abs().max() <= GRADIENT_ROUNDING * left.grad.abs().max(), name


def test_whole_logits_are_packed_too(examples):
    padded = distilled(student("llama"), LossConfig())
    padded.head = None
    packed = padded(**pack(examples, 96))["loss"]
    expected, logits = padded(**collate(examples))["loss"], padded.student(collate(examples)["input_ids"]).logits
    torch.testing.assert_close(packed, expected, rtol=0, atol=loss_rounding(padded.student.config, 48, logits))


@pytest.mark.parametrize("row_tokens", [64, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", [*STUDENTS, "mixtral"])
def test_students_that_keep_sequences_apart_are_accepted_and_left_as_they_were(model_type, dtype, row_tokens):
    made = student(model_type, **STUDENTS.get(model_type, {})).to(dtype)
    check_packing(made, StudentHead.of(made), row_tokens)
    assert made.training
    assert all(parameter.grad is None for parameter in made.parameters())
    assert not made.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", [*RECURRENT, "bert", "modernbert"])
def test_students_that_mix_sequences_are_refused_in_every_precision(model_type, dtype):
    made = student(model_type, **RECURRENT.get(model_type, {}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(0.07 if parameter.ndim > 1 else 1)  # so little leaks that bfloat16 rounds more
    made = made.to(dtype)
    with pytest.raises(ModelError, match=r"mixes packed sequences .*a gradient of one sequence"):
        check_packing(made, StudentHead.of(made), 64)


def test_a_student_that_counts_positions_through_the_row_is_refused():
    made = student("gpt2", **GPT2)
    body = made.transformer
    forward = body.wpe.forward
    body.wpe.forward = lambda positions: forward(torch.arange(positions.shape[1])[None])
    with pytest.raises(ModelError, match="states that differ from padded ones"):
        check_packing(made, StudentHead.of(made), None)


def test_a_student_without_positions_is_refused():
    made = student("llama")
    head, forward = StudentHead.of(made), made.forward
    made.forward = types.MethodType(lambda self, input_ids, attention_mask: forward(input_ids, attention_mask), made)
    with pytest.raises(ModelError, match="unexpected keyword argument 'position_ids'"):
        check_packing(made, head, None)


def test_flash_attention_reads_one_row_only():
    made = student("llama")
    made.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"packing.row_tokens: flash attention .*expected null, found 2048"):
        check_packing(made, None, 2048)


@pytest.fixture(scope="module")
def packed_run(cache, tmp_path_factory):
    """A packed run into its second epoch."""
    output = tmp_path_factory.mktemp("packed")
    train(cache, output, max_steps=14, save_steps=2, optim="sgd", **PACKED)
    return output


def test_a_packed_run_ends_as_a_padded_one_does(cache, packed_run, tmp_path):
    padded = train(cache, tmp_path, max_steps=14, optim="sgd")
    assert largest_difference(weights(packed_run / "final"), weights(padded)) > 0
    assert_same_run(packed_run / "final", padded, steps=14, optim="sgd")
    for left, right in zip(curve(packed_run), curve(tmp_path), strict=True):
        assert left == pytest.approx(right, rel=2 * GRADIENT_ROUNDING)
        assert left["num_input_tokens_seen"] == right["num_input_tokens_seen"]


@pytest.mark.parametrize("step", [5, 11])
def test_a_packed_run_continues_bit_for_bit(cache, packed_run, tmp_path, step):
    options = {"max_steps": 14, "save_steps": 2, "optim": "sgd", **PACKED}
    train_and_stop(step, cache, tmp_path, **options)
    train(cache, tmp_path, **options)
    assert curve(tmp_path) == curve(packed_run)
    assert largest_difference(weights(tmp_path / "final"), weights(packed_run / "final")) == 0


@pytest.mark.parametrize(
    ("changes", "exactly"),
    [
        ({"dataloader_num_workers": 1}, True),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, False),
    ],
)
def test_neither_workers_nor_smaller_batches_change_what_a_packed_step_learns(
    cache, packed_run, tmp_path, changes, exactly
):
    other = train(cache, tmp_path, max_steps=14, optim="sgd", **PACKED, **changes)
    assert_same_run(other, packed_run / "final", steps=14, optim="sgd")
    assert not exactly or largest_difference(weights(other), weights(packed_run / "final")) == 0


def test_a_run_whose_student_would_mix_sequences_stops_before_its_first_step(tmp_path):
    teacher = tiny.save_teacher(tmp_path / "teacher", masked=True)
    cache = tiny.capture(tmp_path, teacher, objective="masked").path
    with pytest.raises(ModelError, match="Remove packing from the student file"):
        train(cache, tmp_path / "run", student={"config": BERT}, **PACKED)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_student_file_chooses_the_attention(cache, tmp_path, monkeypatch, attention):
    made = []
    measured = student_module.vocabulary_size

    def noted(student):
        made.append(student.config._attn_implementation)
        return measured(student)

    monkeypatch.setattr(student_module, "vocabulary_size", noted)
    train(cache, tmp_path, max_steps=1, student={"config": LLAMA, "attention": attention})
    assert made == [attention]


def missing(*_, **__):
    raise ImportError("FlashAttention2 cannot be used: the package is not installed")


@pytest.mark.parametrize(("attention", "reason"), [("sdpb", "sdpb"), ("flash_attention_2", "is not installed")])
def test_an_attention_that_cannot_be_had_is_refused_with_the_reason(cache, tmp_path, monkeypatch, attention, reason):
    check = PreTrainedModel._check_and_adjust_attn_implementation
    monkeypatch.setattr(
        PreTrainedModel, "_check_and_adjust_attn_implementation", check if attention == "sdpb" else missing
    )
    with pytest.raises(ModelError, match=f"the student cannot be made .*{reason}"):
        train(cache, tmp_path, student={"config": LLAMA, "attention": attention})
