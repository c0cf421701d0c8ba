"""Completions: which tokens are drawn, the same bytes after a stop, and a corpus that says who wrote it."""

import json
import shutil
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

import tiny
from cache_tools.errors import ConfigError, CorpusError, IdentityError, IncompleteError, ModelError, StorageError
from cache_tools.format.manifest import Sampling
from cache_tools.inspection.summary import summarise
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache
from json_schema import mismatches
from logitcask import cli
from pipeline.config.generation import GenerateConfig
from pipeline.corpus.policies import RECORD
from pipeline.generation import folder as generation_folder
from pipeline.generation import run as generation
from pipeline.generation.drawing import POSITION_STEP, TOKEN_STEP, draw_key, gumbel_noise, processors
from pipeline.generation.run import GenerateResult, run_generation
from processes import PROCESSES, TIMEOUT_SECONDS, finish, start
from refusal_fixtures import other_tokenizer, write_yaml
from student_fixtures import LLAMA, StoppedError, student_values, train
from trainer.verdicts.policy import learned_from

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WHOLE = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=4, samples_per_prompt=1, seed=0)


def generation_values(folder, teacher, output="completions", **changes):
    """Return a generation file, as a dictionary, of 12 short prompts; ``changes`` are sampling keys, or others."""
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        tiny.write_corpus(prompts, [" ".join(text.split()[: 2 + i % 5]) for i, text in enumerate(tiny.TEXTS[:12])])
    values = {"output": str(folder / output), "policy": {"model": str(teacher), "dtype": "float32"}}
    values |= {"prompts": {"paths": [str(prompts)]}, "sampling": {"max_new_tokens": 10, "seed": 7}}
    values |= {"batch_prompts": 4, "part_completions": 5}
    for key, value in changes.items():
        (values if key in GenerateConfig.model_fields else values["sampling"])[key] = value
    return values


def generate(folder, teacher, output="completions", **changes):
    values = generation_values(folder, teacher, output, **changes)
    return run_generation(GenerateConfig.model_validate(values), Reporter())


def lines(folder):
    """Return the completions of a folder by id."""
    records = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return {record["id"]: record for record in records}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def capture_values(folder, completions, teacher, **changes):
    values = tiny.capture_values(folder, teacher, **changes)
    values["corpus"] |= {"paths": [str(completions)], "ids_field": "ids", "mask_field": "mask"}
    return values


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("policy") / "teacher")


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher):
    """A folder with finished completions."""
    folder = tmp_path_factory.mktemp("written")
    result = generate(folder, teacher)
    assert (result.completions, result.written) == (12, 12)
    return folder


@pytest.fixture(scope="module")
def cache(written, teacher):
    """The completions, scored by the model that wrote them."""
    tiny.run(capture_values(written, written / "completions", teacher))
    return Cache(written / "cache")


# Which token is drawn


def hashed(key, position, token):
    """Return the uniform number of a token in plain Python: splitmix64's finaliser, twice."""
    mask = 2**64 - 1

    def mixed(number):
        number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & mask
        number = ((number ^ number >> 27) * 0x94D049BB133111EB) & mask
        return number ^ number >> 31

    state = mixed((key + position * POSITION_STEP) & mask)
    return ((mixed((state + token * TOKEN_STEP) & mask) >> 11) + 0.5) / 2**53


def test_the_noise_is_a_hash_of_prompt_position_and_token():
    keys = [draw_key(3, name, sample) for name, sample in (("a", 0), ("a", 1), ("b", 0))]
    for position in (0, 1, 77):
        noise = gumbel_noise(torch.tensor(keys), position, 50).numpy()
        uniform = np.array([[hashed(key, position, token) for token in range(50)] for key in keys])
        assert np.allclose(noise, -np.log(-np.log(uniform)), rtol=1e-12, atol=1e-12)
    assert len({*keys, draw_key(4, "a", 0)}) == 4


