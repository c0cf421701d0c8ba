"""The table of students with their own tokenizer is wired as it says: its arms, its shares, and its command."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from benchmarks import own_tokenizer
from benchmarks.intervals import t_interval
from benchmarks.own_tokenizer import CACHE, TEXT, Scale, arms_of, rows, student_config
from student_fixtures import LLAMA, without_pictures

SCALE = Scale(Path("model"), 1, 4, 2, 48, 1e-3, 300, 0.7, 1.5)


def test_the_arms_of_a_tokenizer_differ_in_their_loss_alone(tmp_path):
    files = {arm.name: student_config(arm, 3, SCALE, tmp_path) for arm in arms_of(SCALE, with_wordpiece=True)}
    assert len(files) == 10
    for prefix in ("teacher's", "own", "wordpiece"):
        own = [file for name, file in files.items() if name.startswith(prefix)]
        training = [{**file.training, "output_dir": None} for file in own]
        assert all(file.alignment == own[0].alignment for file in own)
        assert all(values == training[0] for values in training)
    weights = {name: file.loss.kd_weight for name, file in files.items()}
    assert {name for name, weight in weights.items() if weight == 0} == {"own, text", "wordpiece, text", TEXT}
    hybrid = files["own, hybrid"].loss.ranks
    assert (hybrid.of, hybrid.weight, hybrid.mapped_weight) == ("unmapped", 1.5, 1)
    assert files["own, ranks"].loss.ranks.of == "all"


def test_shares_are_taken_within_each_seed_of_the_gain_that_the_teachers_tokenizer_makes():
    arms = arms_of(SCALE, with_wordpiece=False)
    bits = {TEXT: (2.0, 2.1), CACHE: (1.8, 2.0), "own, text": (2.2, 2.3), "own, map": (2.1, 2.26)}
    bits |= {"own, ranks": (2.2, 2.3), "own, hybrid": (2.0, 2.2)}
    others = dict.fromkeys(own_tokenizer.MEANS, 1.0)
    results = {name: [others | {"bits_per_byte": value} for value in values] for name, values in bits.items()}
    table = {row["name"]: row for row in rows(results, arms)}
    shares = {"own, map": (50, 40), "own, hybrid": (100, 100), "own, ranks": (0, 0), CACHE: (100, 100)}
    for name, expected in shares.items():
        mean, half = t_interval(expected)
        assert table[name]["share_percent"] == pytest.approx(mean)
        assert table[name]["share_percent_interval"] == pytest.approx(half, abs=1e-6)
    one = rows({name: measured[:1] for name, measured in results.items()}, arms)
    assert all(row["share_percent_interval"] is None for row in one)


@pytest.mark.slow
def test_the_command_measures_all_arms_continues_and_refuses_other_settings(tmp_path, monkeypatch):
    teacher = tiny.save_teacher(tmp_path / "teacher", tiny.model(max_position_embeddings=256))

    def write_corpus(path, _):
        tiny.write_corpus(path)

    monkeypatch.setattr(own_tokenizer, "write_corpus", write_corpus)
    monkeypatch.setattr(own_tokenizer, "BODY", {**LLAMA, "max_position_embeddings": 512})
    options = ["--steps", "2", "--batch", "4", "--length", "48", "--vocabulary", "300", "--wordpiece"]
    arguments = [str(teacher), "--work", str(tmp_path / "work"), *options]
    with without_pictures():
        first = CliRunner().invoke(own_tokenizer.main, [*arguments, "--seeds", "1", "--json"])
    assert first.exit_code == 0, first.output
    table = [json.loads(line) for line in first.stdout.splitlines()]
    assert len(table) == 10
    assert all(row["bits_per_byte"] > 0 for row in table)
    again = CliRunner().invoke(own_tokenizer.main, [*arguments, "--seeds", "1", "--json"])
    assert again.stdout == first.stdout  # nothing is trained again
    assert "% of the bound" in CliRunner().invoke(own_tokenizer.main, [*arguments, "--seeds", "1"]).stdout
    other = CliRunner().invoke(own_tokenizer.main, [*arguments, "--kd-weight", "0.5"])
    assert other.exit_code == 1
    assert "another table is being made in this folder" in other.output
