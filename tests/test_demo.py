"""The demos' own parts: stages, time left, the cut student, the paired interval and the printed result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from cache_tools.errors import ConfigError, ModelError
from configs.smollm2.cut import cut_model
from configs.smollm2.cut import main as cut_command
from pipeline.demo import cli, corpus
from pipeline.demo.corpus import write_corpus
from pipeline.demo.paired import bootstrap
from pipeline.demo.run import DemoResult, HeldOut
from pipeline.demo.stages import Stage, run_stages, time_left


def stages(*seconds):
    return [Stage(f"s{i}", f"Sentence {i}.", length, lambda i=i: i) for i, length in enumerate(seconds)]


def test_stages_run_in_order_and_return_results_and_seconds():
    ticks, sentences = iter([0.0, 40.0, 40.0, 100.0]), []
    results, seconds = run_stages(stages(20, 30), sentences.append, clock=lambda: next(ticks))
    assert results == {"s0": 0, "s1": 1}
    assert seconds == {"s0": 40.0, "s1": 60.0}
    assert sentences == [
        "Stage 1 of 2: Sentence 0. About 50 seconds left in all.",
        "Stage 2 of 2: Sentence 1. About 60 seconds left in all.",  # this machine takes twice as long
    ]


def test_stages_that_were_finished_before_say_nothing_about_this_machine():
    assert time_left(stages(100, 100, 200), {"s0": 0.1}) == "5 minutes"
    assert time_left(stages(100, 100, 200), {"s0": 0.1, "s1": 50.0}) == "2 minutes"


def test_a_short_first_stage_does_not_scale_the_rest():
    assert time_left(stages(2, 150), {"s0": 30.0}) == time_left(stages(2, 150), {"s0": 2.0}) == "2 minutes"


def test_the_first_failure_ends_the_stages():
    def fail():
        raise ModelError("no")

    reached = []
    with pytest.raises(ModelError):
        run_stages([Stage("a", "", 1, fail), Stage("b", "", 1, lambda: reached.append(1))], lambda _: None)
    assert reached == []


def test_a_part_of_the_corpus_is_the_same_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "standard_library", lambda: Path(json.__file__).parent)
    write_corpus(tmp_path / "all.jsonl")
    write_corpus(tmp_path / "part.jsonl", lambda group: group.startswith(("topic/w", "module/d")))
    every = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    part = [json.loads(line) for line in (tmp_path / "part.jsonl").read_text().splitlines()]
    assert part == [document for document in every if document["group"].startswith(("topic/w", "module/d"))]
    assert {document["group"] for document in part} >= {"topic/while", "module/decoder"}


def test_a_corpus_that_was_not_written_whole_is_not_there(tmp_path, monkeypatch):
    def full_disk(path, text, **_):
        path.write_bytes(text.encode()[:1000])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_corpus(tmp_path / "corpus.jsonl", lambda group: group == "topic/while")
    assert not (tmp_path / "corpus.jsonl").exists()


def test_a_cut_model_has_the_named_layers_and_runs(tmp_path):
    whole = tiny.save_teacher(tmp_path / "whole", tiny.model(num_hidden_layers=4))
    cut_model(whole, tmp_path / "cut", [0, 3])
    before, after = load_file(whole / "model.safetensors"), load_file(tmp_path / "cut" / "model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name.replace("layers.1.", "layers.3.")])
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert model.config.num_hidden_layers == 2
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    whole = tiny.save_teacher(tmp_path / "whole", tiny.model(num_hidden_layers=2))
    with pytest.raises(ConfigError, match=r"expected numbers from 0 to 1, found 0,2"):
        cut_model(whole, tmp_path / "cut", [0, 2])
    assert not (tmp_path / "cut").exists()
    result = CliRunner().invoke(cut_command, [str(whole), str(tmp_path / "cut"), "--layers", "0,x"])
    assert result.exit_code == 2
    assert "numbers with commas" in result.output


def test_the_interval_holds_the_mean_and_shrinks_with_documents():
    rng = np.random.default_rng(1)
    widths = []
    for documents in (20, 2000):
        positions = np.full(documents, 10)
        result = bootstrap(10 * rng.normal(0.5, 1.0, documents), positions, draws=2000)
        assert result.low < result.mean < result.high
        widths.append(result.high - result.low)
    assert 5 < widths[0] / widths[1] < 20  # the square root of 100 is 10


def test_the_interval_weighs_positions_not_documents():
    result = bootstrap(np.array([10.0, 0.0]), np.array([10, 90]))
    assert result.mean == pytest.approx(0.1)


def result(cached_nats):
    seconds = {"capture": 10.0, "train_student_ce": 20.0, "train_student_cached": 30.0}
    students = HeldOut(4.0, 1.0, 0.5), HeldOut(cached_nats, 1.0, 0.5)
    return DemoResult(HeldOut(2.0, 0.0, 1.0), *students, 100.0, seconds, Path("cache"))


@pytest.mark.parametrize(
    ("nats", "sentence"),
    [(3.5, "lowered the held-out loss by 0.500 nats"), (4.5, "did NOT win: its held-out loss is 0.500 nats higher")],
)
def test_the_verdict_says_who_won(nats, sentence):
    verdict = cli._verdict(result(nats))
    assert sentence in verdict
    assert "Everything took 60 seconds." in verdict


def test_the_real_demo_does_not_train_the_toy_teacher():
    outcome = CliRunner().invoke(cli.demo_command, ["--real", "--train-teacher"])
    assert outcome.exit_code == 2
    assert "exclude each other" in outcome.output
