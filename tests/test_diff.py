"""Two teachers compared: sums against a loop over positions, samples by seed, refusals."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

import kinds
from cache_tools.comparison import pair as comparison
from cache_tools.errors import ConfigError, IdentityError, IncompleteError
from cache_tools.format.manifest import TeacherManifest, read_manifest
from cache_tools.inspection.divergence import divergence
from cache_tools.json_output import json_ready
from cache_tools.store.reader import Cache
from cache_tools.store.writer import commit_shard, declare_teacher
from cache_tools.terminal.diff_command import diff_command
from store_fixtures import make_cache, random_predictions


@pytest.fixture
def pair(tmp_path):
    """Two captures of the same sequences by teachers with nothing in common."""
    return make_pair(tmp_path)


def make_pair(folder, **of_b):
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return make_cache(folder / "a"), kinds.make("exact", folder / "b", **{"draw": narrow(1000), **of_b})


def narrow(vocabulary):
    """Return what draws rows over few ids, so that two teachers keep some tokens in common."""
    return kinds.ragged(4, min(vocabulary, 1000))


def options(**changes):
    return {"shards": None, "seed": 0, "worst": 3, **changes}


def compare(a, b, **arguments):
    """Compare two teachers; the result as JSON."""
    return json_ready(comparison.compare(a, b, **arguments))


def run(*arguments):
    return CliRunner(catch_exceptions=False).invoke(diff_command, [str(argument) for argument in arguments])


def rows_of(tiny):
    """Return every used row's Divergence columns against B, shard by shard."""
    return [tiny.open().shard_rows(shard) for shard in range(len(tiny.entries))]


def test_the_means_equal_a_loop_over_positions(pair):
    a, b = (tiny.open() for tiny in pair)
    result = compare(a, b, **options())
    parts = [divergence(a.targets(*rows), b.targets(*rows)) for rows in rows_of(pair[0])]
    kl = np.concatenate([part.kl_ab_nats for part in parts])
    assert result["all"]["positions"] == len(kl) == 36
    assert result["all"]["kl_ab_nats"] == pytest.approx(kl[np.isfinite(kl)].mean())
    assert result["all"]["same_top1"] == np.mean(np.concatenate([part.same_top1 for part in parts]))
    assert [item["kl_nats"] for item in result["worst"]] == pytest.approx(
        sorted(np.concatenate([part.mean_kl_nats for part in parts]), reverse=True)[:3]
    )


@pytest.mark.parametrize("parts", ["bins", "groups"])
def test_bins_and_groups_add_up_to_the_whole(pair, parts):
    result = compare(*(tiny.open() for tiny in pair), **options())
    whole = result["all"]
    assert sum(part["positions"] for part in result[parts]) == whole["positions"]
    total = sum(
        part["kl_ba_nats"] * (part["positions"] - part["infinite"]) for part in result[parts] if part["positions"]
    )
    assert total == pytest.approx(whole["kl_ba_nats"] * (whole["positions"] - whole["infinite"]))


def test_bins_are_of_the_largest_probability_of_a(pair):
    a, b = (tiny.open() for tiny in pair)
    largest = np.exp(
        np.concatenate([a.targets(*rows).log_probs.max(axis=1) for rows in rows_of(pair[0])]).astype(float)
    )
    for part in compare(a, b, **options())["bins"]:
        assert part["positions"] == ((largest > part["above"]) & (largest <= part["up_to"])).sum()


def test_groups_are_those_of_the_documents(pair):
    result = compare(*(tiny.open() for tiny in pair), **options())
    assert sorted(part["group"] for part in result["groups"]) == ["group-0", "group-1", "group-2"]
    assert [part["positions"] for part in result["groups"]] == [12, 12, 12]


