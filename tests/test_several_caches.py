"""Runs on several caches, the order in which they are mixed, and what is refused of them."""

import json
from itertools import chain, islice

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from click.testing import CliRunner
from torch.utils.data import DataLoader

import tiny
from cache_tools.codecs.registry import EMPTY_ID
from cache_tools.errors import ConfigError, IdentityError, IncompleteError
from logitcask import cli, evaluate
from mixture_fixtures import T, capture_draws, capture_two_teachers, config_of, of_caches, sequences_of
from student_fixtures import curve, largest_difference, student_values, train, train_and_stop, weights
from trainer.config.student_file import LossConfig, StudentConfig
from trainer.data.cached_sequences import Reading, collate
from trainer.data.opening import open_teachers
from trainer.data.sampler import ShardWindowSampler
from trainer.data.several_caches import MixedOrder, interleaved, sequences_per_epoch
from trainer.data.sources import common_reading, order_of
from trainer.evaluation.measures import MIXED, Measures, pooled
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows
from trainer.run.checkpoints import last_checkpoint
from trainer.verdicts.compatibility import normaliser_names

SHARDS, PER_EPOCH, GLOBAL_BATCH = [[3, 5, 4, 8], [6, 2, 7]], [9, 23], 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return capture_two_teachers(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return capture_draws(tmp_path_factory.mktemp("drawn"))


def made_order(epoch=0, seed=0, window=2, per_epoch=PER_EPOCH):
    order = MixedOrder(SHARDS, per_epoch, window, seed)
    order.set_epoch(epoch)
    return order


@pytest.mark.parametrize("step", [1, 4, 7, 10**6])
def test_an_epoch_is_a_whole_number_of_steps_with_each_cache_in_its_share(step):
    order, everything = MixedOrder(SHARDS, PER_EPOCH, 2, 0, step), sum(PER_EPOCH)
    assert len(list(order)) == len(order) == (everything // step * step or everything)
    first = sum(SHARDS[0])
    taken = sum(index < first for index in order)
    assert abs(taken / len(order) - PER_EPOCH[0] / everything) < 1 / len(order)


def test_a_list_of_one_cache_trains_an_epoch_as_that_cache_does(cache, tmp_path):
    # later epochs differ: a list goes on with what did not fill a step, one cache is shuffled anew
    alone = train(cache, tmp_path / "alone", teacher="toy", max_steps=8)
    listed = train(cache, tmp_path / "listed", **of_caches((cache, "toy")), max_steps=8)
    assert curve(tmp_path / "alone")[-1]["epoch"] <= 1
    assert largest_difference(weights(alone), weights(listed)) == 0


def test_a_stopped_run_continues_to_the_same_curve_and_weights(cache, drawn, tmp_path):
    changes = of_caches((cache, "other"), (drawn, "toy"), shares=(2, 3)) | {"max_steps": 16, "save_steps": 2}
    straight = train(cache, tmp_path / "straight", **changes)
    for step in (5, 15):
        train_and_stop(step, cache, tmp_path / "stopped", **changes)
        assert last_checkpoint(tmp_path / "stopped").endswith(f"-{step - 1}")
    final = train(cache, tmp_path / "stopped", **changes)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    assert curve(tmp_path / "straight")[-1]["epoch"] > 1
    assert largest_difference(weights(final), weights(straight)) == 0


def test_every_cache_is_recorded_and_others_are_refused(cache, drawn, tmp_path):
    changes = of_caches((cache, "other"), (drawn, "toy"))
    train(cache, tmp_path, **changes, max_steps=1)
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    teachers = open_teachers(config_of(cache, **changes))
    assert identity["teacher"] == [teacher.manifest.fingerprint for teacher in teachers]
    assert identity["encoding"] == [teacher.encoding.manifest.contents_fingerprint for teacher in teachers]
    assert str(cache) not in json.dumps(identity)
    train(cache, tmp_path, **changes, max_steps=1)
    with pytest.raises(IdentityError, match="teacher: "):
        train(cache, tmp_path, **changes | {"caches": changes["caches"][::-1]}, max_steps=1)


EVALUATED = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def evaluated(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return next(record for record in lines if "eval_accuracy" in record)


def test_positions_of_all_caches_count_alike_in_what_training_measures(cache, drawn, tmp_path):
    """``logitcask evaluate`` measures one cache; the mean over the positions of both is what the run has measured."""
    final = train(cache, tmp_path, **of_caches((cache, "other"), (drawn, "toy")), **EVALUATED)
    each = [evaluate(final, cache, teacher="other"), evaluate(final, drawn)]
    found, total = evaluated(tmp_path), sum(result.positions for result in each)
    assert found["eval_positions"] == total
    assert min(result.positions for result in each) > 0
    for name in ("cross_entropy_nats", "kl_to_teacher_nats", "accuracy", "top1_agreement"):
        values = [getattr(result, name) for result in each]
        expected = sum(value * result.positions for value, result in zip(values, each, strict=True)) / total
        assert found[f"eval_{name}"] == pytest.approx(
            expected, rel=1e-4
        )  # sums of up to a thousand float32 terms, each rounded by 2^-24
        assert name == "accuracy" or values[0] != pytest.approx(values[1], rel=1e-3)


def test_a_cache_without_a_held_out_split_is_left_out_of_what_training_measures(cache, tmp_path):
    whole = tiny.capture(tmp_path, held_out_fraction=0).path
    final = train(cache, tmp_path / "run", **of_caches((whole, "toy"), (cache, "toy")), **EVALUATED)
    assert evaluated(tmp_path / "run")["eval_positions"] == evaluate(final, cache, teacher="toy").positions
    with pytest.raises(IncompleteError, match="held_out split is empty"):
        train(cache, tmp_path / "none", **of_caches((whole, "toy"), (whole, "toy")), **EVALUATED)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["exact", "exact"], "exact"),
        (["exact", "lower bound"], "lower bound"),
        (["unbiased", "exact", "unbiased"], "unbiased"),
        (["lower bound", "unbiased"], MIXED),
        (["exact", "upper bound", "lower bound"], MIXED),
    ],
)
def test_a_mean_over_caches_is_as_exact_as_all_of_them_allow(levels, expected):
    kl = DistillationLoss(LossConfig(), None)
    parts = [Measures(kl, kl, level, totals_of(float(i + 1))) for i, level in enumerate(levels)]
    means = pooled(parts).means()
    assert means.kl_to_teacher_is == expected
    assert means.positions == sum(range(1, len(levels) + 1))
    assert (means.acceptance is None) == (expected in ("unbiased", MIXED))
    assert [part.totals["counted"].sum().item() for part in parts] == [*range(1, len(levels) + 1)]


