"""The code blocks of the documentation, for the tests that check and run them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted([*(ROOT / "docs" / "tutorial").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]
OPERATORS = ("|", "||", "&&", "&", ";", "{", "}")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Where it is, relative to the repository's root.
        line: Line of its fence, from 1.
        language: First word behind the fence.
        marks: Further words: ``run``, ``file=NAME``, ``other``.
        text: What is inside.
    """

    page: str
    line: int
    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """Name of the file that a reader saves the block as."""
        return next((mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")), None)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    name = str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, match.start()) + 1, (match["info"].split() or [""])[0],
              tuple(match["info"].split()[1:]), match["text"])
        for match in found
    ]  # fmt: skip


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in some languages."""
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def logitcask_arguments(script: str) -> list[list[str]]:
    """Return the arguments of every call of logitcask in a shell script, launchers such as torchrun included.

    Variables become 0, which is a valid rank; redirections are left out.
    """
    calls = []
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        lexer = shlex.shlex(re.sub(r'"?\$\{?\w+\}?"?', "0", line), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words = list(lexer)
        nested = [word for word in words if word.startswith("logitcask ")]  # a command that another one is given
        calls += [call for word in nested for call in logitcask_arguments(word)]
        starts = [i for i, word in enumerate(words) if word in ("logitcask", "logitcask.py")]
        for start in starts:
            rest = words[start + 1 :]
            end = next((i for i, word in enumerate(rest) if word in OPERATORS or re.fullmatch(r"\d?>.*", word)), None)
            calls.append(rest[:end])
    return calls
