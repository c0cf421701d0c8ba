"""The loss of a batch of cached sequences, from what a model made of its tokens: logits, or hidden states and a head.

Every loop stands on it: ``logitcask train`` calls it inside the wrapped student, a loop of one's own after its model.
It knows no model and runs none. A batch is checked before it is used (``data/binding.py``), and so are the shapes: the
logits must be those of the student that the loss was made for, for every token of the batch, not shifted by one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.format import layout
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import IdMaps
from trainer.config.student_file import HiddenPair, LossConfig
from trainer.data.binding import IGNORED, Binding
from trainer.data.translation import teacher_ids
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows, counted
from trainer.losses.full import TeacherHead
from trainer.losses.hidden import HiddenMatch
from trainer.student import fused_loss
from trainer.student.head import StudentHead

# B: batch, L: length, N: positions of a chunk, P: kept positions, D: width, V: vocabulary


@dataclass(frozen=True)
class StudentShape:
    """What a loss must know of a student.

    Attributes:
        vocabulary_size: Width of its logits, padding included.
        hidden_width: Width of its hidden states; needed with ``loss.hidden``.
        dtype: Type of its weights. The teacher's output matrix is multiplied in bfloat16 if that is the type.
    """

    vocabulary_size: int
    hidden_width: int | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, student: PreTrainedModel, loss: LossConfig) -> "StudentShape":
        """Return the shape of a model of transformers; hidden states are measured, if the loss uses any.

        Raises:
            ConfigError: The loss names a layer that the student does not have.
        """
        dtype = student.get_output_embeddings().weight.dtype
        assert isinstance(dtype, torch.dtype)
        return cls(vocabulary_size(student), _hidden_width(student, loss) if loss.hidden else None, dtype)


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch.

    Attributes:
        loss: Scalar, float32, to call ``backward()`` on, once: a mean over positions.
        sums: Its parts as sums over positions, detached, in nats where the name says so: ``kl_nats`` or another
            divergence, ``cross_entropy_nats``, ``hidden_loss``, ``projection_norm``, ``weight_<teacher>``.
        num_positions: Kept positions of the batch.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    num_positions: int

    @property
    def means(self) -> dict[str, float]:
        """The parts as means over the batch's positions."""
        return {name: float(total) / max(self.num_positions, 1) for name, total in self.sums.items()}


