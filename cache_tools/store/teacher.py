"""One teacher's predictions over an encoding's positions, decoded into the caller's arrays.

Rows are read per shard, because a shard's receipt says which of its objects exist and with
which steps they were quantised. That receipt is always read itself; gathered copies (``gathered.py``)
say which shards are committed, and what ``inspect`` adds up. Of receipts, a bit for each shard and
group stays in memory, and the last few whole. Long runs are cut into blocks that several threads fetch,
decompress and decode side by side; numpy and blosc hold no interpreter lock meanwhile.
Peak memory is the result plus one block of stored integers per thread.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Arrays, Codec, Targets
from cache_tools.errors import DamageError, FormatError, IdentityError, IncompleteError
from cache_tools.format import layout
from cache_tools.format.manifest import Split, TeacherManifest, read_manifest
from cache_tools.format.receipts import (
    TARGETS,
    Receipt,
    ReceiptHead,
    parsed_receipt,
    read_receipt,
    receipt_head,
)
from cache_tools.format.sequences import read_recorded
from cache_tools.format.zarr_arrays import THREADS
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.hidden_codecs.transform import Transform, transform_from_bytes
from cache_tools.storage import StorePath
from cache_tools.store.chunk_reader import StoredArray, open_array, read_shard_rows
from cache_tools.store.gathered import list_receipts, read_receipts, receipt_contents
from cache_tools.store.predictions import codec_of, from_steps, group_layouts, hidden_array
from cache_tools.store.stored_rows import StoredHidden, StoredTargets

if TYPE_CHECKING:
    from cache_tools.store.reader import Encoding

BLOCK_VALUES = 2**24
"""Numbers of the widest array that ``row_blocks`` puts into a piece, if a chunk has no more."""

FEW_RECEIPTS = 64
"""So many receipts are read themselves instead of all of a teacher's gathered ones."""

RECEIPTS_IN_MEMORY = 256
"""Receipts that a teacher keeps, some ten kilobytes each: more than a window of shards."""

BLOCK_CHUNKS = 8
"""Inner chunks that one thread fetches and decodes at a time."""


AnyReceipt = TypeVar("AnyReceipt", Receipt, ReceiptHead)


