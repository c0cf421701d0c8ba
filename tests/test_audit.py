"""An audit passes what a capture honestly wrote and catches what only the teacher can tell.

Faulty caches are written by the real capture and the real writer, with one function spoilt, so that
their receipts are sound and ``verify --deep`` finds nothing.
"""

import json
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_target_kinds import KINDS

import tiny
from cache_tools.errors import ConfigError, IdentityError, IncompleteError
from cache_tools.format import layout
from cache_tools.json_output import json_text
from cache_tools.maintenance.verify import verify
from cache_tools.store.teacher import CachedTeacher
from json_schema import mismatches
from pipeline.audit.live import compare
from pipeline.audit.run import Audit, run_audit, sample
from pipeline.capture.keep import sparse_targets
from pipeline.capture.predict import HEAD_CHUNK_BYTES, predict
from pipeline.config.audit import AuditConfig
from pipeline.config.capture_file import CaptureConfig
from pipeline.engines.opening import open_teacher
from pipeline.teachers.loading import load_teacher
from refusal_fixtures import command_line, write_yaml
from tolerances import loss_rounding

HIDDEN = {
    "budget": {"layers": ["last", 1], "codec": "budget"},
    "bfloat16": {"layers": ["last", 1]},
}
WIDE = {"target": {"k": 64}, "held_out_fraction": 0}


@pytest.fixture
def teacher(tmp_path):
    return tiny.save_teacher(tmp_path / "teacher")


def audit(values, only=None, **changes):
    """Audit what a dictionary describes; the only teacher's report, as ``--json`` prints it."""
    settings = CaptureConfig.model_validate(values | {"audit": changes})
    printed = json.loads(json_text(run_audit(settings, only, tiny.SilentReporter())))
    assert mismatches(printed, Audit) == []
    (report,) = printed["teachers"]
    return report


