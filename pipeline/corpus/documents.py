"""Documents: the checked records of all sources, as one stream.

A document is a text, a chat, or token ids. Nothing is held but the documents' ids, which must be unique: about
100 bytes each. Every error names file and line (or row), because a corpus has millions of them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from textwrap import shorten
from typing import Any

from cache_tools.errors import CorpusError
from cache_tools.mappings import JsonObject
from pipeline.corpus.config import ContextConfig, CorpusConfig
from pipeline.corpus.context import Context, context_of
from pipeline.corpus.datasets import DatasetSource, Record, open_dataset
from pipeline.corpus.files import FileSource, file_sources

CorpusSource = FileSource | DatasetSource
"""A file or a dataset of the corpus."""


@dataclass(frozen=True)
class Document:
    """One input record; exactly one of ``text``, ``messages`` and ``ids`` is there.

    Attributes:
        id: Id, unique in the corpus.
        group: Name of the group, which is held out as a whole.
        text: Plain text.
        messages: Chat messages, each with ``role`` and, mostly, ``content``.
        place: File and line it came from, for error messages.
        tools: JSON schemas of the tools that a chat may call.
        ids: Token ids.
        mask: For each id 1 if it is trained on, else 0; None for all.
        label: Class of the document, a token; None if documents have no class.
        context: What a teacher reads in addition, and a student does not; None for nothing.
        share_before: Share of the corpus' bytes before it, approximately, in [0, 1]; None if unknown.
    """

    id: str
    group: str
    text: str | None
    messages: list[JsonObject] | None
    place: str
    tools: list[Any] | None = None
    ids: list[int] | None = None
    mask: list[int] | None = None
    label: str | None = None
    context: Context | None = None
    share_before: float | None = field(default=None, compare=False)


def corpus_sources(config: CorpusConfig) -> dict[str, CorpusSource]:
    """Return the corpus' files and datasets in reading order, by the name under which an encoding records each.

    A name that occurs again gets a number.

    Raises:
        CorpusError: a path or dataset does not exist or holds nothing readable.
    """
    files: list[CorpusSource] = [file for path in config.paths for file in file_sources(path, config.text_field)]
    if config.paths and not files:
        raise CorpusError(
            "no readable file found",
            where=", ".join(map(str, config.paths)),
            expected=".txt, .jsonl (also .gz or .zst) or .parquet files, or a dataset saved to disk",
            found="none",
        )
    counts: Counter[str] = Counter()
    sources = {}
    for source in [*files, *map(open_dataset, config.datasets)]:
        counts[source.name] += 1
        sources[source.name if counts[source.name] == 1 else f"{source.name} ({counts[source.name]})"] = source
    return sources


def read_documents(sources: Iterable[CorpusSource], config: CorpusConfig, seen: set[str]) -> Iterator[Document]:
    """Yield the documents of all sources in order.

    Args:
        sources: What to read.
        config: How.
        seen: Ids that are taken; those that are read join them.

    Raises:
        CorpusError: a broken line, a missing or mistyped field, a repeated id, or no document at all.
    """
    taken, sources = len(seen), list(sources)
    for source, span in zip(sources, _spans(sources), strict=True):
        for place, record, done in _records(source):
            document = _document(f"{source.where}{place}", f"{source.prefix}{place}", record, config, source.arrow)
            if document.id in seen:
                raise CorpusError(
                    f"the id {document.id!r} occurs a second time",
                    where=document.place,
                    why="predictions are joined to documents by id",
                    fix="Make the ids unique, or point corpus.id_field at a field that is",
                )
            seen.add(document.id)
            share = None if span is None or done is None else span[0] + done * span[1]
            yield replace(document, share_before=share)
    if len(seen) == taken:
        raise CorpusError(
            "the corpus is empty: no file holds a document", where=", ".join(source.where for source in sources)
        )


def _spans(sources: list[CorpusSource]) -> list[tuple[float, float] | None]:
    """Return which share of the corpus' bytes lies before each source, and in it; None if a size is not known."""
    sizes = [source.size_bytes() for source in sources]
    known_sizes = [size for size in sizes if size is not None]
    total = sum(known_sizes)
    if len(known_sizes) < len(sizes) or not total:
        return [None] * len(sizes)
    ends = accumulate(known_sizes)
    return [((end - size) / total, size / total) for size, end in zip(known_sizes, ends, strict=True)]


def _records(source: CorpusSource) -> Iterator[Record]:
    try:
        yield from source.records()
    except CorpusError:
        raise
    except Exception as error:  # gzip, Arrow, datasets and the network raise many kinds for damaged or missing bytes
        cause = error.__cause__ or error  # datasets wraps what happened in an error that says nothing
        raise CorpusError(
            "this cannot be read to its end",
            where=source.where,
            expected=f"whole and valid {source.kind}",
            found=f"{type(cause).__name__}: {shorten(str(cause), 300)}",
            fix="Replace it with an undamaged copy, or run the command again if a connection broke",
        ) from error


