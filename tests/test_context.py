"""A context that only teachers read: students never see it, and rows, gold tokens and identities are those of both."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoModelForCausalLM

import tiny
from alignment_fixtures import save
from cache_tools.alignments.making import align_encoding
from cache_tools.errors import CorpusError, IdentityError
from cache_tools.format import layout
from cache_tools.format.sequences import contradiction, sequences_bytes
from cache_tools.inspection.summary import describe_encoding
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.storage import store_path
from cache_tools.store.reader import Cache, Encoding
from cache_tools.terminal.summary import context_words
from cache_tools.viewer.alignments import aligned_view
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from context_fixtures import (
    CHATML,
    CONTEXTS,
    HINT,
    LENGTH,
    chat_records,
    save_teacher,
    text_records,
    values,
    write_records,
)
from pipeline.audit.run import run_audit
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import EncodingConfig
from pipeline.config.generation import GenerateConfig
from pipeline.corpus.context import Context
from pipeline.corpus.documents import Document
from pipeline.encoding.sequences import encode_documents
from pipeline.generation.run import run_generation
from pipeline.planning.capture_plan import plan_capture
from student_fixtures import LLAMA, student_values, train, weights
from tolerances import loss_rounding
from trainer.config.student_file import StudentConfig
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.run.explanation import print_explanation

BEFORE = {"before": "{passage}\n"}
DENSE = {"kind": "dense"}
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{%- generation -%}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
FORGETFUL = (  # earlier answers are written differently than the last, as templates that drop old reasoning do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}…{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"plain": CHATML, "marked": MARKED, "default system message": DEFAULT, "forgetful": FORGETFUL}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("context") / "teacher")


def all_sequences(cache):
    encoding = Encoding(layout.encoding_folder(store_path(cache), "main"), "main")
    return [sequence for shard in range(len(encoding.shards)) for sequence in encoding.sequences(shard)]


def encoded(folder, made, context, chats=True, **changes):
    """Encode chats or texts; return the sequences by document, as stored and read back."""
    folder.mkdir(exist_ok=True)
    config = CaptureConfig.model_validate(values(folder, folder, context, chats, **changes))
    tiny.encode(config, made)
    return all_sequences(config.cache)


def with_template(template):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def same(left, right):
    """Compare two sequences but for their numbers, and for how many sequences their chats became."""
    left, right = (replace(s, sequence_id=0, first_position=0, turn=None) for s in (left, right))
    return sequences_bytes([left]) == sequences_bytes([right])


# What both read


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_student_reads_a_chat_as_if_there_were_no_context(tmp_path, template, context):
    made = with_template(template)
    plain = encoded(tmp_path / "plain", made, None)
    read = encoded(tmp_path / "context", made, context)
    assert len(read) == len(plain) >= 8
    for own, sequence in zip(plain, read, strict=True):
        assert same(sequence.as_student(), own)
        assert np.array_equal(sequence.gold_ids("causal"), own.gold_ids("causal"))
        assert HINT not in sequence.as_student().text
    with_hint = [HINT in sequence.text for sequence in read]
    assert all(with_hint) or (template == FORGETFUL and set(context) == {"last_user"} and any(with_hint))


def test_a_teacher_reads_system_message_examples_and_hint_in_their_places(tmp_path):
    read = {s.document_id: s for s in encoded(tmp_path, with_template(CHATML), CONTEXTS["all"])}
    messages = chat_records()[3]["messages"]
    said = [
        ("system", "HINT {braces}\n\nthe row"),
        *[("user", "HINT value?"), ("assistant", "HINT the value.")],
        *((m["role"], m["content"]) for m in messages[1:-2]),
        ("user", messages[-2]["content"] + " HINT verse 3"),
        ("assistant", messages[-1]["content"]),
    ]
    assert read["chat3"].text == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said)


def framed(single):
    made = tiny.tokenizer()
    specials = [("<|end|>", 0)] if "<|end|>" in single else []
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return made


FRAMES = {"bare": tiny.tokenizer(), "begin": framed("<|end|> $A"), "both": framed("<|end|> $A <|end|>")}
WORDS = st.text("abc de\n.é🎉", max_size=60)


@settings(deadline=None, max_examples=60)
@given(
    text=WORDS, before=WORDS, frame=st.sampled_from(list(FRAMES)), length=st.integers(8, 40), overlap=st.integers(0, 3)
)
def test_a_student_reads_a_text_as_if_there_were_no_context_and_its_sequences_were_shorter(
    text, before, frame, length, overlap
):
    made = FRAMES[frame]
    size = len(made(before, add_special_tokens=False)["input_ids"])

    def sequences(length, context):
        config = EncodingConfig(max_length_tokens=length, overlap_tokens=overlap)
        document = Document("d", "d", text, None, "here", context=context)
        return [e.sequence for e in encode_documents([document], made, config)]

    plain = sequences(length, None)
    read = sequences(length + size, Context(before=before))
    assert len(read) == len(plain)
    for own, sequence in zip(plain, read, strict=True):
        assert same(sequence.as_student(), own)
        assert np.array_equal(sequence.gold_ids("causal"), own.gold_ids("causal"))
        assert sequence.text == before + own.text
        assert len(sequence.input_ids) == len(own.input_ids) + size
    if read and before:
        numbered = [replace(s, sequence_id=i, first_position=0) for i, s in enumerate(read[:1])]
        assert contradiction(numbered, "causal", 300, 0, 0) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"position_mask": np.zeros(1, bool)}, "keeps other tokens"),
        ({"input_ids": np.array([300], np.uint32)}, "not below 300"),
        ({"text": "longer than its tokens"}, "do not add up"),
    ],
)
def test_readings_that_contradict_each_other_are_found(tmp_path, change, problem):
    sequence = encoded(tmp_path, tiny.tokenizer(), BEFORE, chats=False)[0]
    filled = {
        name: np.resize(value, len(sequence.student.input_ids)) if isinstance(value, np.ndarray) else value
        for name, value in change.items()
    }
    damaged = replace(sequence, student=replace(sequence.student, **filled))
    assert contradiction([sequence], "causal", 300, 0, 0) is None
    assert problem in contradiction([damaged], "causal", 300, 0, 0)


# What is refused


@pytest.mark.parametrize(
    ("context", "chats", "record", "problem"),
    [
        (BEFORE, False, {"passage": None}, "the field 'passage' is not a str"),
        (BEFORE, False, {"passage": 7}, "corpus.context"),
        (CONTEXTS["messages"], True, {"examples": "no list"}, "corpus.context.messages_field"),
        (CONTEXTS["messages"], True, {"examples": [{"content": "who?"}]}, "not an object with a role"),
        (
            CONTEXTS["last user"],
            True,
            {"messages": [{"role": "assistant", "content": "the row"}]},
            "no place in a chat without a user message",
        ),
        (BEFORE, False, {"passage": "the row " * 300}, "a document and its context are longer than one sequence"),
        (CONTEXTS["system"], True, {"style": "the row " * 300}, "a document and its context are longer"),
    ],
)
def test_a_record_whose_context_cannot_be_read_is_named(tmp_path, context, chats, record, problem):
    records = chat_records() if chats else text_records()
    records[4] |= record
    path = write_records(tmp_path / ("chats.jsonl" if chats else "texts.jsonl"), records)
    with pytest.raises(CorpusError) as error:
        encoded(tmp_path, with_template(CHATML), context, chats)
    assert problem in str(error.value)
    assert f"{path}:5" in str(error.value)


def test_a_missing_field_is_an_error(tmp_path):
    records = text_records()
    del records[2]["passage"]
    write_records(tmp_path / "texts.jsonl", records)
    with pytest.raises(CorpusError, match="the field 'passage' is missing"):
        encoded(tmp_path, tiny.tokenizer(), BEFORE, chats=False)


def test_a_template_that_writes_an_answer_differently_with_the_context_is_refused(tmp_path):
    shouting = CHATML.replace("{{ m.content }}", "{{ m.content | upper if messages | length > 3 else m.content }}")
    with pytest.raises(CorpusError, match="writes an answer differently"):
        encoded(tmp_path, with_template(shouting), CONTEXTS["messages"])


def test_an_answer_that_only_the_teacher_can_predict_is_refused(tmp_path):
    """Without the context the answer's only token is the first of the text, before which a student has read nothing."""
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = {"id": "a", "style": "b", "messages": [{"role": "assistant", "content": "a"}]}
    write_records(tmp_path / "chats.jsonl", [chat])
    with pytest.raises(CorpusError, match="not the same tokens with the context and without it"):
        encoded(tmp_path, with_template(bare), CONTEXTS["system"])