def captured(folder, teacher, **changes):
    if not (folder / "corpus.jsonl").exists():
        tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:20])
    values = tiny.capture_values(folder, teacher, **changes)
    tiny.run(values)
    return values


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of an ordinary capture, and its capture file."""
    folder = tmp_path_factory.mktemp("shared")
    return folder, captured(folder, tiny.save_teacher(folder / "teacher"))


@pytest.fixture
def ordinary(shared, tmp_path):
    """The capture file of a copy of it, which a test may change."""
    folder, values = shared
    shutil.copytree(folder / "cache", tmp_path / "cache")
    return deepcopy(values) | {"cache": str(tmp_path / "cache")}


def check(report, name):
    (found,) = [check for check in report["checks"] if name in check["name"]]
    return found


HONEST = {**KINDS, "topk": {"k": 16}, "everything": {"k": 1000}}
ROUNDED = {"topk": "bfloat16", "sampled": "bfloat16", "hybrid": "float16"}
ALIKE = [("exact", "float32"), ("scalars", "float32"), ("topp", "float32"), ("everything", "float32")]
ALIKE += [("hybrid", "float32"), ("sampled", "bfloat16")]
"""Captures whose like is among the others."""


def slow_if(condition, *case):
    return pytest.param(*case, marks=[pytest.mark.slow] if condition else [])


CASES = [*((kind, "float32") for kind in HONEST), *ROUNDED.items()]


@pytest.mark.parametrize(("kind", "dtype"), [slow_if(case in ALIKE, *case) for case in CASES])
def test_an_honest_capture_passes_whatever_the_batches(tmp_path, teacher, kind, dtype):
    values = captured(tmp_path, teacher, target=HONEST[kind], batch_tokens=900, dtype=dtype)
    values["teachers"][0]["batch_tokens"] = 100
    report = audit(values)
    assert report["passed"], report["checks"]
    assert (report["identity"], report["diagnosis"]) == ([], [])
    assert report["positions"] > 500
    assert report["same_tokens"] > (0.98 if dtype == "float32" else 0.2)


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_honest_hidden_states_pass(tmp_path, teacher, hidden):
    report = audit(captured(tmp_path, teacher, hidden=hidden))
    assert report["passed"]
    assert 0 < check(report, "hidden last")["value"] < 1e-3
    assert 0 < check(report, "hidden 1")["value"] < 0.1


def test_a_masked_capture_passes(tmp_path):
    values = captured(tmp_path, tiny.save_teacher(tmp_path / "teacher", masked=True), objective="masked")
    assert audit(values)["passed"]


FURTHER = {"k": 16, "temperatures": [0.5, 2.0], "scalars": ["gold_rank", "tail_mean", "tail_variance", "tail_minimum"]}
MEASURED = {
    "logsumexp_t0.5": "logsumexp_t0.5, nats",
    "logsumexp_t2": "logsumexp_t2, nats",
    "gold_rank": "ln(1 + gold_rank)",
    "tail_mean": "tail_mean, nats",
    "tail_variance": "tail_variance, nats²",
    "tail_minimum": "tail_minimum, nats",
}


@pytest.mark.parametrize("dtype", ["float32", slow_if(True, "bfloat16")])
def test_further_scalars_of_an_honest_capture_pass(tmp_path, teacher, dtype):
    values = captured(tmp_path, teacher, target=FURTHER, dtype=dtype)
    values["teachers"][0]["batch_tokens"] = 100
    report = audit(values)
    assert report["passed"], report["checks"]
    assert all(check(report, measured)["value"] < check(report, measured)["limit"] for measured in MEASURED.values())


@pytest.mark.parametrize("scalar", [slow_if(name not in ("logsumexp_t0.5", "gold_rank"), name) for name in MEASURED])
def test_any_scalar_that_is_not_the_teachers_fails(tmp_path, teacher, monkeypatch, scalar):
    def spoil(*arguments):
        honest = sparse_targets(*arguments)
        return replace(honest, scalars=honest.scalars | {scalar: honest.scalars[scalar] + 1})

    monkeypatch.setattr("pipeline.capture.predict.sparse_targets", spoil)
    values = captured(tmp_path, teacher, target=FURTHER)
    assert verify(tmp_path / "cache", deep=True) == []
    report = audit(values)
    assert [check["name"] for check in report["checks"] if not check["passed"]] == [f"error of {MEASURED[scalar]}"]


def tempered(logits, *rest):
    """Targets of the logits at temperature 0.7, beside honest scalars."""
    honest, cold = sparse_targets(logits, *rest), sparse_targets(logits / 0.7, *rest)
    return replace(cold, scalars=honest.scalars)


def truncated(logits, *rest):
    """The most likely tokens up to a mass of 0.9, as if they were all."""
    honest = sparse_targets(logits, *rest)
    mass = honest.log_probs.exp().cumsum(dim=1)
    kept = honest.log_probs.masked_fill(mass - honest.log_probs.exp() >= 0.9, -torch.inf)
    log_probs = kept - kept.logsumexp(dim=1, keepdim=True)
    return replace(honest, log_probs=log_probs, log_left_out=torch.full_like(honest.log_left_out, -torch.inf))


SPOILT = {
    "tempered": (tempered, "fit temperature 0.70, not 1"),
    "truncated": (truncated, "truncated and renormalised"),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT.values(), ids=SPOILT)
def test_rows_that_are_not_the_teachers_fail_though_no_object_is_damaged(
    tmp_path, teacher, monkeypatch, spoil, sentence
):
    monkeypatch.setattr("pipeline.capture.predict.sparse_targets", spoil)
    values = captured(tmp_path, teacher, **WIDE)
    assert verify(tmp_path / "cache", deep=False) == []
    report = audit(values)
    assert not report["passed"]
    assert report["identity"] == []
    assert [check["name"] for check in report["checks"] if not check["passed"]] == ["KL of the targets, nats"]
    assert len(report["diagnosis"]) == 1
    assert sentence in report["diagnosis"][0]


def shifted(by):
    def spoil(*arguments):
        honest = predict(*arguments)
        targets = type(honest.targets)(*(np.roll(values, by, axis=0) for values in vars(honest.targets).values()))
        return replace(honest, targets=targets)

    return spoil


SHIFTS = [("topk", -1, "before"), ("topk", 1, "behind"), ("sampled", 1, "behind"), ("hybrid", 1, "behind")]


@pytest.mark.parametrize(("kind", "by", "side"), SHIFTS)
def test_shifted_rows_fail(tmp_path, teacher, monkeypatch, kind, by, side):
    monkeypatch.setattr("pipeline.capture.shards.predict", shifted(by))
    values = captured(tmp_path, teacher, target=HONEST[kind])
    assert verify(tmp_path / "cache", deep=False) == []
    report = audit(values)
    assert not report["passed"]
    assert report["diagnosis"] == [
        f"The rows are shifted by one: the live teacher fits the stored row {side} each position best."
    ]


@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_draws_from_a_tempered_distribution_fail(tmp_path, teacher, monkeypatch, kind):
    monkeypatch.setattr("pipeline.capture.predict.sparse_targets", tempered)
    report = audit(captured(tmp_path, teacher, target=KINDS[kind]))
    assert not check(report, "surprisal")["passed"]
    assert report["excess_surprisal"]["mean"] < 0
    assert report["diagnosis"][0].startswith("The draws are too likely")


@pytest.mark.parametrize("target", [{"k": 16}, KINDS["sampled"]])
def test_another_revision_of_the_weights_fails_and_is_measured(tmp_path, teacher, target):
    values = captured(tmp_path, teacher, target=target, hidden=HIDDEN["bfloat16"])
    revised = tiny.model()
    with torch.no_grad():
        for parameter in revised.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    tiny.save_teacher(teacher, revised)
    report = audit(values)
    assert not report["passed"]
    assert [line.split(":")[0] for line in report["identity"]] == ["weights"]
    assert report["diagnosis"][0].startswith("The live teacher's files are not those that were captured")
    assert not check(report, "gold_logprob")["passed"]
    assert not check(report, "hidden last")["passed"]
    assert not check(report, "hidden 1")["passed"]


def test_another_dtype_fails_by_its_identity_and_by_its_numbers(ordinary):
    ordinary["teachers"][0]["dtype"] = "bfloat16"
    report = audit(ordinary)
    assert report["identity"] == ['dtype: "float32" -> "bfloat16"']
    assert not check(report, "KL")["passed"]
    assert report["diagnosis"] == ["The live teacher computes in another dtype than the capture did."]


def test_a_cache_that_was_computed_in_a_coarser_dtype_than_it_says_fails(tmp_path, teacher, monkeypatch):
    def load(*arguments):
        loaded = open_teacher(*arguments)
        loaded.head.model.bfloat16()
        return loaded

    monkeypatch.setattr("pipeline.run.open_teacher", load)
    report = audit(captured(tmp_path, teacher, **WIDE))
    assert not check(report, "KL")["passed"]
    assert report["identity"] == []
    assert report["diagnosis"] == [
        "The differences are as small as those of another dtype, device or attention kernel."
    ]


def test_an_identity_that_differs_fails_even_if_no_number_does(ordinary):
    ordinary["teachers"][0]["dtype"] = "bfloat16"
    report = audit(ordinary, max_kl_nats=1, max_error_nats=1)
    assert all(check["passed"] for check in report["checks"])
    assert not report["passed"]


def test_one_bad_shard_is_named(ordinary, monkeypatch):
    cached = tiny.Cache(ordinary["cache"]).encoding().teacher()
    layout.receipt_file(cached.path, 1).unlink()
    monkeypatch.setattr("pipeline.capture.predict.sparse_targets", tempered)
    tiny.run(ordinary)
    report = audit(ordinary)
    assert (check(report, "KL")["passed"], check(report, "KL")["shard"]) == (False, 1)


def test_the_worst_position_is_shown_with_what_stands_before_it(tmp_path, teacher, monkeypatch):
    def spoil(*arguments):
        honest = predict(*arguments)
        honest.targets.ids[5] = (honest.targets.ids[5] + 1) % 300
        return honest

    monkeypatch.setattr("pipeline.capture.shards.predict", spoil)
    values = captured(tmp_path, teacher)
    report = audit(values, shards=1, sequences_per_shard=100)
    (shard,) = report["shards"]
    encoding = tiny.Cache(values["cache"]).encoding()
    worst, row = report["worst"][0], encoding.teacher().shard_rows(shard)[0] + 5
    sequence = encoding.sequences(shard)[0]
    assert (worst["row"], worst["sequence_id"]) == (row, sequence.sequence_id)
    assert worst["document_id"] == sequence.document_id
    assert sequence.text.startswith(worst["context"])
    assert len(worst["context"].encode()) == sequence.byte_lengths[:6].sum()
    assert worst["stored"] != pytest.approx(worst["live"], rel=0.1)


def naive_log_probs(model, sequence):
    """Log-probabilities of every kept position, float64, from one ordinary forward pass."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(sequence.input_ids.astype(np.int64))[None]).logits[0]
    return torch.log_softmax(logits.double(), dim=1).numpy()[sequence.positions()]


