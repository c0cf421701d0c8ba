"""Reading a cache: by shard, by window of positions, by sequence.

::

    cache = Cache("runs/demo/cache")        # or s3://bucket/cache
    encoding = cache.encoding()             # the only one, or by name
    teacher = encoding.teacher("toy")
    sequence = encoding.sequence(41)
    targets = teacher.targets(*sequence.rows)

A shard without a receipt does not exist: reading its rows is an error, never zeros.
Opening reads manifests only, and from then on no link in the cache is followed (``regular_files.py``).
"""

from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from cache_tools.errors import FormatError
from cache_tools.format import layout
from cache_tools.format.manifest import CacheManifest, EncodingManifest, Split, read_manifest
from cache_tools.format.sequences import Sequence, contradiction, read_recorded, read_sequences, unreadable
from cache_tools.format.shards import ShardTable, read_shard_tables
from cache_tools.format.tokenizer_files import without_code
from cache_tools.limits import TOTAL
from cache_tools.regular_files import enclose
from cache_tools.storage import StorePath, names, object_exists, pinned, store_path, write_object
from cache_tools.store.teacher import CachedTeacher

SEQUENCE_SHARDS_IN_MEMORY = 8
"""Decoded sequence files that an Encoding keeps; a shuffle window reads that many at once."""


class Cache:
    """A cache on a disk or bucket.

    Args:
        path: A folder, or a URL such as ``s3://bucket/prefix`` or ``hf://datasets/owner/name``.

    Attributes:
        path: Where it is read; on the Hub at a commit, whatever branch ``path`` named.
        manifest: The cache's manifest.

    Raises:
        FormatError: the path is not a cache, or one of another format version.
        StorageError: the disk or bucket refused, or there is no such repository on the Hub.
    """

    def __init__(self, path: str | StorePath) -> None:
        self.path = pinned(store_path(path))
        enclose(self.path)
        self.manifest = read_manifest(self.path, CacheManifest)

    @property
    def encodings(self) -> list[str]:
        """Names of the committed encodings."""
        return _groups(layout.encodings_folder(self.path))

    def encoding(self, name: str | None = None) -> "Encoding":
        """Open an encoding; without a name, the only one."""
        folder_name = _choose("encoding", name, self.encodings, self.path)
        return Encoding(layout.encoding_folder(self.path, folder_name), folder_name)