def _document(place: str, name: str, record: JsonObject, config: CorpusConfig, arrow: bool) -> Document:
    """Check a record; ``name`` is its id if it has none of its own."""
    identity = str(record[config.id_field]) if record.get(config.id_field) is not None else name
    group = str(record[config.group_field]) if record.get(config.group_field) is not None else identity
    _check_unicode(place, identity, group)
    context = None if config.context is None else _context(place, record, config.context, arrow)
    if config.messages_field:
        messages, tools = _chat(place, record, config, arrow)
        return Document(identity, group, None, messages, place, tools, context=context)
    if config.ids_field:
        ids, mask = _ids(place, record, config)
        return Document(identity, group, None, None, place, None, ids, mask)
    text = _field(place, record, "text_field", config.text_field, str)
    label = _field(place, record, "label_field", config.label_field, str) if config.label_field else None
    _check_unicode(place, text, label or "")
    return Document(identity, group, text, None, place, label=label, context=context)


def _context(place: str, record: JsonObject, config: ContextConfig, arrow: bool) -> Context:
    """Return what only a teacher reads; a record without a field of it is refused."""
    texts = {name: _field(place, record, "context", name, str) for name in config.text_fields}
    _check_unicode(place, *texts.values())
    messages = []
    if config.messages_field:
        messages = _messages(place, record, "context.messages_field", config.messages_field, arrow)
    return context_of(config, texts, messages)


def _chat(
    place: str, record: JsonObject, config: CorpusConfig, arrow: bool
) -> tuple[list[JsonObject], list[Any] | None]:
    """Return messages and tools.

    Either may be a list or that list as JSON text, as Parquet corpora often have it: an Arrow column gives every
    message and every call all keys that occur anywhere. For that reason, nulls in
    Arrow columns are keys that were not written, and are dropped; ``content`` stays.
    """
    assert config.messages_field
    messages = _messages(place, record, "messages_field", config.messages_field, arrow)
    if not config.tools_field:
        return messages, None
    if config.tools_field in record and record[config.tools_field] is None:
        return messages, None
    return messages, _objects(place, record, "tools_field", config.tools_field, arrow) or None


def _messages(place: str, record: JsonObject, key: str, name: str, arrow: bool) -> list[JsonObject]:
    messages = _objects(place, record, key, name, arrow)
    if not all("role" in message for message in messages):
        raise CorpusError("a message is not an object with a role", where=place)
    return messages


def _objects(place: str, record: JsonObject, key: str, name: str, arrow: bool) -> list[JsonObject]:
    """Return a field that is a list of objects, or JSON text of one."""
    value = record.get(name)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):  # what is no JSON is refused below as the text that it is
            record = {name: json.loads(value)}
    elif arrow:
        record = {**record, name: _without_nulls(value)}
    objects: list[JsonObject] = _field(place, record, key, name, list)
    if not all(isinstance(item, dict) for item in objects):
        what = "a message is not an object with a role" if key.endswith("messages_field") else "a tool is not an object"
        raise CorpusError(what, where=place)
    _check_unicode(place, json.dumps(objects, ensure_ascii=False, default=str))
    return objects


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k == "content"}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _ids(place: str, record: JsonObject, config: CorpusConfig) -> tuple[list[int], list[int] | None]:
    """Return token ids and their mask; whether the ids are tokens is for the tokenizer to say."""
    assert config.ids_field
    ids = _field(place, record, "ids_field", config.ids_field, list)
    if not all(type(token) is int for token in ids):
        raise CorpusError(f"the field {config.ids_field!r} is not a list of whole numbers", where=place)
    if not config.mask_field:
        return ids, None
    mask = _field(place, record, "mask_field", config.mask_field, list)
    if len(mask) != len(ids):
        raise CorpusError(
            "ids and mask differ in length", where=place, expected=f"{len(ids)} in the mask", found=f"{len(mask)}"
        )
    if not all(type(flag) in (int, bool) and flag in (0, 1) for flag in mask):
        raise CorpusError(f"the field {config.mask_field!r} is not a list of 0 and 1", where=place)
    return ids, mask


def _check_unicode(place: str, *values: str) -> None:
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError as error:
        raise CorpusError("this is not valid Unicode (a lone surrogate)", where=place, found=error) from error


def _field(place: str, record: JsonObject, key: str, name: str, kind: type) -> Any:
    """Return a field of a record; ``key`` is the setting that names it."""
    value = record.get(name)
    if not isinstance(value, kind):
        raise CorpusError(
            f"the field {name!r} is missing" if name not in record else f"the field {name!r} is not a {kind.__name__}",
            where=place,
            expected=f"a {kind.__name__}",
            found=f"fields {', '.join(record)}" if name not in record else type(value).__name__,
            fix=f"Name the right field in corpus.{key}",
        )
    return value
