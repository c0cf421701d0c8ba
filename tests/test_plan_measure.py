"""``plan --measure``: a random sample, read once for all k, until the time is up."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_target_kinds import KINDS

import pipeline.planning.measure
import pipeline.teachers.model_body
import tiny
from cache_tools.codecs.registry import Targets
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.capture.predict import predict
from pipeline.capture.target import read_target, resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.corpus.documents import corpus_sources
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.planning.choices import first_entries, narrowed, ratios
from pipeline.planning.measure import drawn_order, measure
from pipeline.planning.survey import survey
from pipeline.teachers.loading import load_teacher
from refusal_fixtures import write_yaml

SPEED = 100
"""Tokens a second, by the fake clock."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("measured")
    tiny.write_corpus(made / "corpus.jsonl", tiny.TEXTS * 2)
    tiny.save_teacher(made / "teacher")
    return made


class Reading:
    """A teacher that reads SPEED tokens a second, by a clock that only reading moves."""

    def __init__(self, folder, monkeypatch, **changes):
        config = CaptureConfig.model_validate(tiny.capture_values(folder, folder / "teacher", **changes))
        self.seconds, self.groups = 0.0, []
        self.resolved = resolve_teacher(config.teachers[0])
        self.teacher = load_teacher(config.teachers[0], folder / "teacher", "causal")
        recipe = tiny.recipe(config, load_tokenizer(folder / "teacher"))
        sample = survey(recipe, corpus_sources(config.corpus).values(), 10_000)
        self.sequences = drawn_order(sample.sequences)
        self.tokens_read, run_body = 0, pipeline.teachers.model_body.run_body

        def read(group, *arguments, **named):
            self.groups.append(group)
            self.seconds += sum(len(sequence.input_ids) for sequence in group) / SPEED
            return predict(group, *arguments, **named)

        def counted(model, input_ids, attention_mask, *arguments, **named):
            self.tokens_read += int(attention_mask.sum())
            return run_body(model, input_ids, attention_mask, *arguments, **named)

        monkeypatch.setattr(pipeline.planning.measure, "predict", read)
        monkeypatch.setattr(pipeline.teachers.model_body, "run_body", counted)

    def measure(self, max_seconds=1e9):
        return measure(self.teacher, self.resolved, "causal", self.sequences, max_seconds, clock=lambda: self.seconds)

    @property
    def read(self):
        return [sequence for group in self.groups for sequence in group]


@pytest.mark.parametrize("kind", KINDS)
def test_each_sequence_is_read_once_for_all_k(folder, monkeypatch, kind):
    reading = Reading(folder, monkeypatch, target=KINDS[kind])
    measured = reading.measure()
    tokens = sum(len(sequence.input_ids) for sequence in reading.sequences)
    assert sorted(s.sequence_id for s in reading.read) == list(range(len(reading.sequences)))
    assert reading.tokens_read == tokens == measured.measured_on.tokens
    assert measured.measured_on.whole_sample
    assert measured.measured_on.positions == sum(sequence.num_positions for sequence in reading.sequences)
    assert measured.tokens_per_s == pytest.approx(SPEED)


@pytest.mark.parametrize("max_seconds", [0.001, 1, 5, 20])
def test_it_stops_when_the_time_is_up(folder, monkeypatch, max_seconds):
    reading = Reading(folder, monkeypatch)
    measured = reading.measure(max_seconds).measured_on
    longest = max(len(sequence.input_ids) for sequence in reading.sequences) / SPEED
    assert max_seconds <= measured.seconds <= max_seconds + longest
    assert measured.sequences == len(reading.read) < len(reading.sequences)
    assert not measured.whole_sample
    assert reading.read == reading.sequences[: len(reading.read)]  # the next ones, whatever their length