@pytest.mark.parametrize(
    ("corpus", "problem"),
    [
        ({"context": {}}, "needs before, system"),
        ({"context": {"before": "{"}}, "write {{ and }} for braces"),
        ({"context": {"before": "{a.upper()!r}"}}, "name of a field"),
        ({"context": {"system": "x"}}, "need corpus.messages_field"),
        ({"context": {"before": "x"}, "messages_field": "m"}, "context.before is for plain text"),
        ({"context": {"before": "x"}, "ids_field": "ids"}, "context needs plain text or chats"),
    ],
)
def test_a_context_of_another_kind_of_corpus_is_refused(tmp_path, corpus, problem):
    given = tiny.capture_values(tmp_path, tmp_path)
    given["corpus"] |= corpus
    with pytest.raises(ValueError, match=problem.replace("{", r"\{")):
        CaptureConfig.model_validate(given)


def test_masked_language_models_have_no_context(tmp_path):
    given = values(tmp_path, tmp_path, BEFORE, chats=False, objective="masked")
    with pytest.raises(ValueError, match=r"corpus\.context is for encoding\.objective: causal"):
        CaptureConfig.model_validate(given)


# Rows


@pytest.fixture(scope="module")
def captured(tmp_path_factory, teacher):
    """Return the capture files of chats and of texts, both captured."""
    folder = tmp_path_factory.mktemp("captured")
    made = {}
    for name, context, chats in (("chats", CONTEXTS["all"], True), ("texts", BEFORE, False)):
        (folder / name).mkdir()
        made[name] = values(folder / name, teacher, context, chats, target=DENSE)
        tiny.run(made[name])
    return made


