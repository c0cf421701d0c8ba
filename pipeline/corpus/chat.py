"""Chats: apply the template once, and find the characters that an assistant wrote.

Students learn the assistant's turns only, its calls of tools included, so only those tokens are kept; the prompt,
the list of tools and the replies of tools are context and cost no storage. There are two ways to find the
assistant's characters:

1. some templates mark them (``{% generation %}``);
2. otherwise the chat is rendered up to before and after each assistant turn. Where both
   renderings are prefixes of the whole, the turn is what lies between them.

Some templates rewrite earlier turns, for instance drop the reasoning of all but the last one, or open the reasoning
in the prompt only. A chat has no single text then: what the model reads at one turn is not a beginning of what it
reads at the next. Such a chat becomes one text per assistant turn, the chat up to that turn exactly as the template
renders it there, of which only that turn is kept. That costs tokens (each turn repeats the ones before) and changes
nothing for other templates. The turn begins behind the header that the template's prompt for a reply ends with; where
the rendered turn has another one (the prompt opens ``<think>``, the turn does not), it begins with the reply's words.

A template that has no place for tools omits them silently, so that is refused too.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from cache_tools.errors import CorpusError, LogitcaskError
from cache_tools.mappings import Arguments, JsonObject

Messages = list[JsonObject]
Tools = list[Any] | None
"""JSON schemas, each an object."""

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class RenderedChat:
    """A chat, or a beginning of it, as a teacher reads it.

    Attributes:
        text: As the template renders it.
        spans: Character spans that an assistant wrote and that are trained on.
        turn: Number of the message, from 0, that the text ends with and that alone is trained on; None if the text is
            the whole chat.
    """

    text: str
    spans: Spans
    turn: int | None = None


REPLY = "\ue000\ue001"
"""A reply that no chat holds (two private characters), to see where a template puts the words of one."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render_chat(
    messages: Messages,
    tokenizer: PreTrainedTokenizerFast,
    place: str,
    tools: Tools = None,
    by_turns: bool = False,
) -> list[RenderedChat]:
    """Render a chat: once, or once for each assistant turn if the template rewrites earlier turns.

    Args:
        messages: Objects with ``role`` and ``content``, or an assistant's ``tool_calls``.
        tokenizer: Brings the chat template.
        place: Where the chat came from, for error messages.
        tools: JSON schemas, passed to the template.
        by_turns: Render once for each assistant turn in any case, unless the template marks them.

    Raises:
        CorpusError: there is no template, it refuses the chat or has no place for tools, or the spans cannot be found.
    """
    try:
        template = tokenizer.get_chat_template(tools=tools)
        _check_tools(messages, tools, template, place)
        if _GENERATION.search(template):
            specials: Arguments = tokenizer.special_tokens_map
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **specials,
            )
            texts, spans = rendered
            return [RenderedChat(texts[0], [(int(a), int(b)) for a, b in spans[0]])]
        render = partial(_render, tokenizer=tokenizer, tools=tools)
        whole = None if by_turns else _by_prefixes(messages, render)
        return [whole] if whole is not None else list(_by_turns(messages, render, place))
    except LogitcaskError:
        raise
    except Exception as error:  # a template is a program and may fail in any way
        raise CorpusError("the chat template refuses this chat", where=place, found=shorten(str(error), 300)) from error


def render_prompt(messages: Messages, tokenizer: PreTrainedTokenizerFast, place: str, tools: Tools = None) -> str:
    """Render a chat up to where an assistant's reply begins; arguments and errors as for :func:`render_chat`."""
    try:
        _check_tools(messages, tools, tokenizer.get_chat_template(tools=tools), place)
        return _render(messages, tokenizer=tokenizer, tools=tools, add_generation_prompt=True)
    except LogitcaskError:
        raise
    except Exception as error:  # as above
        raise CorpusError("the chat template refuses this chat", where=place, found=shorten(str(error), 300)) from error