def test_the_order_is_random_and_always_the_same(folder, monkeypatch):
    reading = Reading(folder, monkeypatch)
    ids = [sequence.sequence_id for sequence in reading.sequences]
    assert sorted(ids) == list(range(len(ids))) != ids
    half = np.array(ids[: len(ids) // 2])
    spread = len(ids) / np.sqrt(12 * len(half))  # of the mean of that many uniform numbers
    assert abs(half.mean() - (len(ids) - 1) / 2) < 4 * spread
    assert drawn_order(sorted(reading.sequences, key=lambda s: s.sequence_id)) == reading.sequences


@pytest.mark.parametrize("target", [{"k": 5}, {"k": 16}, {"kind": "topp", "k": 20, "p": 0.7}])
def test_smaller_targets_are_the_beginnings_of_the_widest(target):
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (40, 300)).astype(np.float32))
    gold = torch.zeros(40, dtype=torch.long)

    def made(keep):
        found = sparse_targets(logits.clone(), gold, keep)
        return Targets(*(values.numpy() for values in (found.ids, found.log_probs, found.log_left_out)))

    config = CaptureConfig.model_validate(
        {"cache": "c", "corpus": {"paths": ["p"]}, "teachers": [{"name": "t", "model": "m", "target": target}]}
    ).teachers[0]
    keep = read_target(config.target).keep
    direct, derived = made(keep), narrowed(made(Keep(k=128)), keep)
    np.testing.assert_array_equal(direct.ids, derived.ids)
    np.testing.assert_array_equal(direct.log_probs, derived.log_probs)
    # the sum of 300 float32 probabilities, against a difference from 1
    np.testing.assert_allclose(np.exp(direct.log_left_out), np.exp(derived.log_left_out), atol=300 * 2**-24)


def test_the_whole_row_is_not_cut():
    targets = Targets(np.arange(3)[None], np.log(np.full((1, 3), 0.25)), np.log([0.25]))
    assert first_entries(targets, 3) is targets


def test_the_standard_error_is_that_of_a_ratio_over_sequences():
    generator = np.random.default_rng(1)
    lengths = generator.integers(10, 200, 50_000).astype(np.float64)
    sums = lengths * generator.normal(0.8, 0.1, 50_000)
    truth, errors, deviations = sums.sum() / lengths.sum(), [], []
    for sample in range(400):
        part = slice(100 * sample, 100 * sample + 100)
        (mean,), (error,) = ratios(sums[part, None], lengths[part])
        errors.append(error)
        deviations.append(mean - truth)
    # a standard deviation from 400 values is known to 1 / sqrt(800) = 3.5 %, here within four of these
    assert np.mean(errors) == pytest.approx(np.std(deviations), rel=0.15)
    assert ratios(sums[:9, None], lengths[:9]) == ([pytest.approx(sums[:9].sum() / lengths[:9].sum())], [None])


def test_blocks_add_up(folder, monkeypatch):
    whole = Reading(folder, monkeypatch).measure().choices
    monkeypatch.setattr(pipeline.planning.measure, "BLOCK_ROWS", 50)
    for row, other in zip(Reading(folder, monkeypatch).measure().choices, whole, strict=True):
        for key in ("k", "kept_mass", "kl_floor_nats", "kept_mass_standard_error", "kl_floor_standard_error_nats"):
            assert getattr(row, key) == pytest.approx(
                getattr(other, key), rel=1e-4
            )  # batches differ, and with them the last bits


def test_the_command_says_how_much_it_read(folder):
    config = write_yaml(folder, tiny.capture_values(folder, folder / "teacher"))
    asked = [str(config), "--measure", "--sample-sequences", "30", "--measure-seconds", "1000"]
    from pipeline.planning.command import plan_command

    text = CliRunner().invoke(plan_command, asked)
    assert " ".join(text.stdout.split()).count("positions of 30 sequences in ") == 1
    assert "measuring teacher toy: " in text.stderr
    measured = json.loads(CliRunner().invoke(plan_command, [*asked, "--json"]).stdout)["teachers"][0]
    assert measured["measured_on"]["sequences"] == 30
    few = CliRunner().invoke(plan_command, [str(config), "--measure", "--sample-sequences", "3"])
    assert "3 sequences" in few.stdout
    assert "too few for a standard error, which takes 10 sequences" in " ".join(few.stdout.split())
