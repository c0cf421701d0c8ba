"""A server as a teacher: its rows are stored as they are, and each fault is refused with what the server did.

The server is ``tests/support/stub_server.py``. Expected rows come from its language model in float64, sorted and cut
here.
"""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import tiny
from cache_tools.errors import ConfigError, IdentityError, LogitcaskError, ModelError
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from pipeline.audit.run import run_audit
from pipeline.config.capture_file import CaptureConfig
from pipeline.engines import server_client
from pipeline.planning.capture_plan import PlanSettings, plan_capture
from pipeline.planning.tables import print_plan
from processes import finish, kill_at_rename, start
from refusal_fixtures import command_line
from store_fixtures import snapshot
from stub_server import MODEL, StubServer, two_matrices

K = 16
NOWHERE = SimpleNamespace(url="http://127.0.0.1:9/v1")
REQUESTS = ("prompt_logprobs", "echo", "sglang")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with a tokenizer and a configuration, and no weights."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny.tokenizer().save_pretrained(folder)
    tiny.model().config.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(server_client, "PAUSE_SECONDS", 0.0)


def served(folder, teacher, server, name="toy", target=None, engine=None, **changes):
    """Return a capture file whose teacher is a server."""
    values = tiny.capture_values(folder, teacher, **{"positions_per_shard": 256} | changes)
    tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:8])
    engine = {"kind": "server", "url": server.url, "served_model": MODEL} | (engine or {})
    block = {"name": name, "model": str(teacher), "target": {"k": K} | (target or {}), "engine": engine}
    return values | {"teachers": [block]}


