"""What storing and rounding explain of a difference: the sum of both sides, for the same weights and known types."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import kinds
from cache_tools.codecs.rows import Targets
from cache_tools.comparison.floor import MARGIN, noise_floor
from cache_tools.comparison.reference import compare_with_reference
from cache_tools.comparison.rounding import FROM_EXACT_NATS, MOST_NATS, Arithmetic, rounding_nats
from cache_tools.errors import ConfigError
from cache_tools.format.manifest import TeacherManifest, read_manifest
from cache_tools.store.predictions import Predictions
from cache_tools.store.reader import Cache
from cache_tools.store.writer import commit_shard, declare_teacher
from cache_tools.terminal.diff_command import diff_command
from store_fixtures import make_cache

HALF = {"dtype": "bfloat16", "weights": "same"}
VLLM = {"engine": {"name": "vllm", "version": "9.9"}}
FINE, COARSE = 0.03, 0.5
"""Standard deviations of the noise of logits: half their squares are KL below and above what bfloat16 explains."""


def noisy(targets, rng, deviation):
    """Return rows as if their logits carried noise; what is left out keeps its logit."""
    outcomes = np.concatenate([targets.log_probs, targets.log_left_out[:, None]], axis=1).astype(float)
    outcomes[:, :-1] += rng.normal(0, deviation, targets.log_probs.shape)
    outcomes -= np.log(np.exp(outcomes).sum(axis=1, keepdims=True))
    return Targets(targets.ids, outcomes[:, :-1].astype(np.float32), outcomes[:, -1].astype(np.float32))


def add_teacher(tiny, name, deviation, identity):
    """Add a teacher whose rows are those of the cache's own with noise."""
    own = read_manifest(tiny.teacher, TeacherManifest)
    named = {key: value for key, value in own.identity.items() if key != "weights"} | identity
    encoding = Cache(tiny.path).encoding()
    teacher = declare_teacher(encoding, name, own.model_copy(update={"identity": named}), {})
    rng = np.random.default_rng(len(name))
    for shard, predictions in enumerate(tiny.predictions):
        rows = noisy(predictions.targets, rng, deviation)
        commit_shard(teacher, shard, Predictions(rows, predictions.scalars, predictions.hidden), {})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A teacher in float32, and its copies: in bfloat16, by an engine, changed, of other weights, imported."""
    tiny = make_cache(tmp_path_factory.mktemp("floor"))
    add_teacher(tiny, "exact", 0, HALF | {"dtype": "float32"})
    add_teacher(tiny, "half", FINE, HALF)
    add_teacher(tiny, "served", FINE, HALF | VLLM)
    add_teacher(tiny, "changed", COARSE, HALF)
    add_teacher(tiny, "other", FINE, HALF | {"weights": "other"})
    add_teacher(tiny, "imported", FINE, {"imported": {}})
    return tiny.path


def teacher(cache, name):
    return Cache(cache).encoding().teacher(name)


def run(*arguments):
    return CliRunner(catch_exceptions=False).invoke(diff_command, [str(argument) for argument in arguments])


def words(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    return " ".join(result.stdout.split())


def test_rounding_is_the_sum_of_what_separates_each_side_from_exact_arithmetic():
    half, served, other = (
        Arithmetic.of(HALF | engine) for engine in ({}, VLLM, {"engine": {"name": "new", "version": "1"}})
    )
    figures = FROM_EXACT_NATS["bfloat16"]
    assert rounding_nats(half, served) == figures["transformers"] + figures["vllm"]
    assert rounding_nats(other, other) == 2 * max(figures.values())
    assert rounding_nats(half, Arithmetic.of({"weights": "x"})) is None
    assert [str(side) for side in (half, served)] == ["transformers, bfloat16", "vllm 9.9, bfloat16"]


def test_an_audit_accepts_what_rounding_is_expected_to_cost():
    assert MOST_NATS.keys() == FROM_EXACT_NATS.keys()
    for dtype, limit in MOST_NATS.items():
        assert 2 * max(FROM_EXACT_NATS[dtype].values()) <= limit


def test_storing_counts_on_both_sides_as_the_receipts_state_it(cache):
    sides = [teacher(cache, name) for name in ("exact", "half")]
    shards = [0, 2]
    stated = [[side.receipt(shard).statistics["codec_kl_nats"] for shard in shards] for side in sides]
    floor = noise_floor(*sides, shards)
    assert floor.storage_nats == pytest.approx(sum(map(np.mean, stated)))
    assert floor.limit_nats == floor.storage_nats + MARGIN * floor.rounding_nats
    assert (floor.same_weights, floor.same_arithmetic) == (True, False)


def test_a_table_sets_all_teachers_beside_one_of_them(cache):
    result = compare_with_reference(Cache(cache).encoding(), "exact", shards=None, seed=0)
    rows = {row.teacher: row for row in result.teachers}
    assert {name: row.explained for name, row in rows.items()} == {
        "half": True,
        "served": True,
        "changed": False,
        "other": True,
        "imported": None,
        "toy": None,
    }
    assert rows["changed"].means.kl_ab_nats > 10 * rows["half"].means.kl_ab_nats
    assert [row.means.larger_kl_nats for row in result.teachers] == sorted(
        row.means.larger_kl_nats for row in result.teachers
    )
    assert rows["other"].floor.same_weights is False
    assert (result.computed_by, result.shards, result.left_out) == ("transformers, float32", [0, 1, 2], ())


def test_the_command_prints_the_table_and_what_it_leaves_out(cache, tmp_path):
    text = words(cache, "--reference", "exact")
    for expected in ("R = exact (transformers, float32)", "measured on SmolLM2-135M", "3 of 3 shards"):
        assert expected in text
    stated = json.loads(run(cache, "--reference", "exact", "--json").stdout)
    assert {row["teacher"] for row in stated["teachers"]} == {"half", "served", "changed", "other", "imported", "toy"}
    tiny = kinds.make("sampled", tmp_path)
    with pytest.raises(ConfigError, match="there is no other teacher to compare with the reference"):
        run(tiny.path, "--reference", "toy")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("half", "served"), "This is no difference that storing and rounding do not explain."),
        (("exact", "changed"), "The weights are the same, and storing and rounding explain about"),
        (("half", "other"), "The weights differ, but the predictions by no more than storing and rounding could"),
        (("half", "changed"), "where machines or batches differ (A computed by transformers, bfloat16, B by"),
        (("half", "imported"), "rounding is unknown (A computed by transformers, bfloat16, B by unknown)"),
    ],
)
def test_a_comparison_says_what_storing_and_rounding_explain(cache, names, sentence):
    assert sentence in words(cache, "--teacher-a", names[0], "--teacher-b", names[1])


def test_options_without_effect_beside_a_reference_are_refused(cache):
    for option in (["--worst", 3], ["--teacher-a", "half"], [cache]):
        result = run(cache, *option, "--reference", "exact")
        assert result.exit_code == 2
        assert "--reference and" in result.stderr
