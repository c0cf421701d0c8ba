"""Orders of a vocabulary in which predicted tokens come early: what the ``ranked-`` codecs call ids by.

Tokenizers number tokens by how often they occur in text, not by how often they are among a teacher's k likeliest, so
the ids of a row are spread widely and their differences are large. A **rank table** is another order of the ids,
learned from rows of the teacher: the number of a token in it is its *rank*. One table by frequency saves a fifth of
the bytes of the ids. Rows also fall into groups (after an article come nouns, after a noun punctuation and
prepositions), so there are up to 32 tables, one for each group, and a row names the one by which its ids cost least.
That depends on the row alone, so any row can be read without its neighbours.

Learning is hard expectation maximisation of a mixture: rows choose the table under which they are most probable, and
tables count the ids of their rows, smoothed towards the count over all rows.

A file of the teacher keeps only the beginning of each table. With ``common`` (m,), ids that are predicted often, and
``tables`` (c, l), the beginnings, table i is the ids of ``tables[i]``, then those of ``common`` that are not among
them, then all others, ascending.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cache_tools.codecs.rows import EMPTY_ID, Targets
from cache_tools.errors import FormatError
from cache_tools.limits import RANKS

MOST_TABLES = 32
ROWS_PER_TABLE = 768
"""Rows of the sample that a table needs; fewer rows make fewer tables."""

OWN_IDS = 2048
COMMON_IDS = 16_384
"""Ids that a file lists for each table, and for all tables together, at most."""

BYTES_PER_ROW = 4
"""Bytes of the file for each row of the sample, at most: where the sample is all there is, more saves
less than it costs."""

OWN_SHARE = 0.8
"""Share of these bytes for the tables' own ids."""

MOST_ASKED = 32
"""Ids of a row that choose its table, evenly spread: more cost time and save half a per cent."""

ITERATIONS = 8
SMOOTHING_ROWS = 200
"""Rows of the average over all tables that are added to each table's own."""

LEARNING_ROWS = 1024
"""Rows whose costs under all tables are computed at a time."""

COST_UNITS = 12
"""Units of a cost in a bit: MOST_ASKED ids of 32 bits cost less than 2**16 of them."""

LANES = 4
"""Costs by several tables that are added up as one 64-bit number."""