def expected_rows(log_probs, sequence, k=K):
    """Return ids (n, k) ascending, their log-probabilities, and the gold token's, at a sequence's kept positions."""
    logs = log_probs(sequence.input_ids)[sequence.positions() + 1]
    ids = np.sort(np.argsort(-logs, axis=1, kind="stable")[:, :k], axis=1)
    gold = sequence.gold_ids("causal").astype(np.int64)
    return ids, np.take_along_axis(logs, ids, axis=1), np.take_along_axis(logs, gold[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("request_kind", REQUESTS)
def test_rows_are_those_of_the_servers_model(tmp_path, teacher, request_kind):
    with StubServer() as server:
        tiny.run(served(tmp_path, teacher, server, target={"exact": True}, engine={"request": request_kind}))
    encoding = Cache(tmp_path / "cache").encoding()
    cached, model = encoding.teacher("toy"), two_matrices()
    assert cached.manifest.scalars == ("gold_logprob",)
    for shard in range(len(encoding.shards)):
        for sequence in encoding.sequences(shard):
            ids, log_probs, gold = expected_rows(model, sequence)
            rows = cached.targets(*sequence.rows)
            assert np.array_equal(rows.ids, ids)
            assert np.array_equal(rows.log_probs, log_probs.astype(np.float32))
            assert np.array_equal(cached.scalar("gold_logprob", *sequence.rows), gold.astype(np.float32))
            rest = 1 - np.exp(rows.log_probs.astype(np.float64)).sum(axis=1)
            assert np.exp(rows.log_left_out) == pytest.approx(rest, rel=2e-6)
    assert verify(tmp_path / "cache", deep=True) == []


FAULTS = {
    "left out": (
        ModelError,
        "the server left rows out (expected 33 rows, found 28 rows)",
        "--no-enable-prefix-caching",
    ),
    "one missing": (ModelError, "the server left rows out (expected 33 rows, found 32 rows)", "token 17"),
    "short": (ModelError, "the server left rows out (expected 33 rows, found 16 rows)", "token 17"),
    "generated only": (ModelError, "the server returned no rows for the prompt", "that scores prompts"),
    "fewer": (ModelError, "the server returned fewer tokens of a row than it was asked for", "--max-logprobs"),
    "limit": (ModelError, "the server refuses the request", "16 is greater than max allowed: 5"),
    "beginning": (IdentityError, "added 1 of its own tokens before those it was sent", "expected 34 tokens, found 35"),
    "ending": (IdentityError, "the server added 1 of its own tokens to those it was sent", "or a template"),
    "cut": (IdentityError, "the server cut the prompt (expected 34 tokens, found 17 tokens)", "max_length_tokens"),
    "other ids": (IdentityError, "the server read other token ids than it was sent", "token 2"),
    "other model": (IdentityError, f"another model answered than was asked (expected {MODEL}, found another)", ""),
    "temperature": (ModelError, "the server applies the request's temperature or nucleus", "temperature 1 and 2"),
    "nucleus": (ModelError, "the server applies the request's temperature or nucleus", "raw_logprobs"),
    "noise": (ModelError, "the server gives other rows when a request is repeated", "one server of one model"),
    "earlier request": (ModelError, "the server gives other rows when a request is repeated", "rounding explains"),
    "later tokens": (ModelError, "the server's rows depend on later tokens or on earlier requests", "stale"),
    "memory": (ModelError, "a log-probability is above 0 (found 4.6e+11 nats)", "what was in its memory"),
    "probabilities": (ModelError, "a log-probability is above 0", "than natural log-probabilities"),
    "zeros": (ModelError, "the probabilities of a row sum to more than 1 (expected at most 1, found 16)", "memory"),
    "halved": (ModelError, "the probabilities of a row sum to more than 1", "token 3"),
    "nan": (ModelError, "a log-probability is not a number (found nan", "would be damaged"),
    "null": (ModelError, "a log-probability is not a number (found None", "would be damaged"),
    "no gold": (ModelError, "a row lacks the token that the text has there", "token 1"),
    "beyond": (IdentityError, "a row holds an id beyond the vocabulary (expected ids below 300", "config.json"),
    "busy": (ModelError, "the server does not answer", "state 503: the engine is restarting"),
    "slow": (ModelError, "the server does not answer (found nothing within 0.05 seconds)", "continues where it"),
    "hangs up": (ModelError, "the server does not answer (found no connection", "continues where it stopped"),
    "no json": (ModelError, "the server's answer is no JSON object", "<html>welcome"),
    "endless": (ModelError, "the server's answer is longer than what it was asked for can be", "at most 1,"),
}
"""What a server does, by its name in the stub, and what the refusal says of it."""


def refusal(folder, teacher, fault, kind=LogitcaskError, **engine):
    with StubServer(fault) as server, pytest.raises(kind) as refused:
        tiny.run(served(folder, teacher, server, engine=engine))
    return str(refused.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_misbehaves_is_refused_with_what_it_did(tmp_path, teacher, fault):
    kind, problem, detail = FAULTS[fault]
    words = refusal(tmp_path, teacher, fault, kind, timeout_seconds=0.05 if fault == "slow" else 600)
    assert problem in words
    assert detail in words
    assert "http://127.0.0.1:" in words
    assert list(Cache(tmp_path / "cache").encoding().teachers) == []


def test_no_two_faults_share_a_sentence_unless_they_are_one():
    problems = [problem.split("(")[0].strip() for _, problem, _ in FAULTS.values()]
    assert len(set(problems)) >= 20


@pytest.mark.parametrize(
    ("request_kind", "fault", "problem"),
    [
        ("echo", "texts", "the server names tokens by their texts"),
        ("echo", "beginning", "added 1 of its own tokens before those it was sent"),
        ("echo", "generated only", "the server returned no rows for the prompt"),
        ("echo", "llama.cpp", "the server returned no rows for the prompt"),
        ("echo", "cut", "the server cut the prompt"),
        ("echo", "zeros", "sum to more than 1"),
        ("sglang", "left out", "the server left rows out"),
        ("sglang", "short", "the server left rows out"),
        ("sglang", "beginning", "added 1 of its own tokens before those it was sent"),
        ("sglang", "twice", "a row holds a token twice"),
        ("sglang", "temperature", "applies the request's temperature"),
    ],
)
def test_so_is_one_of_another_kind(tmp_path, teacher, request_kind, fault, problem):
    assert problem in refusal(tmp_path, teacher, fault, request=request_kind)


def test_a_server_that_is_busy_for_a_while_is_asked_again(tmp_path, teacher):
    with StubServer("busy at first") as server:
        tiny.run(served(tmp_path, teacher, server))
    assert Cache(tmp_path / "cache").encoding().teacher("toy").missing_shards() == []


def test_a_key_is_read_from_the_environment_and_sent(tmp_path, teacher, monkeypatch):
    with StubServer(key="secret") as server:
        values = served(tmp_path, teacher, server, engine={"key_variable": "STUB_KEY"})
        with pytest.raises(ConfigError, match="the key in the environment variable STUB_KEY, found nothing"):
            tiny.run(values)
        monkeypatch.setenv("STUB_KEY", "wrong")
        with pytest.raises(ModelError, match=r"refuses the request .found state 401: Unauthorized"):
            tiny.run(values)
        monkeypatch.setenv("STUB_KEY", "secret")
        tiny.run(values)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not any(b"secret" in path.read_bytes() or server.url.encode() in path.read_bytes() for path in files)


def test_rounding_between_readings_is_stated_and_not_refused(tmp_path, teacher, caplog):
    with StubServer("rounding") as server, caplog.at_level(logging.WARNING):
        tiny.run(served(tmp_path, teacher, server))
    (line,) = [record.getMessage() for record in caplog.records if "nats of KL" in record.getMessage()]
    assert "will not have the same bytes" in line
    with StubServer() as server, caplog.at_level(logging.WARNING):
        caplog.clear()
        tiny.run(served(tmp_path, teacher, server, name="exact"))
    assert not [record for record in caplog.records if "nats of KL" in record.getMessage()]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_requests_are_in_flight_than_the_file_allows(tmp_path, teacher, in_flight):
    with StubServer(seconds=0.01) as server:
        tiny.run(served(tmp_path, teacher, server, engine={"requests_in_flight": in_flight}))
        assert server.most == in_flight


def capture_and_die(values):
    kill_at_rename("toy/receipts/00001.json", lambda: tiny.run(values))


@pytest.mark.slow  # test_a_server_that_goes_wrong_later_costs_one_shard is the fast one
def test_a_killed_capture_continues_to_the_same_rows(tmp_path, teacher):
    whole, part = tmp_path / "whole", tmp_path / "part"
    with StubServer() as server:
        made = []
        for folder in (whole, part):
            folder.mkdir()
            made.append(served(folder, teacher, server))
        tiny.run(made[0])
        assert finish(start(capture_and_die, made[1])) == -9
        missing = Cache(part / "cache").encoding().teacher("toy").missing_shards()
        assert 0 < len(missing) < len(Cache(whole / "cache").encoding().shards)
        before = server.requests
        tiny.run(made[1])
        assert server.requests - before < before / 2
    ours, theirs = (snapshot(folder / "cache") for folder in (whole, part))
    assert {key: content for key, content in ours.items() if "receipts" not in str(key)} == {
        key: content for key, content in theirs.items() if "receipts" not in str(key)
    }


def test_a_server_that_goes_wrong_later_costs_one_shard(tmp_path, teacher):
    with StubServer("memory", after=16) as server:
        values = served(tmp_path, teacher, server)
        with pytest.raises(ModelError, match="a log-probability is above 0"):
            tiny.run(values)
        cached = Cache(tmp_path / "cache").encoding().teacher("toy")
        assert 0 not in cached.missing_shards()
        assert cached.missing_shards()
    with StubServer() as server:
        tiny.run(served(tmp_path, teacher, server))
    assert Cache(tmp_path / "cache").encoding().teacher("toy").missing_shards() == []
    assert verify(tmp_path / "cache", deep=True) == []


def test_what_is_known_of_a_server_is_its_identity(tmp_path, teacher, capsys):
    with StubServer() as server:
        tiny.run(served(tmp_path, teacher, server))
        cached = Cache(tmp_path / "cache").encoding().teacher("toy")
        facts = {"name": "vllm server", "version": "0.0.stub", "model": MODEL, "request": "prompt_logprobs"}
        assert cached.manifest.identity["engine"] == facts
        assert not {"weights", "dtype"} & set(cached.manifest.identity)
        assert "vllm server 0.0.stub" in cached.receipt(0).provenance["targets"]["software"]
        with pytest.raises(IdentityError, match="request"):
            tiny.run(served(tmp_path, teacher, server, engine={"request": "echo"}))
    with pytest.MonkeyPatch.context() as patch:
        assert command_line(patch, "inspect", tmp_path / "cache") == 0
    words = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "? parameters · unknown · read by vllm server 0.0.stub" in words
    assert "nan" not in words


def test_a_model_that_the_server_does_not_serve_is_refused(tmp_path, teacher):
    with StubServer() as server, pytest.raises(IdentityError, match=f"expected another-1b, found {MODEL}"):
        tiny.run(served(tmp_path, teacher, server, engine={"served_model": "another-1b"}))


def test_sequences_longer_than_the_servers_prompts_are_refused(tmp_path, teacher):
    with StubServer() as server, pytest.raises(ModelError, match="at most 48, for a server of 49 with one generated"):
        tiny.run(served(tmp_path, teacher, server, max_length_tokens=49))


def test_a_folder_with_a_tokenizer_alone_suffices(tmp_path, teacher):
    alone = tmp_path / "tokenizer"
    tiny.tokenizer().save_pretrained(alone)
    with StubServer() as server:
        tiny.run(served(tmp_path, alone, server))
    assert Cache(tmp_path / "cache").encoding().teacher("toy").manifest.vocabulary_size == 300


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_rows_are_kept_bit_for_bit_where_the_file_says_half_precision(tmp_path, teacher, dtype):
    with StubServer() as server:
        values = served(tmp_path, teacher, server)
        values["teachers"][0]["dtype"] = dtype
        tiny.run(values)
    codec = Cache(tmp_path / "cache").encoding().teacher("toy").manifest.target.codec
    assert codec["name"] == ("delta-power" if dtype == "auto" else "ranked-grid")


REFUSED = {
    "hidden.layers": ({"hidden": {"layers": ["last"]}}, "a server gives no hidden states"),
    "target.temperatures": ({"target": {"temperatures": [2.0]}}, "a server gives the likeliest tokens only"),
    "target.scalars": ({"target": {"scalars": ["gold_rank"]}}, "a server gives the likeliest tokens only"),
    "target.draws": ({"target": {"kind": "sampled", "draws": 4}}, "a server gives the likeliest tokens only"),
    "batch_tokens": ({"batch_tokens": 5}, "the server forms the batches"),
    "device": ({"device": "cpu"}, "the server decides where and how it computes"),
    "gguf_file": ({"gguf_file": "x.gguf"}, "the server decides where and how it computes"),
    "nan_rows": ({"nan_rows": "skip"}, "such rows are refused"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_server_cannot_do_is_refused_in_one_sentence(tmp_path, teacher, key):
    changes, reason = REFUSED[key]
    values = served(tmp_path, teacher, NOWHERE)
    values["teachers"][0] |= changes
    with pytest.raises(ValidationError, match=f"engine and {key} exclude each other: {reason}"):
        CaptureConfig.model_validate(values)


@pytest.mark.parametrize("url", ["ftp://there", "localhost:8000", "http://me:secret@there/v1", "http://there/v1?x=1"])
def test_what_is_no_address_is_refused(tmp_path, teacher, url):
    values = served(tmp_path, teacher, NOWHERE, engine={"url": url})
    with pytest.raises(ValidationError, match=r"no address of a server|key_variable"):
        CaptureConfig.model_validate(values)


def of_model(model):
    """Return a transformers model as the language model of the stub."""

    @torch.inference_mode()
    def log_probs(ids):
        logits = model(torch.as_tensor(np.asarray(ids, np.int64))[None]).logits[0].double()
        logs = logits.log_softmax(dim=1).numpy()
        return np.concatenate([logs[:1], logs[:-1]])

    return log_probs


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A folder with a model and a cache of which it is two teachers: read here, and by a server."""
    folder = tmp_path_factory.mktemp("audited")
    model = tiny.save_teacher(folder / "model", tiny.model())
    with StubServer(log_probs=of_model(tiny.model())) as server:
        values = served(folder, model, server, name="served")
        tiny.run(
            values | {"teachers": [*values["teachers"], {"name": "here", "model": str(model), "target": {"k": K}}]}
        )
    return folder


def audit(values):
    (report,) = run_audit(CaptureConfig.model_validate(values), None, tiny.SilentReporter()).teachers
    return report


def block(audited, name, **engine):
    """Return a capture file with one teacher, read here or by a server."""
    values = served(audited, audited / "model", NOWHERE, name=name, engine=engine)
    if not engine:
        del values["teachers"][0]["engine"]
    return values


def test_each_side_audits_the_other(audited):
    with StubServer(log_probs=of_model(tiny.model())) as server:
        reports = [
            audit(block(audited, "served")),
            audit(block(audited, "served", url=server.url)),
            audit(block(audited, "here", url=server.url)),
        ]
    assert all(report.passed and not report.identity for report in reports)
    names = ("transformers", "vllm server 0.0.stub")
    assert [(report.captured_by, report.asked_by) for report in reports] == [names[::-1], names[1:] * 2, names]
    assert [set(report.measures.scalars) for report in reports] == [{"gold_logprob"}] * 3
    assert all(report.measures.same_tokens > 0.95 for report in reports)


def test_an_audit_finds_another_model_and_shifted_rows(audited):
    with StubServer(log_probs=of_model(tiny.model(seed=7))) as server:
        report = audit(block(audited, "here", url=server.url))
    assert not report.passed
    assert report.diagnosis == (
        "No pattern is recognised: the rows look like those of other weights or of another text.",
    )
    own = of_model(tiny.model())
    with StubServer(log_probs=lambda ids: np.roll(own(ids), 1, axis=0)) as server:
        report = audit(block(audited, "here", url=server.url))
    assert not report.passed
    assert "shifted by one" in " ".join(report.diagnosis)


def test_a_server_is_not_asked_what_it_cannot_give(audited):
    values = block(audited, "states")
    values["teachers"][0] |= {"hidden": {"layers": ["last"]}}
    tiny.run(values)
    with StubServer() as server, pytest.raises(ConfigError, match="a server cannot give what the cache holds"):
        audit(block(audited, "states", url=server.url))


def test_a_plan_says_who_reads_and_measures_the_server(tmp_path, teacher, capsys):
    with StubServer() as server:
        values = CaptureConfig.model_validate(served(tmp_path, teacher, server, positions_per_shard="auto"))
        plan = plan_capture(values)
        print_plan(plan)
        assert server.requests == 0
        measured = plan_capture(values, PlanSettings(measured_sequences=4))
    words = " ".join(capsys.readouterr().out.split())
    assert "a server, which gives the likeliest tokens" in words
    assert "memory, device" not in words
    assert plan.teachers[0].memory.weights_bytes == 0
    assert measured.teachers[0].rates.tokens_per_s > 0
    print_plan(measured)
