"""Chats: apply the template once, and find the characters that an assistant wrote.

Only what the assistant says is trained on, so only those tokens are kept; the prompt is
context and costs no storage. Two ways to find the assistant's characters:

1. templates that mark them (``{% generation %}``) tell;
2. otherwise the chat is rendered up to before and after each assistant turn, and both
   renderings must be prefixes of the whole. Templates that rewrite earlier turns (some drop
   old reasoning) break that; they are refused rather than trained on wrongly.
"""

import re
from textwrap import shorten
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from cache_tools.errors import CorpusError, LogitcaskError

Messages = list[dict[str, Any]]
Spans = list[tuple[int, int]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render_chat(messages: Messages, tokenizer: PreTrainedTokenizerFast, place: str) -> tuple[str, Spans]:
    """Render a chat and return (text, character spans that an assistant wrote).

    Args:
        messages: Objects with ``role`` and ``content``.
        tokenizer: Brings the chat template.
        place: Where the chat came from, for error messages.

    Raises:
        CorpusError: there is no template, it refuses the chat, or the spans cannot be found.
    """
    try:
        template = tokenizer.get_chat_template()
        if _GENERATION.search(template):
            specials: dict[str, Any] = tokenizer.special_tokens_map
            rendered: Any = render_jinja_template(
                conversations=[messages], chat_template=template, return_assistant_tokens_mask=True, **specials
            )
            texts, spans = rendered
            return texts[0], [(int(a), int(b)) for a, b in spans[0]]
        return _by_prefixes(messages, tokenizer, place)
    except LogitcaskError:
        raise
    except Exception as error:  # a template is a program and may fail in any way
        raise CorpusError("the chat template refuses this chat", where=place, found=shorten(str(error), 300)) from error


def _by_prefixes(messages: Messages, tokenizer: PreTrainedTokenizerFast, place: str) -> tuple[str, Spans]:
    text = _render(messages, tokenizer)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _before(turn, messages, text, tokenizer)
            after = _render(messages[: turn + 1], tokenizer)
            if not (text.startswith(before) and text.startswith(after)):
                raise CorpusError(
                    f"the chat template rewrites earlier turns, so turn {turn}'s tokens cannot be told apart",
                    where=place,
                    why="training on guessed positions would teach the prompt",
                    fix="Mark the assistant's text in the template with {% generation %} … {% endgeneration %}",
                )
            spans.append((len(before), len(after)))
    return text, spans


def _before(turn: int, messages: Messages, text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what stands before an assistant's words.

    No template renders an empty chat, so the header of an assistant who speaks first is learnt from a question.
    """
    if turn:
        return _render(messages[:turn], tokenizer, add_generation_prompt=True)
    question = [{"role": "user", "content": "?"}]
    header = _render(question, tokenizer, add_generation_prompt=True).removeprefix(_render(question, tokenizer))
    return text[: text.index(header)] + header if header in text else header


def _render(messages: Messages, tokenizer: PreTrainedTokenizerFast, add_generation_prompt: bool = False) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    return text
