"""Chats and plain texts with a context that only teachers read."""

import json
from pathlib import Path
from typing import Any

import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LENGTH = 400
"""Tokens that hold each of the chats with its context."""

HINT = "HINT"
"""Begins every context, and stands in no document."""

CONTEXTS: dict[str, dict[str, str]] = {
    "system": {"system": "HINT answer in {style}."},
    "messages": {"messages_field": "examples"},
    "last user": {"last_user": "\n\nHINT {style}"},
    "all": {"system": "HINT {{braces}}", "messages_field": "examples", "last_user": " HINT {style}"},
}
EXAMPLES = [{"role": "user", "content": "HINT value?"}, {"role": "assistant", "content": "HINT the value."}]


def chat_records() -> list[dict[str, Any]]:
    """Return eight chats of one or two turns, some with a system message, each with a style and examples."""
    records = []
    for number, text in enumerate(tiny.TEXTS[:8]):
        words = text.split()
        turn = [
            {"role": "user", "content": " ".join(words[:3])},
            {"role": "assistant", "content": " ".join(words[3:9])},
        ]
        system = [{"role": "system", "content": "the row"}] if number % 3 == 0 else []
        chat = [*system, *turn, *(turn if number % 2 else [])]
        records.append({"id": f"chat{number}", "messages": chat, "style": f"verse {number}", "examples": EXAMPLES})
    return records


def text_records() -> list[dict[str, Any]]:
    """Return twelve texts, each with a passage."""
    return [
        {"id": f"doc{i}", "text": text, "passage": f"HINT {tiny.TEXTS[-1 - i][:20]}. "}
        for i, text in enumerate(tiny.TEXTS[:12])
    ]


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def save_teacher(folder: Path, template: str = CHATML) -> Path:
    """Write a tiny teacher whose tokenizer has a chat template."""
    tiny.save_teacher(folder, tiny.model(max_position_embeddings=LENGTH))
    made = tiny.tokenizer()
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


def values(folder: Path, teacher: Path, context: dict[str, str] | None, chats: bool = True, **changes: Any) -> Any:
    """Return a capture file, as a dictionary, of chats or of texts with a context; None for none."""
    path = folder / ("chats.jsonl" if chats else "texts.jsonl")
    if not path.exists():
        write_records(path, chat_records() if chats else text_records())
    settings = {"max_length_tokens": LENGTH, "paths": [str(path)]} | changes
    made = tiny.capture_values(folder, teacher, **settings)
    made["corpus"] |= {"messages_field": "messages"} if chats else {}
    made["corpus"] |= {} if context is None else {"context": context}
    return made
