"""Hugging Face datasets: by hub id, from a local folder, or saved to disk; whole or as a stream.

What a dataset's rows are is settled before the first is read: :func:`open_dataset` asks the ``datasets`` library
for the files behind a split. Files of the hub come with the commit they belong to, and that commit, not
a branch that may move, is what an encoding records and what is read. Files on this machine
are hashed like any other file of a corpus.

The library reads data and runs none of a dataset's own code. A stream that breaks raises; one that ends before
the number of rows that the dataset's card promises is an error too, never a shorter corpus.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

from cache_tools.errors import CorpusError
from cache_tools.format.fingerprint import fingerprint
from cache_tools.mappings import JsonObject
from cache_tools.storage import file_sha256
from pipeline.corpus.config import DatasetConfig

Record = tuple[str, JsonObject, float | None]
"""(place inside the source, fields, share of the source before it if known)."""

_COMMIT = re.compile(r"^hf://.*?@([0-9a-f]{40})/")


@dataclass(frozen=True)
class DatasetSource:
    """One split of a dataset.

    Attributes:
        config: Its block of the capture file.
        builder: The reader of the datasets library, bound to the files of the dataset.
    """

    config: DatasetConfig
    builder: Any
    kind = "dataset"
    arrow = True

    @property
    def where(self) -> str:
        """Return the name of the source in error messages."""
        return self._described(self.config.path)

    @property
    def prefix(self) -> str:
        """Return the beginning of the ids of rows without an id; it does not depend on where a local folder is."""
        path = Path(self.config.path)
        return self._described(path.name if path.is_dir() else self.config.path)

    @property
    def name(self) -> str:
        """Return the name under which an encoding records it; of a hub dataset it holds the commit."""
        commits = sorted({match[1] for url in self._files() if (match := _COMMIT.match(url))})
        limit = f", first {self.config.max_documents}" if self.config.max_documents else ""
        return f"{self.prefix}{limit}{''.join(f' @{commit}' for commit in commits)}"

    def sha256(self) -> str:
        """Return one hash of the split's files: those here by their bytes, those elsewhere by commit or entity tag."""
        files = self._files()
        origins = [
            [url, *origin] if "://" in url else [Path(url).name, file_sha256(Path(url))]
            for url, origin in zip(files, files.origin_metadata, strict=True)
        ]
        return fingerprint({"files": origins, "split": self.config.split, "max_documents": self.config.max_documents})

    def size_bytes(self) -> int | None:
        """Return about how large the split is: its files here, or what its card says; None if nothing does."""
        files = self._files()
        if not any("://" in url for url in files):
            return sum(Path(url).stat().st_size for url in files)
        promised = (self.builder.info.splits or {}).get(self.config.split)
        promised_bytes: int | None = promised.num_bytes if promised else None
        return promised_bytes

    def records(self) -> Iterator[Record]:
        """Yield the rows in order.

        Raises:
            CorpusError: there are fewer than the dataset's card says.
        """
        if self.config.streaming:
            rows = self.builder.as_streaming_dataset(split=self.config.split)
        else:
            self.builder.download_and_prepare()
            rows = self.builder.as_dataset(split=self.config.split)
        promised = (self.builder.info.splits or {}).get(self.config.split)
        expected = min(promised.num_examples or 0, self.config.max_documents or 2**63) if promised else 0
        count = 0
        for count, record in enumerate(islice(rows, self.config.max_documents), 1):
            yield f", row {count - 1}", record, (count - 1) / expected if expected else None
        if count < expected:
            raise CorpusError(
                "the dataset ended too early",
                where=self.where,
                expected=f"{expected:,} rows, as its card says",
                found=f"{count:,}",
                why="a corpus that silently lacks rows would be recorded as whole",
                fix=f"Run the command again, or set max_documents: {count} if the card is wrong",
            )

    def _described(self, path: str) -> str:
        files = [url.rsplit("/", 1)[-1] for url in self.config.data_files]
        return ", ".join(filter(None, (path, self.config.name, self.config.data_dir, *files, self.config.split)))

    def _files(self) -> Any:
        """Return the split's files, as a ``DataFilesList`` of the datasets library."""
        return self.builder.config.data_files[self.config.split]


def open_dataset(config: DatasetConfig) -> DatasetSource:
    """Find the files behind a dataset; a branch or tag of the hub is resolved to its commit here.

    Raises:
        CorpusError: the library is missing, or there is no such dataset, configuration or split.
    """
    library = datasets_library(config.path)
    if Path(config.path, "state.json").exists():
        raise CorpusError(
            "this dataset was saved to disk", where=config.path, fix="Name its folder in corpus.paths instead"
        )
    try:
        builder = library.load_dataset_builder(
            config.path,
            config.name,
            data_dir=config.data_dir,
            data_files=list(config.data_files) or None,
            revision=config.revision,
        )
    except Exception as error:  # the library, the hub's client and the network raise many kinds
        raise CorpusError(
            "this dataset cannot be opened",
            where=config.path,
            found=f"{type(error).__name__}: {shorten(str(error), 300)}",
            fix="Check path, name, data_files and revision in corpus.datasets",
        ) from error
    splits = builder.config.data_files or {}
    if config.split not in splits:
        raise CorpusError(
            f"the dataset has no split {config.split!r}", where=config.path, expected=", ".join(map(str, splits))
        )
    named = config.data_files or config.data_dir or Path(config.path).is_dir()
    if not named and any("://" not in url for url in splits[config.split]):
        raise CorpusError(
            "a reader needs files to read",
            where=config.path,
            why="it would take all files of the working directory",
            fix="Name them in data_files",
        )
    return DatasetSource(config, builder)


def saved_records(folder: Path) -> Iterator[Record]:
    """Yield the rows of a dataset that was saved with ``save_to_disk``."""
    rows = datasets_library(folder).load_from_disk(str(folder))
    for row, record in enumerate(rows):
        yield f", row {row}", record, row / len(rows)


def datasets_library(where: object) -> ModuleType:
    """Import the optional datasets library.

    Raises:
        CorpusError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise CorpusError(
            "reading a dataset needs the datasets library",
            where=where,
            fix="Install it with pip install 'logitcask[datasets]'",
        ) from error
    module: ModuleType = datasets
    return module