def totals_of(positions):
    names = ("loss", "cross_entropy", "variation", "agreement")
    binned = dict.fromkeys(("confidence", "correct", "counted"), torch.tensor([positions, 0.0]).double())
    return {name: torch.tensor(positions).double() / 2 for name in names} | binned


def test_rows_of_several_caches_are_those_of_each_with_empty_slots_behind(cache, drawn):
    dataset = sequences_of(cache, **of_caches((cache, "other"), (drawn, "toy")))
    assert dataset.parts[0].teacher.codec.k < dataset.parts[1].teacher.codec.k
    for i, original in ((3, dataset.parts[0][3]), (len(dataset.parts[0]) + 3, dataset.parts[1][3])):
        found, k = dataset[i].targets, original.targets.ids.shape[1]
        assert np.array_equal(dataset[i].input_ids, original.input_ids)
        assert np.array_equal(found.ids[:, :k], original.targets.ids)
        assert np.array_equal(found.log_probs[:, :k], original.targets.log_probs)
        assert (found.ids[:, k:] == EMPTY_ID).all()
        assert (found.log_probs[:, k:] == -np.inf).all()
        assert np.array_equal(found.log_left_out, original.targets.log_left_out)


def test_what_only_the_log_uses_is_read_of_all_caches_or_of_none(cache, drawn):
    dataset = sequences_of(cache, **of_caches((cache, "other"), (drawn, "toy")))
    assert TeacherRows.of(collate([dataset[0], dataset[len(dataset) - 1]])).scalars == {}
    assert list(sequences_of(cache, **of_caches((drawn, "toy"), (drawn, "toy")))[0].scalars) == ["entropy"]


def test_without_shares_an_epoch_is_one_pass_over_every_cache(cache, drawn):
    dataset = sequences_of(cache, **of_caches((cache, "other"), (drawn, "toy")))
    order = order_of(dataset, 4, seed=0, step_items=1)
    assert sorted(order) == list(range(len(dataset)))
    assert len(order) == len(dataset)


def test_shares_are_those_of_the_file(cache, drawn):
    dataset = sequences_of(cache, **of_caches((cache, "other"), (drawn, "toy"), shares=(1, 4)))
    made = list(order_of(dataset, 4, seed=0, step_items=1))
    assert sum(i >= len(dataset.parts[0]) for i in made) == round(0.8 * len(dataset))


@pytest.mark.parametrize("window", [1, 2, 100])
def test_no_sequence_comes_twice_before_all_of_its_cache_came_once(window):
    seen = list(chain.from_iterable(made_order(epoch, window=window) for epoch in range(7)))
    border = sum(SHARDS[0])
    for part, stream in enumerate(([i for i in seen if i < border], [i - border for i in seen if i >= border])):
        assert len(stream) == 7 * PER_EPOCH[part]
        size = sum(SHARDS[part])
        for number, start in enumerate(range(0, len(stream), size)):
            alone = ShardWindowSampler(SHARDS[part], window, seed=part)
            alone.set_epoch(number)
            made = stream[start : start + size]
            assert made == list(islice(alone, len(made)))


