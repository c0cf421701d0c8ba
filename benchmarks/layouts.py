"""Layouts of top-k rows: this project's, and the usual alternatives, each written here for comparison.

A layout writes rows to a folder and reads any run of them back as ``Targets``. The alternatives
store no left-out mass; it is computed as one minus the sum of the probabilities that they return.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numcodecs import Zstd
from numpy.typing import NDArray

from cache_tools.codecs.registry import Codec, DeltaCount, DeltaFloat32, DeltaPower, RankedGrid, RankedPower, Targets
from cache_tools.format.layout import array_metadata_file, shard_key
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.zarr_arrays import ArrayLayout, ArrayType
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.storage import write_object, write_objects
from cache_tools.store.chunk_reader import open_array, read_shard_rows

CHUNK = 4096


class Layout(ABC):
    """One way to store rows; ``name`` stands in the table."""

    name: str

    def __init__(self, folder: Path, k: int, vocabulary_size: int) -> None:
        self.folder, self.k, self.vocabulary_size = folder, k, vocabulary_size

    def prepare(self, targets: Targets) -> None:  # noqa: B027
        """Do what is done once for all rows of a teacher, such as learning from a sample."""

    @abstractmethod
    def write(self, targets: Targets) -> None:
        """Store all rows."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Targets:
        """Return rows as ids and float32 log-probabilities."""


