"""The table of kinds of targets is wired as it says: its statistics, its gradients, its live teacher, and its command.

Models are untrained, so no figure here says anything about distillation; only equalities are asked for.
"""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import tiny
from benchmarks import quality, quality_gradients, quality_runs
from benchmarks.intervals import t_interval, t_quantile
from benchmarks.quality_arms import (
    LIVE,
    REPEATED,
    TEXT,
    Arm,
    Scale,
    arms_of,
    capture_config,
    real_scale,
    student_config,
)
from benchmarks.quality_gradients import angle_degrees, batch_gradients, differences
from benchmarks.quality_runs import load_live, train_live
from benchmarks.quality_table import gains_nats, gains_percent
from cache_tools.store.reader import Cache
from student_fixtures import GRADIENT_ROUNDING, largest_difference, student_values, train, weights, without_pictures
from trainer.config.student_file import LossConfig, StudentConfig

ARMS = arms_of(Scale())
HIDDEN = Arm("hidden", LossConfig(source="hidden"), cached="toy")


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache of exact hidden states, and its teacher beside it."""
    made = tmp_path_factory.mktemp("quality")
    tiny.capture(made, target={"k": 3}, hidden={"layers": ["last"], "codec": "float32"})
    return made


def losses(**by_arm):
    names = {"text": TEXT.name, "live": LIVE.name}
    return {names.get(arm, arm): [{"cross_entropy_nats": x} for x in values] for arm, values in by_arm.items()}


# Statistics


PUBLISHED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
"""Quantiles of Student's t at 97.5 %, by degrees of freedom, from printed tables: three digits after the point."""


@pytest.mark.parametrize("freedom", PUBLISHED)
def test_the_quantiles_are_those_of_printed_tables(freedom):
    assert t_quantile(freedom) == pytest.approx(PUBLISHED[freedom], abs=5e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 10, 25, 100])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_quantiles_leave_the_same_share_of_students_t_on_both_sides(freedom, level):
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    x = torch.linspace(0, t_quantile(freedom, level), 100_001, dtype=torch.float64)
    density = (log_scale - (freedom + 1) / 2 * torch.log1p(x**2 / freedom)).exp()
    assert 2 * float(torch.trapezoid(density, x)) == pytest.approx(level, abs=1e-7)


def test_the_quantiles_approach_those_of_the_normal_distribution():
    normal, freedom = statistics.NormalDist().inv_cdf(0.975), 10**5
    first_term = (normal**3 + normal) / (4 * freedom)  # of the expansion in 1 / freedom; the next is smaller by 1e5
    assert t_quantile(freedom) - normal == pytest.approx(first_term, rel=1e-3)


def test_an_interval_is_the_mean_and_t_standard_errors():
    values = [1.0, 2.0, 6.0]
    variance = sum((x - 3) ** 2 for x in values) / 2
    assert t_interval(values) == pytest.approx((3, t_quantile(2) * math.sqrt(variance / 3)))
    with pytest.raises(ValueError, match="at least two values"):
        t_quantile(0)


def test_gains_are_shares_of_each_seeds_own_gap():
    results = losses(text=[5.0, 6.0], live=[4.0, 5.5], cached=[4.5, 5.6])
    assert gains_nats(results, LIVE.name) == pytest.approx([1.0, 0.5])
    assert gains_percent(results, "cached") == pytest.approx([50, 80])
    assert gains_percent(results, LIVE.name) == pytest.approx([100, 100])
    assert gains_percent(results, TEXT.name) == [0, 0]


# Gradients


def test_angles_are_right_from_tiny_to_straight():
    x, y = torch.eye(2, dtype=torch.float64)
    for degrees in (0.0, 1e-5, 1.0, 90.0, 180.0):
        turned = 3 * (x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees)))
        assert angle_degrees(turned, x) == pytest.approx(degrees, rel=1e-6)


def test_errors_that_cancel_are_seen_in_single_batches_only():
    x, y = torch.eye(2, dtype=torch.float64)
    found = differences([x + y, x - y], [x, x])
    assert found == pytest.approx({"angle_degrees": 45, "norm_ratio": math.sqrt(2), "angle_of_all_degrees": 0})


def test_the_cached_hidden_state_has_the_live_teachers_gradient_and_a_few_likely_tokens_have_not(folder):
    encoding, live = Cache(folder / "cache").encoding(), load_live(Scale(teacher=folder / "teacher"))
    student, scale = tiny.model(seed=1), Scale(batch_sequences=4)
    few = replace(HIDDEN, loss=LossConfig(tail="renormalise", allow_biased=True))
    asked, hidden, top3 = (
        batch_gradients(arm, student, encoding, live, scale) for arm in (replace(LIVE, cached="toy"), HIDDEN, few)
    )
    for one, other in zip(asked, hidden, strict=True):
        assert float((one - other).abs().max()) < GRADIENT_ROUNDING * float(one.abs().max())
    found = differences(hidden, asked)
    assert found["angle_degrees"] < math.degrees(GRADIENT_ROUNDING)
    assert found["norm_ratio"] == pytest.approx(1, rel=0, abs=GRADIENT_ROUNDING)
    assert differences(top3, asked)["angle_of_all_degrees"] > 5


