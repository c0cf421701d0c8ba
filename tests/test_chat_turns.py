"""Templates that rewrite earlier turns: one sequence for each turn, what the model would read there, nothing guessed.

The templates imitate those of Qwen3, QwQ and DeepSeek-R1: reasoning is dropped from earlier turns, or from all; a turn
gets an empty ``<think>`` only while it is the last; the prompt of a reply opens ``<think>`` and the rendered turn does
not.
"""

import json

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from test_chat import CHATML, PLACE, TOOLS, chat, tokenizer

import tiny
from cache_tools.errors import CorpusError
from cache_tools.format import layout
from cache_tools.format.sequences import SCHEMA
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache, Encoding
from cache_tools.terminal.show_command import show_command
from pipeline.config.capture_file import CaptureConfig
from pipeline.corpus.chat import render_chat

SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
HEAD = "{% for m in messages %}{% set c = m.content or '' %}<|im_start|>{{ m.role }}\n"
FOOT = "<|im_end|>\n{% endfor %}"
ANSWER = "{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}"
LATER = "{% set last = namespace(user=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
LATER += "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
CALLS = "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}</tool_call>{% endfor %}"

QWEN3 = (
    LATER + "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + HEAD + "{% if m.role == 'assistant' %}"
    "{% set think = '' %}{% if '</think>' in c %}{% set think = c.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% endif %}"
    + ANSWER
    + "{% if loop.index0 > last.user and (loop.last or think) %}<think>\n{{ think }}\n</think>\n\n"
    "{% endif %}{% endif %}{{ c }}" + CALLS + FOOT + PROMPT
)
"""Reasoning is kept behind the last question only; the last turn gets an empty one if it has none."""

QWQ = HEAD + "{% if m.role == 'assistant' and not loop.last %}" + ANSWER + "{% endif %}{{ c }}" + FOOT + OPEN
"""Reasoning is kept in the last turn only; the prompt opens it."""

R1 = HEAD + "{% if m.role == 'assistant' %}" + ANSWER + "{% endif %}{{ c }}" + FOOT + OPEN
"""Reasoning is dropped from every turn; the prompt opens it all the same."""

FORGETFUL = HEAD + "{{ c if loop.last or m.role != 'assistant' else '…' }}" + FOOT + PROMPT
"""Words of earlier turns are replaced."""

TEMPLATES = {"qwen3": QWEN3, "qwq": QWQ, "r1": R1, "forgetful": FORGETFUL}

TALK = [
    {"role": "user", "content": "two and two?"},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\nfour"},
    {"role": "user", "content": "and three?"},
    {"role": "assistant", "content": "<think>\nadd again\n</think>\n\nseven"},
]
EMPTY = "<think>\n\n</think>\n\n"


def turns(template, messages, tools=None):
    """Return (turn, what is read before it, what is kept) of each text of a chat."""
    made = render_chat(messages, tokenizer(template), PLACE, tools)
    assert all(len(each.spans) == 1 for each in made)
    spans = [(each, *each.spans[0]) for each in made]
    return [(each.turn, each.text[:start], each.text[start:end]) for each, start, end in spans]


def render(template, messages, prompt=False):
    return tokenizer(template).apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_each_text_is_the_chat_up_to_its_turn_as_the_template_renders_it(template, system):
    template = system + TEMPLATES[template]
    found = turns(template, TALK)
    assert [turn for turn, _, _ in found] == [1, 3]
    for turn, before, kept in found:
        assert before + kept == render(template, TALK[: turn + 1])
        assert render(template, TALK[:turn], prompt=True).startswith(before)


def test_where_the_rendered_turn_goes_on_from_the_prompt_all_behind_the_prompt_is_kept():
    ends = "<|im_end|>\n"
    kept = [kept for _, _, kept in turns(QWEN3, TALK)]
    assert kept == [f"<think>\nadd\n</think>\n\nfour{ends}", f"<think>\nadd again\n</think>\n\nseven{ends}"]
    assert [k for _, _, k in turns(QWQ, TALK)] == [
        f"add\n</think>\n\nfour{ends}",
        f"add again\n</think>\n\nseven{ends}",
    ]


