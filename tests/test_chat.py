"""Chats: exactly what the assistant says is trained on, whichever way the template lets us find it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import tiny
from cache_tools.errors import CorpusError
from cache_tools.store.reader import Encoding
from pipeline.config.capture_file import CaptureConfig
from pipeline.corpus.chat import render_chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{%- generation -%}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
TEMPLATES = {
    "plain": CHATML,
    "marked": MARKED,
    "plain with default system prompt": DEFAULT_SYSTEM + CHATML,
    "marked with default system prompt": DEFAULT_SYSTEM + MARKED,
}
CHATS = {
    "one turn": ["user", "assistant"],
    "several turns": ["user", "assistant", "user", "assistant", "user", "assistant"],
    "system prompt": ["system", "user", "assistant", "user", "assistant"],
    "assistant first": ["assistant", "user", "assistant"],
    "assistant alone": ["assistant"],
    "assistant twice": ["user", "assistant", "assistant"],
    "user last": ["user", "assistant", "user"],
}
PLACE = "chats.jsonl:3"


def chat(name):
    """Return the messages of a chat in which all say the same, so that words alone do not tell who speaks."""
    return [{"role": role, "content": "the same words 🎉"} for role in CHATS[name]]


def naive(messages):
    """Return ChatML and the assistant's spans, written down message by message."""
    text, spans = "", []
    for message in messages:
        text += f"<|im_start|>{message['role']}\n"
        start = len(text)
        text += f"{message['content']}<|im_end|>\n"
        if message["role"] == "assistant":
            spans.append((start, len(text)))
    return text, spans


def tokenizer(template):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def rendered(messages, made, tools=None):
    """Return text and spans of a chat that is rendered as a whole."""
    (chat,) = render_chat(messages, made, PLACE, tools)
    assert chat.turn is None
    return chat.text, chat.spans


def refusal(template, messages):
    with pytest.raises(CorpusError) as error:
        render_chat(messages, tokenizer(template), PLACE)
    return str(error.value)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", CHATS)
def test_spans_are_exactly_the_assistants_turns(name, template):
    messages = chat(name)
    if "default system" in template and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "Be kind."}, *messages]
    assert rendered(chat(name), tokenizer(TEMPLATES[template])) == naive(messages)


def test_special_tokens_of_the_tokenizer_reach_both_kinds_of_template():
    for template in (CHATML, MARKED):
        text, _ = rendered(chat("one turn"), tokenizer("{{ eos_token }}" + template))
        assert text.startswith("<|end|><|im_start|>user")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "chat_template is not set"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{% generation %}{{ raise_exception('no') }}{% endgeneration %}", "found no)"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[9].role.upper() }}", "has no element 9"),
        ("{{ 1 // 0 }}", "division"),
        (CHATML + "{% if messages | length == 1 %}{{ raise_exception('too short') }}{% endif %}", "too short"),
    ],
)
def test_refuses_a_chat_that_the_template_refuses_and_names_its_place(template, reason):
    message = refusal(template, chat("one turn"))
    assert message.startswith(f"{PLACE}: the chat template refuses this chat")
    assert reason in message


def test_refuses_an_empty_chat():
    assert refusal(CHATML, []).startswith(PLACE)