@pytest.mark.parametrize("name", ["chats", "texts"])
def test_rows_are_those_of_the_teacher_with_the_context_and_gold_those_of_the_student(captured, teacher, name):
    cached = Cache(captured[name]["cache"]).encoding().teacher()
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64).eval()
    for sequence in all_sequences(captured[name]["cache"]):
        with torch.inference_mode():
            logits = model(torch.from_numpy(sequence.input_ids.astype(np.int64))[None]).logits[0]
        expected = logits.log_softmax(1).numpy()[sequence.positions()]
        stored = cached.targets(*sequence.rows)
        rows = np.empty_like(expected)
        np.put_along_axis(rows, stored.ids.astype(np.int64), stored.log_probs.astype(np.float64), axis=1)
        largest = float(logits.abs().max())
        np.testing.assert_allclose(rows, expected, rtol=0, atol=loss_rounding(model.config, LENGTH, largest))
        own = sequence.as_student()
        assert np.array_equal(own.input_ids[own.positions() + 1], sequence.input_ids[sequence.positions() + 1])


def batches(cache, **options):
    data = CachedSequences(Cache(cache).encoding().teacher(), "train", 300, **options)
    return [collate([data[i]]) for i in range(len(data))]


def test_a_student_never_reads_a_context(captured):
    made = tiny.tokenizer()
    for capture in captured.values():
        for batch in batches(capture["cache"]):
            assert HINT not in made.decode(batch["input_ids"][0])


