"""The files that belong to a cache, in the order in which they may become visible.

They are listed from manifests, tables and receipts and not from the folder, so that nothing else that lies there is
sent: remains of killed writers, a teacher that was dropped half-way, a link that a stranger put into a cache. As in a
copy, data come first, then receipts, then manifests: whoever reads between two commits sees an unfinished cache, never
one that names what is not there. Listing reads all receipts and manifests, and none of the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cache_tools.alignments.stored import Alignment
from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.sequences import read_recorded
from cache_tools.limits import TABLE_BYTES
from cache_tools.maintenance.alignments import alignments
from cache_tools.storage import StorePath, read_object, sha256
from cache_tools.store.predictions import group_layouts
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher


@dataclass(frozen=True)
class CacheFile:
    """A file of a cache.

    Attributes:
        key: Its path inside the cache.
        place: Where it is read.
        size_bytes: Its size.
        sha256: Its hash, as recorded where a record exists.
    """

    key: str
    place: StorePath
    size_bytes: int
    sha256: str

    def content(self) -> bytes:
        """Return its bytes.

        Raises:
            DamageError: they are missing or not those of the hash.
        """
        return read_recorded(self.place, self.sha256, self.size_bytes)


def cache_files(cache: Cache) -> list[CacheFile]:
    """Return all files of a cache: data, then receipts, then manifests.

    Raises:
        DamageError: a manifest, table or receipt is missing or damaged.
    """
    data, receipts, manifests = list[CacheFile](), list[CacheFile](), list[CacheFile]()
    for encoding in map(cache.encoding, cache.encodings):
        data += _sequence_files(cache, encoding)
        for teacher in map(encoding.teacher, encoding.teachers):
            committed, recorded = _recorded_files(cache, teacher)
            data += recorded
            receipts += committed
            manifests += [_document(cache, place) for place in _teacher_documents(teacher)]
        for alignment in alignments(encoding):
            committed, recorded = _aligned_files(cache, alignment)
            data += recorded
            receipts += committed
            manifests.append(_document(cache, alignment.path / layout.MANIFEST))
        if encoding.alignments:
            manifests.append(_document(cache, layout.alignments_folder(encoding.path) / layout.MANIFEST))
        manifests.append(_document(cache, encoding.path / "teachers" / layout.MANIFEST))
        manifests.append(_document(cache, encoding.path / layout.MANIFEST))
    manifests.append(_document(cache, layout.encodings_folder(cache.path) / layout.MANIFEST))
    manifests.append(_document(cache, cache.path / layout.MANIFEST))
    return data + receipts + manifests


def _sequence_files(cache: Cache, encoding: Encoding) -> Iterator[CacheFile]:
    """Yield sequences, tables and the tokenizer of an encoding."""
    for key, record in encoding.manifest.files.items():
        yield _recorded(cache, encoding.path / key, record.bytes, record.sha256)
    for shard, entry in enumerate(encoding.shards):
        yield _recorded(cache, layout.sequences_file(encoding.path, shard), entry.bytes, entry.sha256)
    for number, part in enumerate(encoding.manifest.parts):
        tables = (
            (layout.file_table_file(encoding.path, number), part.files_sha256),
            (layout.shard_table_file(encoding.path, number), part.shards_sha256),
        )
        for place, expected in tables:
            yield _recorded(cache, place, len(read_recorded(place, expected, TABLE_BYTES)), expected)


def _recorded_files(cache: Cache, teacher: CachedTeacher) -> tuple[list[CacheFile], list[CacheFile]]:
    """Return the receipts of a teacher, and the files that they and the manifest record."""
    recorded = [
        _recorded(cache, teacher.path / key, record.bytes, record.sha256)
        for key, record in teacher.manifest.files.items()
    ]
    committed = []
    for shard in range(len(teacher.encoding.shards)):
        receipt = teacher.receipt(shard)
        if receipt is not None:
            committed.append(_document(cache, layout.receipt_file(teacher.path, shard)))
            recorded += [_recorded(cache, teacher.path / key, r.bytes, r.sha256) for key, r in receipt.objects.items()]
    return committed, recorded


def _aligned_files(cache: Cache, alignment: Alignment) -> tuple[list[CacheFile], list[CacheFile]]:
    """Return the receipts of an alignment, and its tokenizer and tables."""
    files = alignment.manifest.files.items()
    recorded = [_recorded(cache, alignment.path / key, record.bytes, record.sha256) for key, record in files]
    committed = []
    for shard, receipt in alignment.receipts.items():
        committed.append(_document(cache, layout.receipt_file(alignment.path, shard)))
        table = layout.alignment_table_file(alignment.path, shard)
        recorded.append(_recorded(cache, table, receipt.table.bytes, receipt.table.sha256))
    return committed, recorded


def _teacher_documents(teacher: CachedTeacher) -> Iterator[StorePath]:
    """Yield the metadata of a teacher's arrays and groups, then its manifest."""
    for group in group_layouts(teacher.manifest, teacher.encoding.manifest.positions_per_shard).values():
        for array in group:
            yield layout.array_metadata_file(teacher.path, array)
    if teacher.manifest.hidden:
        yield teacher.path / "hidden" / layout.MANIFEST
    yield teacher.path / layout.MANIFEST


def _recorded(cache: Cache, place: StorePath, size: int, expected_sha256: str) -> CacheFile:
    return CacheFile(_key(cache, place), place, size, expected_sha256)


def _document(cache: Cache, place: StorePath) -> CacheFile:
    """Return a file that no record names: a manifest or receipt, which carries a seal of its own."""
    try:
        content = read_object(place)
    except FileNotFoundError as error:
        raise DamageError("the file is missing", where=place, fix="Run 'logitcask repair' on the cache") from error
    return CacheFile(_key(cache, place), place, len(content), sha256(content))


def _key(cache: Cache, place: StorePath) -> str:
    return str(place).removeprefix(str(cache.path)).strip("/")
