"""Runs on several teachers of one encoding, and what is refused of them."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.nn import functional as F

import tiny
from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.errors import ConfigError, FormatError, IdentityError
from cache_tools.format.fingerprint import differences
from logitcask import cli
from loss_fixtures import naive_divergence
from mixture_fixtures import BOTH, T, capture_two_teachers, config_of, sequences_of
from student_fixtures import (
    LLAMA,
    assert_same_run,
    curve,
    largest_difference,
    student_values,
    train,
    train_and_stop,
    weights,
)
from trainer.config import mixture as config_mixture
from trainer.config.mixture import MixtureConfig
from trainer.config.student_file import StudentConfig
from trainer.data import several_teachers
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import collate
from trainer.data.opening import open_teachers
from trainer.losses.mixed_loss import MixedDistillationLoss
from trainer.losses.tails import SparseTargets
from trainer.run.checkpoints import last_checkpoint
from trainer.student.student import distilled
from trainer.verdicts.mixture import check_mixture

MIXED = {"teachers": BOTH, "mixture": {"weights": "gold_likelihood"}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return capture_two_teachers(tmp_path_factory.mktemp("cache"))


class Stored:
    """What one teacher's cache holds about some rows, in float64."""

    def __init__(self, teacher, rows):
        self.teacher, self.rows = teacher, rows
        said = [teacher.targets(*row) for row in rows]
        self.ids = torch.from_numpy(np.concatenate([each.ids for each in said]).astype(np.int64))
        self.log_p = torch.from_numpy(np.concatenate([each.log_probs for each in said])).double()

    def scalar(self, name):
        return torch.from_numpy(np.concatenate([self.teacher.scalar(name, *row) for row in self.rows])).double()

    def targets(self, temperature):
        log_p = self.log_p
        if temperature != 1:
            log_p = (log_p + self.scalar("logsumexp")[:, None]) / T - self.scalar("logsumexp_t2")[:, None]
        log_p = log_p.masked_fill(self.ids == EMPTY_ID, -torch.inf)
        rest = (1 - log_p.exp().sum(dim=1)).clamp(min=1e-12)
        return SparseTargets(self.ids.clamp(max=299), log_p, rest.log())

    def mean_of_each_sequence(self, name):
        """Return a scalar's mean over the rows of each sequence, at each of its rows."""
        means = [torch.from_numpy(self.teacher.scalar(name, *row)).double().mean() for row in self.rows]
        return torch.cat([mean.expand(row[1] - row[0]) for mean, row in zip(means, self.rows, strict=True)])

    def mean_of_the_others(self, name):
        """Return, at each row, a scalar's mean over the other rows of its sequence."""
        sequences = [torch.from_numpy(self.teacher.scalar(name, *row)).double() for row in self.rows]
        return torch.stack([torch.cat([x[:i], x[i + 1 :]]).mean() for x in sequences for i in range(len(x))])

    def weight(self, rule, per="position"):
        scalar = {"position": self.scalar, "sequence": self.mean_of_each_sequence, "others": self.mean_of_the_others}[
            per
        ]
        loss = -scalar("gold_logprob")
        factors = {"discounted": 1 / (1 + loss), "inverse_loss": 1 / loss, "entropy": (-scalar("entropy")).exp()}
        return (factors | {"gold_likelihood": (-loss).exp()})[rule]


def naive_kd(logits, gold, targets, w, config):
    """Return the mean divergence of a mixture, in float64."""
    if config.mixture.of == "losses":
        return sum(
            (w[:, t] * naive_divergence(logits, each, gold, config.loss)).mean() for t, each in enumerate(targets)
        )
    p = torch.zeros_like(logits)
    for t, each in enumerate(targets):
        p = p.scatter_add(1, each.ids, w[:, t, None] * each.log_probs.exp())
    rest = sum(w[:, t] * each.log_left_out.exp() for t, each in enumerate(targets))
    mean = SparseTargets(torch.arange(p.shape[1]).expand_as(p), p.log(), rest.log())
    return naive_divergence(logits, mean, gold, config.loss).mean()


