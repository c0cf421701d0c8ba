"""Corpus files: plain text, JSON lines, Parquet, or a dataset saved to disk.

Each file is known by its name and the hash of its bytes. Hashing is cheap beside a teacher, and
sees every change, including one inside a file of the same size.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cache_tools.errors import CorpusError
from cache_tools.mappings import JsonObject
from cache_tools.storage import file_sha256
from pipeline.corpus.datasets import Record, saved_records

KINDS = {".txt": "text", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class FileSource:
    """One file, or one folder that holds a saved dataset.

    Attributes:
        path: Path of the file or folder.
        name: Its path below the configured folder, or its bare name. Names count, because documents
            without an id are named after their file; where the corpus lies does not.
        text_field: Field that a text file's content becomes.
    """

    path: Path
    name: str
    text_field: str

    @property
    def where(self) -> str:
        """Return the name of the source in error messages."""
        return str(self.path)

    @property
    def prefix(self) -> str:
        """Return the beginning of the ids of records without an id."""
        return self.name

    @property
    def kind(self) -> str:
        """Return the kind of file."""
        return _kind(self.path) or "dataset"

    @property
    def arrow(self) -> bool:
        """Return whether records come from Arrow columns."""
        return self.kind in ("parquet", "dataset")

    def sha256(self) -> str:
        """Return the hash of the file, or of a dataset's files."""
        if self.path.is_file():
            return file_sha256(self.path)
        lines = [f"{path.name}\0{file_sha256(path)}\n" for path in sorted(self.path.rglob("*.arrow"))]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def size_bytes(self) -> int:
        """Return the size of the file, or of a dataset's files, as stored."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*.arrow")
        return sum(file.stat().st_size for file in files)

    def records(self) -> Iterator[Record]:
        """Yield the records in order."""
        if self.kind == "text":
            yield "", {self.text_field: _text(self.path)}, 0.0
        elif self.kind == "jsonl":
            yield from _jsonl_records(self.path)
        elif self.kind == "parquet":
            yield from _parquet_records(self.path)
        else:
            yield from saved_records(self.path)


def file_sources(path: Path, text_field: str) -> Iterator[FileSource]:
    """Yield what lies at a configured path: the file itself, or those below the folder by name.

    Raises:
        CorpusError: the path does not exist, or is a file of another kind.
    """
    root = path if path.is_dir() and not _is_dataset(path) else path.parent
    for file in _expand(path):
        yield FileSource(file, file.relative_to(root).as_posix(), text_field)


def _expand(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise CorpusError("no such file or folder", where=path, fix="Check corpus.paths")
    if path.is_file():
        if _kind(path) is None:
            raise CorpusError(
                "unknown kind of file",
                where=path,
                expected=".txt, .jsonl (also .gz or .zst) or .parquet",
                found=path.suffix,
                fix="Files of other kinds (.json, .csv) are read by corpus.datasets: {path: json, data_files: […]}",
            )
        yield path
    elif _is_dataset(path):
        yield path
    else:
        for inner in sorted(path.iterdir()):
            if inner.is_dir() or _kind(inner):
                yield from _expand(inner)


def _is_dataset(path: Path) -> bool:
    return path.is_dir() and (path / "dataset_info.json").exists() and (path / "state.json").exists()


def _kind(path: Path) -> str | None:
    """Return the kind of a file by its name, or None if it is not one we read."""
    return next((kind for suffix, kind in KINDS.items() if path.name.endswith(suffix)), None)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # read_text would change line ends
    except UnicodeDecodeError as error:
        raise CorpusError("this is not UTF-8", where=file, found=error) from error


def _jsonl_records(file: Path) -> Iterator[Record]:
    compression = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix)
    with pa.OSFile(str(file)) as raw, io.BufferedReader(pa.input_stream(raw, compression), 2**20) as lines:
        read_bytes, size_bytes = 0, raw.size()
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f":{number}", _parse(line, f"{file}:{number}"), read_bytes / size_bytes
            read_bytes = raw.tell() if compression else read_bytes + len(line)  # compressed: up to a buffer too far


def _parse(line: bytes, place: str) -> JsonObject:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError("this line is not JSON", where=place, found=error, fix="Repair or remove the line") from error
    if not isinstance(record, dict):
        raise CorpusError("this line is not a JSON object", where=place, found=type(record).__name__)
    return record


def _parquet_records(file: Path) -> Iterator[Record]:
    table = pa.parquet.ParquetFile(file)
    records = (record for batch in table.iter_batches() for record in batch.to_pylist())
    for row, record in enumerate(records):
        yield f", row {row}", record, row / table.metadata.num_rows
