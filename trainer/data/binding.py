"""What ties a batch's predictions to its tokens, so that neither is moved without the other.

A loss cannot see which tokens a model read. Rows that were shuffled beside targets that were not, labels that were
shifted once more, columns that a trainer dropped and batches of another cache all give a loss that falls for a while.
So a batch carries what shows each of them, and the loss refuses such a batch:

- ``target_fingerprints``, one number for each kept position, of all tokens up to it and of its gold token. The loss
  computes them again from ``input_ids`` and ``gold_ids``. Padding does not count, so a batch may be padded otherwise.
- ``target_sources``, one number for each sequence: the cached teacher, and the vocabulary that its ids were fitted to.
- the names of its columns, which a dataset knows beforehand.

Cost: 8 bytes and a few integer operations for each token; a row of 64 slots has 768 bytes. The numbers are no
cryptographic hashes: they find mistakes, and an adversary could make two texts with the same ones.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import IdMaps

IGNORED = -100
"""Label of positions that are not under the loss, as everywhere in torch."""

COLUMNS = frozenset({
    "input_ids",
    "attention_mask",
    "gold_ids",
    "target_ids",
    "target_log_probs",
    "target_log_left_out",
    "target_fingerprints",
    "target_sources",
})  # fmt: skip
"""What every batch holds; nested columns are named ``scalars/<name>`` and ``hidden/<layer>``."""

MULTIPLIER, GOLD_MULTIPLIER = 6364136223846793005, 0x1B873593CC9E2D51
"""Odd numbers; products wrap at 64 bits, so an odd factor loses nothing."""

# B: rows, L: tokens of a row, P: kept positions of the batch


@dataclass(frozen=True)
class Binding:
    """Which batches a loss was made for.

    Attributes:
        sources: Numbers of the cached teachers, as of :func:`source_number`.
        columns: Names of the columns that a batch must have.
    """

    sources: frozenset[int]
    columns: frozenset[str]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at values
    def check(self, batch: Mapping[str, Any]) -> None:
        """Refuse a batch whose predictions are not those of its tokens, or not of these teachers.

        Raises:
            ConfigError: Columns are missing.
            IdentityError: The batch comes from another cache, or its rows and its predictions were moved apart.
        """
        missing = sorted(self.columns - column_names(batch))
        if missing:
            raise ConfigError(
                "this batch lacks columns that the loss needs",
                where="batch",
                expected=", ".join(missing),
                found=", ".join(sorted(column_names(batch))) or "no columns",
                why="another collator made it, or a trainer removed columns that its model does not take",
                fix="Use the dataset and the collator that belong to this loss, and pass on the whole batch",
            )
        others = set(batch["target_sources"].tolist()) - self.sources
        if others:
            raise IdentityError(
                "this batch comes from another cache, or was made for a student with another vocabulary",
                where="batch",
                expected=f"a batch of {_named(self.sources)}",
                found=f"a batch of {_named(others)}",
                why="its predictions would be read as another teacher's",
                fix="Take dataset, collator and loss from the same call",
            )
        if not torch.equal(target_fingerprints(batch), batch["target_fingerprints"]):
            raise IdentityError(
                "the rows of this batch are not those that its predictions belong to",
                where="batch",
                why="input_ids or gold_ids were shuffled, shifted, cut or replaced after the batch was made",
                fix="Shuffle the dataset and not the batch, and let the cache's tokens and gold tokens as they are",
            )


def column_names(batch: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a batch's columns."""
    nested = {f"{name}/{inner}" for name, value in batch.items() if isinstance(value, Mapping) for inner in value}
    return frozenset(name for name, value in batch.items() if isinstance(value, Tensor)) | nested


def target_fingerprints(batch: Mapping[str, Any]) -> Tensor:
    """Return a number for each kept position, of the tokens up to it and of its gold token: (P,) int64.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``gold_ids``, (B, L) int64 each.
    """
    mask_BL, gold_BL = batch["attention_mask"].long(), batch["gold_ids"]
    ranks_BL = mask_BL.cumsum(dim=1)
    powers = torch.full((ranks_BL.shape[1] + 1,), MULTIPLIER, device=ranks_BL.device).cumprod(dim=0)
    prefixes_BL: Tensor = ((batch["input_ids"] + 1) * powers[ranks_BL] * mask_BL).cumsum(dim=1)
    numbers_BL: Tensor = prefixes_BL + (gold_BL + 1) * GOLD_MULTIPLIER
    return numbers_BL[gold_BL != IGNORED]


def source_number(teacher: CachedTeacher, student_vocabulary_size: int, to: IdMaps | None) -> int:
    """Return a number for a cached teacher with its ids fitted to a student's vocabulary.

    Args:
        teacher: The teacher.
        student_vocabulary_size: Width of the student's logits.
        to: The student's ids, where its tokenizer is not the cache's.
    """
    digest = hashlib.sha256(teacher.encoding.manifest.contents_fingerprint.encode())
    digest.update(f"{teacher.manifest.fingerprint} {student_vocabulary_size}".encode())
    if to is not None:
        digest.update(to.read.tobytes() + to.predicted.tobytes())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def aligned_number(number: int, alignment: str) -> int:
    """Return a number for a cached teacher as read through an alignment, given by its fingerprint."""
    digest = hashlib.sha256(f"{number} {alignment}".encode())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def joined_number(numbers: Iterable[int]) -> int:
    """Return a number for several teachers whose predictions stand side by side."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def _named(sources: Iterable[int]) -> str:
    return " or ".join(f"{number & (2**64 - 1):016x}" for number in sorted(sources))