@pytest.mark.parametrize("temperature", [1, T])
@pytest.mark.parametrize(
    ("rule", "of", "per", "exponent"),
    [
        ("entropy", "losses", "position", 1),
        ("entropy", "distributions", "sequence", 2),
        ("discounted", "losses", "position", 1),
        ("discounted", "losses", "sequence", 1),
        ("inverse_loss", "distributions", "position", 0.5),
        ("gold_likelihood", "distributions", "others", 4),
        ("entropy", "losses", "others", 1),
    ],
)
def test_the_loss_of_a_batch_is_the_stated_mixture_of_what_the_cache_holds(cache, rule, of, per, exponent, temperature):
    loss = {"kd_weight": 0.7, "temperature": temperature, "allow_biased": True}
    mixture = {"weights": rule, "of": of, "per": per, "temperature": 1 / exponent}
    changes = {"teachers": BOTH, "mixture": mixture, "loss": loss}
    config, dataset = config_of(cache, **changes), sequences_of(cache, **changes)
    teachers = open_teachers(config)
    objective = MixedDistillationLoss.of(config.loss, config.mixture, teachers)
    module = distilled(tiny.model(seed=5), config.loss, *teachers, objective=objective)
    batch = collate([dataset[0], dataset[5]])
    kept = batch["gold_ids"] != IGNORED
    with torch.no_grad():
        found = module(**batch)
        z = module.student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[kept].double()
    gold, rows = batch["gold_ids"][kept], [dataset.parts[0].sequence(i).rows for i in (0, 5)]
    stored = [Stored(teacher, rows) for teacher in teachers]
    factors = [each.weight(rule, per) ** exponent for each in stored]
    w = torch.stack([given * factor for given, factor in zip((3, 1), factors, strict=True)], dim=1)
    if rule != "discounted":
        w = w / w.sum(dim=1, keepdim=True)
    assert [float(found[f"weight_{name}"]) for name in ("toy", "other")] == pytest.approx(w.sum(0).tolist(), rel=1e-4)
    kd = naive_kd(z, gold, [each.targets(temperature) for each in stored], w, config)
    assert float(found["loss"]) == pytest.approx(float(0.7 * kd + 0.3 * F.cross_entropy(z, gold)), rel=2e-4)


def test_the_examples_that_the_documentation_gives_are_student_files():
    examples = re.findall(r"::\n\n((?:    .+\n)+)", config_mixture.__doc__)
    for example in examples:
        values = yaml.safe_load(example)
        config = StudentConfig.model_validate({"student": {"config": LLAMA}, "training": {"output_dir": "x"}} | values)
        assert config.teachers or config.caches
    assert len(examples) == 3


@pytest.mark.parametrize("of", ["losses", "distributions"])
def test_a_list_of_one_teacher_trains_to_the_same_weights_as_that_teacher(cache, tmp_path, of):
    alone = train(cache, tmp_path / "alone", teacher="other")
    listed = train(cache, tmp_path / "listed", teachers=[{"name": "other", "weight": 7}], mixture={"of": of})
    assert largest_difference(weights(alone), weights(listed)) == 0


def test_weights_of_a_group_are_those_of_its_documents(cache):
    mixed = [{"name": "toy", "groups": {"a:*": 0, "a:2": 9}}, {"name": "other", "weight": 2, "groups": {"b:*": 5}}]
    dataset = sequences_of(cache, teachers=mixed)
    groups = [dataset.parts[0].sequence(i).group_id for i in range(len(dataset))]
    assert {group[0] for group in groups} == {"a", "b"}
    for i, group in enumerate(groups):
        given = dataset[i].scalars["weights"]
        assert given.shape == (len(dataset[i].positions), 2)
        assert (given == ([0, 2] if group[0] == "a" else [1, 5])).all()


def test_a_run_that_began_before_weights_had_a_temperature_or_were_of_sequences_is_the_same_run():
    before = {"weights": "entropy", "of": "losses"}
    assert differences(before, MixtureConfig(weights="entropy").model_dump(mode="json")) == []
    for key in ({"per": "sequence"}, {"temperature": 0.5}):
        assert differences(before, MixtureConfig(weights="entropy", **key).model_dump(mode="json"))


