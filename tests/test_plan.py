"""What a plan says is what a capture then costs, and planning writes nothing."""

import json
import re
import shutil
from collections import namedtuple
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_target_kinds import KINDS

import tiny
from cache_tools.codecs.registry import Targets
from cache_tools.errors import StorageError
from cache_tools.format.layout import receipt_file
from cache_tools.inspection.divergence import kl_floor
from cache_tools.inspection.summary import summarise
from cache_tools.storage import store_path
from json_schema import mismatches
from pipeline.capture.host_memory import recommended_positions
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.documents import corpus_sources
from pipeline.planning.capture_plan import CapturePlan, PlanSettings, plan_capture
from pipeline.planning.plan import require_space
from pipeline.planning.scale import StudentLoad, Workload, opening_requests, shard_sizes, student_bytes_per_s
from pipeline.planning.simulate import Cluster
from pipeline.planning.survey import Extent, survey
from refusal_fixtures import write_yaml

MANY = 10_000


def plan(values, sample_documents=MANY, sequences=0, tokens_per_s=None, tokens=None):
    settings = PlanSettings(
        sample_documents=sample_documents,
        measured_sequences=sequences,
        tokens_per_s=tokens_per_s,
        corpus_tokens=tokens,
    )
    return plan_capture(CaptureConfig.model_validate(values), settings)


def test_a_plan_over_every_document_counts_what_the_capture_will_hold(tmp_path):
    values = tiny.capture_values(tmp_path)
    planned = plan(values)
    assert not (tmp_path / "cache").exists()
    tiny.run(values)
    encoding = summarise(tiny.Cache(values["cache"])).encodings[0].facts
    assert planned.exact
    for split, extent in planned.splits.items():
        totals = encoding.splits[split]
        assert (extent.tokens, extent.positions) == (totals.tokens, totals.positions)
    assert planned.documents == sum(totals.documents for totals in encoding.splits.values())


def test_a_sample_comes_near(tmp_path):
    texts = [text * (1 + i % 3) for i, text in enumerate(tiny.TEXTS * 5)]
    tiny.write_corpus(tmp_path / "corpus.jsonl", texts)
    values = tiny.capture_values(tmp_path, held_out_fraction=0)
    whole, part = plan(values), plan(values, sample_documents=len(texts) // 2)
    assert not part.exact
    assert part.documents == whole.documents
    assert part.splits["train"].tokens == pytest.approx(whole.splits["train"].tokens, rel=0.15)


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory):
    """A plan that measured every sequence, and the cache that was then captured: one shard, large enough for rates."""
    folder = tmp_path_factory.mktemp("one-shard")
    tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS * 8)
    shape = {"positions_per_shard": 2**15, "chunk_positions": 2**12, "held_out_fraction": 0}
    values = tiny.capture_values(folder, **shape)
    planned = plan(values, sequences=MANY)
    tiny.run(values)
    return planned, tiny.Cache(values["cache"])


def test_measured_bytes_are_those_of_the_capture(one_shard):
    planned, cache = one_shard[0].teachers[0], one_shard[1]
    captured = summarise(cache).encodings[0].teachers[0].facts
    assert planned.rates.target_bytes_per_position == pytest.approx(captured.bytes_per_position, rel=0.02)
    assert planned.whole.stored.stored_bytes == pytest.approx(captured.stored_bytes, rel=0.02)
    assert planned.rates.tokens_per_s > 0
    tokens = one_shard[0].splits["train"].tokens
    assert planned.whole.hours == pytest.approx(tokens / planned.rates.tokens_per_s / 3600)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_planned_and_measured(tmp_path, kind):
    values = tiny.capture_values(tmp_path, target=KINDS[kind], hidden={"layers": ["last", 1]})
    rough, measured = plan(values).teachers[0], plan(values, sequences=20).teachers[0]
    assert not rough.measured
    assert rough.whole.hours is None
    assert measured.rates.hidden_bytes_per_position == rough.rates.hidden_bytes_per_position > 0
    assert 0.2 < rough.rates.target_bytes_per_position / measured.rates.target_bytes_per_position < 5


def test_more_entries_keep_more_and_lose_less(tmp_path):
    values = tiny.capture_values(tmp_path, target={"k": 20})
    choices = plan(values, sequences=30).teachers[0].choices
    assert 20 in [row.k for row in choices]
    for key, sign in (("k", 1), ("kept_mass", 1), ("bytes_per_position", 1), ("kl_floor_nats", -1)):
        assert (sign * np.diff([getattr(row, key) for row in choices]) > 0).all()