# Runs


def test_the_live_teacher_trains_the_student_that_its_exact_cache_trains(folder, tmp_path):
    values = student_values(folder / "cache", tmp_path / "live", seed=3, data_seed=None)
    live = train_live(StudentConfig.model_validate(values), Scale(teacher=folder / "teacher"))
    cached = train(folder / "cache", tmp_path / "cached", loss={"source": "hidden"}, seed=3)
    text = train(folder / "cache", tmp_path / "text", loss={"kd_weight": 0}, seed=3)
    assert largest_difference(weights(live), weights(cached)) < 1e-4
    assert largest_difference(weights(live), weights(text)) > 1e-2


@pytest.fixture
def command(folder, tmp_path):
    """Return what runs the command on tiny things in one work folder."""
    texts = tiny.write_corpus(tmp_path / "texts.jsonl")
    size = {"work": tmp_path / "work", "seeds": 2, "steps": 2, "tokens": 4000}
    options = {**size, "teacher": folder / "teacher", "corpus": texts}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return lambda *more: CliRunner().invoke(quality.main, [*arguments, *more])


def pretend(work, name, nats_by_seed):
    """Write results of an arm as if its students had been made."""
    (work / "results").mkdir(parents=True, exist_ok=True)
    keys = ("kl_to_teacher_nats", "calibration_error", "acceptance", "train_seconds", "teacher_cross_entropy_nats")
    for seed, nats in nats_by_seed.items():
        measured = dict.fromkeys(keys, 0.5) | {"cross_entropy_nats": nats}
        (work / "results" / f"{name.replace(' ', '-')}-{seed}.json").write_text(json.dumps(measured))


def test_a_gain_within_its_own_error_ends_the_table(command, tmp_path):
    pretend(tmp_path / "work", TEXT.name, {0: 5.0, 1: 5.0})
    pretend(tmp_path / "work", LIVE.name, {0: 4.0, 1: 4.9})
    result = command()
    assert result.exit_code == 1
    assert "gain of the live teacher: 0.5500 ± 5.7178 nats" in result.output
    assert "not larger than its error" in result.output


@pytest.mark.slow
def test_the_table_has_every_arm_and_a_second_call_makes_nothing_again(command, tmp_path, monkeypatch):
    """One seed of every arm but the text is made; what is made up is far enough from it to be a gain."""
    for arm in ARMS:
        pretend(tmp_path / "work", arm.name, {0: 9.0, 1: 9.0} if arm is TEXT else {1: 5.7})
    monkeypatch.setattr(quality_gradients, "BATCHES", 2)
    first = command("--json")
    assert first.exit_code == 0, first.output
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [row["name"] for row in rows] == [arm.name for arm in ARMS]
    by_name = {row["name"]: row for row in rows}
    assert {name for name, row in by_name.items() if row["storing_error_nats"] is None} == {
        arm.name for arm in ARMS if arm.stored == "nothing"
    }
    assert all(0 <= row["storing_error_nats"] <= 1e-4 for row in rows if row["storing_error_nats"] is not None)
    hidden = by_name["hidden state"]
    assert hidden["gain_percent"] == pytest.approx(100, abs=0.1)
    assert hidden["half_trained"]["norm_ratio"] == pytest.approx(1, abs=0.02)
    assert by_name[TEXT.name]["bytes_per_position"] == by_name[LIVE.name]["bytes_per_position"] == 0
    assert by_name["top-k 12"]["bytes_per_position"] < by_name["top-k 50"]["bytes_per_position"]
    for name in ("run_training", "train_live"):
        monkeypatch.setattr(quality_runs, name, None)
    assert command("--json").stdout == first.stdout
    assert "bytes/pos." in command().stdout


def test_a_folder_of_another_table_is_refused(command, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "settings.json").write_text("{}")
    result = command()
    assert "another table is being made in this folder" in result.output
    assert result.exit_code == 1


def test_the_real_demos_settings_make_a_capture_file_and_a_student_file_of_every_arm(tmp_path):
    scale = real_scale(tmp_path)
    assert {teacher.model for teacher in capture_config(scale, tmp_path).teachers} == {str(tmp_path / "teacher")}
    starts = {student_config(arm, 0, scale, tmp_path).student.pretrained for arm in arms_of(scale)}
    assert starts == {str(tmp_path / "cut")}


def test_only_the_control_has_another_seed_than_the_arms_that_it_is_compared_with(tmp_path):
    seeds = {arm.name: student_config(arm, 3, Scale(), tmp_path).training["seed"] for arm in ARMS}
    assert {name for name, seed in seeds.items() if seed != 3} == {REPEATED.name}