class Logitcask(Layout):
    """This project's store, through its own functions."""

    name = "logitcask"
    out: Targets | None = None
    bound: Codec

    def codec(self) -> Codec:
        """Return the codec; its budget is the default for 64 entries, in proportion for more."""
        return DeltaPower(self.k, self.vocabulary_size, 5e-5 if self.k <= 64 else 7.5e-5)

    def prepare(self, targets: Targets) -> None:
        """Learn the codec's file, as a capture does at its beginning from a sample; here from all rows."""
        codec = self.codec()
        if codec.file:
            content = codec.learned_file(targets)
            write_object(self.folder / codec.file, content)
            codec = codec.with_file(content)
        self.bound = codec

    def write(self, targets: Targets) -> None:
        codec, rows = self.bound, -(-len(targets.ids) // CHUNK) * CHUNK
        encoded = codec.encode(targets)
        types = codec.array_types()
        layouts = {
            n: ArrayLayout(ArrayType(*types[n], codec.compression_level(n), by_column=codec.by_column(n)), rows, CHUNK)
            for n in types
        }
        contents = {shard_key(n, 0, v.ndim): layouts[n].encode(v) for n, v in encoded.arrays.items()}
        self.objects = {key: ObjectRecord.of(content) for key, content in contents.items() if content}
        write_objects(self.folder, {key: contents[key] for key in self.objects})
        for name, layout in layouts.items():
            write_object(array_metadata_file(self.folder, name), layout.metadata(rows))
        self.arrays = [open_array(self.folder, name, layout) for name, layout in layouts.items()]
        self.parameters = encoded.parameters

    def read(self, start: int, stop: int) -> Targets:
        n = stop - start
        if self.out is None or len(self.out.ids) != n:  # as a reader that goes through a cache would, once
            self.out = Targets(
                np.empty((n, self.k), np.uint32), np.empty((n, self.k), np.float32), np.empty(n, np.float32)
            )
        stored = read_shard_rows(self.arrays, 0, self.objects, start, stop)
        return self.bound.decode(stored, self.parameters, self.out)


class LogitcaskExact(Logitcask):
    """The same with ``exact: true``: float32, bit for bit."""

    name = "logitcask exact"

    def codec(self) -> Codec:
        return DeltaFloat32(self.k, self.vocabulary_size)


class LogitcaskRanked(Logitcask):
    """The same with ids stored by rank tables."""

    name = "logitcask ranked"

    def codec(self) -> Codec:
        return RankedPower(self.k, self.vocabulary_size, super().codec().budget_nats)


class LogitcaskGrid(Logitcask):
    """Rows of a half-precision teacher, bit for bit."""

    name = "logitcask ranked, exact"

    def codec(self) -> Codec:
        return RankedGrid(self.k, self.vocabulary_size)


class LogitcaskSampled(Logitcask):
    """The same for ``sampled`` rows: the draws themselves."""

    name = "logitcask sampled"

    def codec(self) -> Codec:
        return DeltaCount(self.k, self.vocabulary_size, self.k)


class RawArrays(Layout):
    """uint32 ids and float16 log-probabilities in memory-mapped files."""

    name = "raw u32 + f16"

    def write(self, targets: Targets) -> None:
        np.save(self.folder / "ids.npy", targets.ids.astype(np.uint32))
        np.save(self.folder / "values.npy", targets.log_probs.astype(np.float16))

    def read(self, start: int, stop: int) -> Targets:
        ids, values = (np.load(self.folder / f"{name}.npy", mmap_mode="r")[start:stop] for name in ("ids", "values"))
        return _implied(np.array(ids), values.astype(np.float32))


class ArrowLists(Layout):
    """int64 ids and float64 log-probabilities as Arrow lists: what a row of Python lists becomes."""

    name = "Arrow lists i64 + f64"

    def write(self, targets: Targets) -> None:
        table = _list_table(targets.ids.astype(np.int64), targets.log_probs.astype(np.float64))
        with pa.ipc.new_file(str(self.folder / "rows.arrow"), table.schema) as writer:
            writer.write_table(table)

    def read(self, start: int, stop: int) -> Targets:
        with pa.memory_map(str(self.folder / "rows.arrow")) as source:
            return _from_lists(pa.ipc.open_file(source).read_all().slice(start, stop - start), self.k)


class ParquetZstd(Layout):
    """uint32 ids and float32 log-probabilities as Parquet lists with zstd."""

    name = "Parquet zstd u32 + f32"

    def write(self, targets: Targets) -> None:
        table = _list_table(targets.ids.astype(np.uint32), targets.log_probs.astype(np.float32))
        pq.write_table(table, self.folder / "rows.parquet", compression="zstd", row_group_size=CHUNK)

    def read(self, start: int, stop: int) -> Targets:
        first, last = start // CHUNK, (stop - 1) // CHUNK
        groups = pq.ParquetFile(self.folder / "rows.parquet").read_row_groups(list(range(first, last + 1)))
        return _from_lists(groups.slice(start - first * CHUNK, stop - start), self.k)


class Bits17HalfZstd(Layout):
    """Low 16 bits, then the 17th as a byte, float16 values, zstd 3 per chunk; ends at 131,072 ids."""

    name = "17-bit ids + f16, zstd 3"

    def write(self, targets: Targets) -> None:
        parts = (
            (targets.ids & 0xFFFF).astype(np.uint16),
            np.packbits((targets.ids >> 16).astype(np.uint8), axis=1),
            targets.log_probs.astype(np.float16),
        )
        for number, start in enumerate(range(0, len(targets.ids), CHUNK)):
            content = b"".join(np.ascontiguousarray(part[start : start + CHUNK]).tobytes() for part in parts)
            (self.folder / f"{number}.zst").write_bytes(Zstd(level=3).encode(content))
        self.rows = len(targets.ids)

    def read(self, start: int, stop: int) -> Targets:
        parts = [self._chunk(number) for number in range(start // CHUNK, (stop - 1) // CHUNK + 1)]
        skip = start - start // CHUNK * CHUNK
        ids, values = (np.concatenate(column)[skip : skip + stop - start] for column in zip(*parts, strict=True))
        return _implied(ids, values)

    def _chunk(self, number: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        content = Zstd().decode((self.folder / f"{number}.zst").read_bytes())
        rows, high_bytes = min(CHUNK, self.rows - number * CHUNK), -(-self.k // 8)
        low = np.frombuffer(content, np.uint16, rows * self.k).reshape(rows, self.k)
        high = np.frombuffer(content, np.uint8, rows * high_bytes, low.nbytes).reshape(rows, high_bytes)
        values = np.frombuffer(content, np.float16, rows * self.k, low.nbytes + high.nbytes).reshape(rows, self.k)
        top = np.unpackbits(high, axis=1, count=self.k).astype(np.uint32)
        return low.astype(np.uint32) | top << np.uint32(16), values.astype(np.float32)


class PackedBits(Layout):
    """Ids at ceil(log2 V) bits each and bfloat16 values, uncompressed."""

    name = "bit-packed ids + bf16"

    @property
    def _bits(self) -> int:
        return (self.vocabulary_size - 1).bit_length()

    def write(self, targets: Targets) -> None:
        shifts = np.arange(self._bits, dtype=np.uint32)
        bits = (targets.ids[:, :, None] >> shifts & 1).astype(np.uint8).reshape(len(targets.ids), -1)
        np.save(self.folder / "ids.npy", np.packbits(bits, axis=1))
        np.save(self.folder / "values.npy", to_bfloat16(targets.log_probs))

    def read(self, start: int, stop: int) -> Targets:
        packed, values = (np.load(self.folder / f"{name}.npy", mmap_mode="r")[start:stop] for name in ("ids", "values"))
        bits = np.unpackbits(packed, axis=1, count=self.k * self._bits).reshape(-1, self.k, self._bits)
        ids = bits.astype(np.uint32) @ (np.uint32(1) << np.arange(self._bits, dtype=np.uint32))
        return _implied(ids, from_bfloat16(values))


LAYOUTS: tuple[type[Layout], ...] = (
    Logitcask,
    LogitcaskExact,
    LogitcaskRanked,
    LogitcaskGrid,
    RawArrays,
    ArrowLists,
    ParquetZstd,
    Bits17HalfZstd,
    PackedBits,
)


def _implied(ids: NDArray[np.uint32], log_probs: NDArray[np.float32]) -> Targets:
    """Return targets whose left-out mass is one minus the kept mass."""
    rest = 1 - np.exp(log_probs.astype(np.float64)).sum(axis=1)
    return Targets(ids, log_probs, np.log(np.maximum(rest, 1e-9)).astype(np.float32))


def _list_table(ids: NDArray[Any], values: NDArray[Any]) -> pa.Table:
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * ids.shape[1])
    columns = [pa.ListArray.from_arrays(offsets, pa.array(column.ravel())) for column in (ids, values)]
    return pa.Table.from_arrays(columns, names=["ids", "values"])


def _from_lists(table: pa.Table, k: int) -> Targets:
    ids, values = (
        np.concatenate([chunk.flatten().to_numpy() for chunk in table.column(name).chunks]).reshape(-1, k)
        for name in ("ids", "values")
    )
    return _implied(ids.astype(np.uint32), values.astype(np.float32))
