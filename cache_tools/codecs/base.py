"""What every target codec is: a pure map between Targets and arrays of plain numbers.

A codec's own settings stand once in the teacher's manifest (``to_dict``). What it chooses for
one shard, such as a number of levels, is the shard's ``parameters`` and stands in that shard's
receipt. It does no I/O: ``array_types`` says which arrays the store must create.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import Arrays, Targets, empty_targets
from cache_tools.errors import FormatError
from cache_tools.mappings import JsonObject, Parameters

Floats = NDArray[np.float64]

DEFAULT_MAX_KL_NATS = 5e-5
"""Mean KL per shard that a codec with an error budget may cost where nothing else is asked for, nats."""


@dataclass(frozen=True)
class Encoded:
    """One shard's rows as they are stored.

    Attributes:
        arrays: (n, ...) arrays of the codec's ``array_types``.
        parameters: What ``decode`` needs besides; empty if nothing.
        kl_nats: (n,) float64, KL(true || decoded) of each row over its k + 1 outcomes; 0 for lossless codecs.
        tempered_kl_nats: (n,) float64 of each further temperature at which the codec keeps its budget.
        statistics: What else the receipt tells of these rows, by name; a count if it ends in ``_positions``.
    """

    arrays: Arrays
    parameters: Parameters
    kl_nats: NDArray[np.float64]
    tempered_kl_nats: Mapping[float, NDArray[np.float64]] = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Codec(ABC):
    """A way to store targets, which answers what the rest of logitcask asks of it.

    Attributes:
        name: The codec's name in a manifest.
        file: Key of the teacher's file without which rows cannot be decoded; None for most codecs.
        can_narrow: Rows have a place for the mass that fewer entries would leave out.
        exact_scalars: The scalars beside the rows are float32 too, instead of steps.
        repeating_arrays: Arrays in which a longer search of the compressor pays.
        ids_ascend: The ids of a decoded row ascend and its empty slots stand at the end.
        encoding_slot_bytes: Bytes of memory for each slot while a shard is encoded, at most.
        k: Slots of a row.
        vocabulary_size: Ids are below this.
    """

    name: ClassVar[str]
    file: ClassVar[str | None] = None
    can_narrow: ClassVar[bool] = False
    exact_scalars: ClassVar[bool] = False
    repeating_arrays: ClassVar[tuple[str, ...]] = ("ids", "ids_high")
    ids_ascend: ClassVar[bool] = True
    encoding_slot_bytes: ClassVar[int] = 24  # sorted rows 8, levels 2, differences of ids 8, what is stored 4, slack 2

    k: int
    vocabulary_size: int

    def to_dict(self) -> JsonObject:
        """Return the codec's entry in the manifest."""
        return {"name": self.name}

    @classmethod
    def from_dict(cls, entry: JsonObject, k: int, vocabulary_size: int, temperatures: tuple[float, ...] = ()) -> Self:
        """Build the codec from its entry in a manifest; arguments and errors as for ``registry.codec_from_dict``."""
        return cls(k, vocabulary_size)

    def with_file(self, content: bytes) -> "Codec":
        """Return the codec with what the teacher's file of this codec holds; only codecs with ``file`` need it.

        Raises:
            FormatError: the file holds something else.
        """
        return self

    def learned_file(self, targets: Targets) -> bytes:
        """Return the content of the teacher's file of this codec, learned from a sample of rows."""
        return b""

    @property
    def budget_nats(self) -> float:
        """Mean KL of a shard's rows, in nats, that storing them may cost; 0 for a lossless codec."""
        return 0.0

    @abstractmethod
    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes in a cache, from caches of other teachers; scalars not included.

        Args:
            half_precision: The teacher computes in bfloat16 or float16, so its logits lie on a grid.
        """

    @property
    def row_entries(self) -> int:
        """Numbers in the widest array's row."""
        return max(int(np.prod(row)) for row, _ in self.array_types().values())

    @abstractmethod
    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""

    def compression_level(self, array: str) -> int:
        """Return the blosc level (zstd, byte shuffle) that suits an array: ids repeat, values hardly do.

        Longer searches make the values' arrays larger: they find short matches that cost more
        than the bytes they replace.
        """
        return 5 if array in self.repeating_arrays else 1

    def by_column(self, array: str) -> bool:
        """Say whether the columns of an array are so unlike one another that each is better compressed by itself."""
        return array == "id_bits"

    @abstractmethod
    def encode(self, targets: Targets) -> Encoded:
        """Turn one shard's rows, slots in any order, into what is stored.

        Raises:
            ValueError: a row breaks a rule (NaN, mass other than 1, an id twice or out of range).
        """

    @abstractmethod
    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return the rows that stored arrays stand for.

        Args:
            arrays: Any run of rows of one shard, as ``encode`` returned them.
            parameters: What ``encode`` chose for that shard.
            out: Where to put them; new arrays if None.
        """

    def narrow(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, k: int
    ) -> tuple["Codec", Arrays, Parameters]:
        """Keep the k most likely entries of each stored row; see ``registry.narrow``, which checks the arguments.

        Raises:
            ValueError: rows of this codec keep no left-out mass.
        """
        raise ValueError(
            f"rows of {self.name} cannot be narrowed: they have no place for the mass they would leave out"
        )

    def bounds(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, narrowed: bool = False
    ) -> tuple[Floats, Floats]:
        """Return between which log-probabilities the written ones of stored rows lie, as far as the codec rounds.

        Args:
            arrays: Any run of n rows of one shard.
            parameters: What ``encode`` chose for that shard.
            narrowed: Entries were dropped since (``narrow``), so the left-out mass is a sum of rounded ones.

        Returns:
            The lowest and the highest log-probability of each slot, (n, k + 1) float64 each, the left-out mass last;
            -inf in empty slots. A lossless codec returns the decoded values twice.
        """
        rows = self.decode(arrays, parameters)
        logs = np.column_stack([rows.log_probs, rows.log_left_out]).astype(np.float64)
        return logs, logs

    def broken_rows(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters) -> dict[str, NDArray[np.bool_]]:
        """Tell which stored rows break a rule that their decoded values do not show.

        Args:
            arrays: Any run of n rows of one shard.
            parameters: What ``encode`` chose for that shard.

        Returns:
            The text of each rule mapped to (n,) bool, true for the rows that break it.
        """
        return {}


def prepared(out: Targets | None, n: int, k: int) -> Targets:
    """Return ``out``, which must have n rows of k slots, or new Targets of that shape.

    Raises:
        ValueError: ``out`` has another shape.
    """
    if out is None:
        return empty_targets(n, k)
    if not (out.ids.shape == out.log_probs.shape == (n, k) and out.log_left_out.shape == (n,)):
        raise ValueError(f"{n} rows of {k} slots do not fit into arrays of shape {out.ids.shape}")
    return out


def number(mapping: JsonObject, key: str, low: float, high: float, *, whole: bool = False) -> float:
    """Return a number that a manifest or receipt states.

    Raises:
        FormatError: it is missing, no number, or outside [low, high].
    """
    value, kind = mapping.get(key), "a whole number" if whole else "a number"
    numeric = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not numeric or not low <= value <= high:  # type: ignore[operator]
        raise FormatError(
            f"the codec's parameter {key!r} cannot be used",
            expected=f"{kind} from {low:g} to {high:g}",
            found=repr(value) if key in mapping else "nothing",
        )
    return value  # type: ignore[return-value]
