"""A part of a tokenizer's vocabulary for a small student: which tokens are kept, and the stand-ins of the others.

In a small student most of the weights are the embeddings of the vocabulary, and half of the tokens make up only a few
percent of a text. So the tokens that a corpus uses most are kept, and every dropped token is read as a kept token of
similar meaning: the one whose word embedding in the teacher has the largest dot product with its own (Tan et al., arXiv
2306.06625), or the largest cosine, with or without the mean embedding subtracted. Only texts are read through that
many-to-one map. A teacher's probability of a dropped token is not the probability of its stand-in, so it becomes
left-out mass, or the teacher's distribution is restricted to the kept tokens (``target.vocabulary`` of a capture file).

Special and added tokens are always kept, and are never stand-ins; so are tokens that the caller forces, such as the
names of classes. Ids keep the tokenizer's order: the ids of [PAD] and other early tokens rarely change, and the
student's embeddings are rows of the teacher's in the same order. Rejected: a tokenizer of the kept tokens alone, which
splits words into more tokens and at other places than the teacher's, so that predictions belong to no position.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError
from cache_tools.format.manifest import Split
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.tokens import Token
from cache_tools.vocabularies.union import NO_ID, UNKNOWN, UnionVocabulary, token_names

MULTIPLE = 128
"""A share of a vocabulary is rounded up to a multiple of this, for fast matrix products."""

BLOCK_ROWS = 1024
"""How many dropped tokens are compared with all kept tokens at a time."""

Ids = NDArray[np.int64]
Similarity = Literal["dot", "cosine", "centred-cosine"]
"""How embeddings are compared: ``dot`` as published; ``cosine``, which ignores lengths; ``centred-cosine``, the cosine
after the mean embedding is subtracted. Rare tokens share a common direction, and only centring removes it."""


def kept_size(keep: float, tokens: int) -> int:
    """Return how many of ``tokens`` tokens are kept; ``keep`` is a share if it is at most 1, else a number."""
    size = math.ceil(keep * tokens / MULTIPLE) * MULTIPLE if keep <= 1 else int(keep)
    return min(size, tokens)


def token_counts(encodings: Iterable[Encoding], split: Split, size: int, progress: Advance = ignore) -> Ids:
    """Return how often each id below ``size`` occurs in the texts of a split, before masking: (size,).

    ``progress`` is called after each shard.
    """
    counts = np.zeros(size, np.int64)
    for encoding in encodings:
        for shard in encoding.split_shards(split):
            sequences = encoding.student_sequences(shard)
            texts = [s.input_ids if s.original_ids is None else s.original_ids for s in sequences]
            counts += np.bincount(np.concatenate(texts), minlength=size)
            progress(1)
    return counts


def reserved(tokens: Mapping[int, Token]) -> list[int]:
    """Return the ids of special and added tokens, which are always kept and never stand-ins."""
    return [i for i, token in tokens.items() if token.kind in ("special", "added")]


def coverage(counts_V: Ids, kept: Ids, tokens: Mapping[int, Token]) -> float:
    """Return the share of a text's ordinary tokens that are kept; NaN if it has no ordinary token."""
    ordinary = counts_V.copy()
    ordinary[reserved(tokens)] = 0
    return float(ordinary[kept].sum() / ordinary.sum()) if ordinary.any() else math.nan


def kept_ids(counts_V: Ids, tokens: Mapping[int, Token], forced: Collection[int], size: int) -> Ids:
    """Return which ids are kept: reserved and forced ids, then the most frequent; the lower of equally frequent ids.

    Returns:
        (size,) ascending.

    Raises:
        FormatError: more than ``size`` ids must be kept.
    """
    first = np.array(sorted({*reserved(tokens), *forced}), np.int64)
    if len(first) > size:
        raise FormatError(
            "the vocabulary is too small for the tokens that must be kept",
            expected=f"at least {len(first)} tokens",
            found=size,
            fix="Raise --keep, or list fewer tokens in --forced",
        )
    others = np.setdiff1d(np.fromiter(tokens, np.int64), first)
    frequent = others[np.argsort(-counts_V[others], kind="stable")]
    return np.sort(np.concatenate([first, frequent[: size - len(first)]]))