class CachedLoss(nn.Module):
    """The loss that a student file describes, on batches of cached sequences.

    Args:
        objective: The loss of some rows.
        match: Losses between hidden states, if there are any; their projections are trained with the student.
        vocabulary_size: Width of the student's logits; None checks no width.
        binding: Which batches it takes; None checks none.
    """

    def __init__(
        self,
        objective: DistillationLoss,
        match: HiddenMatch | None = None,
        vocabulary_size: int | None = None,
        binding: Binding | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.match = objective, match
        self.vocabulary_size, self.binding = vocabulary_size, binding

    def forward(
        self,
        batch: Mapping[str, Any],
        *,
        logits: Tensor | None = None,
        hidden_states: Tensor | None = None,
        head: StudentHead | None = None,
        layers: Sequence[Tensor] | None = None,
        num_positions: Tensor | float | None = None,
    ) -> BatchLoss:
        """Return the loss of a batch, from logits, or from hidden states and a head, which needs less memory.

        Args:
            batch: A whole batch of the collator, on the device of the logits or hidden states.
            logits: (B, L, V), any floating type: for every token of ``batch["input_ids"]``, padding included, what the
                model predicts after reading it.
            hidden_states: (B, L, D), inputs of the output matrix, as ``head.run`` returns them.
            head: The student's output matrix and what follows it.
            layers: (B, L, D) for each layer, 0 being the embeddings: transformers' ``hidden_states``. Needed with
                ``loss.hidden``.
            num_positions: Positions to divide by; by default those of the batch. With several micro-batches, those of
                all; with several ranks whose gradients are averaged, the sum over ranks divided by their number.

        Returns:
            The loss and its parts.

        Raises:
            ConfigError: Arguments are missing, have another shape, or the batch lacks columns.
            IdentityError: The batch comes from another cache, or its rows and its predictions were moved apart.
        """
        states = self._states(batch, logits, hidden_states, head)
        _check_divisor(num_positions)
        if self.binding is not None:
            self.binding.check(batch)
        kept_BL, rows_P = batch["gold_ids"] != IGNORED, TeacherRows.of(batch)
        gold_P = batch["gold_ids"][kept_BL]
        counted_BL, gold_C, rows_C = counted(kept_BL, gold_P, rows_P)

        def loss_of(logits_NV: Tensor, rows: slice) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = self.objective(logits_NV, gold_C[rows], rows_C[rows])
            return sums

        sums = fused_loss.summed(states, head, counted_BL, loss_of)
        loss = sums.pop("loss")
        if self.match is not None:
            hidden_loss = self.match(_required_layers(layers), kept_BL, rows_P.hidden).sum()
            loss = loss + hidden_loss
            sums |= {"hidden_loss": hidden_loss.detach(), "projection_norm": self.match.norm() * len(gold_P)}
        divisor = max(len(gold_P), 1) if num_positions is None else num_positions
        return BatchLoss(loss / divisor, sums, len(gold_P))

    def _states(
        self, batch: Mapping[str, Any], logits: Tensor | None, hidden: Tensor | None, head: StudentHead | None
    ) -> Tensor:
        """Return logits or hidden states, whichever are given, if their shape is right."""
        if (logits is None) == (hidden is None) or (hidden is None) != (head is None):
            raise ConfigError(
                "a loss takes either logits, or hidden states and a head",
                where="arguments of the loss",
                found="logits" if head is None and hidden is None and logits is not None else "another combination",
            )
        states = logits if hidden is None else hidden
        if not isinstance(states, Tensor):
            raise ConfigError(
                "a loss takes tensors",
                where="logits" if hidden is None else "hidden_states",
                expected="a tensor with one row for each token",
                found=type(states).__name__,
                fix="Pass output.logits" if hasattr(states, "logits") else "",
            )
        if not isinstance(head, StudentHead | None):
            raise ConfigError(
                "an output matrix alone does not say how its products become logits",
                where="head",
                expected="the head that belongs to the student, such as StudentHead.of(model)",
                found=type(head).__name__,
            )
        ids: Tensor | None = batch.get("input_ids")
        if ids is not None and states.shape[:-1] != ids.shape:
            shifted = states.shape[:-1] == (len(ids), ids.shape[-1] - 1)
            raise ConfigError(
                "the model's outputs are not those of this batch's tokens",
                where="logits" if hidden is None else "hidden_states",
                expected=f"one row for each token, {tuple(ids.shape)}",
                found=tuple(states.shape[:-1]),
                why="the gold tokens of a batch are aligned already" if shifted else "",
                fix="Pass all rows, the last one too, and do not shift them" if shifted else "",
            )
        width = states.shape[-1] if head is None else head.matrix.weight.shape[0]
        if self.vocabulary_size is not None and width != self.vocabulary_size:
            raise IdentityError(
                "these are logits of another vocabulary than that of the student this loss was made for",
                where="logits" if hidden is None else "head",
                expected=f"{self.vocabulary_size} for each position",
                found=width,
                why="their ids would mean other tokens",
                fix="Make the loss for this student; if its embeddings were resized, make it afterwards",
            )
        return states


def cached_loss(
    shape: StudentShape,
    loss: LossConfig,
    teachers: Sequence[CachedTeacher],
    objective: DistillationLoss | None = None,
    to: IdMaps | None = None,
    binding: Binding | None = None,
) -> CachedLoss:
    """Return a loss with all that it needs of cached teachers.

    Args:
        shape: The student.
        loss: The loss block; a combination that ``compatibility.check_loss`` accepts.
        teachers: The cached teachers.
        objective: The loss on several teachers; by default that of one.
        to: The student's ids, where its tokenizer is not the cache's: only the teacher's rows of these are multiplied.
        binding: Which batches it takes; None checks none.

    Raises:
        ConfigError: The loss compares hidden states, and the student's width is not known.
        DamageError: The teacher's output matrix is missing or not what was written.
    """
    head = match = None
    if loss.source == "hidden" and loss.kd_weight > 0:
        dtype = torch.bfloat16 if shape.dtype == torch.bfloat16 else torch.float32
        width = shape.vocabulary_size
        head = TeacherHead(teachers[0].file(layout.HEAD), width, dtype, teacher_ids(to, width))
    if loss.hidden:
        if shape.hidden_width is None:
            raise ConfigError(
                "the loss compares hidden states, and the width of the student's is not known",
                where="loss.hidden",
                fix="Give the model itself, or hidden_width",
            )
        widths = {pair.state: _teacher_width(pair, teachers) for pair in loss.hidden}
        match = HiddenMatch(loss.hidden, shape.hidden_width, widths)
        nn.Module.to(match, shape.dtype)
    objective = DistillationLoss(loss, head) if objective is None else objective
    return CachedLoss(objective, match, shape.vocabulary_size, binding)


def vocabulary_size(student: PreTrainedModel) -> int:
    """Return the width of the student's logits.

    Raises:
        ModelError: It has no output matrix, as models that classify or embed have none.
    """
    matrix = student.get_output_embeddings()
    if matrix is None:
        raise ModelError(
            "this model has no output matrix over a vocabulary",
            where=type(student).__name__,
            expected="a causal or masked language model",
            fix="Load it with AutoModelForCausalLM or AutoModelForMaskedLM",
        )
    return int(matrix.weight.shape[0])


def _check_divisor(num_positions: Tensor | float | None) -> None:
    """Refuse a number that no batch has; a tensor is not looked at, since that would wait for its device."""
    if isinstance(num_positions, int | float) and not 0 < num_positions < math.inf:
        raise ConfigError(
            "a loss cannot be divided by this number of positions",
            where="num_positions",
            expected="a positive number, or None for the positions of the batch",
            found=num_positions,
        )


def _required_layers(layers: Sequence[Tensor] | None) -> Sequence[Tensor]:
    if layers is None:
        raise ConfigError(
            "the loss compares hidden states, and none were given",
            where="layers",
            expected="the student's hidden states",
            fix="Run the model with output_hidden_states=True and pass its hidden_states as layers",
        )
    return layers


def _teacher_width(pair: HiddenPair, teachers: Sequence[CachedTeacher]) -> int:
    teacher = next(cached for cached in teachers if pair.teacher in (None, cached.name))
    return teacher.manifest.hidden[pair.layer].width


def _hidden_width(student: PreTrainedModel, loss: LossConfig) -> int:
    """Return the width of the student's hidden states, measured on the student; refuse layers it does not have."""
    ids_11 = torch.zeros(1, 1, dtype=torch.long, device=student.device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # dropout must not move the run's own draws
        output = student(input_ids=ids_11, attention_mask=torch.ones_like(ids_11), output_hidden_states=True)
    states = output.hidden_states or ()
    highest = max(pair.student_layer for pair in loss.hidden)
    if highest >= len(states):
        raise ConfigError(
            "the loss names a layer that the student does not have",
            where="loss.hidden",
            expected=f"student_layer from 0, the embeddings, to {len(states) - 1}" if states else "no hidden pairs",
            found=highest if states else f"a {type(student).__name__}, which does not return its hidden states",
        )
    return int(states[highest].shape[-1])