@pytest.mark.parametrize("head_bytes", [1, 12_000, 2**23])
def test_live_answers_equal_those_of_a_whole_forward_pass(tmp_path, teacher, monkeypatch, head_bytes):
    tiny.write_corpus(tmp_path / "corpus.jsonl", tiny.TEXTS[:12])
    config = CaptureConfig.model_validate(captured(tmp_path, teacher, max_length_tokens=24))
    monkeypatch.setitem(HEAD_CHUNK_BYTES, "cpu", head_bytes)
    cached = tiny.Cache(config.cache).encoding().teacher()
    (sequences,) = sample(cached, AuditConfig(shards=1, sequences_per_shard=6)).values()
    live = load_teacher(config.teachers[0], teacher, "causal")
    rows = compare(cached, sequences, [], live, batch_tokens=60).rows
    row = 0
    for sequence in sequences:
        logs, window = naive_log_probs(live.head.model, sequence), cached.targets(*sequence.rows)
        weights = np.exp(window.log_probs.astype(np.float64))
        tolerance = loss_rounding(live.head.model.config, 24, logs)
        for position, own in enumerate(logs):
            assert rows.log_probs[row] == pytest.approx(own[window.ids[position]], rel=0, abs=tolerance)
            assert rows.top_log_prob[row] == pytest.approx(own.max(), rel=0, abs=tolerance)
            if 0 < position < len(logs) - 1:
                seen = range(position - 1, position + 2)
                expected = [-weights[other] @ own[window.ids[other]] for other in seen]
            else:
                expected = [np.nan] * 3
            assert rows.surprisal[row] == pytest.approx(expected, rel=0, abs=tolerance, nan_ok=True)
            row += 1
    assert row == len(rows.top_log_prob) > 20