def test_where_the_prompt_opens_what_the_turn_does_not_have_the_words_alone_are_kept():
    assert [kept for _, _, kept in turns(R1, TALK)] == ["four<|im_end|>\n", "seven<|im_end|>\n"]
    plain = [message | {"content": message["content"].split("</think>\n\n")[-1]} for message in TALK]
    for template in (R1, QWQ):
        assert [kept for _, _, kept in turns(template, plain)] == ["four<|im_end|>\n", "seven<|im_end|>\n"]
    assert [kept for _, _, kept in turns(QWEN3, plain)] == [f"{EMPTY}four<|im_end|>\n", f"{EMPTY}seven<|im_end|>\n"]


def test_earlier_reasoning_is_read_only_where_the_template_keeps_it():
    for template in (QWEN3, QWQ, R1):
        _, before, _ = turns(template, TALK)[1]
        assert "four" in before
        assert "add" not in before


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "name", ["several turns", "assistant twice", "assistant first", "assistant alone", "user last"]
)
def test_no_word_of_another_is_kept_though_all_say_the_same(template, name):
    template, messages = TEMPLATES[template], chat(name)
    for made in render_chat(messages, tokenizer(template), PLACE):
        kept = [made.text[start:end] for start, end in made.spans]
        assert all(words.removeprefix(EMPTY) == "the same words 🎉<|im_end|>\n" for words in kept)
        expected = 1 if made.turn is not None else sum(message["role"] == "assistant" for message in messages)
        assert len(kept) == expected


