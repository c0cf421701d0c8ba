"""Receipts: the proof that one teacher's shard is complete. Written last; no receipt, no shard.

A receipt names every object of the shard with its size and hash, says which groups of arrays
the shard has and with which parameters they were quantised, repeats the fingerprints of what was
joined, and carries the statistics that ``inspect`` adds up, so that looking at a cache of any
size reads no array. It is sealed: a flipped bit in it is damage, never another number.
"""

import json
import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.manifest import Count, Key, ObjectRecord, Sha256
from cache_tools.format.sealed import UNSEALED, read_sealed, sealed_bytes
from cache_tools.mappings import Parameters, Provenance
from cache_tools.storage import StorePath, read_object, remove_partial, write_object

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
    remove_partial(path)
    document = json.loads(receipt.model_dump_json())  # unlike model_dump, writes infinity as a string
    write_object(path, sealed_bytes(document | {"seal": UNSEALED}))


def read_receipt(teacher: StorePath, shard: int) -> Receipt | None:
    """Return the receipt of a shard, or None if the shard is not committed.

    Raises:
        DamageError: the receipt cannot be read or belongs to another shard.
    """
    path = layout.receipt_file(teacher, shard)
    try:
        receipt = Receipt.model_validate(read_sealed(read_object(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise DamageError(
            "the receipt cannot be read",
            where=path,
            found=type(error).__name__ if isinstance(error, ValidationError) else error,
            fix="Run 'logitcask repair' on the cache and capture again; only this shard is redone",
        ) from error
    if receipt.shard != shard:
        raise DamageError("the receipt belongs to another shard", where=path, expected=shard, found=receipt.shard)
    return receipt