def test_the_same_context_on_both_sides_gives_the_batches_of_today(tmp_path, teacher):
    """An empty context is read by both; what a loss sees is then the same to the bit, and so are loss and gradients."""
    places = {}
    for name, context in (("without", None), ("empty", {"last_user": "", "messages_field": "none"})):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "chats.jsonl", [record | {"none": []} for record in chat_records()])
        given = values(tmp_path / name, teacher, context)
        tiny.run(given)
        places[name] = given["cache"]
    assert any(sequence.student is not None for sequence in all_sequences(places["empty"]))
    for left, right in zip(batches(places["without"]), batches(places["empty"]), strict=True):
        different = {name for name in left if not torch.equal(left[name], right[name])}
        assert different == {"target_sources"}  # which cache it is
    left, right = (weights(train(places[name], tmp_path / f"student-{name}")) for name in places)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# The whole way


def test_an_audit_passes_and_a_cache_verifies(captured):
    for capture in captured.values():
        config = CaptureConfig.model_validate(capture)
        assert all(report.passed for report in run_audit(config, None, tiny.SilentReporter()).teachers)
        assert verify(config.cache, deep=True) == []


def test_another_template_is_another_encoding(tmp_path, teacher):
    given = values(tmp_path, teacher, CONTEXTS["system"])
    config = CaptureConfig.model_validate(given)
    tiny.encode(config, with_template(CHATML))
    given["corpus"]["context"] = {"system": "HINT answer in {style}!"}
    with pytest.raises(IdentityError, match="context"):
        tiny.encode(CaptureConfig.model_validate(given), with_template(CHATML))


def test_copies_subsets_and_appended_documents_keep_both_readings(tmp_path, captured, teacher):
    source = Cache(captured["chats"]["cache"])
    copy_cache(source, tmp_path / "copy")
    subset_cache(source, tmp_path / "subset", Choice(split="train"))
    for place in ("copy", "subset"):
        assert all(s.student is not None and HINT not in s.as_student().text for s in all_sequences(tmp_path / place))
    given = values(tmp_path, teacher, CONTEXTS["all"])
    tiny.run(given)
    more = [record | {"id": f"more {record['id']}"} for record in chat_records()]
    given["corpus"]["paths"].append(str(write_records(tmp_path / "more.jsonl", more)))
    tiny.run(given, append=True)
    appended = all_sequences(given["cache"])
    assert len(appended) == 16
    assert all(HINT in s.text and HINT not in s.as_student().text for s in appended)


def test_a_students_own_tokenizer_reads_no_context(tmp_path, captured, teacher):
    copy_cache(Cache(captured["chats"]["cache"]), tmp_path / "copy")
    encoding = Cache(tmp_path / "copy").encoding()
    same_one = align_encoding(encoding, "same", open_tokenizer(str(teacher)))
    other = align_encoding(encoding, "other", open_tokenizer(str(save("byte_level", tmp_path / "other"))))
    tokens = open_tokenizer(str(tmp_path / "other")).tokenizer
    for shard in range(len(encoding.shards)):
        own = encoding.student_sequences(shard)
        for sequence, aligned, foreign in zip(own, same_one.sequences(shard), other.sequences(shard), strict=True):
            assert np.array_equal(aligned.input_ids, sequence.input_ids)
            assert np.array_equal(aligned.positions(), sequence.positions())
            assert np.array_equal(aligned.first_rows[aligned.positions()], np.arange(sequence.num_positions))
            assert tokens.decode(foreign.input_ids.tolist(), skip_special_tokens=False) == sequence.text
            cut = aligned_view(other, sequence.sequence_id).segments
            text = "".join(token.text for segment in cut for token in segment.teacher)
            assert "assistant" in text
            assert HINT not in text
            predicted = [token.index for segment in cut for token in segment.teacher if token.kind == "predicted"]
            assert predicted == (encoding.sequence(sequence.sequence_id).positions() + 1).tolist()