def test_tokens_are_drawn_as_often_as_their_probabilities():
    """Within five standard deviations, for each token."""
    logits, count = torch.randn(20, generator=torch.Generator().manual_seed(0)) * 2, 20_000
    keys = torch.tensor([draw_key(0, str(number), 0) for number in range(count)])
    shares = logits.double().softmax(dim=-1)
    for position in (0, 5):
        drawn = (logits + gumbel_noise(keys, position, 20)).argmax(dim=-1)
        errors = (torch.bincount(drawn, minlength=20) - count * shares) / (count * shares * (1 - shares)).sqrt()
        assert errors.abs().max() < 5


def test_draws_of_neighbouring_positions_and_tokens_are_independent():
    keys = torch.tensor([draw_key(0, str(number), 0) for number in range(200)])
    noise = torch.stack([gumbel_noise(keys, position, 64) for position in range(8)])
    noise = noise.neg().exp().neg().exp()  # uniform numbers again
    assert abs(noise.mean() - 0.5) < 5 / (12 * noise.numel()) ** 0.5
    for left, right in ((noise[1:], noise[:-1]), (noise[..., 1:], noise[..., :-1]), (noise[:, 1:], noise[:, :-1])):
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
        assert abs(correlation) < 5 / left.numel() ** 0.5


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [({}, {0, 1, 3}), ({"top_k": 2}, {1, 3}), ({"top_p": 0.5}, {3}), ({"temperature": 0.0}, {3})],
)
def test_only_tokens_that_exist_and_are_not_cut_off_are_drawn(sampling, possible):
    scores = torch.tensor([[1.0, 2.0, 9.0, 3.0, 9.0]]).expand(200, -1)  # ids 2 and 4 have no token
    has_token = np.array([True, True, False, True])
    keys = torch.tensor([draw_key(0, str(number), 0) for number in range(200)])
    steps = processors(WHOLE.model_copy(update=sampling), has_token, keys, 1)
    ids = torch.zeros(200, 1, dtype=torch.int64)
    assert set(steps(ids, scores).argmax(dim=-1).tolist()) == possible


# The text depends on neither batches nor stops


@pytest.mark.parametrize("stop", ["in a part", "before the record", "at the beginning"])
def test_a_generation_that_was_stopped_writes_the_same_bytes_when_it_is_continued(
    written, teacher, tmp_path, monkeypatch, stop
):
    calls = []

    def stopping(module, name, call):
        original = getattr(module, name)

        def stopped(*arguments, **named):
            calls.append(name)
            if len(calls) == call:
                raise StoppedError
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, stopped)

    module, name, call = {
        "in a part": (generation, "write_part", 2),
        "before the record": (generation_folder, "write_record", 3),
        "at the beginning": (generation_folder, "write_record", 1),
    }[stop]
    stopping(module, name, call)
    changes = {"prompts": {"paths": [str(written / "prompts.jsonl")]}}
    with pytest.raises(StoppedError):
        generate(tmp_path, teacher, **changes)
    monkeypatch.undo()
    result = generate(tmp_path, teacher, **changes)
    assert result.written == (12 if stop == "at the beginning" else 7)
    assert contents(tmp_path / "completions") == contents(written / "completions")


def test_a_second_process_is_refused_while_one_writes_and_continues_when_that_one_is_killed(written, teacher, tmp_path):
    prompts, reached = {"prompts": {"paths": [str(written / "prompts.jsonl")]}}, PROCESSES.Event()
    first = start(generate_and_wait, reached, tmp_path, teacher, prompts)
    try:
        assert reached.wait(TIMEOUT_SECONDS)
        before = contents(tmp_path / "completions")
        with pytest.raises(StorageError, match=f"another process is at work.*process {first.pid} on "):
            generate(tmp_path, teacher, **prompts)
        assert contents(tmp_path / "completions") == before
    finally:
        first.kill()
    finish(first)
    assert generate(tmp_path, teacher, **prompts).written == 7
    assert contents(tmp_path / "completions") == contents(written / "completions")


def generate_and_wait(reached, folder, teacher, changes):
    """Write completions, and stand still before the second part until killed."""
    write = generation.write_part

    def waiting(output, record, part, entries):
        if part == 1:
            reached.set()
            signal.pause()
        return write(output, record, part, entries)

    generation.write_part = waiting
    generate(folder, teacher, **changes)


