"""Questions about the standard library, with the library's own answers: ``python -m configs.smollm2.prompts FILE``.

Each record is a chat: what does this function or class do, and the beginning of its docstring as the answer.
``logitcask generate`` leaves the answer out and lets a model write its own; ``logitcask capture`` reads the chat as it
is. Which functions are asked about is decided by a hash of their names, so another Python version asks mostly the same.
"""

import ast
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import click

from cache_tools.mappings import JsonObject
from pipeline.demo.corpus import modules, standard_library

ANSWER_CHARACTERS = (60, 400)
"""Shortest and longest answer; a longer docstring is cut behind a paragraph, or left out if its first one is longer."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1), default=400, show_default=True, help="Number of questions.")
def main(file: Path, count: int) -> None:
    """Write questions and answers as JSON lines to FILE."""
    chats = chosen_questions(count)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats), encoding="utf-8")
    click.echo(f"{len(chats)} questions in {file}")


def chosen_questions(count: int) -> list[JsonObject]:
    """Return so many questions, chosen by a hash of their names."""
    by_name = {chat["id"]: chat for chat in questions(standard_library())}  # some are defined twice, one in an else
    return sorted(by_name.values(), key=lambda chat: sha256(chat["id"].encode()).digest())[:count]


def questions(root: Path) -> Iterator[JsonObject]:
    """Yield a chat for each public function and class at the top of a module whose docstring has a usable length."""
    for module, _source, tree in modules(root):
        if any(part.startswith("_") for part in module.split(".")):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = answer(ast.get_docstring(node) or "")
                if text is not None:
                    yield _chat(module, node, text)


def answer(docstring: str) -> str | None:
    """Return the first paragraphs of a docstring; None if there are none of a usable length."""
    shortest, longest = ANSWER_CHARACTERS
    text = ""
    for paragraph in docstring.split("\n\n"):
        longer = f"{text}\n\n{paragraph}" if text else paragraph
        if len(longer) > longest:
            break
        text = longer
    return text if len(text) >= shortest else None


def _chat(module: str, node: ast.FunctionDef | ast.ClassDef, text: str) -> JsonObject:
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    question = f"What does the {kind} {module}.{node.name} of Python's standard library do?"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return {"id": f"{module}.{node.name}", "group": f"module/{module}", "messages": messages}


if __name__ == "__main__":
    main()