def encoded(folder, template, records, length=32):
    """Encode chats and return the tokenizer and the sequences."""
    (folder / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    changes = {"messages_field": "chat", "paths": [str(folder / "chats.jsonl")], "held_out_fraction": 0}
    values = tiny.capture_values(folder, folder, max_length_tokens=length, **changes)
    made = tokenizer(template)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    encoding = Encoding(tiny.encode(CaptureConfig.model_validate(values), made), "main")
    return made, [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_assistants_tokens_are_kept(tmp_path, template):
    records = [{"id": name, "chat": chat(name)} for name in CHATS]
    made, sequences = encoded(tmp_path, template, records)
    assert len(sequences) > len(CHATS)
    for name in CHATS:
        mine = [s for s in sequences if s.document_id == name]
        gold = np.concatenate([s.gold_ids("causal") for s in mine])
        said = "".join(f"{m['content']}<|im_end|>\n" for m in chat(name) if m["role"] == "assistant")
        assert made.decode(gold) == said
        for s in mine:
            assert np.array_equal(s.gold_ids("causal"), s.input_ids[s.positions() + 1])


def test_a_chat_gets_no_special_tokens_but_its_templates(tmp_path):
    made, (sequence,) = encoded(tmp_path, CHATML, [{"chat": chat("one turn")}], length=100)
    assert made.decode(sequence.input_ids) == sequence.text == naive(chat("one turn"))[0]


def test_refuses_a_chat_in_which_no_assistant_speaks(tmp_path):
    with pytest.raises(CorpusError) as error:
        encoded(tmp_path, CHATML, [{"id": "mute", "chat": chat("one turn")[:1]}])
    assert f"the first of which is {tmp_path / 'chats.jsonl'}:1 (id 'mute')" in str(error.value)
    assert "chats without an assistant's answer" in str(error.value)


QWEN_LIKE = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ BEGIN }}{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{{ END }}"
    "{% elif m.role != 'system' or not loop.first %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Tools stand in the system prompt, and replies that follow each other share one turn, as in Qwen's templates."""

WITH_TOOLS = {
    "by prefixes": QWEN_LIKE.replace("{{ BEGIN }}", "").replace("{{ END }}", ""),
    "marked": QWEN_LIKE.replace("{{ BEGIN }}", "{% generation %}").replace("{{ END }}", "{% endgeneration %}"),
}


def tool(name, parameter):
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {
        "type": "function",
        "function": {"name": name, "description": f"Tells the {name}.", "parameters": parameters},
    }


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [tool("weather", "city"), tool("time", "zone")]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Łódź, and what time is it?"},
    {"role": "assistant", "content": None, "tool_calls": [call("weather", city="Łódź"), call("time", zone="CET")]},
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Rain at noon."},
    {"role": "user", "content": "And in Rome?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [call("weather", city="Rome")]},
    {"role": "tool", "content": "sun"},
    {"role": "assistant", "content": "Sun."},
]
SAID = [
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Łódź"}}\n</tool_call>'
    '<tool_call>\n{"name": "time", "arguments": {"zone": "CET"}}\n</tool_call><|im_end|>\n',
    "Rain at noon.<|im_end|>\n",
    'I look.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n',
    "Sun.<|im_end|>\n",
]


@pytest.mark.parametrize("template", WITH_TOOLS)
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_calls_of_tools_are_the_assistants_and_their_replies_are_not(template, tools):
    text, spans = rendered(TALK, tokenizer(WITH_TOOLS[template]), tools)
    assert [text[start:end] for start, end in spans] == SAID
    assert text.startswith("<|im_start|>system\nBe brief.")
    assert ('"name": "weather", "description": "Tells the weather."' in text) == bool(tools)
    assert "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\n12:00\n" in text


def test_both_ways_to_find_the_assistants_words_agree_where_tools_are_listed():
    for messages in (TALK, TALK[1:], TALK[:6], TALK[2:], TALK[:3]):
        found = [rendered(messages, tokenizer(template), TOOLS) for template in WITH_TOOLS.values()]
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("messages", "tools", "word"), [(TALK, None, "tool_calls"), (TALK[:2], TOOLS, "tools"), (TALK, TOOLS, "tools")]
)
@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_refuses_a_template_that_would_leave_tools_out(template, messages, tools, word):
    with pytest.raises(CorpusError) as error:
        render_chat(messages, tokenizer(template), PLACE, tools)
    assert str(error.value).startswith(f"{PLACE}: the chat template has no place for {word}.")


def test_a_tokenizers_own_template_for_tools_is_the_one_that_is_used():
    made = tokenizer({"default": CHATML, "tool_use": WITH_TOOLS["by prefixes"]})
    assert "# Tools" in rendered(TALK, made, TOOLS)[0]
    assert "# Tools" not in rendered(chat("one turn"), made)[0]


def write_lists(path):
    path.write_text(json.dumps({"id": "a", "chat": TALK, "tools": TOOLS}) + "\n")


def write_json_text(path):
    path.write_text(json.dumps({"id": "a", "chat": json.dumps(TALK), "tools": json.dumps(TOOLS)}) + "\n")


def write_structs(path):
    """In Arrow, all calls of tools get all arguments, and all messages all keys, null where they had none."""
    pa.parquet.write_table(pa.Table.from_pylist([{"id": "a", "chat": TALK, "tools": TOOLS}]), path)


@pytest.mark.parametrize("template", WITH_TOOLS)
@pytest.mark.parametrize(
    ("write", "name"), [(write_lists, "a.jsonl"), (write_json_text, "a.jsonl"), (write_structs, "a.parquet")]
)
def test_a_chat_with_tools_is_the_same_from_lists_json_text_and_arrow(tmp_path, template, write, name):
    write(tmp_path / name)
    values = tiny.capture_values(tmp_path, tmp_path, max_length_tokens=64, held_out_fraction=0)
    values["corpus"] |= {"paths": [str(tmp_path / name)], "messages_field": "chat", "tools_field": "tools"}
    made = tokenizer(WITH_TOOLS[template])
    encoding = Encoding(tiny.encode(CaptureConfig.model_validate(values), made), "main")
    sequences = [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    gold = np.concatenate([s.gold_ids("causal") for s in sequences])
    assert made.decode(gold) == "".join(SAID)
