"""Chats: exactly what the assistant says is trained on, whichever way the template lets us find it."""

import json

import numpy as np
import pytest

import tiny
from cache_tools.errors import CorpusError
from cache_tools.reader import Encoding
from pipeline.chat import render_chat
from pipeline.config import CaptureConfig
from pipeline.encode import encode

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
    assert render_chat(chat(name), tokenizer(TEMPLATES[template]), PLACE) == naive(messages)


def test_special_tokens_of_the_tokenizer_reach_both_kinds_of_template():
    for template in (CHATML, MARKED):
        text, _ = render_chat(chat("one turn"), tokenizer("{{ eos_token }}" + template), PLACE)
        assert text.startswith("<|end|><|im_start|>user")


@pytest.mark.parametrize("turns", ["several turns", "assistant twice"])
def test_refuses_a_template_that_rewrites_earlier_turns(turns):
    forgetful = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '…' }}")
    message = refusal(forgetful, chat(turns))
    assert message.startswith(f"{PLACE}: the chat template rewrites earlier turns, so turn 1's tokens cannot be told")
    assert "{% generation %}" in message
    render_chat(chat("one turn"), tokenizer(forgetful), PLACE)


def test_refuses_a_template_whose_header_of_a_reply_is_not_the_one_of_a_turn():
    thinking = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    for name in ("one turn", "assistant first"):
        assert "rewrites earlier turns" in refusal(thinking, chat(name))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "chat_template is not set"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{% generation %}{{ raise_exception('no') }}{% endgeneration %}", "found no)"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[9].role.upper() }}", "has no element 9"),
        ("{{ 1 // 0 }}", "division"),
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
    encoding = Encoding(encode(CaptureConfig.model_validate(values), made), "main")
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
    assert str(error.value).startswith(f"{tmp_path / 'chats.jsonl'}:1 (id 'mute'): this document has no token")
    assert "none in an assistant's turn" in str(error.value)
