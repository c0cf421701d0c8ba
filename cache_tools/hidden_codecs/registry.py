"""The codecs of hidden states by name, each of which answers for itself.

=============  ==================================================  ==================
name           for                                                 stores
=============  ==================================================  ==================
``float32``    states as they are                                  float32
``bfloat16``   states of a bfloat16 model, or half the bytes       their upper bits
``transform``  a stated error; see ``transform.py``                small integers
=============  ==================================================  ==================
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import number
from cache_tools.hidden_codecs import transform as quantised
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.hidden_codecs.channel_scales import channel_scales
from cache_tools.hidden_codecs.transform import ErrorOf, Floats, Transform
from cache_tools.mappings import Parameters

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class EncodedStates:
    """One layer of one shard as it is stored.

    Attributes:
        values: (n, width) of the codec's dtype.
        parameters: What ``decode`` needs besides; empty if nothing.
        error: The error made, in the budget's unit; None for codecs without a budget.
    """

    values: NDArray[Any]
    parameters: Parameters = field(default_factory=dict)
    error: float | None = None


class HiddenCodec(ABC):
    """A way to store hidden states.

    Attributes:
        dtype: Of the stored values.
        compression_level: Level of blosc (zstd, byte shuffle) that suits them.
        chunk_columns: Columns that are compressed together, where a layer is wider; None for all.
        has_transform: Decoding needs a basis, which the teacher keeps in a file.
        rounds_to_bfloat16: Stored states differ from the teacher's by the rounding of bfloat16.
        rough_value_bytes: About how many bytes a value takes in a cache.
        encoding_value_bytes: Bytes of memory for each value while its shard is encoded: the stored number, unless it
            is the float32 itself, and its compressed form twice, because chunks are joined.
    """

    dtype: ClassVar[np.dtype[Any]]
    compression_level: ClassVar[int] = 6
    chunk_columns: ClassVar[int | None] = None
    has_transform: ClassVar[bool] = False
    rounds_to_bfloat16: ClassVar[bool] = False
    rough_value_bytes: ClassVar[float]
    encoding_value_bytes: ClassVar[int]

    @abstractmethod
    def encode(
        self, states: Floats, transform: Transform | None, error_of: ErrorOf | None, budget: float | None
    ) -> EncodedStates:
        """Return what is stored of finite states (n, width).

        Args:
            states: The states of a shard.
            transform: The basis, for codecs that have one.
            error_of: Measures the error that the budget is stated in; the relative error by default.
            budget: The error that may be made, for codecs that have a transform.
        """

    @abstractmethod
    def decode(self, stored: NDArray[Any], transform: Transform | None, parameters: Parameters) -> Floats:
        """Return the states (n, width) that stored values stand for.

        Raises:
            FormatError: a parameter of the shard cannot be used.
        """

    def with_second_error(
        self, states: Floats, transform: Transform | None, parameters: Parameters, random: np.random.Generator
    ) -> Floats:
        """Return decoded states with a second error, drawn as large as the one that storing made.

        The true states are not in a cache. To first order the second error changes a distribution as much as the
        first did, so it shows how storing spreads over positions. Codecs that change nothing return the states.

        Args:
            states: (n, width), as ``decode`` returned them.
            transform: The basis, for codecs that have one.
            parameters: Parameters of the shard.
            random: Where the errors are drawn from.
        """
        return states


class _Float32(HiddenCodec):
    dtype = np.dtype(np.float32)
    rough_value_bytes, encoding_value_bytes = 3.4, 8

    def encode(
        self, states: Floats, transform: Transform | None, error_of: ErrorOf | None, budget: float | None
    ) -> EncodedStates:
        return EncodedStates(states)

    def decode(self, stored: NDArray[Any], transform: Transform | None, parameters: Parameters) -> Floats:
        return stored


class _BFloat16(HiddenCodec):
    dtype = np.dtype(np.uint16)
    rounds_to_bfloat16 = True
    rough_value_bytes, encoding_value_bytes = 1.4, 5

    def encode(
        self, states: Floats, transform: Transform | None, error_of: ErrorOf | None, budget: float | None
    ) -> EncodedStates:
        return EncodedStates(to_bfloat16(states))

    def decode(self, stored: NDArray[Any], transform: Transform | None, parameters: Parameters) -> Floats:
        return from_bfloat16(stored)

    def with_second_error(
        self, states: Floats, transform: Transform | None, parameters: Parameters, random: np.random.Generator
    ) -> Floats:
        half_steps: Floats = np.ldexp(np.float32(1), np.frexp(states)[1] - 9)  # 8 digits, and half of the last
        errors: Floats = random.uniform(-1, 1, states.shape).astype(np.float32)
        return states + half_steps * errors


class _Quantised(HiddenCodec):
    dtype = np.dtype(np.uint16)
    compression_level = 1
    chunk_columns = quantised.CHUNK_COLUMNS
    has_transform = True
    rough_value_bytes, encoding_value_bytes = 0.85, 5

    def encode(
        self, states: Floats, transform: Transform | None, error_of: ErrorOf | None, budget: float | None
    ) -> EncodedStates:
        assert transform is not None
        assert budget is not None
        if error_of is None:  # the spread of a channel with rare huge values cannot be told from a few rows
            error_of = partial(quantised.relative_error, scales=channel_scales(states))
        step, error = quantised.choose_step(transform, states, error_of, budget)
        return EncodedStates(quantised.encode(transform, states, step), {"step": step}, error)

    def decode(self, stored: NDArray[Any], transform: Transform | None, parameters: Parameters) -> Floats:
        assert transform is not None
        return quantised.decode(transform, stored, number(parameters, "step", TINY, 1 / TINY))

    def with_second_error(
        self, states: Floats, transform: Transform | None, parameters: Parameters, random: np.random.Generator
    ) -> Floats:
        assert transform is not None
        step = number(parameters, "step", TINY, 1 / TINY)
        errors = random.uniform(-step / 2, step / 2, states.shape).astype(np.float32)
        return states + errors @ transform.basis


HIDDEN_CODECS: dict[str, HiddenCodec] = {"bfloat16": _BFloat16(), "float32": _Float32(), "transform": _Quantised()}
"""Every codec of hidden states by its name in a manifest."""
