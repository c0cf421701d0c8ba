"""Documents from files: plain text, JSON lines, Parquet, or a dataset saved to disk.

Reading is a stream of :class:`Document`; nothing is held but the ids, which must be unique.
Every error names file and line (or row), because a corpus has millions of them.

Each file is known by its name and the hash of its bytes. Hashing is cheap beside a teacher, and
sees every change, including one inside a file of the same size.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from cache_tools.errors import CorpusError
from cache_tools.storage import file_sha256
from pipeline.config import CorpusConfig

Record = tuple[str, dict[str, Any]]
"""(place for error messages, fields)."""


@dataclass(frozen=True)
class Document:
    """One input record.

    Attributes:
        id: Unique over the corpus.
        group: Held out as a whole.
        text: Plain text; None for a chat.
        messages: Chat messages, each with ``role`` and ``content``; None for plain text.
        place: File and line it came from, for error messages.
    """

    id: str
    group: str
    text: str | None
    messages: list[dict[str, Any]] | None
    place: str


def corpus_files(config: CorpusConfig) -> list[Path]:
    """Return the corpus' files and dataset folders in reading order.

    Raises:
        CorpusError: a path does not exist or holds nothing readable.
    """
    files = [file for path in config.paths for file in _expand(path)]
    if not files:
        raise CorpusError(
            "no readable file found",
            where=", ".join(map(str, config.paths)),
            expected=".txt, .jsonl (also .gz or .zst) or .parquet files, or a dataset saved to disk",
            found="none",
        )
    return files


def file_names(files: list[Path], config: CorpusConfig) -> list[str]:
    """Return the name under which an encoding records each file: its path below the configured folder.

    Names count, because documents without an id are named after their file; where the corpus
    lies does not. A name that occurs again gets a number.
    """
    counts: Counter[str] = Counter()
    names = []
    for file in files:
        name = _name(file, config)
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def file_hash(file: Path) -> str:
    """Return the hash of a file, or of a dataset's files."""
    if file.is_file():
        return file_sha256(file)
    lines = [f"{path.name}\0{file_sha256(path)}\n" for path in sorted(file.rglob("*.arrow"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_documents(files: list[Path], config: CorpusConfig, seen: set[str]) -> Iterator[Document]:
    """Yield the documents of all files in order.

    Args:
        files: What to read.
        config: How.
        seen: Ids that are taken; those that are read join them.

    Raises:
        CorpusError: a broken line, a missing or mistyped field, a repeated id, or no document at all.
    """
    taken = len(seen)
    for file in files:
        for place, record in _records(file, config.text_field):
            document = _document(place, _name(file, config) + place.removeprefix(str(file)), record, config)
            if document.id in seen:
                raise CorpusError(
                    f"the id {document.id!r} occurs a second time",
                    where=place,
                    why="predictions are joined to documents by id",
                    fix="Make the ids unique, or point corpus.id_field at a field that is",
                )
            seen.add(document.id)
            yield document
    if len(seen) == taken:
        raise CorpusError("the corpus is empty: no file holds a document", where=", ".join(map(str, files)))


def _name(file: Path, config: CorpusConfig) -> str:
    """Return a file's path below the configured folder that holds it, or its bare name."""
    root = next((path for path in config.paths if path in file.parents), file.parent)
    return file.relative_to(root).as_posix()


def _expand(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise CorpusError("no such file or folder", where=path, fix="Check corpus.paths")
    if path.is_file():
        if _reader(path) is None:
            raise CorpusError(
                "unknown kind of file",
                where=path,
                expected=".txt, .jsonl (also .gz or .zst) or .parquet",
                found=path.suffix,
            )
        yield path
    elif _is_dataset(path):
        yield path
    else:
        for inner in sorted(path.iterdir()):
            if inner.is_dir() or _reader(inner):
                yield from _expand(inner)


def _is_dataset(path: Path) -> bool:
    return path.is_dir() and (path / "dataset_info.json").exists() and (path / "state.json").exists()


def _reader(path: Path) -> str | None:
    """Return the kind of a file by its name, or None if it is not one we read."""
    kinds = {".txt": "text", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".parquet": "parquet"}
    return next((kind for suffix, kind in kinds.items() if path.name.endswith(suffix)), None)


def _records(file: Path, text_field: str) -> Iterator[Record]:
    kind = "dataset" if file.is_dir() else _reader(file)
    try:
        if kind == "text":
            yield _text_record(file, text_field)
        elif kind == "jsonl":
            yield from _jsonl_records(file)
        else:
            yield from _dataset_records(file) if kind == "dataset" else _parquet_records(file)
    except CorpusError:
        raise
    except Exception as error:  # gzip, Arrow and datasets raise many kinds for damaged bytes
        raise CorpusError(
            "this cannot be read to its end",
            where=file,
            expected=f"whole and valid {kind}",
            found=f"{type(error).__name__}: {shorten(str(error), 300)}",
            fix="Replace it by an undamaged copy",
        ) from error


def _text_record(file: Path, text_field: str) -> Record:
    try:
        return str(file), {text_field: file.read_bytes().decode()}  # read_text would change line ends
    except UnicodeDecodeError as error:
        raise CorpusError("this is not UTF-8", where=file, found=error) from error


def _jsonl_records(file: Path) -> Iterator[Record]:
    with io.BufferedReader(pa.input_stream(file), 2**20) as lines:  # which decompresses by the file's ending
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", _parse(line, f"{file}:{number}")


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError("this line is not JSON", where=place, found=error, fix="Repair or remove the line") from error
    if not isinstance(record, dict):
        raise CorpusError("this line is not a JSON object", where=place, found=type(record).__name__)
    return record


def _parquet_records(file: Path) -> Iterator[Record]:
    batches = pa.parquet.ParquetFile(file).iter_batches()
    records = (record for batch in batches for record in batch.to_pylist())
    for row, record in enumerate(records):
        yield f"{file}, row {row}", record


def _dataset_records(folder: Path) -> Iterator[Record]:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise CorpusError(
            "reading a saved dataset needs the datasets library",
            where=folder,
            fix="Install it: pip install 'logitcask[datasets]'",
        ) from error
    for row, record in enumerate(load_from_disk(str(folder))):
        yield f"{folder}, row {row}", record


def _document(place: str, name: str, record: dict[str, Any], config: CorpusConfig) -> Document:
    """Check a record; ``name`` is its id if it has none of its own."""
    identity = str(record[config.id_field]) if record.get(config.id_field) is not None else name
    group = str(record[config.group_field]) if record.get(config.group_field) is not None else identity
    if config.messages_field:
        messages = _field(place, record, config.messages_field, list)
        if not all(isinstance(message, dict) and "role" in message for message in messages):
            raise CorpusError("a message is not an object with a role", where=place)
        _check_unicode(place, identity, group, json.dumps(messages, ensure_ascii=False, default=str))
        return Document(identity, group, None, messages, place)
    text = _field(place, record, config.text_field, str)
    _check_unicode(place, identity, group, text)
    return Document(identity, group, text, None, place)


def _check_unicode(place: str, *values: str) -> None:
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError as error:
        raise CorpusError("this is not valid Unicode (a lone surrogate)", where=place, found=error) from error


def _field(place: str, record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise CorpusError(
            f"the field {name!r} is missing" if name not in record else f"the field {name!r} is not a {kind.__name__}",
            where=place,
            expected=f"a {kind.__name__}",
            found=f"fields {', '.join(record)}" if name not in record else type(value).__name__,
            fix="Name the right field in corpus.text_field or corpus.messages_field",
        )
    return value