def test_inspect_explain_and_plan_state_the_context(captured, tmp_path, capsys):
    facts = describe_encoding(Cache(captured["texts"]["cache"]).encoding())
    assert facts.context == BEFORE
    sentence = "Teachers read a context that students do not: before '{passage}'"
    assert context_words(facts.context) == [sentence]
    print_explanation(StudentConfig.model_validate(student_values(captured["texts"]["cache"], tmp_path / "run")))
    assert sentence in capsys.readouterr().out
    assert plan_capture(CaptureConfig.model_validate(captured["texts"])).context == BEFORE


# Completions


def test_a_model_completes_with_the_context_and_the_completion_is_captured_with_it(tmp_path, teacher, caplog):
    prompts = {"paths": [str(write_records(tmp_path / "prompts.jsonl", chat_records()))], "messages_field": "messages"}
    given = {"output": str(tmp_path / "out"), "policy": {"model": str(teacher), "dtype": "float32"}}
    given |= {"prompts": prompts | {"context": CONTEXTS["all"]}, "sampling": {"max_new_tokens": 6}}
    run_generation(GenerateConfig.model_validate(given), tiny.SilentReporter())
    lines = [json.loads(line) for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
    made = tiny.tokenizer()
    assert len(lines) == 8
    assert all(HINT in made.decode(line["ids"]) and HINT not in json.dumps(line["messages"]) for line in lines)
    capture = values(tmp_path, teacher, CONTEXTS["all"])
    capture["corpus"]["paths"] = [str(tmp_path / "out")]
    tiny.encode(CaptureConfig.model_validate(capture), with_template(CHATML))
    assert "This is right with corpus.context" in caplog.text
    assert "set corpus.ids_field" not in caplog.text
    read = {sequence.document_id: sequence for sequence in all_sequences(capture["cache"])}
    for line in lines:
        prompt = made.decode(line["ids"][: line["prompt_tokens"]])
        assert read[line["id"]].text.startswith(prompt)


def test_a_text_is_continued_behind_its_context(tmp_path, teacher):
    prompts = {"paths": [str(write_records(tmp_path / "prompts.jsonl", text_records()[:2]))], "context": BEFORE}
    given = {"output": str(tmp_path / "out"), "policy": {"model": str(teacher), "dtype": "float32"}}
    given |= {"prompts": prompts, "sampling": {"max_new_tokens": 3}}
    run_generation(GenerateConfig.model_validate(given), tiny.SilentReporter())
    lines = [json.loads(line) for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 2
    for line, record in zip(lines, text_records(), strict=False):
        parts = (f"{record['passage']}\n", record["text"])
        read = [i for part in parts for i in tiny.tokenizer()(part, add_special_tokens=False)["input_ids"]]
        assert line["ids"][: line["prompt_tokens"]] == read
        assert line["text"].startswith(record["text"])
        assert line["passage"] == record["passage"]


def test_a_context_field_that_a_completion_has_itself_is_refused(tmp_path):
    prompts = {"paths": ["p.jsonl"], "context": {"before": "{text}"}}
    with pytest.raises(ValueError, match="which a completion has itself"):
        GenerateConfig.model_validate({"output": "out", "policy": {"model": "m"}, "prompts": prompts})


def test_a_student_trains_without_the_context(captured, tmp_path):
    output = tmp_path / "run"
    student = {"config": LLAMA | {"max_position_embeddings": 64}}  # the teacher's sequences are longer
    longest = max(len(s.input_ids) for s in all_sequences(captured["texts"]["cache"]))
    assert longest > 64
    train(captured["texts"]["cache"], output, student=student)