@pytest.mark.parametrize("k", [1, 5, 39, 40])
def test_the_kl_floor_is_that_of_the_rest_spread_evenly(k):
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (50, 40)).astype(np.float32))
    made = sparse_targets(logits, torch.zeros(50, dtype=torch.long), Keep(k=k))
    targets = Targets(*(values.numpy() for values in (made.ids, made.log_probs, made.log_left_out)))
    p = torch.softmax(logits.double(), dim=1)
    spread = ((1 - p.gather(1, made.ids).sum(dim=1)) / max(1, 40 - k))[:, None].expand(-1, 40)
    rebuilt = spread.scatter(1, made.ids, p.gather(1, made.ids))
    naive = float((p * (p.log() - rebuilt.log())).sum(dim=1).mean())
    assert kl_floor(targets, made.scalars["entropy"].numpy(), 40) == pytest.approx(naive, abs=1e-5)


def test_a_given_speed_is_used(tmp_path):
    planned = plan(tiny.capture_values(tmp_path), tokens_per_s=100.0)
    tokens = sum(extent.tokens for extent in planned.splits.values())
    assert planned.teachers[0].whole.hours == pytest.approx(tokens / 100 / 3600)


def test_a_corpus_of_another_size_costs_in_proportion(tmp_path):
    values = tiny.capture_values(tmp_path)
    own, larger = plan(values, tokens_per_s=100.0), plan(values, tokens_per_s=100.0, tokens=1e12)
    scale = 1e12 / sum(extent.tokens for extent in own.splits.values())
    assert sum(extent.tokens for extent in larger.splits.values()) == pytest.approx(1e12)
    large, small = larger.teachers[0].whole, own.teachers[0].whole
    assert large.stored.stored_bytes == pytest.approx(scale * small.stored.stored_bytes, rel=1e-6)
    assert large.hours == pytest.approx(scale * small.hours, rel=1e-6)
    positions = larger.splits["train"].positions
    assert larger.splits["train"].shards == -(-positions // values["encoding"].get("positions_per_shard"))


def test_what_the_cache_holds_is_subtracted(tmp_path):
    values = tiny.capture_values(tmp_path)
    whole = plan(values, tokens_per_s=100.0)
    assert whole.teachers[0].remaining.cost == whole.teachers[0].whole
    tiny.run(values)
    teacher = tiny.Cache(values["cache"]).encoding().teacher("toy")
    lost = [0, 3]
    for shard in lost:
        receipt_file(teacher.path, shard).unlink()
    partial = plan(values, sample_documents=5, tokens_per_s=100.0)
    left, entries = partial.teachers[0].remaining, [teacher.encoding.shards[shard] for shard in lost]
    assert partial.exact  # the encoding knows the totals of the whole corpus, a sample would not
    tokens, positions = sum(entry.tokens for entry in entries), sum(entry.positions for entry in entries)
    assert left.extent == Extent(tokens, positions, 2)
    objects_per_shard = partial.teachers[0].whole.stored.objects // len(teacher.encoding.shards)
    assert left.cost.stored.objects == 2 * objects_per_shard
    assert left.cost.hours == tokens / 100 / 3600
    assert partial.encoding.remaining.objects == 0
    tiny.run(values)
    done = plan(values, tokens_per_s=100.0).teachers[0].remaining
    assert done.extent == Extent()
    assert (done.cost.stored.stored_bytes, done.cost.stored.objects, done.cost.hours) == (0, 0, 0)


@pytest.mark.parametrize("change", [{"target": {"k": 5}}, {"hidden": {"layers": [1]}}, {"max_length_tokens": 40}])
def test_what_another_capture_left_counts_as_nothing(tmp_path, change):
    tiny.run(tiny.capture_values(tmp_path))
    changed = tiny.capture_values(tmp_path, teacher=tmp_path / "teacher", **change)
    planned = plan(changed).teachers[0]
    assert planned.remaining.cost.stored.objects == planned.whole.stored.objects > 0


def test_a_student_reads_targets_and_sequences_once_for_each_reader(one_shard):
    planned, encoding = one_shard[0], one_shard[1].encoding()
    teacher, entry = encoding.teacher("toy"), encoding.shards[0]
    names = {f"{name}/c" for name in teacher.codec.array_types()}
    read = sum(o.bytes for key, o in teacher.receipt(0).objects.items() if key.rsplit("/c", 1)[0] + "/c" in names)
    per_position = (read + entry.bytes) / entry.positions
    sequence_bytes = planned.encoding.sequence_bytes_per_position
    bytes_per_s = student_bytes_per_s(planned.teachers[0].rates, sequence_bytes, StudentLoad(1000, 3))
    assert bytes_per_s == pytest.approx(3 * 1000 * per_position, rel=0.03)


def test_of_shard_sizes_the_best_is_the_largest_that_costs_no_time(tmp_path):
    planned = plan(tiny.capture_values(tmp_path), tokens_per_s=1000.0, tokens=1e10).teachers[0]
    workload = Workload(planned.remaining, 1000.0, 512, planned.memory.kept_bytes)
    rows = shard_sizes(workload, Cluster(10, 5000.0, 60.0))
    assert [row.positions_per_shard for row in rows if row.planned] == [512]
    best = next(row for row in rows if row.best)
    fastest = min(row.hours for row in rows)
    assert best.hours <= 1.01 * fastest
    assert all(row.hours > 1.01 * fastest for row in rows if row.shards < best.shards)
    for smaller, larger in pairwise(rows):
        assert smaller.objects > larger.objects
        assert smaller.redone_share < larger.redone_share
    assert rows[0].redone_share == pytest.approx(rows[0].shard_seconds / 5000 / 2, rel=0.01)


@pytest.mark.parametrize(("shards", "counted_requests"), [(100, 11), (1_000, 11), (10_000, 29)])
def test_requests_of_opening_are_those_that_the_benchmark_counts(shards, counted_requests):
    assert opening_requests(shards) == counted_requests


def test_opening_takes_longer_the_more_shards_there_are(tmp_path):
    planned = plan(tiny.capture_values(tmp_path), tokens_per_s=1000.0, tokens=1e10).teachers[0]
    rows = shard_sizes(Workload(planned.remaining, 1000.0, 512, planned.memory.kept_bytes), Cluster(10))
    assert all(a.opening_seconds > b.opening_seconds for a, b in pairwise(rows))


def test_refuses_a_cache_that_would_not_fit(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    assert require_space(tmp_path / "new" / "cache", 10) == 10
    with pytest.raises(StorageError, match=r"would not fit .*Keep less"):
        require_space(tmp_path / "new" / "cache", 11)
    assert require_space(store_path("memory://plan"), 11) is None


def test_the_command_prints_tables_or_json(tmp_path):
    from pipeline.planning.command import plan_command

    config = write_yaml(tmp_path, tiny.capture_values(tmp_path))
    text = CliRunner().invoke(plan_command, [str(config), "--measure", "--sample-sequences", "10"])
    assert text.exit_code == 0
    assert "what k keeps and costs" in text.stdout
    assert "0.00 hours" not in text.stdout
    assert re.search(r"teacher +│ (\d+ min )?(less than 1|\d+) s at ", text.stdout)
    measured = CliRunner().invoke(plan_command, [str(config), "--measure", "--sample-sequences", "10", "--json"])
    assert mismatches(json.loads(measured.stdout), CapturePlan) == []
    found = CliRunner().invoke(plan_command, [str(config), "--tokens-per-s", "50", "--workers", "2", "--json"])
    planned = json.loads(found.stdout)
    assert mismatches(planned, CapturePlan) == []
    tokens = sum(totals["tokens"] for totals in planned["splits"].values())
    assert planned["teachers"][0]["hours"] == pytest.approx(tokens / 50 / 3600 / 2)


def test_the_command_simulates_workers(tmp_path):
    from pipeline.planning.command import plan_command

    config = write_yaml(tmp_path, tiny.capture_values(tmp_path))
    asked = [str(config), "--simulate", "--tokens", "1e9", "--workers", "8", "--hours-between-failures", "5"]
    without = CliRunner().invoke(plan_command, asked)
    assert without.exit_code == 2
    assert "--tokens-per-s" in without.stderr
    asked += ["--tokens-per-s", "1000"]
    text = CliRunner().invoke(plan_command, asked)
    assert text.exit_code == 0
    assert "handed out" in text.stdout
    whole = json.loads(CliRunner().invoke(plan_command, [*asked, "--json"]).stdout)
    assert mismatches(whole, CapturePlan) == []
    planned = whole["teachers"][0]
    found = planned["simulation"]
    assert planned["hours"] == pytest.approx(1e9 / 1000 / 3600 / 8) == found["ideal_hours"]
    for run in (found["fixed"], found["handed_out"]):
        assert run["hours"] > found["ideal_hours"]
        assert run["failures"] > 0
    assert found["store"]["receipts"] == planned["remaining"]["shards"]
    mean = found["store"]["mean_bytes_per_s"]
    assert mean * found["handed_out"]["hours"] * 3600 == pytest.approx(planned["stored_bytes"], rel=1e-6)
    assert mean <= found["store"]["peak_minute_bytes_per_s"]


def test_a_corpus_of_which_nothing_is_held_out_is_said_by_plan_and_capture(tmp_path, caplog):
    values = tiny.capture_values(tmp_path, held_out_fraction=1e-9)
    config = CaptureConfig.model_validate(values)
    survey(tiny.recipe(config, tiny.tokenizer()), corpus_sources(config.corpus).values(), 5)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("No document is held out: corpus.held_out_fraction 1e-09 selects none")
    assert "all records with the same corpus.group_field are one group" in said[0]
    tiny.run(values)
    assert [record.message for record in caplog.records].count(said[0]) == 2


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_a_corpus_with_a_held_out_split_or_without_the_wish_for_one_is_not_spoken_of(tmp_path, caplog, fraction):
    values = tiny.capture_values(tmp_path, held_out_fraction=fraction)
    config = CaptureConfig.model_validate(values)
    survey(tiny.recipe(config, tiny.tokenizer()), corpus_sources(config.corpus).values(), 5)
    tiny.run(values)
    assert "held out" not in caplog.text


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "option", ["--tokens", "--tokens-per-s", "--measure-seconds", "--hours-between-failures", "--restart-seconds"]
)
def test_the_command_refuses_numbers_that_are_not_finite(tmp_path, option, value):
    from pipeline.planning.command import plan_command

    found = CliRunner().invoke(plan_command, [str(tmp_path / "capture.yaml"), f"{option}={value}"])
    assert found.exit_code == 2
    assert option in found.stderr


def test_the_command_refuses_a_memory_beyond_reason(tmp_path):
    from pipeline.planning.command import plan_command

    found = CliRunner().invoke(plan_command, [str(tmp_path / "capture.yaml"), f"--device-memory={'9' * 400}GB"])
    assert found.exit_code == 2
    assert "is not a size" in found.stderr


def sizes(**changes):
    return EncodingConfig(positions_per_shard="auto", **changes)


def test_the_size_of_shards_follows_the_corpus_and_stays_within_the_memory():
    encoding = sizes(chunk_positions=4096)
    assert recommended_positions(10**9, 528, encoding) == 131_072
    assert recommended_positions(None, 528, encoding) == 131_072
    assert recommended_positions(10**6, 528, encoding) == 16_384  # 62 shards
    assert recommended_positions(10**10, 528, encoding) == 2**20  # 9,537 shards
    assert recommended_positions(10**12, 528, encoding) == 2**21
    assert recommended_positions(10**12, 2**17, encoding) == 2**15  # 4 GiB
    assert recommended_positions(10**12, 2**40, encoding) == 4096
    assert recommended_positions(10, 528, sizes(chunk_positions=256, max_length_tokens=1000)) == 8192


def test_a_plan_for_a_larger_corpus_chooses_the_size_of_shards_for_that_corpus(tmp_path):
    values = tiny.capture_values(tmp_path)
    values["encoding"] = values["encoding"] | {"positions_per_shard": "auto"}
    planned, small = plan(values, tokens=1e12), plan(values)
    assert planned.positions_per_shard == planned.recommended_positions_per_shard > small.positions_per_shard
    for split, extent in planned.splits.items():
        assert extent.shards == -(-extent.positions // planned.positions_per_shard), split


@pytest.mark.slow
def test_shards_of_a_size_that_was_chosen_are_kept_when_the_corpus_grows(tmp_path):
    values = tiny.capture_values(tmp_path)
    values["encoding"] = values["encoding"] | {"positions_per_shard": "auto", "chunk_positions": 16}
    planned = plan(values)
    tiny.run(values)
    encoding = tiny.Cache(values["cache"]).encoding()
    size = encoding.manifest.positions_per_shard
    assert planned.positions_per_shard == planned.recommended_positions_per_shard == size
    tiny.write_corpus(tmp_path / "more.jsonl", [text + f" and {i}" for i, text in enumerate(tiny.TEXTS * 8)])
    lines = (tmp_path / "more.jsonl").read_text().replace('"id": "', '"id": "more-')
    (tmp_path / "more.jsonl").write_text(lines)
    values["corpus"] = values["corpus"] | {"paths": [*values["corpus"]["paths"], str(tmp_path / "more.jsonl")]}
    assert plan(values | {"cache": str(tmp_path / "another")}).positions_per_shard > size
    tiny.run(values, append=True)
    grown = tiny.Cache(values["cache"]).encoding()
    assert len(grown.manifest.parts) == 2
    assert grown.manifest.positions_per_shard == size
    assert grown.manifest.fingerprint == encoding.manifest.fingerprint