def test_a_position_without_others_has_the_weights_of_the_file(cache, monkeypatch):
    """Where one teacher has no other row with targets, the mean of no teacher counts."""
    dataset = sequences_of(cache, teachers=BOTH, mixture={"weights": "gold_likelihood", "per": "others"})
    means = iter([np.array([np.nan, -1.0], np.float32), np.array([-2.0, -3.0], np.float32)])
    monkeypatch.setitem(several_teachers.MEANS, "others", lambda scalar_N, targets: next(means))
    scalars = dataset[0].scalars
    assert [scalars[f"{t}/others_gold_logprob"].tolist() for t in (0, 1)] == [[0, -1], [0, -3]]


def test_rows_without_targets_do_not_count_in_the_mean_of_a_sequence():
    log_p = np.array([[-0.5, -1.0], [-np.inf, -np.inf], [-0.1, -np.inf]], np.float32)
    targets = Targets(np.zeros((3, 2), np.uint32), log_p, np.zeros(3, np.float32))
    means = several_teachers.mean_over_rows(np.array([1.0, np.nan, 4.0], np.float32), targets)
    assert means.tolist() == [2.5] * 3
    others = several_teachers.mean_over_other_rows(np.array([1.0, np.nan, 4.0], np.float32), targets)
    assert others.tolist() == [4.0, 2.5, 1.0]
    nothing = Targets(targets.ids, np.full_like(log_p, -np.inf), targets.log_left_out)
    assert several_teachers.mean_over_rows(np.full(3, np.nan, np.float32), nothing).tolist() == [0.0] * 3