def test_batches_and_the_order_of_prompts_change_no_token(written, teacher, tmp_path):
    prompts = (written / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("".join(f"{line}\n" for line in reversed(prompts)))
    generate(tmp_path, teacher, batch_prompts=1)
    assert lines(tmp_path / "completions") == lines(written / "completions")


def test_further_samples_leave_the_first_as_it_is_and_share_its_group(written, teacher, tmp_path):
    result = generate(tmp_path, teacher, samples_per_prompt=3)
    completions, first = lines(tmp_path / "completions"), lines(written / "completions")
    assert (result.prompts, result.completions) == (12, 36)
    assert {name: completions[name] for name in first} == first
    assert {completions[f"doc3{end}"]["group"] for end in ("", "#1", "#2")} == {"doc3"}
    assert len({tuple(completions[f"doc3{end}"]["ids"]) for end in ("", "#1", "#2")}) == 3


def test_the_likeliest_tokens_are_those_of_the_models_forward_pass(teacher, tmp_path):
    values = generation_values(tmp_path, teacher)
    values["sampling"] = {"temperature": 0, "max_new_tokens": 6}
    run_generation(GenerateConfig.model_validate(values), Reporter())
    model = tiny.model()
    for line in lines(tmp_path / "completions").values():
        ids, start = torch.tensor([line["ids"]]), line["prompt_tokens"]
        with torch.inference_mode():
            assert model(ids).logits[0, start - 1 : -1].argmax(dim=-1).tolist() == line["ids"][start:]


def test_a_stop_token_ends_a_completion_and_belongs_to_it(written, teacher, tmp_path):
    drawn = [line["ids"][line["prompt_tokens"] :] for line in lines(written / "completions").values()]
    stop = drawn[0][4]
    made = tiny.model()
    made.generation_config.eos_token_id = [stop, 2]  # 2 ended the others, by the configuration
    made.generation_config.repetition_penalty = 5.0  # is not used: it would change every text
    folder = tiny.save_teacher(tmp_path / "teacher", made)
    generate(tmp_path, folder)
    for line, whole in zip(lines(tmp_path / "completions").values(), drawn, strict=True):
        ends = [place for place, token in enumerate(whole) if token in (stop, 2)]
        assert line["ids"][line["prompt_tokens"] :] == (whole[: ends[0] + 1] if ends else whole)
        assert line["stop"] == ("token" if ends else "length")
        assert line["mask"] == [0] * line["prompt_tokens"] + [1] * line["completion_tokens"]


def test_refuses_a_model_that_reads_the_padding(teacher, tmp_path, monkeypatch):
    original = type(tiny.model()).forward

    def blind(self, input_ids=None, attention_mask=None, position_ids=None, **named):
        return original(self, input_ids=input_ids, **named)

    monkeypatch.setattr(type(tiny.model()), "forward", blind)
    with pytest.raises(ModelError, match="the padding before a prompt changes what this model writes"):
        generate(tmp_path, teacher)
    assert not list((tmp_path / "completions").glob("*.jsonl"))


# Prompts


def test_a_chat_is_answered_in_place_of_its_last_reply(tmp_path):
    made = tiny.tokenizer()
    made.chat_template = CHATML
    folder = tiny.save_teacher(tmp_path / "teacher")
    made.save_pretrained(folder)
    asked = [{"role": "user", "content": "the value"}]
    chat = [*asked, {"role": "assistant", "content": "an old reply"}]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "messages": chat}) + "\n")
    prompts = {"paths": [str(tmp_path / "prompts.jsonl")], "messages_field": "messages"}
    generate(tmp_path, folder, prompts=prompts)
    (line,) = lines(tmp_path / "completions").values()
    before = made("<|im_start|>user\nthe value<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    assert line["ids"][: line["prompt_tokens"]] == before["input_ids"]
    assert line["messages"] == [*asked, {"role": "assistant", "content": line["completion"]}]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "messages": chat[1:]}) + "\n")
    with pytest.raises(CorpusError, match="this chat asks nothing"):
        generate(tmp_path, folder, "other", prompts=prompts)


