"""Receipts: the proof that one teacher's shard is complete. Written last; no receipt, no shard.

A receipt names every object of the shard with its size and hash, says which groups of arrays
the shard has and with which parameters they were quantised, repeats the fingerprints of what was
joined, and carries the statistics that ``inspect`` adds up, so that looking at a cache of any
size reads no array. It is sealed: a flipped bit in it is damage, never another number.

Many receipts are also kept together, byte for byte, in files of **gathered receipts**, so that opening a cache of a
million shards takes a thousand requests and not a million. They are copies: what they may be used for, and when
they hold, is decided in ``store/gathered.py``.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.arrow_files import read_arrow
from cache_tools.format.manifest import Count, Key, ObjectRecord, Sha256
from cache_tools.format.sealed import UNSEALED, check_seal, read_sealed, sealed_bytes
from cache_tools.format.sequences import table_bytes
from cache_tools.limits import TABLE_BYTES
from cache_tools.mappings import Parameters, Provenance
from cache_tools.storage import StorePath, read_object, write_object

TARGETS = "targets"
"""Group of arrays that holds the sparse target and the scalars; each hidden layer is another, ``hidden/<layer>``."""


def _no_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("a mean is not a number")
    return value


class Receipt(BaseModel):
    """What one (teacher, shard) consists of.

    Attributes:
        shard: Index of the shard.
        positions: Rows that it uses.
        tokens: Tokens that the teacher read for it.
        teacher_fingerprint: Identity of the teacher and its capture parameters.
        sequences_sha256: Hash of the sequence file that the teacher read.
        groups: Groups of arrays that the shard has, each with what decoding it needs to know of this shard.
        objects: Key relative to the teacher's folder to size and hash.
        statistics: Means over the positions, see ``predictions.statistics``.
        provenance: How each group of arrays was made, for people to read; never compared.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")  # JSON has no infinity

    shard: Count
    positions: Count
    tokens: Count
    teacher_fingerprint: Sha256
    sequences_sha256: Sha256
    groups: dict[str, Parameters]
    objects: dict[Key, ObjectRecord]
    statistics: dict[str, Annotated[float, AfterValidator(_no_nan)]]
    provenance: dict[str, Provenance]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(record.bytes for record in self.objects.values())


def write_receipt(teacher: StorePath, receipt: Receipt) -> None:
    """Commit a shard."""
    path = layout.receipt_file(teacher, receipt.shard)
    document = json.loads(receipt.model_dump_json())  # unlike model_dump, writes infinity as a string
    write_object(path, sealed_bytes(document | {"seal": UNSEALED}))


def read_receipt(teacher: StorePath, shard: int) -> Receipt | None:
    """Return the receipt of a shard, or None if the shard is not committed.

    Raises:
        DamageError: the receipt cannot be read or belongs to another shard.
    """
    path = layout.receipt_file(teacher, shard)
    try:
        content = read_object(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return parsed_receipt(teacher, shard, content)


def parsed_receipt(teacher: StorePath, shard: int, content: bytes) -> Receipt:
    """Return the receipt of a shard from its bytes; raises as above."""
    try:
        receipt = Receipt.model_validate(read_sealed(content))
    except (ValueError, ValidationError) as error:
        raise _unreadable(layout.receipt_file(teacher, shard), error) from error
    if receipt.shard != shard:
        path = layout.receipt_file(teacher, shard)
        raise DamageError("the receipt belongs to another shard", where=path, expected=shard, found=receipt.shard)
    return receipt


def _unreadable(path: StorePath, error: Exception) -> DamageError:
    return DamageError(
        "the receipt cannot be read",
        where=path,
        found=type(error).__name__ if isinstance(error, ValidationError) else error,
        fix="Run 'logitcask repair' on the cache and capture again; only this shard is redone",
    )


class ReceiptHead(BaseModel):
    """What a reader must know of every receipt when it opens a teacher; a tenth of the time of the whole receipt.

    Attributes:
        shard: As in ``Receipt``, like the others.
        teacher_fingerprint: Identity of the teacher.
        sequences_sha256: Hash of the sequence file.
        groups: Groups of arrays that the shard has.
    """

    model_config = ConfigDict(frozen=True)

    shard: Count
    teacher_fingerprint: Sha256
    sequences_sha256: Sha256
    groups: dict[str, object]


def receipt_head(content: bytes) -> ReceiptHead:
    """Return the head of a receipt.

    Raises:
        ValueError: the bytes are no receipt, or not what was sealed.
    """
    check_seal(content)
    return ReceiptHead.model_validate_json(content)


GATHERED = pa.schema([pa.field("shard", pa.int64(), False), pa.field("receipt", pa.binary(), False)])
"""Columns of a file of gathered receipts."""


def gathered_bytes(receipts: Mapping[int, bytes]) -> bytes:
    """Return a file of gathered receipts: the bytes of each by its shard, ascending."""
    rows = sorted(receipts.items())
    columns = {"shard": [shard for shard, _ in rows], "receipt": [content for _, content in rows]}
    return table_bytes(pa.Table.from_pydict(columns, schema=GATHERED))


def read_gathered(content: bytes) -> dict[int, bytes]:
    """Return the receipts in a file of gathered receipts: bytes by shard.

    Raises:
        ValueError: it is no such file, or too large.
    """
    table = read_arrow(content, GATHERED, TABLE_BYTES)
    return dict(zip(*(table.column(name).to_pylist() for name in GATHERED.names), strict=True))
