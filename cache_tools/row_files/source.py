"""Files of rows, Parquet or Arrow, read in batches of bounded size.

A source is one file, or a folder with ``.parquet`` files or with ``.arrow`` files as ``datasets`` saves them; files are
read in the order of their names, with numbers compared as numbers. A batch has about BATCH_BYTES of values, at least
one row, so memory is bounded by a batch or by the longest row. Row groups that a caller does not need are not read.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from cache_tools.errors import ConfigError, FormatError
from cache_tools.row_files.arrow_lists import Place

BATCH_BYTES = 2**24
"""Values of a batch, as far as the file states their size."""

DICTIONARY_GAIN = 4
"""By how much the values in memory exceed what Parquet states, whose pages hold dictionaries and runs."""

Needed = Callable[[int, int], bool]
"""Says whether any row ``[first, stop)`` of a file is needed."""


@dataclass(frozen=True)
class SourceFile:
    """One file.

    Attributes:
        path: Where it lies.
        name: Its path relative to the source.
    """

    path: Path
    name: str

    @cached_property
    def schema(self) -> pa.Schema:
        """Its columns.

        Raises:
            FormatError: it is neither Parquet nor Arrow, or damaged.
        """
        with readable(self.path):
            return self._parquet.schema_arrow if self._is_parquet else _arrow_batches(self.path)[0]

    @cached_property
    def num_rows(self) -> int:
        """Number of its rows; raises as ``schema``."""
        with readable(self.path):
            if self._is_parquet:
                return int(self._parquet.metadata.num_rows)
            return sum(batch.num_rows for batch in _arrow_batches(self.path)[1])

    def sha256(self) -> str:
        """Return the hex sha256 of its bytes."""
        with readable(self.path), self.path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def batches(self, columns: list[str], needed: Needed) -> Iterator[tuple[Place, pa.RecordBatch]]:
        """Yield its rows in batches, in order; row groups without a needed row are not read.

        Args:
            columns: Names of the columns to read.
            needed: Which rows are.

        Raises:
            FormatError: the file is damaged.
        """
        with readable(self.path):
            groups = self._parquet_groups(columns) if self._is_parquet else self._arrow_groups(columns)
            for first, num_rows, read in groups:
                if not needed(first, first + num_rows):
                    continue
                for batch in read():
                    if needed(first, first + batch.num_rows):
                        yield Place(self.name, first), batch
                    first += batch.num_rows

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix == ".parquet"

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path)

    def _parquet_groups(self, columns: list[str]) -> Iterator[tuple[int, int, Callable[[], Iterator[pa.RecordBatch]]]]:
        first = 0
        for group in range(self._parquet.metadata.num_row_groups):
            stated = self._parquet.metadata.row_group(group)
            size = max(1, BATCH_BYTES * stated.num_rows // max(1, DICTIONARY_GAIN * stated.total_byte_size))

            def read(group: int = group, size: int = size) -> Iterator[pa.RecordBatch]:
                yield from self._parquet.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)

            yield first, stated.num_rows, read
            first += stated.num_rows

    def _arrow_groups(self, columns: list[str]) -> Iterator[tuple[int, int, Callable[[], Iterator[pa.RecordBatch]]]]:
        first = 0
        for whole in _arrow_batches(self.path)[1]:

            def read(whole: pa.RecordBatch = whole) -> Iterator[pa.RecordBatch]:
                selected = whole.select(columns)
                size = max(1, BATCH_BYTES * whole.num_rows // max(1, selected.nbytes))
                yield from (selected.slice(start, size) for start in range(0, whole.num_rows, size))

            yield first, whole.num_rows, read
            first += whole.num_rows


def source_files(source: Path) -> list[SourceFile]:
    """Return the files of a source, in the order in which they are read.

    Raises:
        ConfigError: there are none.
    """
    paths = [source] if source.is_file() else _files_below(source, "*.parquet") or _files_below(source, "*.arrow")
    if not paths:
        raise ConfigError(
            "there are no rows to import here",
            where=source,
            expected="a .parquet or .arrow file, or a folder with such files",
            found=_contents(source),
            fix="Check the path; download a dataset first, for instance with 'hf download --repo-type dataset'",
        )
    folder = source.parent if source.is_file() else source
    return [SourceFile(path, path.relative_to(folder).as_posix()) for path in paths]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what Arrow and the disk raise for a damaged file into one error."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeEncodeError) as error:
        raise FormatError(
            "this file of rows cannot be read",
            where=path,
            expected="Parquet or Arrow IPC",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="Download or copy the file again",
        ) from error


def _arrow_batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema and the record batches of an Arrow file, in the file or the stream format, mapped to memory."""
    mapped = pa.memory_map(str(path))
    try:
        reader = pa.ipc.open_file(mapped)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        stream = pa.ipc.open_stream(pa.memory_map(str(path)))
        return stream.schema, iter(stream)


def _files_below(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose names fit; a folder may have such a name, and is no file."""
    return sorted((path for path in folder.rglob(pattern) if path.is_file()), key=_in_order)


def _contents(source: Path) -> str:
    """Say what a place without files of rows is."""
    if not source.exists():
        return "nothing"
    inside = list(source.rglob("*"))
    if not inside:
        return "an empty folder"
    return "folders without files" if all(path.is_dir() for path in inside) else "other files"


def _in_order(path: Path) -> list[tuple[int, int | str]]:
    """Return a key that sorts ``data_10`` behind ``data_9``."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
