"""Restrict a teacher's distributions to some tokens: those that a smaller student's vocabulary keeps.

The teacher reads its text as it is, and everything is made of the kept tokens' columns of its logits. So log-softmax,
the k most likely, normalisers and tail statistics are those of the distribution over the kept tokens, which is what
such a student can learn; ids stay the teacher's, and a gold token that was dropped is its stand-in.

The work behind the head falls with the number of kept tokens. Rejected: -inf in the other columns, of which exp takes
a slow path on CPUs: with a quarter of 30,522 tokens kept, four to five times the work of the columns
(``python -m benchmarks.restriction``). Targets with a value for each token (``dense``) and the audit, which looks
stored ids up, still read logits of the full width, with -inf.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cache_tools.errors import IdentityError
from cache_tools.mappings import JsonObject
from cache_tools.storage import StorePath
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.union import NO_ID

# N: positions of a chunk, V: the teacher's vocabulary, n: kept tokens


@dataclass(frozen=True)
class Restriction:
    """The tokens that a teacher's distributions are restricted to.

    Attributes:
        vocabulary: Fingerprint of the smaller vocabulary.
        kept: (n,) int64, the teacher's ids of its tokens.
        read_as: (T,) int64, for each id of the tokenizer the kept one that stands for it.
        tokenizer: Fingerprint of the tokenizer's vocabulary.
    """

    vocabulary: str
    kept: Tensor
    read_as: Tensor
    tokenizer: str

    @property
    def settings(self) -> JsonObject:
        """What a manifest says of it."""
        return {"vocabulary": self.vocabulary, "tokens": len(self.kept)}

    @cached_property
    def columns(self) -> Tensor:
        """The kept ids in rising order, (n,) int64: the columns of the logits that count."""
        return self.kept.sort().values

    def gold_columns(self, gold_N: Tensor) -> Tensor:
        """Return where in ``columns`` the gold tokens or their stand-ins are, (N,)."""
        return torch.searchsorted(self.columns.to(gold_N.device), self.gold(gold_N))

    def logits(self, logits_NV: Tensor) -> Tensor:
        """Return logits with -inf at tokens that are not kept; the input is overwritten."""
        dropped_V = torch.ones(logits_NV.shape[1], dtype=torch.bool, device=logits_NV.device)
        return logits_NV.masked_fill_(dropped_V.index_fill_(0, self.kept.to(logits_NV.device), False), -torch.inf)

    def gold(self, gold_N: Tensor) -> Tensor:
        """Return the gold tokens, each dropped one as its stand-in."""
        return self.read_as.to(gold_N.device)[gold_N]


def read_restriction(folder: StorePath | None) -> Restriction | None:
    """Read the vocabulary that ``target.vocabulary`` names.

    Raises:
        FormatError: it cannot be read.
        DamageError: it is not what was written.
        IdentityError: it was made from several tokenizers.
    """
    if folder is None:
        return None
    union = read_vocabulary(folder)
    if len(union.maps) > 1:
        raise IdentityError(
            "a teacher can only predict the tokens of one tokenizer",
            where=folder,
            expected="a vocabulary of one tokenizer",
            found=f"a union of {len(union.maps)}",
            fix="Make one with 'logitcask vocabulary CACHE --keep …'",
        )
    ((tokenizer, predicted),) = union.maps.items()
    teacher_ids = np.flatnonzero(predicted != NO_ID)
    kept = np.empty(len(teacher_ids), np.int64)
    kept[predicted[teacher_ids]] = teacher_ids
    read = union.ids_of(tokenizer, folder).read
    read_as = kept[np.where(read == NO_ID, 0, read)]  # an id without a token stands in no text
    return Restriction(union.fingerprint, torch.from_numpy(kept), torch.from_numpy(read_as), tokenizer)
