"""The demo's corpus: the documentation that ships inside every Python interpreter.

Nothing is downloaded. Two sources, both English prose about one subject:

- ``pydoc_data.topics``: the language reference that ``help('while')`` prints,
- the docstrings of the standard library, read with :mod:`ast` so that no module is
  imported (importing ``antigravity`` opens a browser).

The demo's *teacher* also reads the library's source code, which is why a document names
its ``group``: the docstrings and the source of one module share a group, and a group is
held out whole. Otherwise the teacher would have seen the held-out docstrings in the source.

Another Python version has slightly other documentation, so figures differ a little
between machines; the held-out *groups* are chosen by a hash of their names and do not.
"""

import ast
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "turtledemo",
}

Document = dict[str, str]
IsRead = Callable[[str], bool]
"""Says whether the documents of a group are wanted; modules of other groups are not even parsed."""


def every_group(group: str) -> bool:
    """Say that the documents of any group are wanted."""
    return True


def topic_documents(is_read: IsRead = every_group) -> Iterator[Document]:
    """Yield one document per topic of the language reference."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if is_read(f"topic/{name}"):
            yield {"id": f"topic/{name}", "group": f"topic/{name}", "text": topics[name].strip()}


def docstring_documents(root: Path, is_read: IsRead = every_group) -> Iterator[Document]:
    """Yield one document per module under ``root``: its docstrings, each under its object's name."""
    for name, _source, tree in modules(root, is_read):
        text = "\n\n".join(_docstrings(name, tree))
        if text:
            yield {"id": f"docstrings/{name}", "group": f"module/{name}", "text": text}


def source_documents(root: Path) -> Iterator[Document]:
    """Yield one document per module under ``root``: its source code."""
    for name, source, _tree in modules(root):
        yield {"id": f"source/{name}", "group": f"module/{name}", "text": source.strip()}


def standard_library() -> Path:
    """Return the folder that holds this interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def write_corpus(path: Path, is_read: IsRead = every_group) -> int:
    """Write the demo's corpus as JSON lines and return the number of documents.

    Args:
        path: File to write.
        is_read: Says whether the documents of a group are written; by default all are.
    """
    documents = [*topic_documents(is_read), *docstring_documents(standard_library(), is_read)]
    lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")  # a demo that goes on takes a file of this name for whole
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
    return len(documents)


def modules(root: Path, is_read: IsRead = every_group) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield (dotted name, source, syntax tree) of every readable, parsable, non-empty module, by path."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if SKIPPED_FOLDERS.intersection(parts) or parts[0].startswith("config-") or not is_read(f"module/{name}"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        if source.strip():
            yield name, source, tree


def _docstrings(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                title = name if isinstance(node, ast.Module) else node.name
                yield f"{title}\n\n{text}"
