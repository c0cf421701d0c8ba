"""Chats: apply the template once, and find the characters that an assistant wrote.

Only what the assistant says is trained on, its calls of tools included, so only those tokens are kept; the prompt,
the list of tools and what the tools replied are context and cost no storage. Two ways to find the
assistant's characters:

1. templates that mark them (``{% generation %}``) tell;
2. otherwise the chat is rendered up to before and after each assistant turn, and both
   renderings must be prefixes of the whole. Templates that rewrite earlier turns (some drop
   old reasoning) break that; they are refused rather than trained on wrongly.

A template that has no place for tools leaves them out without a word, so that is refused too.
"""

import re
from textwrap import shorten
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from cache_tools.errors import CorpusError, LogitcaskError

Messages = list[dict[str, Any]]
Tools = list[Any] | None
"""JSON schemas, each an object."""

Spans = list[tuple[int, int]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render_chat(
    messages: Messages, tokenizer: PreTrainedTokenizerFast, place: str, tools: Tools = None
) -> tuple[str, Spans]:
    """Render a chat and return (text, character spans that an assistant wrote).

    Args:
        messages: Objects with ``role`` and ``content``, or an assistant's ``tool_calls``.
        tokenizer: Brings the chat template.
        place: Where the chat came from, for error messages.
        tools: JSON schemas, passed to the template.

    Raises:
        CorpusError: there is no template, it refuses the chat or has no place for tools, or the spans cannot be found.
    """
    try:
        template = tokenizer.get_chat_template(tools=tools)
        _check_tools(messages, tools, template, place)
        if _GENERATION.search(template):
            specials: dict[str, Any] = tokenizer.special_tokens_map
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **specials,
            )
            texts, spans = rendered
            return texts[0], [(int(a), int(b)) for a, b in spans[0]]
        return _by_prefixes(messages, tokenizer, place, tools)
    except LogitcaskError:
        raise
    except Exception as error:  # a template is a program and may fail in any way
        raise CorpusError("the chat template refuses this chat", where=place, found=shorten(str(error), 300)) from error


def _check_tools(messages: Messages, tools: Tools, template: str, place: str) -> None:
    needed = {"tools": bool(tools), "tool_calls": any(message.get("tool_calls") for message in messages)}
    for word, is_needed in needed.items():
        if is_needed and not re.search(rf"\b{word}\b", template):
            raise CorpusError(
                f"the chat template has no place for {word}",
                where=place,
                why="the teacher would read the chat without them",
                fix="Use a tokenizer whose template knows tools, or take them out of the corpus",
            )


def _by_prefixes(messages: Messages, tokenizer: PreTrainedTokenizerFast, place: str, tools: Tools) -> tuple[str, Spans]:
    text = _render(messages, tokenizer, tools)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _before(turn, messages, text, tokenizer, tools)
            after = _render(messages[: turn + 1], tokenizer, tools)
            if not (text.startswith(before) and text.startswith(after)):
                raise CorpusError(
                    f"the chat template rewrites earlier turns, so turn {turn}'s tokens cannot be told apart",
                    where=place,
                    why="training on guessed positions would teach the prompt",
                    fix="Mark the assistant's text in the template with {% generation %} … {% endgeneration %}",
                )
            spans.append((len(before), len(after)))
    return text, spans


def _before(turn: int, messages: Messages, text: str, tokenizer: PreTrainedTokenizerFast, tools: Tools) -> str:
    """Return what stands before an assistant's words.

    No template renders an empty chat, so the header of an assistant who speaks first is learnt from a question.
    """
    if turn:
        return _render(messages[:turn], tokenizer, tools, add_generation_prompt=True)
    question = [{"role": "user", "content": "?"}]
    asked = _render(question, tokenizer, tools, add_generation_prompt=True)
    header = asked.removeprefix(_render(question, tokenizer, tools))
    return text[: text.index(header)] + header if header in text else header


def _render(
    messages: Messages, tokenizer: PreTrainedTokenizerFast, tools: Tools, add_generation_prompt: bool = False
) -> str:
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert isinstance(text, str)
    return text
