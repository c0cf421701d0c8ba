"""Configuration of the documentation site: ``make docs`` builds it into ``docs/_build/html``, with warnings as errors.

Nothing is fetched while building. What the code already states is generated at the start of each build into
``docs/_generated``: the picture of the rooms (``rooms.py``) and the table of losses (``losses.py``). The index for
language models, ``llms.txt``, is written at the end (``llms.py``).
"""

import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import llms  # noqa: E402
import losses  # noqa: E402
import rooms  # noqa: E402

project = "logitcask"
version = release = installed_version("logitcask")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|np|pa|pyarrow|pathlib|Path|Any|NDArray|Iterable|StorePath|upath|collections|typing)\b.*"),
    (r"py:.*", r"(torch|transformers|Tensor|PreTrained\w+)\b.*"),
    (r"py:.*", r"(Arrays|Codec|Receipt|Sequence|ShardEntry|Split|.*Manifest|StoredTargets|StoredHidden)"),
    (r"py:.*", r"(pipeline\.config|pipeline\.planning|trainer\.(config|data|losses)|cache_tools\.torch_models)\..*"),
    (r"py:.*", r"cache_tools\.(codecs|format|store|storage)\..*"),
]
"""Types of other libraries, and types of ours that are not part of the documented interface."""

html_theme = "furo"
html_title = f"logitcask {version}"
html_show_sphinx = html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "default"
pygments_dark_style = "monokai"

INCLUDE = re.compile(r"```\{include\} (\S+)\n```")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def included_pages() -> dict[Path, Path]:
    """Return the pages that show a file of the repository, by that file: FORMAT.md, a recipe's README and so on."""
    pages = {}
    for page in DOCS.rglob("*.md"):
        if "_build" in page.parts or "_generated" in page.parts:
            continue
        for target in INCLUDE.findall(page.read_text(encoding="utf-8")):
            pages[(page.parent / target).resolve()] = page
    return pages


def point_links_at_pages(text: str, file: Path, page: Path) -> str:
    """Return Markdown whose relative links work on the site.

    A link to a file that a page shows leads to that page; a link to a folder becomes its text, as a site has no page
    for it.

    Args:
        text: What ``file`` holds.
        file: Where its relative links start from.
        page: The page of the site that shows the text.
    """
    pages = included_pages()

    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = (file.parent / target).resolve()
        if path.is_dir():
            return label if "`" in label else f"`{label}`"
        return f"[{label}]({os.path.relpath(pages.get(path, path), page.parent)}{anchor})"

    return LINK.sub(replaced, text)


def with_included_files(text: str, page: Path) -> str:
    """Return a page's Markdown with the files that it includes in place, and with links that work on the site.

    Files of ``docs/_generated`` are left to the parser's own include.
    """

    def replaced(match: re.Match[str]) -> str:
        file = (page.parent / match[1]).resolve()
        if file.parent.name == "_generated":
            return match[0]
        return point_links_at_pages(file.read_text(encoding="utf-8"), file, page)

    return INCLUDE.sub(replaced, point_links_at_pages(text, page, page))


def _read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    page = DOCS / f"{docname}.md"
    for target in INCLUDE.findall(source[0]):
        app.env.note_dependency((page.parent / target).resolve())
    source[0] = with_included_files(source[0], page)


def _generate(app: Sphinx) -> None:
    folder = DOCS / "_generated"
    folder.mkdir(exist_ok=True)
    for name, text in {"rooms.svg": rooms.picture(), "losses.md": losses.tables()}.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect generating, the mapping of links, and the index for language models to the build."""
    app.connect("builder-inited", _generate)
    app.connect("source-read", _read_page)
    app.connect("build-finished", llms.write)