def _check_tools(messages: Messages, tools: Tools, template: str, place: str) -> None:
    needed = {"tools": bool(tools), "tool_calls": any(message.get("tool_calls") for message in messages)}
    for word, is_needed in needed.items():
        if is_needed and not re.search(rf"\b{word}\b", template):
            raise CorpusError(
                f"the chat template has no place for {word}",
                where=place,
                why="the teacher would read the chat without them",
                fix="Use a tokenizer whose template renders tools, or remove them from the corpus",
            )


Render = Callable[..., str]
"""Renders messages; with ``add_generation_prompt`` as the prompt of a reply."""


def _by_prefixes(messages: Messages, render: Render) -> RenderedChat | None:
    """Return the whole chat; None if a turn and what is before it are not a beginning of the whole."""
    text = render(messages)
    spans = []
    for turn in _assistant_turns(messages):
        before, after = _before(turn, messages, text, render), render(messages[: turn + 1])
        if not (text.startswith(before) and text.startswith(after)):
            return None
        spans.append((len(before), len(after)))
    return RenderedChat(text, spans)


def _by_turns(messages: Messages, render: Render, place: str) -> Iterator[RenderedChat]:
    """Yield the chat up to each assistant turn."""
    for turn in _assistant_turns(messages):
        text = render(messages[: turn + 1])
        start = _start_of_turn(turn, messages, text, render)
        if start is None or start >= len(text):
            raise CorpusError(
                f"the chat template does not show where turn {turn} begins",
                where=place,
                expected="the header that the template adds to a prompt, before the assistant's text",
                why="training on guessed positions would teach the prompt",
                fix="Mark the assistant's text in the template with {% generation %} … {% endgeneration %}",
            )
        yield RenderedChat(text, [(start, len(text))], turn)


def _start_of_turn(turn: int, messages: Messages, text: str, render: Render) -> int | None:
    """Return where the last turn of a text begins: behind the header of a reply, or else where the reply's words do."""
    before = _before(turn, messages, text, render)
    if text.startswith(before):
        return len(before)
    given = isinstance(messages[turn].get("content"), list)
    reply = {"role": "assistant", "content": [{"type": "text", "text": REPLY}] if given else REPLY}
    head, words, _ = render([*messages[:turn], reply]).rpartition(REPLY)
    header = _header(turn, messages, before, render)
    start = head.rfind(header) + len(header) if header and header in head else len(head)
    if _is_earlier(head, start, messages[:turn], render):
        start = len(head)
    return start if words and text.startswith(head[:start]) else None


def _is_earlier(head: str, start: int, messages: Messages, render: Render) -> bool:
    """Return whether a position in the text before a reply lies in an earlier message."""
    earlier = render(messages) if messages else ""
    contents = (message.get("content") for message in messages)
    said_behind = any(isinstance(c, str) and c.strip() and c.strip() in head[start:] for c in contents)
    return said_behind or (head.startswith(earlier) and start < len(earlier))


def _assistant_turns(messages: Messages) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


def _before(turn: int, messages: Messages, text: str, render: Render) -> str:
    """Return what stands before an assistant's words.

    No template renders an empty chat, so the header of an assistant who speaks first is learnt from a question.
    """
    if turn:
        return render(messages[:turn], add_generation_prompt=True)
    header = _asked_header(render)
    return text[: text.index(header)] + header if header in text else header


def _header(turn: int, messages: Messages, before: str, render: Render) -> str:
    """Return what a prompt adds to the chat before a reply."""
    earlier = render(messages[:turn]) if turn else None
    return before.removeprefix(earlier) if earlier and before.startswith(earlier) else _asked_header(render)


def _asked_header(render: Render) -> str:
    question = [{"role": "user", "content": "?"}]
    return render(question, add_generation_prompt=True).removeprefix(render(question))


def _render(
    messages: Messages, *, tokenizer: PreTrainedTokenizerFast, tools: Tools, add_generation_prompt: bool = False
) -> str:
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert isinstance(text, str)
    return text