def test_refuses_prompts_that_cannot_be_continued(teacher, tmp_path):
    path = tmp_path / "prompts.jsonl"
    prompts = {"paths": [str(path)], "ids_field": "ids"}
    for ids, problem in (
        ([], "no token"),
        ([5] * 119, "longer than the model"),
        ([300], "not in the tokenizer's vocabulary"),
    ):
        path.write_text(json.dumps({"id": "a", "ids": ids}) + "\n")
        with pytest.raises(CorpusError, match=problem):
            generate(tmp_path, teacher, prompts=prompts)
    path.write_text(json.dumps({"id": "a", "ids": [5] * 118}) + "\n")
    assert generate(tmp_path, teacher, prompts=prompts).prompt_tokens == 118


def test_refuses_an_output_among_the_prompts(teacher, tmp_path):
    with pytest.raises(ConfigError, match="the output lies inside a folder of prompts"):
        generate(tmp_path, teacher, prompts={"paths": [str(tmp_path)]})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"temperature": 0}, "does not use seed"),
        ({"prompts": {"paths": ["a"], "held_out_fraction": 0.1}}, "prompts do not use held_out_fraction"),
        ({"policy": {"model": "a", "device": "cpu", "device_map": "auto"}}, "exclude each other"),
    ],
)
def test_refuses_keys_without_an_effect(tmp_path, changes, problem):
    with pytest.raises(ValueError, match=problem):
        GenerateConfig.model_validate(generation_values(tmp_path, "a", **changes))


# The corpus says who wrote it


def test_a_capture_keeps_the_drawn_tokens_alone_and_records_who_drew_them(written, cache, teacher):
    encoding = cache.encoding()
    completions = lines(written / "completions")
    sequences = [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    assert {s.document_id for s in sequences} == set(completions)
    for sequence in sequences:
        line = completions[sequence.document_id]
        assert sequence.gold_ids("causal").tolist() == line["ids"][line["prompt_tokens"] :]
    (entry,) = encoding.manifest.parts[0].written_by
    assert entry.files == ("completions-00000.jsonl", "completions-00001.jsonl", "completions-00002.jsonl")
    identity = cache.encoding().teacher("toy").manifest.identity
    assert (entry.policy.weights, entry.policy.dtype) == (identity["weights"], identity["dtype"])
    assert entry.policy.tokenizer == encoding.manifest.identity["tokenizer"]


def test_a_stranger_reads_who_wrote_the_text(written, cache):
    """By FORMAT.md alone: JSON and the tables."""
    folder = cache.path / "encodings" / "main"
    (part,) = json.loads((folder / "zarr.json").read_bytes())["attributes"]["logitcask"]["parts"]
    (entry,) = part["written_by"]
    table = pa.ipc.open_file(folder / "parts" / "00000" / "files.arrow").read_all()
    assert set(entry["files"]) == set(table.column("name").to_pylist())
    assert entry["policy"]["sampling"]["temperature"] == 1
    assert entry["policy"] == json.loads((written / "completions" / RECORD).read_bytes())["policy"]


def test_ordinary_text_has_no_writer_in_its_manifest(tmp_path, teacher):
    cache = tiny.capture(tmp_path, teacher)
    assert b"written_by" not in (cache.path / "encodings" / "main" / "zarr.json").read_bytes()
    assert summarise(cache).encodings[0].facts.written_by == ()


def test_inspect_shows_who_wrote_the_text(cache):
    facts = summarise(cache).encodings[0].facts
    assert facts.wholly_written
    shown = CliRunner().invoke(cli, ["inspect", str(cache.path), "--sample", "0"]).stdout
    assert "temperature 1, at most 10 tokens, seed 7 · weights " in shown


def test_a_subset_keeps_who_wrote_its_text(cache, tmp_path):
    subset_cache(cache, tmp_path / "subset", Choice(split="train"))
    before, after = (summarise(place).encodings[0].facts for place in (cache, Cache(tmp_path / "subset")))
    assert after.written_by == before.written_by
    assert after.wholly_written


def test_text_of_completions_is_an_ordinary_corpus(written, tmp_path, teacher, caplog):
    values = tiny.capture_values(tmp_path, teacher, paths=[str(written / "completions")])
    tiny.run(values)
    assert "they are not read as the tokens that it drew" in caplog.text
    assert summarise(Cache(values["cache"])).encodings[0].facts.written_by == ()


def test_a_part_without_a_writer_is_said_to_have_none(written, tmp_path, teacher):
    values = capture_values(tmp_path, written / "completions", teacher)
    tiny.run(values)
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "more", "ids": [5, 6, 7], "mask": [1, 1, 1]}) + "\n")
    values["corpus"]["paths"].append(str(tmp_path / "more.jsonl"))
    tiny.run(values, append=True)
    facts = summarise(Cache(values["cache"])).encodings[0].facts
    assert len(facts.written_by) == 1
    assert not facts.wholly_written
    text_by, scored_by = learned_from([Cache(values["cache"]).encoding().teacher()])
    assert text_by == []
    assert scored_by == [facts.written_by[0].weights]


