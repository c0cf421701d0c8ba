"""Rows as they are stored, and what decodes them: what a loader keeps in memory, since it is several times smaller."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Arrays, Codec, Targets
from cache_tools.errors import DamageError
from cache_tools.format.specs import HiddenSpec
from cache_tools.hidden_codecs.transform import Transform
from cache_tools.mappings import Parameters
from cache_tools.store.predictions import decode_hidden


@dataclass(frozen=True)
class StoredTargets:
    """The stored integers behind a run of rows of one shard, four times smaller than what they decode to.

    Attributes:
        codec: What decodes them.
        parameters: The shard's own, from its receipt.
        arrays: (n, …) by name.
    """

    codec: Codec
    parameters: Parameters
    arrays: Arrays

    def decode(self, start: int, stop: int, out: Targets | None = None) -> Targets:
        """Return the targets of rows ``[start, stop)`` of this run, in ``out`` if given."""
        rows = {name: values[start:stop] for name, values in self.arrays.items()}
        try:
            return self.codec.decode(rows, self.parameters, out)
        except ValueError as error:
            raise DamageError(
                "stored rows break a rule of their codec",
                found=error,
                fix="Run 'logitcask verify --deep' to see which shards are damaged",
            ) from error


@dataclass(frozen=True)
class StoredHidden:
    """The stored values behind a run of rows of one layer in one shard, in most codecs half of what they decode to.

    Attributes:
        spec: How the layer is kept.
        transform: What a quantised layer is decoded with; None for the lossless codecs.
        parameters: The shard's own, from its receipt.
        values: (n, width).
    """

    spec: HiddenSpec
    transform: Transform | None
    parameters: Parameters
    values: NDArray[Any]

    def decode(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the states of rows ``[start, stop)`` of this run: (stop - start, width) float32."""
        return decode_hidden(self.spec, self.values[start:stop], self.transform, self.parameters)
