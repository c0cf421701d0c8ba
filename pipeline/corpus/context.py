"""What a teacher reads in addition to a document: filled templates, and the chat that they make of a chat.

A document with a context has two readings. The teacher's holds the context, the student's does not, and the assistant's
answers are the same in both, character by character: whatever the chat template makes of the context, an answer that it
would write differently is refused. Cost: a chat is rendered twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CorpusError
from cache_tools.mappings import JsonObject
from pipeline.corpus.chat import Messages, RenderedChat, Tools, render_chat
from pipeline.corpus.config import ContextConfig
from pipeline.corpus.templates import filled


@dataclass(frozen=True)
class Context:
    """The context of one document.

    Attributes:
        before: Text before a plain text.
        system: Content of a system message; None for none.
        messages: Messages before the chat's own.
        last_user: Text behind the last user message.
        fields: The fields of the record that it was made from, by name.
    """

    before: str = ""
    system: str | None = None
    messages: Messages = field(default_factory=list)
    last_user: str = ""
    fields: JsonObject = field(default_factory=dict)


def context_of(config: ContextConfig, texts: Mapping[str, str], messages: Messages) -> Context:
    """Return the context of a record.

    Args:
        config: The templates.
        texts: The text fields that the templates name.
        messages: The messages that ``messages_field`` names; none without it.
    """
    return Context(
        before=filled(config.before or "", texts),
        system=None if config.system is None else filled(config.system, texts),
        messages=messages,
        last_user=filled(config.last_user or "", texts),
        fields=dict(texts) | ({config.messages_field: messages} if config.messages_field else {}),
    )


def with_context(messages: Messages, context: Context | None, place: str) -> Messages:
    """Return a chat as a teacher reads it: system message, context, the chat's own messages, the last user's extended.

    Raises:
        CorpusError: there is no user message that the text could follow.
    """
    if context is None:
        return messages
    system, rest = messages[:1], messages[1:]
    if not system or system[0]["role"] != "system":
        system, rest = [], messages
    if context.system is not None and not system:
        system = [{"role": "system", "content": context.system}]
    elif context.system is not None:
        system = [system[0] | {"content": _joined(f"{context.system}\n\n", system[0].get("content"), "")}]
    rest = list(rest)
    if context.last_user:
        turns = [turn for turn, message in enumerate(rest) if message["role"] == "user"]
        if not turns:
            raise CorpusError(
                "corpus.context.last_user has no place in a chat without a user message",
                where=place,
                why="the teacher would read it without the context",
                fix="Remove the chat, or use context.system",
            )
        rest[turns[-1]] = rest[turns[-1]] | {"content": _joined("", rest[turns[-1]].get("content"), context.last_user)}
    return [*system, *context.messages, *rest]


def _joined(before: str, content: object, behind: str) -> object:
    """Return a message's content, a text or a list of parts, with texts around it."""
    if isinstance(content, list):
        return [*_part(before), *content, *_part(behind)]
    return f"{before}{content or ''}{behind}"


def _part(text: str) -> list[JsonObject]:
    return [{"type": "text", "text": text}] if text else []


@dataclass(frozen=True)
class ChatReadings:
    """A chat, or a beginning of it, as both read it.

    Attributes:
        teacher: With the context; its spans are those of the chat's own answers.
        student: Without it.
    """

    teacher: RenderedChat
    student: RenderedChat


def render_readings(
    messages: Messages, context: Context, tokenizer: PreTrainedTokenizerFast, place: str, tools: Tools = None
) -> list[ChatReadings]:
    """Render a chat with and without its context; arguments and errors are those of ``render_chat``.

    Raises:
        CorpusError: also if an answer is not the same text in both.
    """
    own, read = messages, with_context(messages, context, place)
    student, teacher = (render_chat(chat, tokenizer, place, tools) for chat in (own, read))
    if len({chat.turn is None for chat in (*student, *teacher)}) > 1:
        student, teacher = (render_chat(chat, tokenizer, place, tools, by_turns=True) for chat in (own, read))
    pairs = [_paired(t, s) for t, s in zip(teacher[len(teacher) - len(student) :], student, strict=True)]
    for pair in pairs:
        _check_answers(pair, place)
    return pairs


def _paired(teacher: RenderedChat, student: RenderedChat) -> ChatReadings:
    """Leave out the answers of context messages, which come first, and number turns as the chat does."""
    spans = teacher.spans[len(teacher.spans) - len(student.spans) :] if student.spans else []
    return ChatReadings(RenderedChat(teacher.text, spans, student.turn), student)


def _check_answers(pair: ChatReadings, place: str) -> None:
    teacher, student = ([chat.text[start:end] for start, end in chat.spans] for chat in (pair.teacher, pair.student))
    if teacher != student:
        number = next((i for i, (a, b) in enumerate(zip(teacher, student, strict=False)) if a != b), len(teacher))
        raise CorpusError(
            "the chat template writes an answer differently with the context and without it",
            where=place,
            expected="the same characters in both",
            found=f"answer {number} differs",
            why="a prediction would belong to another text than the student's",
            fix="Use a context that leaves the answers as they are, such as context.last_user",
        )