def comparable(
    embeddings_VD: NDArray[np.float32], tokens: Mapping[int, Token], similarity: Similarity
) -> NDArray[np.float32]:
    """Return embeddings whose dot products are the similarity: (V, D) float32; the same array for ``dot``.

    The mean that ``centred-cosine`` subtracts is that of all rows of ``tokens``. A row of zeros stays one.
    """
    if similarity == "dot":
        return embeddings_VD
    vectors_VD = embeddings_VD.astype(np.float64)
    if similarity == "centred-cosine":
        vectors_VD -= vectors_VD[np.fromiter(tokens, np.int64)].mean(axis=0)
    norms_V1 = np.linalg.norm(vectors_VD, axis=1, keepdims=True)
    return (vectors_VD / np.where(norms_V1 == 0, 1, norms_V1)).astype(np.float32)


def stand_ins(
    kept: Ids, tokens: Mapping[int, Token], embeddings_VD: NDArray[np.float32] | None, similarity: Similarity = "dot"
) -> Ids:
    """Return the kept id that each id is read as: a kept id as itself, a dropped id as its nearest ordinary token.

    Args:
        kept: (n,) the kept ids.
        tokens: Every token by its id.
        embeddings_VD: Word embeddings; without them every dropped token is read as [UNK].
        similarity: How embeddings are compared.

    Returns:
        (V,), V one more than the highest id; -1 where there is no token.

    Raises:
        FormatError: no kept token can be the stand-in of a dropped token.
    """
    result = np.full(max(tokens) + 1, -1, np.int64)
    result[kept] = kept
    dropped = np.setdiff1d(np.fromiter(tokens, np.int64), kept)
    unknown = next((i for i, token in tokens.items() if token == UNKNOWN), None)
    candidates = np.setdiff1d(kept, reserved(tokens)) if embeddings_VD is not None else np.array([unknown])
    if len(dropped) and (not len(candidates) or candidates[0] is None):
        raise FormatError(
            "no kept token can stand in for the dropped tokens",
            expected="word embeddings and an ordinary token, or an unknown token such as [UNK]",
            fix="Give the folder of the teacher's model as --embeddings, or raise --keep",
        )
    vectors_VD = None if embeddings_VD is None else comparable(embeddings_VD, tokens, similarity)
    for start in range(0, len(dropped), BLOCK_ROWS):
        block = dropped[start : start + BLOCK_ROWS]
        nearest = 0 if vectors_VD is None else (vectors_VD[block] @ vectors_VD[candidates].T).argmax(axis=1)
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


class StandIns(NamedTuple):
    """How evenly the dropped tokens are spread over their stand-ins.

    Attributes:
        num_tokens: How many kept tokens are stand-ins.
        most_used: Name of the token that replaces the most dropped tokens.
        dropped_by_most: For how many it stands in; 0 if no token was dropped.
    """

    num_tokens: int
    most_used: str
    dropped_by_most: int


def crowding(union: UnionVocabulary) -> StandIns:
    """Return how evenly the dropped tokens are spread over their stand-ins.

    A dot product grows with a vector's length. If embeddings are poor, one long vector is nearest to almost all rare
    tokens, and its token stands in for all of them: no better than [UNK], and worse if that token has a meaning.
    """
    ((tokenizer, read),) = union.read.items()
    kept = np.flatnonzero(union.maps[tokenizer] != NO_ID)
    dropped = np.setdiff1d(np.flatnonzero(read != NO_ID), kept)
    counts = np.bincount(read[dropped], minlength=len(union.names))
    most = int(counts.argmax())
    return StandIns(int((counts > 0).sum()), union.names[most], int(counts[most]))
