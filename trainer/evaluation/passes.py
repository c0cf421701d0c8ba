"""One pass of a student over cached sequences, whose sums several ranks share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cache_tools.mappings import ModelInputs
from cache_tools.progress.reporter import Advance, ignore
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import Example, collate, to_device
from trainer.evaluation.measures import Sums
from trainer.losses.distillation_loss import TeacherRows
from trainer.student import fused_loss


class Measurement(Protocol):
    """Sums over positions: of ``measures.Measures`` or ``aligned.AlignedMeasures``."""

    def sums(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> Sums:
        """Return the sums of some rows, ``loss`` among them."""

    def add(self, sums: Sums) -> None:
        """Count the sums of a batch."""


@dataclass(frozen=True)
class SharedBatches:
    """A rank's share of some sequences.

    Attributes:
        batches: Indices of the sequences of each batch; equally many batches on every rank.
        num_counted: The first so many are its own; the others are repeated and do not count.
    """

    batches: list[list[int]]
    num_counted: int


def shared_batches(num_sequences: int, batch_size: int, rank: int = 0, world_size: int = 1) -> SharedBatches:
    """Cut sequences into batches and return those of one rank, which lie side by side.

    A rank with too few repeats the first batch: where parameters lie in pieces, all ranks take part in each pass.
    """
    batches = [list(range(i, min(i + batch_size, num_sequences))) for i in range(0, num_sequences, batch_size)]
    share = -(-len(batches) // world_size)
    own = batches[rank * share : (rank + 1) * share]
    return SharedBatches(own + batches[:1] * (share - len(own)), len(own))


@torch.no_grad()
def measured(
    over_positions: Callable[[ModelInputs, Tensor, fused_loss.LossOf], Sums],
    measures: Measurement,
    dataset: Dataset[Example],
    shared: SharedBatches,
    device: torch.device,
    progress: Advance = ignore,
) -> None:
    """Add the sums of one rank's share to measures.

    Args:
        over_positions: Runs the student, as ``fused.over_positions`` of a model and its head.
        measures: What is measured; values of single positions are those of repeated batches, too.
        dataset: The sequences, with what the measures need.
        shared: Which of its sequences to read.
        device: Where the student is.
        progress: Called with the number of tokens of each batch.
    """
    own_draws = torch.Generator()  # a loader would take a seed from the run's
    loader = DataLoader(dataset, batch_sampler=shared.batches, collate_fn=collate, generator=own_draws)
    for number, batch in enumerate(loader):
        moved = to_device(batch, device)
        kept = moved["gold_ids"] != IGNORED
        gold_P, teacher_rows = moved["gold_ids"][kept], TeacherRows.of(moved)

        def sums_of(
            logits_NV: Tensor, rows: slice, gold_P: Tensor = gold_P, teacher_P: TeacherRows = teacher_rows
        ) -> Sums:
            return measures.sums(logits_NV, gold_P[rows], teacher_P[rows])

        inputs = {name: moved[name] for name in ("input_ids", "attention_mask")}
        sums = over_positions(inputs, kept, sums_of)
        measures.add(sums if number < shared.num_counted else {name: 0 * value for name, value in sums.items()})
        progress(int(batch["attention_mask"].sum()))
