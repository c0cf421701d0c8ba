import json
import socket
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_fused import LargestTensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import tiny
from cache_tools.errors import ConfigError, IdentityError, IncompleteError, ModelError
from cache_tools.store.predictions import SCALAR_STEP_NATS
from cache_tools.store.reader import Cache
from json_schema import mismatches
from logitcask import cli
from loss_fixtures import loss, random_logits, top_k
from student_fixtures import TINY, naive_kl_nats
from tolerances import log_prob_rounding, loss_rounding
from trainer.evaluation.evaluate import evaluate, evaluate_folder
from trainer.evaluation.measures import Measures
from trainer.evaluation.results import EvaluateResult, MeanMeasures
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows

TOLERANCE = loss_rounding(TINY, tokens=48, logits=10)
"""In nats, of the losses of a tiny model, whose logits are below 10; measures of probability change less."""


@pytest.fixture(scope="module", params=["causal", "masked"])
def folder(request, tmp_path_factory):
    """A folder with a cache of the whole vocabulary, its teacher, and a student that is none."""
    folder, masked = tmp_path_factory.mktemp(request.param), request.param == "masked"
    teacher = tiny.save_teacher(folder / "teacher", masked=masked)
    tiny.save_teacher(folder / "student", tiny.model("bert" if masked else "llama", seed=1), masked)
    tiny.capture(folder, teacher, objective=request.param, target={"k": 300, "exact": True})
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A cache of only a few tokens per position, and a student."""
    folder = tmp_path_factory.mktemp("few")
    tiny.save_teacher(folder / "student", tiny.model(seed=1))
    tiny.capture(folder, target={"k": 5, "exact": True})
    return folder


MEANS = {field.name for field in fields(MeanMeasures)} | {"split", "teacher_cross_entropy_nats"}


def open_teacher(folder):
    return Cache(folder / "cache").encoding().teacher()


def load(path, cached):
    auto = AutoModelForCausalLM if cached.encoding.manifest.objective == "causal" else AutoModelForMaskedLM
    return auto.from_pretrained(path).eval()


@torch.inference_mode()
def naive_measures(student, teacher, cached, split, k=None):
    """Return measures per position from sequences read one at a time by both models, without batches or padding.

    The last two rows are the student's highest probability, and whether that token is the gold one.
    """
    k, parts = k or cached.manifest.target.k, []
    for shard in cached.encoding.split_shards(split):
        for sequence in cached.encoding.sequences(shard):
            ids, where = torch.from_numpy(sequence.input_ids.astype("int64"))[None], sequence.positions()
            logits, said = (model(input_ids=ids).logits[0, where].double() for model in (student, teacher))
            gold = torch.from_numpy(sequence.gold_ids(cached.encoding.manifest.objective).astype("int64"))
            log_p = said.log_softmax(1)
            log_probs, kept = log_p.topk(k)
            left_out = log_p.scatter(1, kept, -torch.inf).logsumexp(1)
            parts.append(
                torch.stack(
                    [
                        F.cross_entropy(logits, gold, reduction="none"),
                        naive_kl_nats(logits, kept, log_probs, left_out, "ghost"),
                        (logits.argmax(1) == said.argmax(1)).double(),
                        F.cross_entropy(said, gold, reduction="none"),
                        naive_acceptance(logits.softmax(1), kept, log_probs, left_out),
                        logits.softmax(1).amax(1),
                        (logits.argmax(1) == gold).double(),
                    ]
                )
            )
    return torch.cat(parts, dim=1)


def naive_acceptance(q, kept, log_probs, left_out):
    """Return the sum of min(p, q) over the kept tokens and the rest."""
    inside = torch.minimum(log_probs.exp(), q.gather(1, kept)).sum(1)
    return inside + torch.minimum(left_out.exp(), 1 - q.gather(1, kept).sum(1))


def naive_calibration_error(confidence, correct):
    total = 0.0
    for i in range(15):
        inside = (confidence >= i / 15) & (confidence < (i + 1) / 15)
        if inside.any():
            total += float(inside.sum() * (correct[inside].mean() - confidence[inside].mean()).abs())
    return total / len(confidence)


def assert_measured(result, expected):
    cross_entropy, kl, agreement, teacher_cross_entropy, acceptance, _, _ = expected.mean(dim=1).tolist()
    assert result.acceptance == pytest.approx(acceptance, rel=0, abs=TOLERANCE)
    assert result.calibration_error == pytest.approx(naive_calibration_error(*expected[-2:]), rel=0, abs=TOLERANCE)
    assert result.positions == expected.shape[1]
    assert result.cross_entropy_nats == pytest.approx(cross_entropy, rel=0, abs=TOLERANCE)
    assert result.kl_to_teacher_nats == pytest.approx(kl, rel=0, abs=TOLERANCE)
    assert result.top1_agreement == pytest.approx(agreement, abs=1e-9)
    assert result.teacher_cross_entropy_nats == pytest.approx(
        teacher_cross_entropy, rel=0, abs=SCALAR_STEP_NATS / 2 + TOLERANCE
    )


def test_measures_are_those_of_naive_computation_with_the_live_teacher(folder):
    cached = open_teacher(folder)
    expected = naive_measures(*(load(folder / name, cached) for name in ("student", "teacher")), cached, "held_out")
    assert_measured(evaluate_folder(folder / "student", cached, "held_out"), expected)


@pytest.mark.parametrize("split", ["held_out", pytest.param("train", marks=pytest.mark.slow)])
def test_kl_counts_the_left_out_mass_as_one_more_outcome(few, split):
    cached = open_teacher(few)
    expected = naive_measures(*(load(few / name, cached) for name in ("student", "teacher")), cached, split)
    assert_measured(evaluate_folder(few / "student", cached, split), expected)


def test_positions_are_binned_by_the_student_s_confidence():
    """Too sure where it is sure and not sure enough elsewhere, so that other bins would give another error."""
    logits = random_logits(4000, 5) / 2
    confidence, chosen = logits.double().softmax(1).max(1)
    correct = confidence < 0.5
    gold = torch.where(correct, chosen, (chosen + 1) % 5)
    measures = Measures(DistillationLoss(loss()), DistillationLoss(loss("total_variation")), "exact")
    for rows in (slice(0, 7), slice(7, None)):
        measures.add(measures.sums(logits[rows], gold[rows], TeacherRows(top_k(logits, 5))[rows]))
    means = measures.means()
    tolerance = log_prob_rounding(5, logits)
    expected = naive_calibration_error(confidence, correct.double())
    assert means.calibration_error == pytest.approx(expected, rel=0, abs=tolerance)
    assert means.kl_to_teacher_nats == pytest.approx(0, abs=tolerance)
    assert means.acceptance == pytest.approx(1, rel=0, abs=tolerance)


@pytest.fixture(scope="module")
def kept_states(tmp_path_factory):
    """A cache of two tokens per position, and the last hidden state as it was."""
    folder = tmp_path_factory.mktemp("states")
    tiny.save_teacher(folder / "student", tiny.model(seed=1))
    tiny.capture(folder, target={"k": 2, "exact": True}, hidden={"layers": ["last"], "codec": "float32"})
    return folder


def test_from_hidden_states_every_measure_is_that_of_the_whole_distribution(kept_states):
    cached = open_teacher(kept_states)
    models = [load(kept_states / name, cached) for name in ("student", "teacher")]
    result = evaluate_folder(kept_states / "student", cached, "held_out")
    assert_measured(result, naive_measures(*models, cached, "held_out", k=300))
    assert (result.kl_to_teacher_is, result.acceptance_is) == ("exact", "exact")


def test_the_likeliest_tokens_bound_what_hidden_states_say_exactly(few, kept_states):
    coarse, exact = (evaluate_folder(f / "student", open_teacher(f), "held_out") for f in (few, kept_states))
    assert (coarse.kl_to_teacher_is, coarse.acceptance_is) == ("lower bound", "upper bound")
    assert coarse.kl_to_teacher_nats < exact.kl_to_teacher_nats - 0.01
    assert coarse.acceptance > exact.acceptance + 0.01


def test_from_draws_the_kl_is_unbiased_and_acceptance_is_left_out(tmp_path, kept_states):
    cached = tiny.capture(tmp_path, kept_states / "teacher", target={"kind": "sampled", "draws": 60})
    result = evaluate_folder(kept_states / "student", cached.encoding().teacher(), "held_out")
    exact = evaluate_folder(kept_states / "student", open_teacher(kept_states), "held_out")
    assert result.kl_to_teacher_is == "unbiased"
    assert (result.acceptance, result.acceptance_is) == (None, None)
    assert result.kl_to_teacher_nats == pytest.approx(exact.kl_to_teacher_nats, abs=0.05)


def averages(result):
    """Leave out what is no mean, such as the bins, which no tolerance reaches: their sum is the calibration error."""
    values = result if isinstance(result, dict) else vars(result)
    return {name: value for name, value in values.items() if name in MEANS}


def test_no_tensor_holds_the_logits_of_a_batch(few, monkeypatch):
    monkeypatch.setattr("trainer.student.fused_loss.CHUNK_POSITIONS", 7)
    cached = open_teacher(few)
    model = load(few / "student", cached)
    with LargestTensor() as largest:
        chunked = averages(evaluate(model, cached, "held_out", 8))
    assert largest.elements < 100 * 300
    monkeypatch.setattr("trainer.evaluation.evaluate.StudentHead.of", lambda _: None)
    with LargestTensor() as largest:
        assert averages(evaluate(model, cached, "held_out", 8)) == pytest.approx(chunked, abs=TOLERANCE)
    assert largest.elements > 100 * 300


def test_the_teacher_as_student_agrees_with_itself(folder):
    result = evaluate_folder(folder / "teacher", open_teacher(folder), "held_out")
    assert abs(result.kl_to_teacher_nats) < TOLERANCE
    assert result.top1_agreement == 1
    assert result.cross_entropy_nats == pytest.approx(
        result.teacher_cross_entropy_nats, rel=0, abs=SCALAR_STEP_NATS / 2 + TOLERANCE
    )


def test_batch_size_does_not_matter_and_every_token_is_reported(few):
    cached, tokens = open_teacher(few), []
    model = load(few / "student", cached)
    one_by_one = averages(evaluate(model, cached, "held_out", 1))
    by_seven = averages(evaluate(model, cached, "held_out", 7, tokens.append))
    assert by_seven == pytest.approx(one_by_one, abs=TOLERANCE)
    assert sum(tokens) == cached.encoding.manifest.splits["held_out"].tokens


def test_evaluating_leaves_no_gradients_and_switches_dropout_off(few):
    cached = open_teacher(few)
    model = tiny.model(seed=1, attention_dropout=0.5).train()
    assert evaluate(model, cached, "held_out") == evaluate(model, cached, "held_out")
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("made", ["missing", "empty", "no model", "half a model"])
def test_a_folder_without_a_model_is_refused_and_not_looked_up_elsewhere(few, tmp_path, monkeypatch, made):
    looked_up = []

    def refuse(host, *_, **__):
        looked_up.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    if made != "missing":
        (tmp_path / "runs").mkdir()
    if made in ("no model", "half a model"):
        tiny.tokenizer().save_pretrained(tmp_path / "runs")
    if made == "half a model":
        tiny.model().config.save_pretrained(tmp_path / "runs")
        (tmp_path / "runs" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="runs: the student cannot be loaded from this folder"):
        evaluate_folder(Path("runs"), open_teacher(few), "held_out")
    assert not looked_up


def test_a_cache_given_as_student_is_refused_with_the_order_of_the_arguments(few):
    arguments = ["evaluate", str(few / "cache"), str(few / "student"), "--device", "cpu"]
    with pytest.raises(ConfigError, match="Give the student's folder first and the cache second"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_the_folder_of_a_run_is_refused_with_the_place_of_its_student(few, tmp_path):
    (tmp_path / "final").mkdir()
    with pytest.raises(ModelError, match=f"give its finished student, {tmp_path / 'final'}"):
        evaluate_folder(tmp_path, open_teacher(few), "held_out")


def test_a_student_with_another_tokenizer_is_refused(few, tmp_path):
    tiny.save_teacher(tmp_path)
    tiny.tokenizer(vocabulary_size=290).save_pretrained(tmp_path)
    with pytest.raises(IdentityError, match="the student has another tokenizer than the cache"):
        evaluate_folder(tmp_path, open_teacher(few), "held_out")


def test_an_empty_split_is_refused(few, tmp_path):
    cached = tiny.capture(tmp_path, few / "teacher", held_out_fraction=0).encoding().teacher()
    with pytest.raises(IncompleteError, match="the held_out split is empty"):
        evaluate_folder(few / "student", cached, "held_out")


@pytest.mark.parametrize("options", [[], ["--split", "train", "--batch-size", "3", "--encoding", "main"]])
def test_the_command_prints_one_json_object_and_nothing_else(few, options):
    arguments = ["evaluate", str(few / "student"), str(few / "cache"), "--device", "cpu", "--json", *options]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    printed = json.loads(result.stdout)
    assert not mismatches(printed, EvaluateResult)
    expected = evaluate_folder(few / "student", open_teacher(few), printed["split"])
    assert averages(printed) == pytest.approx(averages(expected), abs=TOLERANCE)


def test_the_command_prints_a_table_with_every_measure(few):
    arguments = ["evaluate", str(few / "student"), str(few / "cache"), "--device", "cpu"]
    table = CliRunner(env={"COLUMNS": "120"}).invoke(cli, arguments, catch_exceptions=False).stdout
    expected = evaluate_folder(few / "student", open_teacher(few), "held_out")
    for value in ("cross_entropy_nats", "kl_to_teacher_nats", "teacher_cross_entropy_nats"):
        assert f"{getattr(expected, value):.4f} nats" in table
    for value in ("top1_agreement", "calibration_error", "acceptance"):
        assert f"{getattr(expected, value):.1%}" in table
    assert table.count("at least ") == table.count("at most ") == 1
