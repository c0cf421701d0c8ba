"""Reading a cache: by shard, by window of positions, by sequence.

::

    cache = Cache("runs/demo/cache")
    encoding = cache.encoding()             # the only one, or by name
    teacher = encoding.teacher("toy")
    sequence = encoding.sequence(41)
    targets = teacher.targets(*sequence.rows)

A shard without a receipt does not exist: reading its rows is an error, never zeros.
Opening reads manifests only.
"""

from bisect import bisect_right
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools import layout
from cache_tools.codec import Arrays, DeltaPower, Targets
from cache_tools.direct import read_rows
from cache_tools.errors import FormatError, IdentityError, IncompleteError
from cache_tools.manifest import CacheManifest, EncodingManifest, Split, TeacherManifest, read_manifest
from cache_tools.predictions import codec_of, hidden_array, hidden_from_stored, scalar_from_steps
from cache_tools.receipts import Receipt, read_receipt, require_objects
from cache_tools.sequences import Sequence, read_sequences
from cache_tools.shards import ShardEntry, read_shard_table

SEQUENCE_SHARDS_IN_MEMORY = 8
"""Decoded sequence files that an Encoding keeps; a shuffle window reads that many at once."""


class Cache:
    """A cache on disk.

    Raises:
        FormatError: the path is not a cache, or one of another format version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path, CacheManifest)

    @property
    def encodings(self) -> list[str]:
        """Names of the committed encodings."""
        return _groups(layout.encodings_folder(self.path))

    def encoding(self, name: str | None = None) -> "Encoding":
        """Open an encoding; without a name, the only one."""
        chosen = _choose("encoding", name, self.encodings, self.path)
        return Encoding(layout.encoding_folder(self.path, chosen), chosen)


class Encoding:
    """One way in which the corpus became sequences, and the teachers that read them."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.manifest = read_manifest(path, EncodingManifest)
        self._read_shard = lru_cache(maxsize=SEQUENCE_SHARDS_IN_MEMORY)(self._read_shard_uncached)

    def __reduce__(self) -> tuple[type["Encoding"], tuple[Path, str]]:
        """Reopen in another process; what is in memory stays behind."""
        return Encoding, (self.path, self.name)

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that have been declared, finished or not."""
        return _groups(self.path / "teachers")

    def teacher(self, name: str | None = None) -> "CachedTeacher":
        """Open a teacher; without a name, the only one."""
        chosen = _choose("teacher", name, self.teachers, self.path)
        return CachedTeacher(self, layout.teacher_folder(self.path, chosen), chosen)

    @cached_property
    def shards(self) -> list[ShardEntry]:
        """The shard table."""
        return read_shard_table(self.path, self.manifest.shards_sha256)

    def split_shards(self, split: Split) -> list[int]:
        """Return the indices of the shards of a split."""
        return [i for i, entry in enumerate(self.shards) if entry.split == split]

    def sequences(self, shard: int) -> list[Sequence]:
        """Return the sequences of a shard, in position order; the last few shards stay in memory.

        Raises:
            DamageError: the file is missing or not what was written.
        """
        return self._read_shard(shard)

    def sequence(self, sequence_id: int) -> Sequence:
        """Return one sequence by its id.

        Raises:
            IndexError: there is no such sequence.
        """
        shard = bisect_right(self._first_sequences, sequence_id) - 1
        if shard < 0 or sequence_id >= self._first_sequences[shard] + self.shards[shard].sequences:
            raise IndexError(f"sequence {sequence_id} does not exist")
        return self.sequences(shard)[sequence_id - self._first_sequences[shard]]

    @cached_property
    def _first_sequences(self) -> list[int]:
        return [entry.first_sequence for entry in self.shards]

    def _read_shard_uncached(self, shard: int) -> list[Sequence]:
        return read_sequences(layout.sequences_file(self.path, shard), self.shards[shard].sha256)


class CachedTeacher:
    """One teacher's predictions over an encoding's positions.

    Raises:
        IdentityError: the predictions belong to another encoding.
    """

    def __init__(self, encoding: Encoding, path: Path, name: str) -> None:
        self.encoding, self.path, self.name = encoding, path, name
        self.manifest = read_manifest(path, TeacherManifest)
        self._committed: set[int] = set()
        if self.manifest.identity.get("encoding") != encoding.manifest.fingerprint:
            raise IdentityError(
                "this teacher's predictions belong to another encoding",
                where=path,
                expected=f"encoding {encoding.manifest.fingerprint[:12]}…",
                found=f"{str(self.manifest.identity.get('encoding'))[:12]}…",
                why="its rows would be joined to other tokens",
                fix="Restore the encoding this teacher was captured with, or capture it again",
            )

    @cached_property
    def codec(self) -> DeltaPower:
        """The codec of the sparse targets."""
        return codec_of(self.manifest)

    def receipt(self, shard: int) -> Receipt | None:
        """Return the receipt of a shard, or None if the shard is not committed.

        Raises:
            DamageError: the receipt is unreadable.
            IdentityError: it was written for another teacher or other sequences.
        """
        receipt = read_receipt(self.path, shard)
        if receipt is None:
            return None
        expected = (self.manifest.fingerprint, self.encoding.shards[shard].sha256)
        found = (receipt.teacher_fingerprint, receipt.sequences_sha256)
        if found != expected:
            raise IdentityError(
                "this shard was captured from another teacher or other sequences",
                where=layout.receipt_file(self.path, shard),
                expected=" and ".join(f"{value[:12]}…" for value in expected),
                found=" and ".join(f"{value[:12]}…" for value in found),
                fix="Delete this receipt and capture again; only this shard is redone",
            )
        return receipt

    def missing_shards(self, split: Split | None = None) -> list[int]:
        """Return the shards (of a split) that no capture has committed yet."""
        chosen = range(len(self.encoding.shards)) if split is None else self.encoding.split_shards(split)
        return [shard for shard in chosen if not layout.receipt_file(self.path, shard).exists()]

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """Return the used rows ``[start, stop)`` of a shard."""
        start = shard * self.encoding.manifest.positions_per_shard
        return start, start + self.encoding.shards[shard].positions

    def targets(self, start: int, stop: int) -> Targets:
        """Return the sparse targets of rows ``[start, stop)``.

        Raises:
            IncompleteError: a row belongs to a shard that is not committed.
            DamageError: stored bytes are missing or damaged.
        """
        return self.decode(self.stored_targets(start, stop))

    def stored_targets(self, start: int, stop: int) -> Arrays:
        """Return the stored integers behind the targets, four times smaller; errors as for ``targets``."""
        return {name: self._rows(name, start, stop) for name in self.codec.array_types()}

    def decode(self, stored: Arrays) -> Targets:
        """Return the targets that stored integers, or any run of their rows, stand for."""
        return self.codec.decode(stored)

    def scalar(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return a per-position scalar, in nats: (stop - start,) float32; errors as for ``targets``."""
        return scalar_from_steps(self._rows(name, start, stop), self.manifest.scalar_step_nats)

    def hidden(self, layer: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return hidden states: (stop - start, width) float32; errors as for ``targets``."""
        spec = self.manifest.hidden[layer]
        return hidden_from_stored(self._rows(hidden_array(layer), start, stop), spec)

    def require_complete(self, split: Split) -> None:
        """Raise IncompleteError unless every shard of the split is committed."""
        self._require(self.encoding.split_shards(split))

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        size = self.encoding.manifest.positions_per_shard
        self._require(list(range(start // size, (max(stop, start + 1) - 1) // size + 1)))
        return read_rows(self.path, name, start, stop)

    def _require(self, shards: list[int]) -> None:
        unknown = [shard for shard in shards if shard not in self._committed]
        receipts = [receipt for shard in unknown if (receipt := self.receipt(shard))]
        missing = sorted({*unknown} - {receipt.shard for receipt in receipts})
        if missing:
            raise IncompleteError(
                f"teacher {self.name!r} has no receipt for {len(missing)} of {len(self.encoding.shards)} shards",
                where=self.path,
                found="missing shards " + ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else ""),
                expected="a finished capture",
                why="a shard without a receipt may be half-written",
                fix="Run the same 'logitcask capture' again; it continues where it stopped",
            )
        for receipt in receipts:
            require_objects(self.path, receipt)
        self._committed.update(unknown)


def _groups(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{layout.MANIFEST}"))


def _choose(kind: str, name: str | None, known: list[str], where: Path) -> str:
    if name is not None and name in known:
        return name
    if name is None and len(known) == 1:
        return known[0]
    raise FormatError(
        f"there is no {kind} {name!r} here" if name else f"say which {kind} is meant",
        where=where,
        expected=f"one of: {', '.join(known)}" if known else f"at least one {kind}",
        found=name or f"{len(known)} of them",
        fix="" if known else "Run 'logitcask capture' first, or again if it was stopped",
    )
