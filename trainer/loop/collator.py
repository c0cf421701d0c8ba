"""From sequences to batches: a collator for ``DataLoader(collate_fn=...)`` and for trainers.

It takes what the dataset returns, or rows that name a sequence by its number. Some trainers accept nothing but a table
of the library ``datasets``; such a table holds the numbers and no predictions, so it may be shuffled, filtered and
split like any other: a row and its predictions are read together, here. Rejected: the predictions as columns of the
table, of which trainers drop those that the model's ``forward`` does not name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache_tools.errors import ConfigError, IdentityError
from trainer.config.student_file import PackingConfig
from trainer.data.cached_sequences import Batch, Example, collate
from trainer.data.packing import pack
from trainer.data.sources import TrainingSequences

SEQUENCE = "sequence"
"""Column of a row: index of a sequence in the dataset."""


@dataclass(frozen=True)
class Collator:
    """Makes batches of cached sequences; may be sent to the workers of a loader.

    Attributes:
        dataset: The sequences that rows are numbers of.
        packing: How sequences are laid out in rows; None pads them.
    """

    dataset: TrainingSequences
    packing: PackingConfig | None = None

    def __call__(self, rows: Sequence[Example | Mapping[str, Any]]) -> Batch:
        """Return a batch; see ``collate`` and ``pack`` for its tensors.

        Args:
            rows: Items of the dataset, or mappings with the index of one as ``sequence``. ``input_ids`` beside it, if
                they are there, must be those of that sequence.

        Raises:
            ConfigError: There are no rows, or a row has no number of a sequence.
            IdentityError: A row has other tokens than its sequence.
        """
        if not rows:
            raise ConfigError("a batch needs at least one row", where="collator", found="an empty list")
        examples = [row if isinstance(row, Example) else self._example(row) for row in rows]
        return collate(examples) if self.packing is None else pack(examples, self.packing.row_tokens)

    def _example(self, row: Mapping[str, Any]) -> Example:
        if SEQUENCE not in row:
            raise ConfigError(
                "this row does not say which cached sequence it is",
                where="collator",
                expected=f"an item of the dataset, or a row with a column {SEQUENCE!r}",
                found=", ".join(sorted(row)) or "a row without columns",
                why="its predictions cannot be looked up",
                fix="If a trainer has removed the column, set remove_unused_columns=False",
            )
        number = int(row[SEQUENCE])
        if not 0 <= number < len(self.dataset):
            raise ConfigError(
                "there is no such sequence in this split",
                where="collator",
                expected=f"{SEQUENCE} from 0 to {len(self.dataset) - 1}",
                found=number,
            )
        example = self.dataset[number]
        if "input_ids" in row and not np.array_equal(np.asarray(row["input_ids"]), example.input_ids):
            raise IdentityError(
                "this row has other tokens than the cached sequence that it names",
                where=f"{SEQUENCE} {number}",
                expected=f"{example.input_ids[:8].tolist()}… ({len(example.input_ids)} tokens)",
                found=f"{list(row['input_ids'][:8])}… ({len(row['input_ids'])} tokens)",
                why="the teacher's predictions are for the cached tokens",
                fix="Shuffle whole rows, and use the cache's tokens: not tokenized again, not cut, nothing added",
            )
        return example