# Refusals


@pytest.fixture
def copied(written, tmp_path):
    """A copy of the completions, to be changed, beside the same prompts."""
    shutil.copytree(written / "completions", tmp_path / "completions")
    shutil.copy(written / "prompts.jsonl", tmp_path)
    return tmp_path


def edit(path):
    path.write_text(path.read_text().replace('"ids": [', '"ids": [9, ', 1).replace('"mask": [', '"mask": [0, ', 1))


def test_refuses_completions_that_were_edited(copied, teacher):
    edit(copied / "completions" / "completions-00001.jsonl")
    with pytest.raises(IdentityError, match="this file does not hold what the model wrote"):
        tiny.run(capture_values(copied, copied / "completions", teacher))
    with pytest.raises(IdentityError, match="this file does not hold what the model wrote"):
        generate(copied, teacher)
    (copied / "completions" / "completions-00001.jsonl").unlink()
    assert generate(copied, teacher).written == 5


def test_refuses_files_that_the_model_did_not_write(copied, teacher):
    tiny.write_corpus(copied / "completions" / "more.jsonl")
    with pytest.raises(IdentityError, match=r"a file that policy\.json lists"):
        tiny.run(capture_values(copied, copied / "completions", teacher))


def test_refuses_completions_that_are_not_finished(copied, teacher):
    record = json.loads((copied / "completions" / RECORD).read_bytes())
    del record["files"]["completions-00002.jsonl"]
    (copied / "completions" / RECORD).write_text(json.dumps(record))
    with pytest.raises(IncompleteError, match="expected 3 files, found 2"):
        tiny.run(capture_values(copied, copied / "completions", teacher))


def test_refuses_tokens_of_another_tokenizer(copied):
    other = other_tokenizer(copied / "other")
    with pytest.raises(IdentityError, match="has another tokenizer than the encoding"):
        tiny.run(capture_values(copied, copied / "completions", other))
    assert not (copied / "cache").exists()


def test_refuses_to_continue_with_another_model_or_other_settings(copied, teacher):
    other = tiny.save_teacher(copied / "other", tiny.model(seed=1))
    for changes, key in (({"teacher": other}, "policy.weights"), ({"temperature": 0.5}, "policy.sampling.temperature")):
        model = changes.pop("teacher", teacher)
        with pytest.raises(IdentityError, match=key):
            generate(copied, model, **changes)
    (copied / "prompts.jsonl").write_text(json.dumps({"id": "a", "text": "the"}) + "\n")
    with pytest.raises(IdentityError, match=r"prompts\.sha256"):
        generate(copied, teacher)


def test_refuses_a_folder_with_other_files(copied, teacher):
    (copied / "completions" / RECORD).unlink()
    with pytest.raises(IdentityError, match=r"no policy\.json says who wrote them"):
        generate(copied, teacher)


def test_refuses_a_damaged_policy(copied, teacher):
    (copied / "completions" / RECORD).write_text("{")
    result = CliRunner().invoke(
        cli, ["capture", str(write_yaml(copied, capture_values(copied, copied / "completions", teacher)))]
    )
    assert "does not say who wrote the completions" in str(result.exception)


# Training on it


