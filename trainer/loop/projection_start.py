"""Where the projections between hidden states start: the identity, or the best linear map at the first step.

The identity suits a student that was cut from its teacher. Between models of different origin it maps nothing to
anything, and a short run is spent on finding the map: then a teacher seems useless whose basis is merely another one.
``start: ridge`` solves for the map instead, from the student's own states before training, over the first positions of
the data::

    W = argmin mean |y - W x|^2 + penalty |W|^2,   penalty = ``PENALTY`` times the mean square of x over its channels

with x the side that is projected. The penalty makes W small where x says nothing, and keeps it finite where x has fewer
positions than channels. Rejected: a learning rate of the projections' own, a second value to search for.

Cost: one forward pass of the student over ``POSITIONS`` positions, on the device where it lies, and for each pair two
float64 matrices of the layers' widths. A continued run repeats it, and then loads its checkpoint. No random number is
drawn, and the start does not depend on the run's seed.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import Batch, Example, collate, to_device
from trainer.data.packing import model_inputs
from trainer.losses.hidden import HiddenMatch

POSITIONS = 4096
"""Kept positions that the solution is over, at least; fewer if the data has fewer."""
PENALTY = 0.01
BATCH_SEQUENCES = 8

# P: kept positions, X: width of the projected side, Y: width of the other side


class Sums(NamedTuple):
    """What the solution of a pair needs of its states, float64; filled in place."""

    xx_XX: Tensor
    yx_YX: Tensor

    @classmethod
    def of(cls, weight_YX: Tensor) -> "Sums":
        """Return zeros for a projection of this shape."""
        width_y, width_x = weight_YX.shape
        return cls(torch.zeros(width_x, width_x).double(), torch.zeros(width_y, width_x).double())

    def add(self, x_PX: Tensor, y_PY: Tensor) -> None:
        """Add some positions."""
        x, y = x_PX.double().cpu(), y_PY.double().cpu()
        self.xx_XX.addmm_(x.T, x)
        self.yx_YX.addmm_(y.T, x)

    def solution(self) -> Tensor:
        """Return W, (Y, X) float64; zeros if all states are zeros."""
        mean_square = self.xx_XX.diagonal().mean()
        if mean_square == 0:
            return torch.zeros_like(self.yx_YX)
        ridge_XX = self.xx_XX + PENALTY * mean_square * torch.eye(len(self.xx_XX), dtype=torch.float64)
        solution_YX: Tensor = torch.linalg.solve(ridge_XX, self.yx_YX.T).T
        return solution_YX


@torch.no_grad()
def fit_projections(student: PreTrainedModel, match: HiddenMatch, examples: Iterable[Example]) -> None:
    """Set the projections of the pairs with ``start: ridge``.

    Args:
        student: The student before its first step, on any device; afterwards in the mode in which it was.
        match: The pairs; its projections are changed in place.
        examples: Cached sequences with the layers of the teachers, of which the first are used.
    """
    ways = zip(match.pairs, match.parameters(), strict=True)
    sums = [(pair, weight_YX, Sums.of(weight_YX)) for pair, weight_YX in ways if pair.start == "ridge"]
    training = student.training
    student.eval()
    try:
        for batch in _batches(examples):
            moved = to_device(batch, student.device)
            inputs = model_inputs(moved["input_ids"], moved["attention_mask"], None)
            layers, kept_BL = student(**inputs, output_hidden_states=True).hidden_states, moved["gold_ids"] != IGNORED
            for pair, _, of_pair in sums:
                own, teacher = layers[pair.student_layer][kept_BL], moved["hidden"][pair.state]
                of_pair.add(*((own, teacher) if pair.project == "student" else (teacher, own)))
    finally:
        student.train(training)
    for _, weight_YX, of_pair in sums:
        weight_YX.copy_(of_pair.solution())


def _batches(examples: Iterable[Example]) -> Iterator[Batch]:
    """Yield batches of the first examples, until they have ``POSITIONS`` kept positions."""
    rest, positions = iter(examples), 0
    while positions < POSITIONS and (some := list(islice(rest, BATCH_SEQUENCES))):
        positions += sum(len(example.positions) for example in some)
        yield collate(some)
