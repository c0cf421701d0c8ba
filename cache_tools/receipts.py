"""Receipts: the proof that one teacher's shard is complete. Written last; no receipt, no shard.

A receipt names every object of the shard with its size and hash, repeats the fingerprints
of what was joined, and carries the statistics that ``inspect`` adds up, so that looking at
a cache of any size reads no array.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cache_tools import layout
from cache_tools.errors import DamageError
from cache_tools.files import remove_partial, write_atomically


class ObjectRecord(BaseModel):
    """Size and hash of one stored object."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Receipt(BaseModel):
    """What one (teacher, shard) consists of.

    Attributes:
        shard: Index of the shard.
        positions: Rows that it uses.
        tokens: Tokens that the teacher read for it.
        teacher_fingerprint: Identity of the teacher and its capture parameters.
        sequences_sha256: Hash of the sequence file that the teacher read.
        objects: Key relative to the teacher's folder to size and hash.
        statistics: Means over the positions, see ``predictions.statistics``.
        provenance: Software versions, device and seconds; for people, never compared.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")  # JSON has no infinity

    shard: int
    positions: int
    tokens: int
    teacher_fingerprint: str
    sequences_sha256: str
    objects: dict[str, ObjectRecord]
    statistics: dict[str, float]
    provenance: dict[str, Any]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(record.bytes for record in self.objects.values())


def write_receipt(teacher: Path, receipt: Receipt) -> None:
    """Commit a shard."""
    path = layout.receipt_file(teacher, receipt.shard)
    remove_partial(path)
    write_atomically(path, (receipt.model_dump_json(indent=1) + "\n").encode())


def read_receipt(teacher: Path, shard: int) -> Receipt | None:
    """Return the receipt of a shard, or None if the shard is not committed.

    Raises:
        DamageError: the receipt cannot be read or belongs to another shard.
    """
    path = layout.receipt_file(teacher, shard)
    try:
        receipt = Receipt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DamageError(
            "the receipt cannot be read",
            where=path,
            found=f"{type(error).__name__}",
            fix="Delete this file and capture again; only this shard is redone",
        ) from error
    if receipt.shard != shard:
        raise DamageError("the receipt belongs to another shard", where=path, expected=shard, found=receipt.shard)
    return receipt


def require_objects(teacher: Path, receipt: Receipt) -> None:
    """Check that a committed shard's objects have their size; zarr would read zeros for a missing one.

    Raises:
        DamageError: an object is gone, cut short or longer.
    """
    for key, record in receipt.objects.items():
        path = teacher / key
        found = path.stat().st_size if path.is_file() else "none"
        if found != record.bytes:
            raise DamageError(
                "an object of a committed shard is missing or not whole",
                where=path,
                expected=f"{record.bytes} bytes",
                found=found,
                fix=f"Delete {layout.receipt_file(teacher, receipt.shard)} and capture again to redo this shard",
            )