@pytest.mark.parametrize("mixture", [{"weights": "gold_likelihood"}, {"weights": "entropy", "per": "sequence"}])
def test_the_control_gives_every_position_the_whole_mixture_of_one_half_a_shard_away(cache, mixture):
    """Targets and scalars of all teachers move together; tokens, gold tokens and the file's weights stay."""
    changes = {"teachers": BOTH, "mixture": mixture}
    own, moved = (sequences_of(cache, **changes, control=control) for control in (None, "other_positions"))
    straight, rolled = ([data[i] for i in range(data.shard_sizes[0])] for data in (own, moved))
    columns = [name for name in straight[0].scalars if name != "weights" and "mean_" not in name]
    assert len(columns) == 2
    for read in (
        lambda example: example.targets.ids,
        lambda example: example.targets.log_left_out,
        *(lambda example, name=name: example.scalars[name] for name in columns),
    ):
        before, after = (np.concatenate([read(example) for example in examples]) for examples in (straight, rolled))
        np.testing.assert_array_equal(np.roll(before, len(before) // 2, axis=0), after)
        assert not np.array_equal(before, after)
    for a, b in zip(straight, rolled, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert np.array_equal(a.gold_ids, b.gold_ids)
        assert np.array_equal(a.scalars["weights"], b.scalars["weights"])


def test_the_control_of_a_mixture_trains_another_student(cache, tmp_path):
    real, control = (train(cache, tmp_path / str(c), **MIXED, control=c) for c in (None, "other_positions"))
    assert largest_difference(weights(real), weights(control)) > 0


def test_documents_that_no_teacher_is_left_for_are_refused(cache):
    dataset = sequences_of(cache, teachers=[{"name": name, "groups": {"b:*": 0}} for name in ("toy", "other")])
    with pytest.raises(ConfigError, match="all teachers have weight 0 on this group") as refusal:
        [dataset[i] for i in range(len(dataset))]
    assert "'b:" in str(refusal.value)


def test_a_stopped_run_continues_to_the_same_curve_and_weights(cache, tmp_path):
    changes = MIXED | {"max_steps": 14, "save_steps": 2}
    straight = train(cache, tmp_path / "straight", **changes)
    for step in (5, 13):
        train_and_stop(step, cache, tmp_path / "stopped", **changes)
        assert last_checkpoint(tmp_path / "stopped").endswith(f"-{step - 1}")
    final = train(cache, tmp_path / "stopped", **changes)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    assert largest_difference(weights(final), weights(straight)) == 0
    assert all(line["weight_toy"] + line["weight_other"] == pytest.approx(1) for line in curve(tmp_path / "straight"))


def test_loader_workers_change_nothing_and_packing_changes_rounding(cache, tmp_path):
    changes = MIXED | {"optim": "sgd"}
    padded = train(cache, tmp_path / "padded", **changes)
    workers = train(cache, tmp_path / "workers", **changes, dataloader_num_workers=1)
    packed = train(cache, tmp_path / "packed", **changes, packing={"row_tokens": 96})
    assert largest_difference(weights(padded), weights(workers)) == 0
    assert_same_run(padded, packed, optim="sgd")


def test_every_teacher_is_recorded_and_others_are_refused(cache, tmp_path):
    train(cache, tmp_path, **MIXED, max_steps=1)
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    teachers = open_teachers(config_of(cache, **MIXED))
    assert identity["teacher"] == [teacher.manifest.fingerprint for teacher in teachers]
    assert str(cache) not in json.dumps(identity)
    train(cache, tmp_path, **MIXED, max_steps=1)
    with pytest.raises(IdentityError, match="teacher: "):
        train(cache, tmp_path, **MIXED | {"teachers": BOTH[::-1]}, max_steps=1)
    with pytest.raises(IdentityError, match=r"config.mixture.weights: \"gold_likelihood\" -> \"entropy\""):
        train(cache, tmp_path, **MIXED | {"mixture": {"weights": "entropy"}}, max_steps=1)


def test_evaluation_on_the_way_measures_the_first_teacher(cache, tmp_path):
    train(cache, tmp_path, **MIXED, eval_strategy="steps", eval_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_kl_to_teacher_is"] for line in lines if "eval_kl_to_teacher_is" in line] == ["lower bound"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": [{"name": "toy", "weight": 0}]}, "greater than 0"),
        ({"teachers": [{"name": "toy", "groups": {"a": -1}}]}, "weight must be between"),
        ({"teachers": [{"name": "toy"}, {"name": "toy"}]}, "is listed twice"),
        ({"teachers": BOTH, "teacher": "toy"}, "either teacher or teachers"),
        ({"mixture": {"weights": "entropy"}}, "mixture needs teachers"),
        ({"teachers": BOTH, "mixture": {"weights": "discounted", "of": "distributions"}}, "cannot mix distributions"),
        ({"teachers": BOTH, "mixture": {"per": "sequence"}}, "fixed weights are the same at every position"),
        ({"teachers": BOTH, "mixture": {"temperature": 0.5}}, "fixed weights have no temperature"),
        ({"teachers": BOTH, "mixture": {"weights": "entropy", "temperature": 0}}, "greater than or equal to 0.001"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (FormatError, {"teachers": [*BOTH, {"name": "nobody"}]}, "there is no teacher 'nobody'"),
        (ConfigError, {"mixture": {"of": "distributions"}}, "this mixture is biased"),
        (ConfigError, {"loss": {"tail": "gold"}}, "loss, on teacher toy: this loss is biased"),
        (ConfigError, {"loss": {"source": "hidden"}}, "cannot be used with several teachers"),
    ],
)
def test_mixtures_that_the_cache_cannot_serve_are_refused(cache, kind, changes, message):
    with pytest.raises(kind, match=message):
        sequences_of(cache, **{"teachers": BOTH} | changes)


def test_a_biased_mixture_may_be_allowed(cache):
    assert sequences_of(cache, teachers=BOTH, mixture={"of": "distributions"}, loss={"allow_biased": True})


def test_weights_from_a_scalar_that_a_teacher_lacks_are_refused(cache):
    config = config_of(cache, teachers=BOTH)
    teachers = open_teachers(config)
    teachers[1].manifest = teachers[1].manifest.model_copy(update={"scalars": ("logsumexp", "entropy")})
    assert check_mixture(teachers, config.loss, MixtureConfig(weights="entropy")).level == "lower bound"
    with pytest.raises(ConfigError, match="expected gold_logprob of other, found logsumexp, entropy"):
        check_mixture(teachers, config.loss, MixtureConfig(weights="inverse_loss"))


def test_explain_says_what_a_mixture_is_worth(cache, tmp_path):
    def explained(**changes):
        path = tmp_path / "student.yaml"
        path.write_text(json.dumps(student_values(cache, tmp_path / "run", teachers=BOTH, **changes)))
        result = CliRunner().invoke(cli, ["train", str(path), "--explain"])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    text = explained(mixture={"of": "distributions", "weights": "entropy"})
    assert "Mixture of distributions, weights entropy per position biased: what a teacher gives to a token" in text
    assert "lower bound: each teacher's term" in explained()