@dataclass(frozen=True, eq=False)
class RankTables:
    """Orders of all ids of a vocabulary.

    Attributes:
        vocabulary_size: V; ids are below this.
        common: (m,) distinct ids.
        tables: (c, l) ids, distinct in each row; c is at most 256.
    """

    vocabulary_size: int
    common: NDArray[np.uint32]
    tables: NDArray[np.uint32]

    @cached_property
    def ids(self) -> NDArray[np.uint32]:
        """The id at each rank of each table: (c, V)."""
        everything = np.arange(self.vocabulary_size, dtype=np.uint32)
        return np.stack([_first_of_each(np.concatenate([own, self.common, everything])) for own in self.tables])

    @cached_property
    def ranks(self) -> NDArray[np.uint32]:
        """The rank of each id in each table: (V, c), so that an id's ranks lie side by side."""
        ranks = np.empty(self.ids.shape[::-1], np.uint32)
        for number, ids in enumerate(self.ids):
            ranks[ids, number] = np.arange(self.vocabulary_size, dtype=np.uint32)
        return ranks

    @cached_property
    def costs(self) -> NDArray[np.uint64]:
        """About what an id costs by each table, in bits / COST_UNITS, four costs of 16 bits in a number: (V, c / 4).

        Gaps grow in proportion to the rank.
        """
        padded = np.zeros((self.vocabulary_size, -(-len(self.tables) // LANES) * LANES), "<u2")
        padded[:, : len(self.tables)] = np.rint(np.log2(self.ranks + np.float32(2)) * COST_UNITS)
        return padded.view("<u8")

    def cheapest(self, ids: NDArray[np.uint32], used: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the table of each row (b,) by which its used ids (b, k) cost least; of equals the first."""
        if len(self.tables) == 1:
            return np.zeros(len(ids), np.uint8)
        every = -(-ids.shape[1] // MOST_ASKED)
        sums = np.zeros((len(ids), self.costs.shape[1]), np.uint64)
        for column, filled in zip(ids.T[::every], used.T[::every], strict=True):
            everywhere = filled.all()
            costs = np.take(self.costs, column if everywhere else np.where(filled, column, 0), axis=0)
            sums += costs if everywhere else costs * filled[:, None]
        cheapest: NDArray[np.uint8] = sums.view("<u2")[:, : len(self.tables)].argmin(axis=1).astype(np.uint8)
        return cheapest

    def to_bytes(self) -> bytes:
        """Return the tables as a safetensors file; the same tables give the same bytes."""
        dtype = "<u2" if self.vocabulary_size <= 2**16 else "<u4"
        tensors = {"common": self.common, "tables": self.tables}
        return save({name: np.ascontiguousarray(values, dtype=dtype) for name, values in tensors.items()})

    @classmethod
    def from_bytes(cls, content: bytes, vocabulary_size: int) -> Self:
        """Read what ``to_bytes`` returned.

        Raises:
            FormatError: it is something else or too large, or lists ids that the vocabulary does not have, or one
                twice.
        """
        try:
            tensors = load(content)
            common, tables = tensors["common"], tensors["tables"]
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise FormatError("this is not a file of rank tables", found=f"{type(error).__name__}: {error}") from error
        if tables.ndim and len(tables) * vocabulary_size > RANKS:
            raise FormatError(
                "these rank tables are too large to be used",
                expected=f"tables of at most {RANKS:,} ids in all",
                found=f"{len(tables)} of {vocabulary_size:,} ids",
                why="all of them are held in memory",
            )
        lists = [common, *tables] if tables.ndim == 2 and common.ndim == 1 else []
        if not 1 < len(lists) <= 257 or any(values.dtype not in (np.uint16, np.uint32) for values in lists):
            raise FormatError(
                "a file of rank tables has the wrong tensors",
                expected="common (m,) and tables (1 to 256, l) of uint16 or uint32",
                found=f"common {common.dtype} {common.shape}, tables {tables.dtype} {tables.shape}",
            )
        for values in lists:
            if values.max(initial=0) >= vocabulary_size or len(np.unique(values)) < len(values):
                raise FormatError(
                    "a rank table lists an id twice, or one that the vocabulary does not have",
                    expected=f"distinct ids below {vocabulary_size:,}",
                )
        return cls(vocabulary_size, common.astype(np.uint32), tables.astype(np.uint32))


def learn_tables(targets: Targets, vocabulary_size: int, seed: int = 0) -> RankTables:
    """Learn rank tables from a sample of rows, spread over many documents.

    Args:
        targets: Rows as a teacher predicts them, slots in any order.
        vocabulary_size: Ids are below this; there are no more tables than fit into RANKS ids.
        seed: Seed of the first, random assignment of rows to tables.
    """
    used = (targets.log_probs > -np.inf) & (targets.ids != EMPTY_ID)
    ids = np.where(used, targets.ids, 0).astype(np.int64)
    most = min(MOST_TABLES, max(1, RANKS // vocabulary_size))
    num_tables = int(np.clip(len(ids) // ROWS_PER_TABLE, 1, most))
    total = np.bincount(ids[used], minlength=vocabulary_size)
    average = (total + 0.05) / (total.sum() + 0.05 * vocabulary_size)
    groups = np.random.default_rng(seed).integers(0, num_tables, len(ids))
    for _ in range(ITERATIONS):
        weights = _weights(ids, used, groups, num_tables, average)
        groups = _most_probable(ids, used, weights)
    weights = _weights(ids, used, groups, num_tables, average)
    size = BYTES_PER_ROW * len(ids) // (2 if vocabulary_size <= 2**16 else 4)
    own = min(vocabulary_size, OWN_IDS, max(16, int(OWN_SHARE * size) // num_tables))
    common = min(int((total > 1).sum()), COMMON_IDS, max(16, int((1 - OWN_SHARE) * size)))
    tables = [_by_falling(weights[:, number])[:own] for number in range(num_tables)]
    return RankTables(vocabulary_size, _by_falling(average)[:common], np.stack(tables))


def _weights(
    ids: NDArray[np.int64], used: NDArray[np.bool_], groups: NDArray[np.int64], num_tables: int, average: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the probability of each id in each group of rows: (V, c)."""
    cells = (ids * num_tables + groups[:, None])[used]
    counts = np.bincount(cells, minlength=len(average) * num_tables).reshape(len(average), num_tables)
    extra = SMOOTHING_ROWS * max(1.0, float(used.sum(axis=1).mean()))
    smoothed: NDArray[np.float64] = (counts + extra * average[:, None]) / (counts.sum(axis=0) + extra)
    return smoothed


def _most_probable(ids: NDArray[np.int64], used: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the group (n,) under which each row is most probable."""
    logs = np.log(weights).astype(np.float32)
    parts = [slice(start, start + LEARNING_ROWS) for start in range(0, len(ids), LEARNING_ROWS)]
    sums = [np.einsum("nkc,nk->nc", logs[ids[part]], used[part].astype(np.float32)) for part in parts]
    groups: NDArray[np.int64] = np.concatenate([part.argmax(axis=1) for part in sums])
    return groups


def _by_falling(weights: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the ids by falling weight; of equals the lower."""
    return np.argsort(-weights, kind="stable").astype(np.uint32)


def _first_of_each(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return ids without repetitions, each where it stands first."""
    _, places = np.unique(ids, return_index=True)
    return ids[np.sort(places)]
