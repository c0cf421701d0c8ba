"""What a plan says is what a capture then costs, and planning writes nothing."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tiny
from cache_tools.codec import Targets
from cache_tools.errors import StorageError
from cache_tools.storage import store_path
from cache_tools.summary import summarise
from pipeline.config import CaptureConfig
from pipeline.plan import require_space
from pipeline.plan_measure import kl_floor
from pipeline.run import plan_capture
from pipeline.targets import Keep, sparse_targets
from refusal_fixtures import write_yaml
from test_target_kinds import KINDS

MANY = 10_000


def plan(values, sample_documents=MANY, sequences=0, tokens_per_s=None):
    return plan_capture(CaptureConfig.model_validate(values), sample_documents, sequences, tokens_per_s)


def test_a_plan_over_every_document_counts_what_the_capture_will_hold(tmp_path):
    values = tiny.capture_values(tmp_path)
    planned = plan(values)
    assert not (tmp_path / "cache").exists()
    tiny.run(values)
    encoding = summarise(tiny.Cache(values["cache"]))["encodings"][0]
    assert planned["exact"]
    for split, totals in planned["splits"].items():
        assert {key: encoding["splits"][split][key] for key in ("tokens", "positions")} == {
            key: totals[key] for key in ("tokens", "positions")
        }
    assert planned["documents"] == sum(totals["documents"] for totals in encoding["splits"].values())


def test_a_sample_comes_near(tmp_path):
    texts = [text * (1 + i % 3) for i, text in enumerate(tiny.TEXTS * 5)]
    tiny.write_corpus(tmp_path / "corpus.jsonl", texts)
    values = tiny.capture_values(tmp_path, held_out_fraction=0)
    whole, part = plan(values), plan(values, sample_documents=len(texts) // 2)
    assert not part["exact"]
    assert part["documents"] == whole["documents"]
    assert part["splits"]["train"]["tokens"] == pytest.approx(whole["splits"]["train"]["tokens"], rel=0.15)


def test_measured_bytes_are_those_of_the_capture(tmp_path):
    tiny.write_corpus(tmp_path / "corpus.jsonl", tiny.TEXTS * 8)
    shape = {"positions_per_shard": 2**15, "chunk_positions": 2**12, "held_out_fraction": 0}
    values = tiny.capture_values(tmp_path, **shape)
    planned = plan(values, sequences=MANY)["teachers"][0]
    tiny.run(values)
    captured = summarise(tiny.Cache(values["cache"]))["encodings"][0]["teachers"][0]
    assert planned["target_bytes_per_position"] == pytest.approx(captured["bytes_per_position"], rel=0.02)
    assert planned["stored_bytes"] == pytest.approx(captured["stored_bytes"], rel=0.02)
    assert planned["tokens_per_s"] > 0
    assert planned["hours"] == pytest.approx(plan(values)["splits"]["train"]["tokens"] / planned["tokens_per_s"] / 3600)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_planned_and_measured(tmp_path, kind):
    values = tiny.capture_values(tmp_path, target=KINDS[kind], hidden={"layers": ["last", 1]})
    rough, measured = plan(values)["teachers"][0], plan(values, sequences=20)["teachers"][0]
    assert not rough["measured"]
    assert rough["hours"] is None
    assert measured["hidden_bytes_per_position"] == rough["hidden_bytes_per_position"] > 0
    assert 0.2 < rough["target_bytes_per_position"] / measured["target_bytes_per_position"] < 5


def test_more_entries_keep_more_and_lose_less(tmp_path):
    values = tiny.capture_values(tmp_path, target={"k": 20})
    choices = plan(values, sequences=30)["teachers"][0]["choices"]
    assert 20 in [row["k"] for row in choices]
    for key, sign in (("k", 1), ("kept_mass", 1), ("bytes_per_position", 1), ("kl_floor_nats", -1)):
        assert (sign * np.diff([row[key] for row in choices]) > 0).all()


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
    tokens = sum(totals["tokens"] for totals in planned["splits"].values())
    assert planned["teachers"][0]["hours"] == pytest.approx(tokens / 100 / 3600)


def test_refuses_a_cache_that_would_not_fit(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    assert require_space(tmp_path / "new" / "cache", 10) == 10
    with pytest.raises(StorageError, match=r"would not fit .*Keep less"):
        require_space(tmp_path / "new" / "cache", 11)
    assert require_space(store_path("memory://plan"), 11) is None


def test_the_command_prints_tables_or_json(tmp_path):
    from pipeline.cli_plan import plan_command

    config = write_yaml(tmp_path, tiny.capture_values(tmp_path))
    text = CliRunner().invoke(plan_command, [str(config), "--measure", "--sample-sequences", "10"])
    assert text.exit_code == 0
    assert "what k keeps and costs" in text.stdout
    found = CliRunner().invoke(plan_command, [str(config), "--tokens-per-s", "50", "--workers", "2", "--json"])
    planned = json.loads(found.stdout)
    tokens = sum(totals["tokens"] for totals in planned["splits"].values())
    assert planned["teachers"][0]["hours"] == pytest.approx(tokens / 50 / 3600 / 2)