def explained(folder, cache, **changes):
    values = student_values(cache, folder / "run", **changes)
    result = CliRunner().invoke(cli, ["train", str(write_yaml(folder, values)), "--explain"])
    assert result.exit_code == 0, result.output
    return next((line for line in result.stdout.splitlines() if line.startswith("Text: ")), None)


def test_explain_says_that_the_teacher_wrote_the_text(cache, tmp_path):
    assert explained(tmp_path, cache.path) == (
        "Text: teacher: the same model wrote and scored the text, at temperature 1 without truncation: its tokens are "
        "draws from that model's own distribution."
    )


def test_explain_says_nothing_of_ordinary_text(tmp_path, teacher):
    assert explained(tmp_path, tiny.capture(tmp_path, teacher).path) is None


@pytest.fixture(scope="module")
def rollouts(cache, written, teacher, tmp_path_factory):
    """A student of the teacher's text, and a cache of its rollouts that the teacher has scored."""
    folder = tmp_path_factory.mktemp("rollouts")
    student = train(cache.path, folder / "run")
    generate(folder, student, policy={"model": str(student)}, temperature=0.8)
    tiny.run(capture_values(folder, folder / "completions", teacher))
    return folder, student


def test_rollouts_carry_the_run_and_the_step_of_their_student(rollouts, teacher, cache):
    folder, _ = rollouts
    (entry,) = Cache(folder / "cache").encoding().manifest.parts[0].written_by
    identity = cache.encoding().teacher("toy").manifest.identity
    assert entry.policy.student.step == 3
    assert entry.policy.student.text_by == entry.policy.student.scored_by == (identity["weights"],)


def test_explain_calls_rollouts_of_the_students_own_weights_on_policy_at_the_start(rollouts, tmp_path):
    folder, student = rollouts
    sentence = explained(tmp_path, folder / "cache", student={"pretrained": str(student)})
    assert sentence.startswith("Text: at the start: a student at step 3 of run ")
    assert "at temperature 0.8: likelier text" in sentence
    assert "stale prefixes harm this divergence less than reverse KL" in sentence
    assert "the teacher that scores it also wrote the text that it learned from before" in sentence


def test_explain_calls_reverse_kl_on_stale_rollouts_biased(rollouts, tmp_path):
    folder, _ = rollouts
    changes = {"loss": {"divergence": "reverse_kl"}, "student": {"config": LLAMA}}
    sentence = explained(tmp_path, folder / "cache", **changes)
    assert sentence.startswith("Text: stale: ")
    assert "reverse KL on stale prefixes is a biased estimate of on-policy reverse KL" in sentence


def test_training_can_require_that_the_teacher_wrote_the_text(rollouts, cache, tmp_path, teacher):
    assert train(cache.path, tmp_path / "run", require_policy="teacher").exists()
    with pytest.raises(
        IdentityError, match=r"did not write it \(expected .*, found completions by a student at step 3"
    ):
        train(rollouts[0] / "cache", tmp_path / "other", require_policy="teacher")
    plain = tiny.capture(tmp_path, teacher)
    with pytest.raises(IdentityError, match="no model is recorded as its writer"):
        train(plain.path, tmp_path / "plain", require_policy="teacher")


def test_refuses_a_student_whose_record_is_damaged(rollouts, tmp_path):
    shutil.copytree(rollouts[1], tmp_path / "student")
    (tmp_path / "student" / "logitcask.json").write_text("[]")
    with pytest.raises(ModelError, match="does not say which run the student comes from"):
        generate(tmp_path, tmp_path / "student")


def test_the_command_prints_the_folder_or_a_result_of_its_schema(teacher, tmp_path):
    settings = write_yaml(tmp_path, generation_values(tmp_path, teacher))
    printed = CliRunner().invoke(cli, ["generate", str(settings)])
    assert printed.stdout == f"{tmp_path / 'completions'}\n"
    assert "12 completions (12 written now): " in printed.stderr
    again = json.loads(CliRunner().invoke(cli, ["generate", str(settings), "--json"]).stdout)
    assert mismatches(again, GenerateResult) == []
    assert again["written"] == 0