def test_only_the_sampled_sequences_rows_are_read(ordinary, monkeypatch):
    cached = tiny.Cache(ordinary["cache"]).encoding().teacher()
    read, real = [], CachedTeacher.targets
    monkeypatch.setattr(CachedTeacher, "targets", lambda self, *rows: read.append(rows) or real(self, *rows))
    report = audit(ordinary, shards=3, sequences_per_shard=2, seed=5)
    chosen = sample(cached, AuditConfig(shards=3, sequences_per_shard=2, seed=5))
    assert report["shards"] == list(chosen)
    assert read == [sequence.rows for part in chosen.values() for sequence in part]


def test_a_sample_follows_from_its_seed(ordinary):
    cached = tiny.Cache(ordinary["cache"]).encoding().teacher()

    def ids(**settings):
        return {shard: [s.sequence_id for s in part] for shard, part in sample(cached, AuditConfig(**settings)).items()}

    assert ids(shards=2, sequences_per_shard=2) == ids(shards=2, sequences_per_shard=2)
    assert ids(seed=1, shards=8, sequences_per_shard=2) != ids(seed=2, shards=8, sequences_per_shard=2)
    everything = ids(shards=8, sequences_per_shard=2)
    assert ids(shards=2, sequences_per_shard=2).items() <= everything.items()
    assert len(ids(shards=1000, sequences_per_shard=1000)) == len(cached.encoding.shards)


def test_an_unfinished_capture_is_audited_as_far_as_it_is(ordinary):
    cached = tiny.Cache(ordinary["cache"]).encoding().teacher()
    for shard in range(1, len(cached.encoding.shards)):
        layout.receipt_file(cached.path, shard).unlink()
    assert audit(ordinary)["shards"] == [0]
    layout.receipt_file(cached.path, 0).unlink()
    with pytest.raises(IncompleteError, match="Run 'logitcask capture' with this file first"):
        audit(ordinary)


def test_refuses_a_teacher_that_was_not_captured_and_one_that_is_not_in_the_file(ordinary):
    with pytest.raises(ConfigError, match="no teacher 'big' in the capture file"):
        audit(ordinary, only="big")
    ordinary["teachers"] += [ordinary["teachers"][0] | {"name": "big"}]
    with pytest.raises(IncompleteError, match="teacher 'big' has not been captured"):
        audit(ordinary, only="big")
    assert audit(ordinary, only="toy")["passed"]


def test_refuses_a_model_of_other_shapes(tmp_path, teacher):
    values = captured(tmp_path, teacher, hidden={"layers": [1]})
    tiny.save_teacher(teacher, tiny.model(hidden_size=16))
    with pytest.raises(IdentityError, match="hidden 1: 32 -> 16"):
        audit(values)


def test_exit_codes_and_output(tmp_path, ordinary, monkeypatch, capsys):
    path = write_yaml(tmp_path, ordinary)
    assert command_line(monkeypatch, "audit", path, "--shards", 2) == 0
    out, err = capsys.readouterr()
    assert out.endswith("teacher toy: passed\n")
    assert "tokens/s" in err
    other = ("--set", "teachers.0.dtype=bfloat16")
    assert command_line(monkeypatch, "audit", path, "--json", *other) == 1
    printed = json.loads(capsys.readouterr().out)
    assert mismatches(printed, Audit) == []
    assert (printed["passed"], printed["teachers"][0]["teacher"]) == (False, "toy")
    assert command_line(monkeypatch, "audit", path, *other) == 1
    out = capsys.readouterr().out
    assert 'identity differs: dtype: "float32" -> "bfloat16"' in out
    assert "worst: doc" in out
    assert out.endswith("teacher toy: FAILED\n")
    assert command_line(monkeypatch, "audit", path, "--teacher", "nobody") == 1
    assert capsys.readouterr().err.count("Error: ") == 1