def test_two_captures_of_one_teacher_are_at_distance_zero(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = (make_cache(tmp_path / side).open() for side in "ab")
    whole = compare(a, b, **options())["all"]
    assert (whole["kl_ab_nats"], whole["kl_ba_nats"], whole["same_top1"]) == (0, 0, 1)


def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another(tmp_path):
    a, b = (tiny.open() for tiny in make_pair(tmp_path))
    draws = [compare(a, b, **options(shards=1, seed=seed)) for seed in (0, 0, *range(8))]
    assert draws[0] == draws[1]
    assert len({tuple(draw["shards"]) for draw in draws}) > 1
    assert {draw["all"]["positions"] for draw in draws} == {12}


def test_shards_that_only_one_side_has_are_left_out(tmp_path):
    a, b = (tiny.open() for tiny in make_pair(tmp_path, committed=2))
    result = compare(a, b, **options())
    assert (result["shards"], result["shards_in_common"]) == ([0, 1], 2)


def test_positions_where_one_side_rules_out_the_other_are_counted_apart(tmp_path):
    def without(token):
        weights = np.ones(6)
        weights[token] = 0
        logs = np.tile(kinds.logarithm(weights[None]), (12, 1))
        ids = np.tile(np.arange(6, dtype=np.uint32), (12, 1))
        return lambda rng, n: kinds.Targets(ids, logs, np.full(n, -np.inf, np.float32))

    for name, token in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        kinds.make("dense", tmp_path / name, draw=without(token))
    whole = compare(*(Cache(tmp_path / name / "cache").encoding().teacher() for name in "ab"), **options())["all"]
    assert (whole["infinite"], whole["positions"]) == (36, 36)


def test_rows_whose_kept_probabilities_sum_to_one_rule_nothing_out(tmp_path):
    """As captures stored them that took the rest to be 1 less the float32 sum of 4 of 1,000 tokens."""
    closed = lambda rng, n: kinds.Targets(  # noqa: E731
        np.tile(np.arange(4, dtype=np.uint32), (n, 1)),
        np.full((n, 4), np.log(0.25), np.float32),
        np.full(n, -np.inf, np.float32),
    )
    whole = compare(*(tiny.open() for tiny in make_pair(tmp_path, draw=closed)), **options())["all"]
    assert (whole["infinite"], whole["positions"]) == (0, 36)
    assert 0 < whole["kl_ab_nats"] <= 24 * math.log(2) + 1


def test_documents_that_were_appended_to_one_side_are_left_out(tmp_path):
    a, b = (tiny.open() for tiny in make_pair(tmp_path, shards=4))
    assert compare(a, b, **options())["shards"] == [0, 1, 2]


def test_other_sequences_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = make_cache(tmp_path / "a").open(), make_cache(tmp_path / "b", vocabulary=900).open()
    with pytest.raises(IdentityError, match="the two encodings have different sequences"):
        compare(a, b, **options())


def test_draws_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = make_cache(tmp_path / "a"), kinds.make("sampled", tmp_path / "b")
    with pytest.raises(ConfigError, match="keeps draws instead of probabilities"):
        compare(a.open(), b.open(), **options())


def test_a_teacher_is_not_compared_with_itself(tmp_path):
    tiny = make_cache(tmp_path)
    with pytest.raises(ConfigError, match="both sides are the same teacher"):
        compare(tiny.open(), tiny.open(), **options())


def test_captures_without_a_shard_in_common_are_refused(tmp_path):
    a, b = (tiny.open() for tiny in make_pair(tmp_path, committed=0))
    with pytest.raises(IncompleteError, match="no shard is finished"):
        compare(a, b, **options())


def add_teacher(tiny, name):
    """Add a second teacher, with other predictions, to the one encoding of a cache."""
    manifest = read_manifest(tiny.teacher, TeacherManifest)
    manifest = manifest.model_copy(update={"identity": manifest.identity | {"weights": name}})
    teacher = declare_teacher(Cache(tiny.path).encoding(), name, manifest, {})
    rng = np.random.default_rng(5)
    for shard, entry in enumerate(tiny.entries):
        commit_shard(teacher, shard, random_predictions(rng, entry.positions, 4, 1000), {})


def test_the_command_takes_the_two_teachers_of_a_cache(tmp_path):
    tiny = make_cache(tmp_path)
    add_teacher(tiny, "other")
    named = {name: json.loads(run(tiny.path, "--teacher-a", name, "--json").stdout) for name in ("toy", "other")}
    assert [(found["a"], found["b"]) for found in named.values()] == [("toy", "other"), ("other", "toy")]
    assert named["toy"]["all"]["kl_ab_nats"] == named["other"]["all"]["kl_ba_nats"]
    unnamed, other = (json.loads(run(tiny.path, *more, "--json").stdout) for more in ([], ["--teacher-b", "toy"]))
    assert (unnamed["a"], unnamed["b"]) == ("other", "toy")
    assert unnamed == other


def test_the_command_prints_tables_of_two_caches_and_exits_0(pair):
    result = run(pair[0].path, pair[1].path, "--worst", 1)
    assert result.exit_code == 0
    for expected in ("A = toy, B = toy", "3 of 3 shards", "KL(A‖B)", "0.99 to 1", "group-2", "document-", "A: <id"):
        assert expected in result.stdout
