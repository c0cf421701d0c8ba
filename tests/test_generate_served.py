"""Completions by a server: the tokens that it drew, the same file after a stop, its identity, and its faults in words.

The server is ``tests/support/stub_server.py``, with its draws in ``stub_generation.py``.
"""

import json
import logging

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import tiny
from cache_tools.errors import ConfigError, CorpusError, IdentityError, LogitcaskError, ModelError
from cache_tools.format.manifest import Sampling
from cache_tools.models.files import weights_sha256
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache
from logitcask import cli
from pipeline.config.generation import GenerateConfig
from pipeline.corpus.policies import RECORD
from pipeline.engines import server_client
from pipeline.generation.completion_requests import (
    COMPLETION_INTERFACES,
    Completion,
    CompletionQuestion,
    request_seed,
)
from pipeline.generation.run import run_generation
from pipeline.generation.trial import Count, check_drawing
from processes import finish, kill_at_rename, start
from refusal_fixtures import write_yaml
from stub_generation import asked, continued, rows_of
from stub_server import MODEL, StubServer, two_matrices
from student_fixtures import student_values, train
from trainer.verdicts.policy import learned_from

STOPS = list(range(40, 60))
"""Enough ids that about half of the completions end with one."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(server_client, "PAUSE_SECONDS", 0.0)


def stops(folder, ids=STOPS):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a tokenizer, a configuration and stop tokens, and no weights."""
    folder = tmp_path_factory.mktemp("bare")
    tiny.tokenizer().save_pretrained(folder)
    tiny.model().config.save_pretrained(folder)
    return stops(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole model folder with the same stop tokens."""
    return stops(tiny.save_teacher(tmp_path_factory.mktemp("model") / "model"))


def generation_values(folder, model, server, output="completions", engine=None, **changes):
    """Return a generation file of 12 short prompts; ``changes`` are sampling keys, or others."""
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        tiny.write_corpus(prompts, [" ".join(text.split()[: 2 + i % 5]) for i, text in enumerate(tiny.TEXTS[:12])])
    served = {"kind": "server", "url": getattr(server, "url", server), "served_model": MODEL} | (engine or {})
    values = {"output": str(folder / output), "policy": {"model": str(model), "engine": served}}
    values |= {"prompts": {"paths": [str(prompts)]}, "sampling": {"max_new_tokens": 10}, "part_completions": 5}
    for key, value in changes.items():
        (values if key in GenerateConfig.model_fields else values["sampling"])[key] = value
    return values


def generate(folder, model, server, output="completions", engine=None, **changes):
    values = generation_values(folder, model, server, output, engine, **changes)
    return run_generation(GenerateConfig.model_validate(values), Reporter())


def lines(folder):
    """Return the completions of a folder by id."""
    records = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return {record["id"]: record for record in records}


def contents(folder):
    """Return the finished files; a killed process leaves a partial one behind."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".partial"}


# What is asked, and what is kept


@pytest.mark.parametrize("kind", ["completions", "sglang"])
def test_the_file_holds_the_tokens_that_the_server_drew_for_the_request_of_each_prompt(tmp_path, bare, kind):
    with StubServer() as server:
        result = generate(tmp_path, bare, server, engine={"request": kind}, seed=7)
        drawn = {question_seed(question): (question, tokens) for question, tokens in server.questions}
    written = lines(tmp_path / "completions")
    assert (result.completions, result.written) == (12, 12)
    assert 0 < result.stopped < 12
    for name, line in written.items():
        question, tokens = drawn[request_seed(7, name, 0)]
        assert question.get("prompt", question.get("input_ids")) == line["ids"][: line["prompt_tokens"]]
        assert line["ids"][line["prompt_tokens"] :] == tokens
        assert line["stop"] == ("token" if tokens[-1] in STOPS else "length")
        assert line["mask"] == [0] * line["prompt_tokens"] + [1] * line["completion_tokens"]


def question_seed(question):
    return question.get("seed", question.get("sampling_params", {}).get("sampling_seed"))


def test_a_request_leaves_nothing_to_the_servers_own_settings(tmp_path, bare):
    changes = {"temperature": 0.7, "top_p": 0.9, "top_k": 30}
    asked = {}
    for kind in ("completions", "sglang"):
        with StubServer() as server:
            generate(tmp_path, bare, server, kind, {"request": kind}, **changes)
            question, _ = server.questions[-1]
            asked[kind] = question.get("sampling_params", question)
    same = {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0, "repetition_penalty": 1, "stop_token_ids": STOPS}
    same |= {"n": 1, "presence_penalty": 0, "frequency_penalty": 0, "skip_special_tokens": False}
    own = {"completions": {"max_tokens": 10, "ignore_eos": True, "return_token_ids": True, "model": MODEL}}
    own["sglang"] = {"max_new_tokens": 10, "no_stop_trim": True}
    for kind, settings in asked.items():
        assert settings.items() >= (same | own[kind]).items()
        assert 0 <= settings["seed" if kind == "completions" else "sampling_seed"] < 2**53


def test_the_likeliest_tokens_are_those_of_the_servers_model(tmp_path, bare):
    with StubServer() as server:
        generate(tmp_path, bare, server, temperature=0, max_new_tokens=6)
    log_probs = two_matrices()
    for line in lines(tmp_path / "completions").values():
        rows = log_probs(line["ids"])[line["prompt_tokens"] :]
        assert rows.argmax(axis=1).tolist() == line["ids"][line["prompt_tokens"] :]


def test_tokens_are_drawn_as_often_as_the_servers_model_predicts(tmp_path, bare):
    """The mean log-probability of the drawn tokens is minus the mean entropy, within five standard errors."""
    with StubServer() as server:
        generate(tmp_path, bare, server, samples_per_prompt=8, part_completions=256)
    log_probs, excess = two_matrices(), []
    for line in lines(tmp_path / "completions").values():
        rows, drawn = (part[line["prompt_tokens"] :] for part in (log_probs(line["ids"]), line["ids"]))
        entropy = -(np.exp(rows) * rows).sum(axis=1)
        excess += (rows[np.arange(len(drawn)), drawn] + entropy).tolist()
    assert len(excess) > 400
    assert abs(np.mean(excess)) < 5 * np.std(excess) / len(excess) ** 0.5


def test_ids_without_a_token_are_ruled_out(tmp_path, bare):
    wide = tmp_path / "wide"
    tiny.tokenizer().save_pretrained(wide)
    (wide / "config.json").write_text(json.dumps({"vocab_size": 300, "model_type": "llama"}))
    has_token = len(tiny.tokenizer(270))
    tiny.tokenizer(270).save_pretrained(wide)
    assert has_token < 300
    with StubServer() as server:
        generate(tmp_path, wide, server, samples_per_prompt=3)
    drawn = [token for line in lines(tmp_path / "completions").values() for token in line["ids"]]
    assert max(drawn) < has_token
    with StubServer("no bias") as server, pytest.raises(ModelError, match="drew an id that has no token"):
        generate(tmp_path, wide, server, "other", samples_per_prompt=3)


# The text depends on neither batches nor stops


@pytest.fixture(scope="module")
def written(tmp_path_factory, bare):
    folder = tmp_path_factory.mktemp("written")
    with StubServer() as server:
        generate(folder, bare, server)
    return folder


@pytest.mark.parametrize("requests", [64, *(pytest.param(count, marks=pytest.mark.slow) for count in (60, 70))])
def test_a_generation_that_lost_its_server_writes_the_same_bytes_when_it_is_continued(
    tmp_path, bare, written, requests
):
    with StubServer("hangs up", after=requests) as server, pytest.raises(ModelError, match="does not answer"):
        generate(tmp_path, bare, server, part_completions=5)
    with StubServer(after=0) as server:
        before = len(lines(tmp_path / "completions"))
        result = generate(tmp_path, bare, server, engine={"requests_in_flight": 1})
    assert result.written == 12 - before
    assert contents(tmp_path / "completions") == contents(written / "completions")


def test_requests_in_flight_and_the_order_of_prompts_change_no_token(tmp_path, bare, written):
    prompts = (written / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("".join(f"{line}\n" for line in reversed(prompts)))
    with StubServer(seconds=0.01) as server:
        generate(tmp_path, bare, server, engine={"requests_in_flight": 3})
        assert server.most == 3
    assert lines(tmp_path / "completions") == lines(written / "completions")


@pytest.mark.slow
def test_further_samples_leave_the_first_as_it_is(tmp_path, bare, written):
    with StubServer() as server:
        generate(tmp_path, bare, server, samples_per_prompt=3)
    completions, first = lines(tmp_path / "completions"), lines(written / "completions")
    assert {name: completions[name] for name in first} == first
    assert len({tuple(completions[f"doc3{end}"]["ids"]) for end in ("", "#1", "#2")}) == 3


def generate_and_die(values):
    kill_at_rename("completions-00001.jsonl", lambda: run_generation(GenerateConfig.model_validate(values), Reporter()))


@pytest.mark.slow  # test_a_generation_that_lost_its_server_... is the fast one
def test_a_killed_generation_continues_to_the_same_bytes(tmp_path, bare, written):
    with StubServer() as server:
        assert finish(start(generate_and_die, generation_values(tmp_path, bare, server))) == -9
        assert len(lines(tmp_path / "completions")) == 5
        generate(tmp_path, bare, server)
    assert contents(tmp_path / "completions") == contents(written / "completions")


# Faults

FAULTS = {
    "no ids": (ModelError, "the server returned no token ids (expected the ids that it drew", "other tokens than"),
    "texts": (ModelError, "a completion holds something else than token ids", "token_id:"),
    "two": (ModelError, "another number of completions than it was asked for (expected 1, found 2)", "a rule"),
    "hidden": (ModelError, "the server counts other tokens than it returned", "such as reasoning"),
    "empty": (ModelError, "the server wrote nothing", "at least a stop token"),
    "longer": (ModelError, "wrote more tokens than it was asked for (expected at most 10 tokens", "found 13 tokens"),
    "shorter": (ModelError, "the server cut a completion that had room left", "--max-model-len"),
    "goes on": (ModelError, "the server went on behind a stop token", "expected an end at id "),
    "stop text": (ModelError, "the server stopped at something else than a stop token", "generation_config.json"),
    "filtered": (ModelError, "neither a stop token nor its length", "found 'content_filter'"),
    "no reason": (ModelError, "neither a stop token nor its length", "found None"),
    "beyond": (IdentityError, "a completion holds an id beyond the vocabulary (expected ids below 300", "found 305"),
    "no prompt": (ModelError, "the server does not say which prompt it read", "may have cut the prompt"),
    "beginning": (IdentityError, "the server added 1 of its own tokens before those it was sent", "prompt 'doc"),
    "ending": (IdentityError, "the server added 1 of its own tokens to those it was sent", "or a template"),
    "cut": (IdentityError, "the server cut the prompt", "shorten what it reads"),
    "other ids": (IdentityError, "the server read other token ids than it was sent", "token 2"),
    "other model": (IdentityError, f"another model answered than was asked (expected {MODEL}, found another)", ""),
    "no seed": (ModelError, "the server ignores the seed", "--enable-deterministic-inference"),
    "greedy": (ModelError, "the server does not draw from its own predictions", "--generation-config vllm"),
    "tempered": (ModelError, "the server does not draw from its own predictions", "at temperature 1 about"),
    "own top_k": (ModelError, "the server does not draw from its own predictions", "and 0)"),
    "own top_p": (ModelError, "the server does not draw from its own predictions", "outside the 20 likeliest"),
    "limit": (ModelError, "the server refuses the request", "greater than max allowed"),
    "busy": (ModelError, "the server does not answer", "state 503: the engine is restarting"),
    "slow": (ModelError, "the server does not answer (found nothing within 0.05 seconds)", "same command again"),
    "hangs up": (ModelError, "the server does not answer (found no connection", "same command again"),
    "no json": (ModelError, "the server's answer is no JSON object", "<html>welcome"),
    "endless": (ModelError, "the server's answer is longer than", "at most 1,"),
}
"""What a server does, by its name in the stub, and what the refusal says of it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_misbehaves_is_refused_with_what_it_did(tmp_path, bare, fault):
    kind, problem, detail = FAULTS[fault]
    engine = {"timeout_seconds": 0.05 if fault == "slow" else 600}
    with StubServer(fault) as server, pytest.raises(LogitcaskError) as refused:
        generate(tmp_path, bare, server, engine=engine)
    assert type(refused.value) is kind
    assert problem in str(refused.value)
    assert detail in str(refused.value)
    assert "http://127.0.0.1:" in str(refused.value)
    assert not list((tmp_path / "completions").glob("*.jsonl"))


def test_no_two_faults_share_a_sentence_unless_they_are_one():
    assert len({problem.split("(")[0].strip() for _, problem, _ in FAULTS.values()}) >= 20


@pytest.mark.parametrize(
    ("fault", "changes", "problem"),
    [
        ("no top_k", {"top_k": 5}, "the server ignores top_k"),
        ("no top_p", {"top_p": 0.5}, "the server ignores top_p"),
        ("no temperature", {"temperature": 0}, "the server ignores temperature"),
        ("no temperature", {"temperature": 0.5}, "the server ignores temperature"),
    ],
)
def test_settings_of_the_file_that_a_server_ignores_are_found(tmp_path, bare, fault, changes, problem):
    with StubServer(fault) as server, pytest.raises(ModelError, match=problem):
        generate(tmp_path, bare, server, **changes)
    with StubServer() as server:
        generate(tmp_path, bare, server, "other", **changes)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("no ids", "no token ids"),
        ("cut", "cut the prompt"),
        ("no seed", "ignores the seed"),
        ("goes on", "behind"),
        ("tempered", "own predictions"),
    ],
)
def test_so_is_one_of_another_kind(tmp_path, bare, fault, problem):
    with StubServer(fault) as server, pytest.raises(LogitcaskError, match=problem):
        generate(tmp_path, bare, server, engine={"request": "sglang"})


def test_a_server_that_goes_wrong_later_costs_one_part(tmp_path, bare):
    with StubServer("longer", after=66) as server, pytest.raises(ModelError, match="more tokens than"):
        generate(tmp_path, bare, server, part_completions=5, engine={"requests_in_flight": 1})
    assert [path.name for path in sorted((tmp_path / "completions").glob("*.jsonl"))] == ["completions-00000.jsonl"]


def test_rounding_between_requests_is_stated_and_not_refused(tmp_path, bare, caplog):
    with StubServer("rounding") as server, caplog.at_level(logging.WARNING):
        generate(tmp_path, bare, server)
    assert "Rounding changes a draw now and then" in caplog.text


def test_a_server_that_states_no_probabilities_is_used_with_a_warning(tmp_path, bare, caplog):
    with StubServer("no rows") as server, caplog.at_level(logging.WARNING):
        generate(tmp_path, bare, server)
    assert "how it draws is not checked" in caplog.text


def in_process(fault=""):
    """Return what a trial asks, without a server in between."""
    log_probs = two_matrices()

    def ask(questions):
        answers = []
        for question in questions:
            settings = asked(COMPLETION_INTERFACES["completions"].body(question))
            ids, _ = continued(log_probs, question.ids, settings, fault)
            rows = rows_of(log_probs, question.ids, ids, question.likeliest)
            answers.append(Completion(ids, [dict(row) for row in rows]))
        return answers

    return ask


def probes(sampling, seed):
    return [CompletionQuestion(str(i), MODEL, [3, 5 + i], 64 * seed + i, sampling) for i in range(64)]


def test_the_trial_refuses_no_server_that_draws_as_it_predicts():
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=30, max_new_tokens=16, samples_per_prompt=1, seed=0)
    for seed in range(4):
        check_drawing(probes(sampling, seed), sampling, in_process(), "here")


@pytest.mark.parametrize("fault", ["tempered", "own top_p", "own top_k", "greedy"])
def test_the_trial_finds_another_distribution_whatever_the_seed(fault):
    sampling = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=16, samples_per_prompt=1, seed=0)
    for seed in range(3):
        with pytest.raises(ModelError, match="does not draw from its own predictions"):
            check_drawing(probes(sampling, seed), sampling, in_process(fault), "here")


def test_a_count_is_unlikely_beyond_five_standard_deviations():
    """Of 400 draws of probability 0.2: mean 80, standard deviation 8, and three draws of room."""
    for found, likely in ((80, True), (122, True), (124, False), (38, True), (36, False)):
        count = Count.of((number < found, 0.2) for number in range(400))
        assert (count.expected, count.variance) == pytest.approx((80, 64))
        assert count.is_likely is likely


def test_prompts_that_leave_no_room_at_the_server_are_refused(tmp_path, bare):
    with StubServer() as server, pytest.raises(CorpusError, match="this prompt and its completion are longer"):
        generate(tmp_path, bare, server, max_new_tokens=48)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("device", "cpu", "engine and device exclude each other: the server decides"),
        ("attention", "eager", "engine and attention exclude each other"),
        ("batch_prompts", 4, "set engine.requests_in_flight"),
    ],
)
def test_what_a_server_decides_is_no_key_of_the_file(tmp_path, bare, key, value, problem):
    values = generation_values(tmp_path, bare, "http://127.0.0.1:9/v1")
    (values if key == "batch_prompts" else values["policy"])[key] = value
    with pytest.raises(ValidationError, match=problem):
        GenerateConfig.model_validate(values)


def test_a_key_of_the_server_that_is_not_set_is_refused(tmp_path, bare):
    with StubServer(key="secret") as server, pytest.raises(ConfigError, match="the server's key is not there"):
        generate(tmp_path, bare, server, engine={"key_variable": "NO_SUCH_KEY"})


# Who wrote it


def policy(folder):
    return json.loads((folder / "completions" / RECORD).read_bytes())["policy"]


def test_what_is_known_of_a_server_is_its_identity_and_its_address_is_not_kept(tmp_path, bare, written):
    recorded = policy(written)
    facts = {"name": "vllm server", "version": "0.0.stub", "model": MODEL, "request": "completions"}
    assert recorded["engine"] == facts
    assert (recorded["weights"], recorded["dtype"], recorded["student"]) == (None, None, None)
    assert recorded["sampling"]["stop_ids"] == STOPS
    assert not any(b"127.0.0.1" in content for content in contents(written / "completions").values())
    with StubServer() as server, pytest.raises(IdentityError, match=r"policy\.engine\.name"):
        generate(written, bare, server, engine={"request": "sglang"})


def test_weights_are_hashed_where_the_file_says_that_they_are_served(tmp_path, bare, model):
    with StubServer() as server:
        generate(tmp_path, model, server, engine={"same_weights": True})
        assert policy(tmp_path)["weights"] == weights_sha256(model)
        with pytest.raises(ModelError):
            generate(tmp_path, bare, server, "other", engine={"same_weights": True})
        with pytest.raises(IdentityError, match="weights"):
            generate(tmp_path, model, server)


@pytest.fixture(scope="module")
def caches(tmp_path_factory, model):
    """Completions of a server, scored by the model: once with the weights stated, once unknown."""
    folders = {}
    for name in ("stated", "unknown"):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        with StubServer() as server:
            generate(folder, model, server, engine={"same_weights": name == "stated"})
        values = tiny.capture_values(folder, model)
        values["corpus"] |= {"paths": [str(folder / "completions")], "ids_field": "ids", "mask_field": "mask"}
        tiny.run(values)
    return {name: folder / "cache" for name, folder in folders.items()}


def explained(folder, cache):
    settings = write_yaml(folder, student_values(cache, folder / "run"))
    result = CliRunner().invoke(cli, ["train", str(settings), "--explain"])
    assert result.exit_code == 0, result.output
    return next(line for line in result.stdout.splitlines() if line.startswith("Text: "))


def test_explain_says_on_whose_word_the_teacher_wrote_the_text(caches, tmp_path):
    assert explained(tmp_path, caches["stated"]) == (
        "Text: teacher: the same model wrote and scored the text, by the hash of the folder that the generation file "
        "names as served by vllm server 0.0.stub (written in an unknown type in an engine, scored in float32, which "
        "round differently), at temperature 1 without truncation: its tokens are draws from that model's own "
        "distribution."
    )


def test_explain_says_that_the_weights_of_a_writer_are_unknown(caches, tmp_path):
    assert explained(tmp_path, caches["unknown"]) == (
        f"Text: unknown: vllm server 0.0.stub (its model {MODEL}) wrote it, at temperature 1 without truncation: "
        "its tokens are draws from that model's own distribution; its weights are unknown, so nothing shows whether "
        "its prefixes are the teacher's, the student's or others."
    )


def test_training_can_require_the_teacher_only_where_the_writers_weights_are_stated(caches, tmp_path):
    assert train(caches["stated"], tmp_path / "run", require_policy="teacher").exists()
    with pytest.raises(IdentityError, match=r"by vllm server 0\.0\.stub \(its model stub-1b\), weights unknown"):
        train(caches["unknown"], tmp_path / "other", require_policy="teacher")


def test_a_server_that_scores_its_own_text_is_not_taken_for_a_known_model(tmp_path, bare):
    with StubServer() as server:
        generate(tmp_path, bare, server)
        values = tiny.capture_values(tmp_path, bare)
        values["corpus"] |= {"paths": [str(tmp_path / "completions")], "ids_field": "ids", "mask_field": "mask"}
        engine = {"kind": "server", "url": server.url, "served_model": MODEL}
        values["teachers"] = [{"name": "toy", "model": str(bare), "target": {"k": 16}, "engine": engine}]
        tiny.run(values)
    sentence = explained(tmp_path, tmp_path / "cache")
    assert sentence.startswith("Text: unknown: ")
    assert "neither side's weights are known" in sentence
    with pytest.raises(IdentityError, match="weights unknown"):
        train(tmp_path / "cache", tmp_path / "run", require_policy="teacher")
    assert learned_from([Cache(tmp_path / "cache").encoding().teacher()]) == ([], [])


def test_inspect_shows_what_is_known_of_the_writer(caches):
    shown = {}
    for name, cache in caches.items():
        printed = CliRunner().invoke(cli, ["inspect", str(cache), "--sample", "0"]).stdout
        shown[name] = " ".join(printed.replace("│", "").split())
    assert "read by vllm server 0.0.stub" in shown["stated"]
    assert "(of the folder that was named as served)" in shown["stated"]
    assert "weights unknown" in shown["unknown"]
