"""Write ``llms.txt``, one line for each page of the site, and ``llms-full.txt``, the text of all pages.

Both follow the site's own table of contents, so a page is in them as soon as it is on the site.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

MAX_CHARACTERS = 160


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write both files beside the site's pages, when an HTML build has succeeded."""
    if exception is None and app.builder.format == "html":
        out = Path(app.outdir)
        (out / "llms.txt").write_text(index(app.env), encoding="utf-8")
        (out / "llms-full.txt").write_text(full(app.env), encoding="utf-8")


def index(env: BuildEnvironment) -> str:
    """Return the index: a heading for each part of the site, and a line for each of its pages."""
    lines = ["# logitcask", "", f"> {_summary(env, env.config.root_doc)}"]
    for part in env.toctree_includes[env.config.root_doc]:
        lines += ["", f"## {env.titles[part].astext()}", ""]
        lines += [f"- [{env.titles[page].astext()}]({page}.html): {_summary(env, page)}" for page in _below(env, part)]
    return "\n".join(lines) + "\n"


def full(env: BuildEnvironment) -> str:
    """Return the Markdown of all pages, one after another, with included files in place."""
    pages = [env.config.root_doc, *_below(env, env.config.root_doc)]
    texts = [_text(Path(env.doc2path(page))).strip() for page in dict.fromkeys(pages)]
    return "\n\n".join(texts) + "\n"


def _below(env: BuildEnvironment, page: str) -> Iterator[str]:
    """Yield a page and all pages below it, in reading order."""
    yield page
    for child in env.toctree_includes.get(page, []):
        yield from _below(env, child)


def _summary(env: BuildEnvironment, page: str) -> str:
    """Return the first sentence of a page."""
    paragraph = next(iter(env.get_doctree(page).findall(nodes.paragraph)), None)
    text = " ".join(paragraph.astext().split()) if paragraph else ""
    sentence = re.split(r"(?<=[.!?]) ", text)[0]
    return sentence if len(sentence) <= MAX_CHARACTERS else f"{sentence[:MAX_CHARACTERS].rsplit(' ', 1)[0]} …"


def _text(page: Path) -> str:
    def included(match: re.Match[str]) -> str:
        return (page.parent / match[1]).read_text(encoding="utf-8").strip()

    return re.sub(r"```\{include\} (\S+)\n```", included, page.read_text(encoding="utf-8"))