class CachedTeacher:
    """One teacher's predictions over an encoding's positions.

    Raises:
        IdentityError: the predictions belong to another encoding.
        FormatError: the manifest describes arrays that cannot be, or a layer without its transform.
    """

    def __init__(self, encoding: "Encoding", path: StorePath, name: str) -> None:
        self.encoding, self.path, self.name = encoding, path, name
        self.manifest = read_manifest(path, TeacherManifest)
        self._receipts: dict[int, Receipt] = {}
        self._complete: dict[str, NDArray[np.bool_]] = {}
        self._arrays: dict[str, StoredArray] = {}
        if self.manifest.identity.get("encoding") != encoding.manifest.fingerprint:
            raise IdentityError(
                "this teacher's predictions belong to another encoding",
                where=path,
                expected=f"encoding {encoding.manifest.fingerprint[:12]}…",
                found=f"{str(self.manifest.identity.get('encoding'))[:12]}…",
                why="its rows would be joined to other tokens",
                fix="Restore the encoding this teacher was captured with, or capture it again",
            )
        groups = group_layouts(self.manifest, encoding.manifest.positions_per_shard)
        self._layouts = {name: cut for group in groups.values() for name, cut in group.items()}
        missing = codec_of(self.manifest).file
        if missing is not None and missing not in self.manifest.files:
            raise FormatError("the teacher lacks the file of its codec", where=path, expected=missing)
        for layer, spec in self.manifest.hidden.items():
            if HIDDEN_CODECS[spec.codec].has_transform and layout.transform_key(layer) not in self.manifest.files:
                raise FormatError("a layer lacks its transform", where=path, expected=layout.transform_key(layer))

    @cached_property
    def codec(self) -> Codec:
        """The codec of the sparse targets.

        Raises:
            DamageError: its file is missing or not what was written.
            FormatError: its file holds something else.
        """
        codec = codec_of(self.manifest)
        return codec if codec.file is None else codec.with_file(self.file(codec.file))

    @property
    def groups(self) -> list[str]:
        """Groups of arrays that a complete shard has: ``targets`` and ``hidden/<layer>``."""
        return [TARGETS, *map(hidden_array, self.manifest.hidden)]

    def receipt(self, shard: int) -> Receipt | None:
        """Return the receipt of a shard, or None if the shard is not committed.

        Raises:
            DamageError: the receipt is unreadable.
            IdentityError: it was written for another teacher or other sequences.
        """
        receipt = read_receipt(self.path, shard)
        return None if receipt is None else self._own(receipt)

    def receipts(self) -> Iterator[Receipt]:
        """Yield the receipts of all committed shards, in any order; gathered ones take a request per 1,024 shards.

        Errors as for ``receipt``.
        """
        for shard, content in receipt_contents(self.path, len(self.encoding.shards)):
            yield self._own(parsed_receipt(self.path, shard, content))

    @cached_property
    def _fingerprint(self) -> str:
        return self.manifest.fingerprint  # computed anew at each access, which a hundred thousand receipts would feel

    def _own(self, receipt: AnyReceipt) -> AnyReceipt:
        """Return a receipt of this teacher; refuse another's."""
        shard = receipt.shard
        expected = (self._fingerprint, self.encoding.shards.sha256(shard))
        recorded = (receipt.teacher_fingerprint, receipt.sequences_sha256)
        if recorded != expected:
            raise IdentityError(
                "this shard was captured from another teacher or other sequences",
                where=layout.receipt_file(self.path, shard),
                expected=" and ".join(f"{value[:12]}…" for value in expected),
                found=" and ".join(f"{value[:12]}…" for value in recorded),
                fix="Run 'logitcask repair' and capture again; only this shard is redone",
            )
        return receipt

    def missing_shards(self, split: Split | None = None) -> list[int]:
        """Return the shards (of a split) that no capture has committed yet."""
        is_missing = list_receipts(self.path, len(self.encoding.shards)).sizes < 0
        if split is not None:
            of_split = np.zeros(len(is_missing), bool)
            of_split[self.encoding.split_shards(split)] = True
            is_missing &= of_split
        missing: list[int] = np.flatnonzero(is_missing).tolist()
        return missing

    def incomplete_shards(self, shards: Sequence[int]) -> list[int]:
        """Return those of some shards that lack a group of arrays; errors as for ``receipt``."""
        lacking = [set(self._without(shards, group)) for group in self.groups]
        return [shard for shard in shards if any(shard in of_group for of_group in lacking)]

    def missing_groups(self, shard: int) -> list[str]:
        """Return the groups of arrays that a shard does not have yet; all if it is not committed."""
        receipt = self.receipt(shard)
        return [group for group in self.groups if receipt is None or group not in receipt.groups]

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """Return the used rows ``[start, stop)`` of a shard."""
        start = shard * self.encoding.manifest.positions_per_shard
        return start, start + self.encoding.shards[shard].positions

    def row_blocks(self, shard: int) -> Iterator[tuple[int, int]]:
        """Yield the used rows of a shard in pieces ``[start, stop)`` that fit into memory, whatever the rows hold."""
        start, stop = self.shard_rows(shard)
        widest = max([2 * self.codec.k, *(spec.width for spec in self.manifest.hidden.values())])
        chunk = self.manifest.chunk_positions
        step = max(BLOCK_VALUES // (widest * chunk), 1) * chunk
        for begin in range(start, stop, step):
            yield begin, min(begin + step, stop)

    def targets(self, start: int, stop: int, out: Targets | None = None) -> Targets:
        """Return the sparse targets of rows ``[start, stop)``.

        Args:
            start: First row.
            stop: Row behind the last.
            out: Arrays of the right shapes and dtypes to decode into; new ones by default.

        Raises:
            IndexError: there are no such rows.
            IncompleteError: a row belongs to a shard that is not committed.
            DamageError: stored bytes are missing or damaged.
            StorageError: the disk or bucket refused.
        """
        blocks = list(self._blocks(start, stop, TARGETS))
        n, k = stop - start, self.codec.k
        if out is None:
            out = Targets(np.empty((n, k), np.uint32), np.empty((n, k), np.float32), np.empty(n, np.float32))
        whole = out

        def decode(block: tuple[int, int, int]) -> None:
            shard, begin, end = block
            first = shard * self.encoding.manifest.positions_per_shard + begin - start
            place = slice(first, first + end - begin)
            part = Targets(whole.ids[place], whole.log_probs[place], whole.log_left_out[place])
            self.stored_targets(shard, begin, end).decode(0, end - begin, part)

        if len(blocks) == 1:
            decode(blocks[0])
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(decode, blocks))
        return whole

    def stored_targets(self, shard: int, start: int, stop: int) -> StoredTargets:
        """Return the stored integers of rows ``[start, stop)`` of a shard, counted from its first.

        Errors as for ``targets``.
        """
        parameters = self._committed(shard, TARGETS).groups[TARGETS]
        return StoredTargets(
            self.codec, parameters, self.stored_rows(list(self.codec.array_types()), shard, start, stop)
        )

    def scalar(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return a per-position scalar, in nats: (stop - start,) float32; errors as for ``targets``."""
        parts = [self.stored_rows([name], *block)[name] for block in self._blocks(start, stop, TARGETS)]
        return from_steps(_joined(parts), self.manifest.scalar_step_nats)

    def hidden(self, layer: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return hidden states: (stop - start, width) float32; errors as for ``targets``."""
        blocks = self._blocks(start, stop, hidden_array(layer))
        return _joined([self.stored_hidden(layer, *block).decode(0, block[2] - block[1]) for block in blocks])

    def stored_hidden(self, layer: str, shard: int, start: int, stop: int) -> StoredHidden:
        """Return the stored values of rows ``[start, stop)`` of a shard, counted from its first.

        Errors as for ``targets``.
        """
        name = hidden_array(layer)
        parameters = self._committed(shard, name).groups[name]
        values = self.stored_rows([name], shard, start, stop)[name]
        return StoredHidden(self.manifest.hidden[layer], self.transform(layer), parameters, values)

    def transform(self, layer: str) -> Transform | None:
        """Return what a quantised layer of hidden states is decoded with; None for the lossless codecs."""
        if not HIDDEN_CODECS[self.manifest.hidden[layer].codec].has_transform:
            return None
        if layer not in self._transforms:
            key, width = layout.transform_key(layer), self.manifest.hidden[layer].width
            transform = transform_from_bytes(self.file(key))
            if len(transform.mean) != width:
                raise DamageError(
                    "the transform has another width than its layer",
                    where=self.path / key,
                    expected=width,
                    found=len(transform.mean),
                    fix="Restore the file from a copy, or drop the layer with 'logitcask drop' and capture it again",
                )
            self._transforms[layer] = transform
        return self._transforms[layer]

    def file(self, key: str) -> bytes:
        """Return a file that the manifest lists, such as ``head.safetensors``.

        Raises:
            DamageError: it is missing or not what was written.
        """
        record = self.manifest.files[key]
        return read_recorded(self.path / key, record.sha256, record.bytes)

    def require_complete(self, split: Split, group: str = TARGETS) -> None:
        """Raise IncompleteError unless every shard of the split has the group of arrays."""
        self.require_shards(self.encoding.split_shards(split), group)

    def require_shards(self, shards: Sequence[int], group: str = TARGETS) -> None:
        """Raise IncompleteError unless all of these shards have the group of arrays."""
        missing = self._without(shards, group)
        if missing:
            raise self._incomplete(missing, group)

    def stored_rows(self, array_names: list[str], shard: int, start: int, stop: int) -> Arrays:
        """Return stored rows of some arrays, counted from the shard's first; errors as for ``targets``."""
        for name in array_names:
            if name not in self._arrays:
                self._arrays[name] = open_array(self.path, name, self._layouts[name])
        arrays = [self._arrays[name] for name in array_names]
        rows = read_shard_rows(arrays, shard, self._committed(shard).objects, start, stop)
        for name, values in rows.items():
            expected = self._layouts[name].type
            if values.shape != (stop - start, *expected.row) or values.dtype != expected.dtype:
                raise DamageError(
                    "an array holds other values than the manifest says",
                    where=self.path / name,
                    expected=f"{expected.dtype} {expected.row}",
                    found=f"{values.dtype} {values.shape[1:]}",
                )
        return rows

    @cached_property
    def _transforms(self) -> dict[str, Transform]:
        return {}

    def _blocks(self, start: int, stop: int, group: str) -> Iterator[tuple[int, int, int]]:
        """Yield (shard, begin, end), rows counted from the shard's first; refuse uncommitted shards before any."""
        size, step = self.encoding.manifest.positions_per_shard, BLOCK_CHUNKS * self.manifest.chunk_positions
        if not 0 <= start <= stop <= size * len(self.encoding.shards):
            raise IndexError(f"rows {start} to {stop} of {size * len(self.encoding.shards)}")
        first = min(start // size, len(self.encoding.shards) - 1)
        shards = range(first, max(first, (stop - 1) // size) + 1)
        self.require_shards(list(shards), group)
        for shard in shards:
            begin, end = max(start - shard * size, 0), min(stop - shard * size, size)
            cuts = [begin, *range((begin // step + 1) * step, end, step), end]
            yield from ((shard, a, b) for a, b in pairwise(cuts))

    def _without(self, shards: Sequence[int], group: str) -> list[int]:
        """Return those of some shards that lack a group of arrays, in order.

        A bit for each shard remembers those that have it. Receipts of a few shards are read themselves; for many,
        those of all shards are read once, most of them from gathered files.
        """
        left = self._unknown(shards, group)
        if not left:
            return []
        if len(left) > FEW_RECEIPTS:
            committed = self._read_heads()
            left = [shard for shard in self._unknown(left, group) if committed[shard]]  # a copy may be behind
        for shard, content in read_receipts(self.path, left):
            self._remember(self._own(parsed_receipt(self.path, shard, content)))
        return self._unknown(shards, group)

    def _unknown(self, shards: Sequence[int], group: str) -> list[int]:
        """Return those of some shards of which it is not known that they have a group of arrays."""
        complete = self._complete.get(group)
        if complete is None:
            return list(shards)
        numbers = np.asarray(shards, np.int64)
        unknown: list[int] = numbers[~complete[numbers]].tolist()
        return unknown

    def _read_heads(self) -> NDArray[np.bool_]:
        """Note the groups of all committed shards; return which shards are committed, (shards,) bool."""
        committed = np.zeros(len(self.encoding.shards), bool)
        for shard, content in receipt_contents(self.path, len(committed)):
            try:
                head = receipt_head(content)
            except ValueError:
                head = None
            if head is None or head.shard != shard:
                parsed_receipt(self.path, shard, content)  # raises
                continue
            committed[shard] = True
            self._note(shard, self._own(head).groups)
        return committed

    def _note(self, shard: int, groups: Iterable[str]) -> None:
        """Remember that a shard has groups of arrays."""
        for group in groups:
            if group in self.groups:
                self._complete.setdefault(group, np.zeros(len(self.encoding.shards), bool))[shard] = True

    def _remember(self, receipt: Receipt) -> None:
        self._note(receipt.shard, receipt.groups)
        while len(self._receipts) >= RECEIPTS_IN_MEMORY:
            self._receipts.pop(next(iter(self._receipts)), None)
        self._receipts[receipt.shard] = receipt

    def _committed(self, shard: int, group: str | None = None) -> Receipt:
        """Return the receipt of a shard, itself and not a copy; its arrays are about to be read."""
        receipt = self._receipts.get(shard)
        if receipt is None or (group is not None and group not in receipt.groups):  # a capture may have added it
            receipt = self.receipt(shard)
            if receipt is None or (group is not None and group not in receipt.groups):
                raise self._incomplete([shard], group or TARGETS)
            self._remember(receipt)
        return receipt

    def _incomplete(self, missing: list[int], group: str) -> IncompleteError:
        what = "" if group == TARGETS else f" of {group}"
        return IncompleteError(
            f"teacher {self.name!r} has no receipt{what} for {len(missing)} of {len(self.encoding.shards)} shards",
            where=self.path,
            found="missing shards " + ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else ""),
            expected="a finished capture",
            why="a shard without a receipt may be half-written",
            fix="Run the same 'logitcask capture' again; it continues where it stopped",
        )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
