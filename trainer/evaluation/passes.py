"""One pass of a student over cached sequences, whose sums several ranks share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cache_tools.mappings import ModelInputs
from cache_tools.progress.reporter import Advance, ignore
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate, to_device
from trainer.evaluation.measures import Measures, Sums
from trainer.losses.distillation_loss import TeacherRows
from trainer.student import fused_loss


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
    dataset: CachedSequences,
    shared: SharedBatches,
    device: torch.device,
    progress: Advance = ignore,
    per_position: bool = False,
) -> Measures:
    """Return the sums of one rank's share; arguments as for :func:`measure`.

    Args:
        over_positions: Runs the student, as ``fused.over_positions`` of a model and its head.
        dataset: From :func:`evaluated_sequences`.
        shared: Which of its sequences to read.
        device: Where the student is.
        progress: Called with the number of tokens of each batch.
        per_position: Keep the KL of each position too, repeated batches included.
    """
    translated = dataset.to is not None
    measures = Measures.of(dataset.teacher, dataset.student_vocabulary_size, device, translated, per_position)
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
    return measures