class Encoding:
    """One way in which the corpus became sequences, and the teachers that read them.

    Args:
        path: Its folder.
        name: Its name.
        manifest: Its manifest, if it has been read.
    """

    def __init__(self, path: StorePath, name: str, manifest: EncodingManifest | None = None) -> None:
        self.path, self.name = path, name
        enclose(layout.cache_of(path))
        self.manifest = manifest or read_manifest(path, EncodingManifest)
        self._read_shard = lru_cache(maxsize=SEQUENCE_SHARDS_IN_MEMORY)(self._read_shard_uncached)

    def __reduce__(self) -> tuple[type["Encoding"], tuple[StorePath, str, EncodingManifest], dict[str, ShardTable]]:
        """Go on in another process, without a request: only the sequences that are in memory stay behind."""
        tables = {"shards": self.__dict__["shards"]} if "shards" in self.__dict__ else {}
        return Encoding, (self.path, self.name, self.manifest), tables

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that have been declared, finished or not."""
        return _groups(self.path / "teachers")

    @property
    def alignments(self) -> list[str]:
        """Names of the alignments with students' tokenizers, finished or not."""
        return _groups(layout.alignments_folder(self.path))

    def teacher(self, name: str | None = None) -> CachedTeacher:
        """Open a teacher; without a name, the only one."""
        folder_name = _choose("teacher", name, self.teachers, self.path)
        return CachedTeacher(self, layout.teacher_folder(self.path, folder_name), folder_name)

    @cached_property
    def shards(self) -> ShardTable:
        """The shard table.

        Raises:
            DamageError: it is missing, is not what was written, or states impossible values.
        """
        entries, size = read_shard_tables(self.path, self.manifest.parts), self.manifest.positions_per_shard
        for shard in np.flatnonzero(entries.numbers("positions") > size).tolist():
            positions = entries[shard].positions
            raise unreadable(self.path / "parts", f"shard {shard} has {positions} positions in {size} rows")
        return entries

    def split_shards(self, split: Split) -> list[int]:
        """Return the indices of the shards of a split."""
        indices: list[int] = self.shards.of_split(split).tolist()
        return indices

    def sequences(self, shard: int) -> list[Sequence]:
        """Return the sequences of a shard, in position order; the last few shards stay in memory.

        Raises:
            DamageError: the file is missing or not what was written, or contradicts the shard table.
        """
        return self._read_shard(shard)

    def student_sequences(self, shard: int) -> list[Sequence]:
        """Return the sequences of a shard as a student reads them: without a context that only teachers read.

        Rows and gold tokens are those of :meth:`sequences`, and so are its errors.
        """
        return [sequence.as_student() for sequence in self._read_shard(shard)]

    def stored_sequences(self, shard: int) -> list[Sequence]:
        """Return the sequences of a shard as they are stored, even if they contradict the shard table.

        Raises:
            DamageError: the file is missing or not what was written.
        """
        entry = self.shards[shard]
        path = layout.sequences_file(self.path, shard)
        return read_sequences(path, entry.sha256, entry.bytes, entry.unpacked_bytes)

    def sequence(self, sequence_id: int) -> Sequence:
        """Return one sequence by its id.

        Raises:
            IndexError: there is no such sequence.
        """
        shard = self.shard_of(sequence_id)
        return self.sequences(shard)[sequence_id - self.shards[shard].first_sequence]

    def shard_of(self, sequence_id: int) -> int:
        """Return the shard that a sequence lies in.

        Raises:
            IndexError: there is no such sequence.
        """
        firsts = self.shards.numbers("first_sequence")
        shard = int(np.searchsorted(firsts, min(sequence_id, TOTAL), side="right")) - 1
        if shard < 0 or sequence_id >= self.shards[shard].first_sequence + self.shards[shard].sequences:
            raise IndexError(f"sequence {sequence_id} does not exist")
        return shard

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a local folder, each checked against the manifest, and none that runs code.

        Raises:
            DamageError: a file is missing or not what was written.
        """
        for key, record in self.manifest.files.items():
            name = key.removeprefix(f"{layout.TOKENIZER}/")
            content = read_recorded(self.path / key, record.sha256, record.bytes)
            write_object(folder / name, without_code(name, content))

    def _read_shard_uncached(self, shard: int) -> list[Sequence]:
        entry, manifest, sequences = self.shards[shard], self.manifest, self.stored_sequences(shard)
        stated = (entry.sequences, entry.tokens, entry.positions)
        counted = (
            len(sequences),
            sum(len(sequence.input_ids) for sequence in sequences),
            sum(sequence.num_positions for sequence in sequences),
        )
        first_row = shard * manifest.positions_per_shard
        wrong = None
        if stated != counted:
            wrong = f"{counted} sequences, tokens and positions, where the shard table states {stated}"
        wrong = wrong or contradiction(
            sequences, manifest.objective, manifest.vocabulary_size, entry.first_sequence, first_row
        )
        if wrong:
            raise unreadable(layout.sequences_file(self.path, shard), wrong)
        return sequences


def _groups(folder: StorePath) -> list[str]:
    here = (name for name in names(folder) if name != layout.MANIFEST)
    return [name for name in here if object_exists(folder / name / layout.MANIFEST)]


def _choose(kind: str, name: str | None, names_here: list[str], where: StorePath) -> str:
    if name is not None and name in names_here:
        return name
    if name is None and len(names_here) == 1:
        return names_here[0]
    if not names_here:
        raise FormatError(
            f"there is no {kind} here yet",
            where=where,
            fix="Run 'logitcask capture' first, or again if it was stopped",
        )
    raise FormatError(
        f"there is no {kind} {name!r} here" if name else f"there are several {kind}s here; name one of them",
        where=where,
        expected=f"one of: {', '.join(names_here)}",
        found=name or "",
    )
