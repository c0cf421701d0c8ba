"""A model whose rows depend on later tokens, padding or batch-mates is told from one that only rounds."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.llama.modeling_llama import LlamaModel

import tiny
from cache_tools.errors import ModelError
from cache_tools.models import probe
from cache_tools.models.probe import Probe, check_model, differences, others, probe_row, step_of
from cache_tools.store.reader import Cache
from pipeline.teachers.body_and_head import run_body
from student_fixtures import BERT, train
from trainer.evaluation.evaluate import evaluate_folder

WIDTH, STEP = 16, 2.0**-23
ROWS = [np.random.default_rng(i).integers(5, 300, size=n) for i, n in enumerate((30, 80, 20))]
TABLE = np.random.default_rng(9).normal(size=(300, WIDTH)).astype(np.float32)
"""An embedding of every token."""


def honest(ids, mask):
    """The mean of all tokens up to each."""
    return np.cumsum(TABLE[ids], axis=1) / np.arange(1, ids.shape[1] + 1)[None, :, None]


def noisy(ids, mask, size):
    """Rounding that depends on all tokens of the batch, as where a router groups them or a scale is shared."""
    noise = np.random.default_rng(int(ids.sum() + mask.sum())).normal(size=(*ids.shape, WIDTH))
    return honest(ids, mask) * (1 + size * noise)


def sees_next(ids, mask):
    """One token ahead only, by a hundredth."""
    return honest(ids, mask) + 0.01 * np.roll(TABLE[ids], -1, axis=1)


def sees_all(ids, mask):
    return honest(ids, mask) + 1e-3 * TABLE[ids].mean(axis=1, keepdims=True)


def reads_padding(ids, mask):
    return honest(ids, mask) + 0.01 * np.roll(TABLE[ids], -1, axis=1) * (1 - np.roll(mask, -1, axis=1))[..., None]


def counts_padding(ids, mask):
    return honest(ids, mask) * (1 + 0.01 * (mask == 0).sum(axis=1))[:, None, None]


def counts_batch(ids, mask):
    return honest(ids, mask) - 0.01 * TABLE[ids].mean(axis=(0, 1))


def check(states_of, causal=True, batched=True, step=STEP, rows=ROWS):
    check_model(states_of, Probe(rows, causal, batched, step), "teacher 'x'", "Fake", "causal" if causal else "masked")


@pytest.mark.parametrize(("size", "step"), [(0, STEP), (1e-6, STEP), (1e-3, 2.0**-10), (1e-2, 2.0**-7)])
@pytest.mark.parametrize("causal", [True, False])
def test_rounding_passes_in_every_dtype(size, step, causal):
    check(lambda ids, mask: noisy(ids, mask, size), causal, step=step)


LATER, PADDING, MATES = "sees later tokens", "the padding beside", "other sequences"


@pytest.mark.parametrize(
    ("states_of", "problem"),
    [
        (sees_next, LATER),
        (sees_all, LATER),
        (reads_padding, PADDING),
        (counts_padding, PADDING),
        (counts_batch, MATES),
    ],
)
def test_each_kind_of_leak_is_named(states_of, problem):
    with pytest.raises(ModelError, match=problem):
        check(states_of)


@pytest.mark.parametrize("states_of", [sees_next, sees_all])
def test_a_masked_model_may_see_later_tokens(states_of):
    check(states_of, causal=False, batched=False)


@pytest.mark.parametrize("states_of", [reads_padding, counts_padding, counts_batch])
def test_a_model_that_reads_one_sequence_at_a_time_has_no_padding(states_of):
    check(states_of, batched=False)


def test_a_token_that_a_router_sends_elsewhere_means_nothing():
    def states_of(ids, mask):
        states = honest(ids, mask)
        return np.where(np.arange(ids.shape[1])[None, :, None] % 9 == ids.sum() % 9, 2 * states, states)

    check(states_of)


def test_rows_that_are_no_numbers_are_left_to_the_capture():
    check(lambda ids, mask: np.full((*ids.shape, WIDTH), np.nan))
    both = differences(np.full((2, 3), np.nan), np.ones((2, 3)))
    assert np.isinf(both).all()


@pytest.mark.parametrize("rows", [[], [np.zeros(0)], [np.array([7])], [np.array([7, 7, 7])], [np.array([0, 1])]])
def test_short_rows_are_probed_as_far_as_they_go(rows):
    check(honest, rows=rows)
    if rows and len(rows[0]) > 1:
        with pytest.raises(ModelError, match=LATER):
            check(sees_all, rows=rows)


@pytest.mark.parametrize("row", [np.array([4]), np.array([0, 0]), np.array([1, 2]), np.arange(50), np.array([3, 3, 9])])
def test_every_place_gets_another_token(row):
    changed = others(row)
    assert (changed != row).all()
    assert (changed >= 0).all()
    assert len(np.unique(row)) == 1 or set(changed) <= set(row)


def test_the_longest_row_is_probed_and_no_more_than_the_model_reads():
    assert probe_row(ROWS).tolist() == ROWS[1][: probe.TOKENS].tolist()
    assert probe_row(ROWS[2:]).tolist() == ROWS[2].tolist()


def test_steps_follow_the_arithmetic():
    for name in ("float32", "float16", "bfloat16"):
        assert step_of(name, "cpu", "highest") == torch.finfo(getattr(torch, name)).eps
    assert step_of("float32", "cuda", "highest") == step_of("float32", "cpu", "high") == 2.0**-10  # TF32
    assert step_of("uint8", "cpu", "highest") == 2.0**-7


def finding(made, causal):
    """Probe a model of transformers; return what is wrong, or None."""

    @torch.inference_mode()
    def states_of(ids, mask):
        return run_body(made, torch.from_numpy(ids), torch.from_numpy(mask), hidden=False)[0].float().numpy()

    try:
        check(states_of, causal, step=torch.finfo(made.dtype).eps)
    except ModelError as error:
        return str(error)


def built(kind, dtype, spread, auto=AutoModelForCausalLM, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**tiny.SHAPE, "vocab_size": 300, **changes})
    made = auto.from_config(config, dtype=dtype).eval()
    for parameter in made.parameters():
        if spread and parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    return made


BIDIRECTIONAL = ["bert", "roberta", "camembert", "electra", "roformer", "rembert", "big_bird", "megatron-bert"]
BIDIRECTIONAL += ["ernie", "data2vec-text", "xlm-roberta", "xlm"]
EXTRA = {
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "mixtral": {"num_local_experts": 4},
    "convbert": {"num_attention_heads": 4, "embedding_size": 32},
    "big_bird": {"attention_type": "original_full"},
    "mamba": {},
}
ARITHMETIC = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)]


def keys(kind):
    return EXTRA.get(kind, {})


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
def test_encoders_under_a_causal_head_see_the_future_in_every_dtype(kind):
    for dtype, spread in ARITHMETIC:  # untrained weights leak a thousandth, which is less than bfloat16 rounds
        assert LATER in finding(built(kind, dtype, spread, **keys(kind)), causal=True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_the_same_classes_as_decoders_do_not(kind):
    for dtype, spread in ARITHMETIC:
        assert finding(built(kind, dtype, spread, is_decoder=True), causal=True) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mixtral", "mamba", "bloom", "opt"])
def test_causal_models_pass_in_every_dtype(kind):
    for dtype, spread in ARITHMETIC:
        assert finding(built(kind, dtype, spread, **keys(kind)), causal=True) is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "albert", "distilbert", "deberta-v2"])
def test_masked_models_pass_in_every_dtype(kind):
    for dtype, spread in ARITHMETIC:
        assert finding(built(kind, dtype, spread, AutoModelForMaskedLM, pad_token_id=0), causal=False) is None


@pytest.mark.parametrize("kind", ["convbert", "fnet"])
@pytest.mark.parametrize("spread", [False, True])
def test_masked_models_that_read_their_padding_do_not_pass(kind, spread):
    made = built(kind, torch.float32, spread, AutoModelForMaskedLM, **keys(kind))
    assert PADDING in finding(made, causal=False)


def test_a_leaking_teacher_is_refused_before_it_is_declared(tmp_path):
    teacher = tiny.save_teacher(tmp_path / "bert", tiny.model("bert"), masked=True)
    with pytest.raises(ModelError, match=f"teacher 'toy' {LATER}"):
        tiny.capture(tmp_path, teacher)
    assert list(Cache(tmp_path / "cache").encoding().teachers) == []


def test_a_teacher_that_reads_padding_may_read_one_sequence_at_a_time(tmp_path):
    made = built("fnet", torch.float32, True, AutoModelForMaskedLM)
    teacher = tiny.save_teacher(tmp_path / "fnet", made, masked=True)
    with pytest.raises(ModelError, match="batch_tokens: 1"):
        tiny.capture(tmp_path, teacher, objective="masked")
    cached = tiny.capture(tmp_path, teacher, objective="masked", batch_tokens=1).encoding().teacher()
    sequence = cached.encoding.sequences(0)[0]
    with torch.inference_mode():
        logits = made(torch.from_numpy(sequence.input_ids.astype(np.int64))[None]).logits[0]
    likeliest = logits[sequence.positions()].argmax(dim=1).numpy()
    targets = cached.targets(*sequence.rows)
    assert (np.take_along_axis(targets.ids, targets.log_probs.argmax(axis=1)[:, None], 1)[:, 0] == likeliest).all()


def test_leaking_students_are_neither_trained_nor_evaluated(tmp_path):
    cache = tiny.capture(tmp_path)
    with pytest.raises(ModelError, match=f"the student {LATER}"):
        train(cache.path, tmp_path / "run", student={"config": BERT}, max_steps=1)
    tiny.save_teacher(tmp_path / "student", built("bert", torch.float32, True))
    with pytest.raises(ModelError, match=f"the student {LATER}"):
        evaluate_folder(tmp_path / "student", cache.encoding().teacher(), "held_out")


def test_the_probe_leaves_no_trace_in_the_teacher(tmp_path, monkeypatch):
    """What a capture holds does not depend on whether its teacher was probed."""
    probed = tiny.capture(tmp_path).encoding().teacher()
    monkeypatch.setattr("pipeline.capture.declare.check_rows", lambda *_: None)
    (tmp_path / "again").mkdir()
    alone = tiny.capture(tmp_path / "again", tmp_path / "teacher").encoding().teacher()
    assert alone.manifest.fingerprint == probed.manifest.fingerprint
    assert (alone.targets(0, 100).log_probs == probed.targets(0, 100).log_probs).all()


def test_a_teacher_whose_batch_mates_move_it_is_refused(tmp_path, monkeypatch):
    forward = LlamaModel.forward

    def normalised(self, *arguments, **named):
        output = forward(self, *arguments, **named)
        states = output.last_hidden_state
        output.last_hidden_state = states - states.mean(dim=(0, 1), keepdim=True)  # as a batch norm in training mode
        return output

    monkeypatch.setattr(LlamaModel, "forward", normalised)
    with pytest.raises(ModelError, match="other sequences of a batch change"):
        tiny.capture(tmp_path)
