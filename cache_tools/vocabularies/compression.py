"""A part of a tokenizer's vocabulary for a small student: which tokens are kept, and what stands in for the others.

In a small student the rows of the vocabulary are most of the weights, and half of them are read a few times in a
hundred words. So the tokens that a corpus uses most are kept, and every other one is read as a kept token that means
nearly the same: the one whose word embedding has the largest dot product with its own, in the teacher's eyes (Tan et
al., arXiv 2306.06625). A text is read through that many-to-one map; predictions are not: a teacher's probability of a
dropped token is not its stand-in's, so it is left out, or the teacher is asked about the kept tokens only
(``target.vocabulary`` of a capture file).

Kept in any case are special and added tokens, which no other may stand for, and what the caller forces, such as the
names of classes. Ids stay in the tokenizer's order: those of [PAD] and its like hardly ever move, and the student's
rows are the teacher's, some of them taken out. Rejected: a tokenizer of the kept tokens alone. It splits words into
more pieces, at other places than the teacher's, whose predictions then belong to no position.
"""

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError
from cache_tools.format.manifest import Split
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.tokens import Token
from cache_tools.vocabularies.union import NO_ID, UNKNOWN, UnionVocabulary, token_names

MULTIPLE = 128
"""A share of a vocabulary is rounded up to a multiple of this, as matrix products like it."""

BLOCK_ROWS = 1024
"""Dropped tokens that are compared with all kept ones at a time."""

Ids = NDArray[np.int64]


def kept_size(keep: float, tokens: int) -> int:
    """Return how many of so many tokens are kept: ``keep`` is a share if it is at most 1, and a number above."""
    wanted = math.ceil(keep * tokens / MULTIPLE) * MULTIPLE if keep <= 1 else int(keep)
    return min(wanted, tokens)


def token_counts(encodings: Iterable[Encoding], split: Split, size: int, progress: Advance = ignore) -> Ids:
    """Return how often each id below ``size`` stands in the texts of a split, before masking: (size,).

    ``progress`` is told of each shard.
    """
    counts = np.zeros(size, np.int64)
    for encoding in encodings:
        for shard in encoding.split_shards(split):
            sequences = encoding.sequences(shard)
            texts = [s.input_ids if s.original_ids is None else s.original_ids for s in sequences]
            counts += np.bincount(np.concatenate(texts), minlength=size)
            progress(1)
    return counts


def reserved(tokens: Mapping[int, Token]) -> list[int]:
    """Return the ids of special and added tokens, which stand for nothing but themselves."""
    return [i for i, token in tokens.items() if token.kind in ("special", "added")]


def coverage(counts_V: Ids, kept: Ids, tokens: Mapping[int, Token]) -> float:
    """Return the share of a text's ordinary tokens that are kept; NaN of no text."""
    ordinary = counts_V.copy()
    ordinary[reserved(tokens)] = 0
    return float(ordinary[kept].sum() / ordinary.sum()) if ordinary.any() else math.nan


def kept_ids(counts_V: Ids, tokens: Mapping[int, Token], forced: Collection[int], size: int) -> Ids:
    """Return which ids are kept: reserved and forced ones, then the most frequent; of equally frequent the lower.

    Returns:
        (size,) ascending.

    Raises:
        FormatError: what must be kept is more than that.
    """
    first = np.array(sorted({*reserved(tokens), *forced}), np.int64)
    if len(first) > size:
        raise FormatError(
            "a vocabulary of this size cannot hold all tokens that must be kept",
            expected=f"at least {len(first)}",
            found=size,
            fix="Keep more, or force fewer",
        )
    others = np.setdiff1d(np.fromiter(tokens, np.int64), first)
    frequent = others[np.argsort(-counts_V[others], kind="stable")]
    return np.sort(np.concatenate([first, frequent[: size - len(first)]]))


def stand_ins(kept: Ids, tokens: Mapping[int, Token], embeddings_VD: NDArray[np.float32] | None) -> Ids:
    """Return the kept id that each id is read as: a kept one as itself, a dropped one as its nearest ordinary token.

    Args:
        kept: (n,) ids that are kept.
        tokens: Every token by its id.
        embeddings_VD: Word embeddings; without them every dropped token is read as [UNK].

    Returns:
        (V,), V one more than the highest id; -1 where there is no token.

    Raises:
        FormatError: there is nothing that a dropped token could be read as.
    """
    result = np.full(max(tokens) + 1, -1, np.int64)
    result[kept] = kept
    dropped = np.setdiff1d(np.fromiter(tokens, np.int64), kept)
    unknown = next((i for i, token in tokens.items() if token == UNKNOWN), None)
    candidates = np.setdiff1d(kept, reserved(tokens)) if embeddings_VD is not None else np.array([unknown])
    if len(dropped) and (not len(candidates) or candidates[0] is None):
        raise FormatError(
            "there is no token that the dropped ones could be read as",
            expected="word embeddings and an ordinary token, or an unknown token such as [UNK]",
            fix="Give --embeddings, a folder of the teacher's model, or keep more",
        )
    for start in range(0, len(dropped), BLOCK_ROWS):
        block = dropped[start : start + BLOCK_ROWS]
        nearest = 0 if embeddings_VD is None else (embeddings_VD[block] @ embeddings_VD[candidates].T).argmax(axis=1)
        result[block] = candidates[nearest]
    return result


def compressed(vocabulary: str, tokens: Mapping[int, Token], kept: Ids, read_as: Ids) -> UnionVocabulary:
    """Return the vocabulary of some tokens of a tokenizer, by ascending id.

    Args:
        vocabulary: Fingerprint of the tokenizer's vocabulary.
        tokens: Its tokens.
        kept: (n,) from ``kept_ids``.
        read_as: (V,) from ``stand_ins``.
    """
    predicted = np.full(kept[-1] + 1, NO_ID, np.uint32)
    predicted[kept] = np.arange(len(kept))
    read = np.where(read_as < 0, np.uint32(NO_ID), predicted[read_as])
    names = token_names([tokens[i] for i in kept.tolist()])
    return UnionVocabulary(names, {vocabulary: predicted}, {vocabulary: read})


def crowding(union: UnionVocabulary) -> tuple[int, str, int]:
    """Return how many tokens stand in for dropped ones, which of them for the most, and for how many.

    A dot product grows with a vector's length. Where embeddings are poor, one long vector is nearest to nearly all
    rare tokens, and its token stands for everything: no better than [UNK], and worse if it means something.
    """
    ((tokenizer, read),) = union.read.items()
    kept = np.flatnonzero(union.maps[tokenizer] != NO_ID)
    dropped = np.setdiff1d(np.flatnonzero(read != NO_ID), kept)
    counts = np.bincount(read[dropped], minlength=len(union.names))
    most = int(counts.argmax())
    return int((counts > 0).sum()), union.names[most], int(counts[most])