@pytest.mark.parametrize("user", ["", "think", "<|im_start|>assistant\n", "assistant", "\n", "<think>\n"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_odd_questions_do_not_move_the_turn(template, user):
    messages = [message | {"content": user} if message["role"] == "user" else message for message in TALK]
    for _, before, kept in turns(TEMPLATES[template], messages):
        assert before.endswith(("<|im_start|>assistant\n", "<think>\n", "</think>\n\n"))
        assert "user" not in kept


def test_a_template_that_keeps_all_turns_stays_one_text_with_the_same_spans():
    (made,) = render_chat(chat("several turns"), tokenizer(CHATML), PLACE)
    assert (made.turn, len(made.spans)) == (None, 3)


def test_calls_of_tools_and_replies_to_them_keep_their_turns():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    talk = [
        *TALK,
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": "<think>\nlook\n</think>\n\n", "tool_calls": [call]},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "no"},
    ]
    found = turns(QWEN3, talk, TOOLS)
    assert [turn for turn, _, _ in found] == [1, 3, 5, 7]
    assert found[2][2] == "<think>\nlook\n</think>\n\n<tool_call>weather</tool_call><|im_end|>\n"
    assert "look" in found[3][1]
    assert found[3][2] == f"{EMPTY}no<|im_end|>\n"
    assert all('"name": "weather"' in before for _, before, _ in found)


def test_refuses_a_template_that_does_not_show_where_a_turn_begins():
    scrambled = FORGETFUL.replace("{{ c if", "{{ messages | length }}{{ c | upper if")
    backwards = "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + OPEN
    with pytest.raises(CorpusError, match=r"does not show where turn 1 begins.*\{% generation %\}"):
        render_chat(chat("several turns"), tokenizer(backwards.replace("m.content", "m.content | reverse")), PLACE)
    assert [turn for turn, _, _ in turns(scrambled, chat("several turns"))] == [1, 3, 5]


# In a cache


def encoded(folder, template, records, length=128, **changes):
    (folder / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    keys = {"messages_field": "chat", "paths": [str(folder / "chats.jsonl")], "held_out_fraction": 0}
    values = tiny.capture_values(
        folder, tiny.save_teacher(folder / "teacher"), max_length_tokens=length, **keys, **changes
    )
    made = tokenizer(template)
    made.save_pretrained(folder / "teacher")
    return values, made


def test_sequences_say_their_turn_and_the_cache_is_sound(tmp_path):
    values, made = encoded(tmp_path, R1, [{"id": "a", "chat": TALK}, {"id": "b", "chat": TALK[:2]}], length=128)
    tiny.run(values)
    cache = Cache(tmp_path / "cache")
    sequences = cache.encoding().sequences(0)
    assert [(s.document_id, s.turn) for s in sequences] == [("a", 1), ("a", 3), ("b", 1)]
    assert [made.decode(s.gold_ids("causal")) for s in sequences] == [
        "four<|im_end|>\n",
        "seven<|im_end|>\n",
        "four<|im_end|>\n",
    ]
    assert cache.encoding().manifest.splits["train"].documents == 2
    assert verify(tmp_path / "cache", deep=True) == []
    result = CliRunner().invoke(show_command, [str(tmp_path / "cache"), "1"])
    assert "document a, turn 3" in result.stdout
    view = json.loads(CliRunner().invoke(show_command, [str(tmp_path / "cache"), "1", "--json"]).stdout)
    assert view["turn"] == 3
    subset_cache(cache, tmp_path / "subset", Choice(documents=frozenset({"a"})))
    assert [s.turn for s in Cache(tmp_path / "subset").encoding().sequences(0)] == [1, 3]


def test_a_file_without_turns_has_no_column_for_them(tmp_path):
    tables = {}
    for name, template in (("whole", CHATML), ("turns", R1)):
        (tmp_path / name).mkdir()
        values, made = encoded(tmp_path / name, template, [{"id": "a", "chat": TALK}])
        folder = tiny.encode(CaptureConfig.model_validate(values), made)
        tables[name] = pa.ipc.open_file(layout.sequences_file(folder, 0)).read_all()
    assert tables["whole"].schema.equals(SCHEMA)
    assert tables["turns"].column_names == [*SCHEMA.names, "turn"]
    assert set(tables["turns"].column("turn").to_pylist()) == {1, 3}


def test_sequences_without_the_beginning_of_their_chat_are_counted_and_said(tmp_path, caplog):
    long = [{"role": "user", "content": "word " * 30}, {"role": "assistant", "content": "answer " * 40}]
    short = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "a"}]
    records = [{"id": "long", "chat": long}, {"id": "short", "chat": short}]
    values, made = encoded(tmp_path, CHATML, records, length=64)
    folder = tiny.encode(CaptureConfig.model_validate(values), made)
    encoding = Encoding(folder, "main")
    sequences = [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    start = made(render(CHATML, long), add_special_tokens=False)["input_ids"][:8]
    beginning = [s for s in sequences if s.document_id == "long" and s.input_ids[:8].tolist() == start]
    expected = sum(s.document_id == "long" for s in sequences) - len(beginning)
    assert expected > 1
    (part,) = encoding.manifest.parts
    assert part.chat_sequences_without_beginning == expected
    assert f"{expected} of {len(sequences)} sequences begin in the middle of a chat" in caplog.text
    assert "chat_sequences_without_beginning" in (folder / "zarr.json").read_text()


def test_where_nothing_is_cut_nothing_is_stored_or_said(tmp_path, caplog):
    values, made = encoded(tmp_path, CHATML, [{"id": "short", "chat": TALK[:2]}])
    folder = tiny.encode(CaptureConfig.model_validate(values), made)
    assert "chat_sequences" not in (folder / "zarr.json").read_text()
    assert caplog.text == ""


def test_a_token_across_the_boundary_belongs_to_the_prompt(tmp_path):
    """Joint tokenisation may merge the header's end with the answer's beginning; such a token is read, not kept."""
    glued = CHATML.replace("{{ m.role }}\n", "{{ m.role }} ").replace("assistant\n", "assistant ")
    values, made = encoded(tmp_path, glued, [{"id": "a", "chat": TALK[:2]}])
    (sequence,) = Encoding(tiny.encode(CaptureConfig.model_validate(values), made), "main").sequences(0)
    kept = made.decode(sequence.gold_ids("causal"))
    assert (TALK[1]["content"] + "<|im_end|>\n").endswith(kept)
    assert np.array_equal(sequence.input_ids, made(sequence.text, add_special_tokens=False)["input_ids"])