def test_the_order_depends_on_seed_and_epoch_alone():
    used = made_order()
    list(used)  # what was drawn before does not matter
    used.set_epoch(2)
    assert list(used) == list(used) == list(made_order(epoch=2))
    assert len({tuple(made_order(epoch, seed)) for epoch in range(3) for seed in range(3)}) == 9


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("skipped", [0, 3])
def test_all_world_sizes_read_the_same_global_batches_and_continue_with_the_next(world_size, skipped):
    ranks = []
    for rank in range(world_size):
        order = made_order(epoch=1)
        whole = DataLoader(range(35), batch_size=GLOBAL_BATCH // world_size, sampler=order, collate_fn=list)
        batches = prepare_data_loader(whole, num_processes=world_size, process_index=rank, put_on_device=False)
        batches = skip_first_batches(batches, skipped) if skipped else batches
        batches.set_epoch(1)
        ranks.append(list(batches))
    found = [list(chain.from_iterable(step)) for step in zip(*ranks, strict=True)]
    assert found == np.reshape(list(made_order(epoch=1)), (-1, GLOBAL_BATCH)).tolist()[skipped:]


def test_every_stretch_of_the_order_holds_the_caches_in_proportion():
    order = np.array(list(interleaved([50, 30, 20])))
    counts = np.stack([np.cumsum(order == part) for part in range(3)])
    assert np.abs(counts - np.outer([0.5, 0.3, 0.2], np.arange(1, 101))).max() < 1
    assert counts[:, -1].tolist() == [50, 30, 20]


def test_a_share_too_small_for_a_sequence_is_one():
    assert sequences_per_epoch([100, 50], (1000, 1)) == [150, 1]
    assert sequences_per_epoch([100, 50], None) == [100, 50]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "exactly one of cache and caches"),
        ({"cache": "b", "caches": [{"cache": "a"}]}, "exactly one of cache and caches"),
        ({"caches": [{"cache": "a"}], "teachers": [{"name": "toy"}]}, "teachers cannot be used together with caches"),
        ({"caches": [{"cache": "a", "share": 0}]}, "greater than 0"),
        ({"caches": [{"cache": "a", "share": 1}, {"cache": "b"}]}, "to every cache, or to none"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig.model_validate(student_values(tmp_path, tmp_path) | {"cache": None} | changes)


def test_caches_with_other_tokenizers_are_refused(cache, tmp_path):
    masked = tiny.capture(tmp_path, tiny.save_teacher(tmp_path / "teacher", masked=True), objective="masked").path
    with pytest.raises(
        IdentityError, match=r"caches\.1: a cache has another tokenizer's vocabulary than the first one"
    ):
        sequences_of(cache, **of_caches((cache, "toy"), (masked, "toy")))


def test_kinds_that_the_loss_cannot_be_taken_of_together_are_refused(cache, drawn):
    both = of_caches((cache, "toy"), (drawn, "toy"))
    with pytest.raises(ConfigError, match=r"loss, on caches\.1: .* Draws made at temperature 1 cannot"):
        sequences_of(cache, **both, loss={"temperature": T})
    with pytest.raises(ConfigError, match="biased on this cache"):
        sequences_of(cache, **both, loss={"divergence": "jensen_shannon"})
    with pytest.raises(ConfigError, match="this loss needs different scalars"):
        common_reading([Reading(normaliser_names(T)), Reading()])


def test_hidden_states_of_another_teacher_are_refused(tmp_path):
    paths = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        teacher = tiny.save_teacher(folder / "teacher", tiny.model(seed=seed))
        paths.append(tiny.capture(folder, teacher, hidden={"layers": ["last"]}).path)
    hidden = {"loss": {"source": "hidden"}}
    with pytest.raises(IdentityError, match="another teacher, for its hidden states, than the first one"):
        sequences_of(paths[0], **of_caches(*((path, "toy") for path in paths)), **hidden)
    assert len(sequences_of(paths[0], **of_caches((paths[0], "toy"), (paths[0], "toy")), **hidden))


def test_explain_names_every_cache(cache, drawn, tmp_path):
    path = tmp_path / "student.yaml"
    path.write_text(json.dumps(student_values(cache, tmp_path, **of_caches((cache, "toy"), (drawn, "toy")))))
    result = CliRunner().invoke(cli, ["train", str(path), "--explain"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "(caches.0, toy, topk)" in text
    assert "(caches.1, toy, sampled) lower bound: all left-out tokens" in text
