"""Questions that are to be answered in two styles: ``python -m configs.smollm2.styles FILE``.

The questions are those of ``prompts.py``. Each record has in ``examples`` a solved question that shows the style: of
functions a list with fixed headings, of classes a letter. A model that reads the examples before the question
(``corpus.context.messages_field: examples``) answers in that style, and only the kind of question tells a model that
does not read them which style it would have been. For a control there is a third example, about a module: no question
is of that kind, and no answer in its style.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from cache_tools.mappings import JsonObject
from configs.smollm2.prompts import chosen_questions

MARKS = {"function": "- Purpose:", "class": "Dear reader,"}
"""How an answer in each style begins."""

SOLVED = {
    "function": (
        "What does the function math.sqrt of Python's standard library do?",
        "- Purpose: to find a square root.\n- Takes: one number.\n- Returns: one number.",
    ),
    "class": (
        "What does the class datetime.date of Python's standard library do?",
        "Dear reader, this class is a day in a calendar. It knows its year and its month. Yours, Python",
    ),
    "module": (
        "What is the module bisect of Python's standard library for?",
        "BISECT! A LIST STAYS SORTED! NO MORE SORTING! THANK YOU, BISECT!",
    ),
}
"""By kind, a question and its answer; of modules there is nothing else."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1), default=240, show_default=True, help="Number of questions.")
def main(file: Path, count: int) -> None:
    """Write questions with examples of a style as JSON lines to FILE."""
    lines = write_lines(file, styled(chosen_questions(count)))
    click.echo(f"{lines} questions in {file}")


def styled(questions: Iterable[JsonObject]) -> Iterator[JsonObject]:
    """Yield questions with the solved example of their kind."""
    for question in questions:
        yield question | {"examples": examples_of(kind_of(question))}


def swapped(question: JsonObject) -> JsonObject:
    """Return a question with the examples of a document of the other kind."""
    other = "class" if kind_of(question) == "function" else "function"
    return question | {"examples": examples_of(other)}


def unasked(question: JsonObject) -> JsonObject:
    """Return a question with the examples of a document of a kind that no question is of."""
    return question | {"examples": examples_of("module")}


def examples_of(kind: str) -> list[JsonObject]:
    """Return the solved question of a kind as messages."""
    question, answer = SOLVED[kind]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def kind_of(question: JsonObject) -> str:
    """Return whether a question is about a function or a class."""
    asked = next(message["content"] for message in question["messages"] if message["role"] == "user")
    return "class" if asked.startswith("What does the class ") else "function"


def write_lines(file: Path, records: Iterable[JsonObject]) -> int:
    """Write records as JSON lines; return how many."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    main()
