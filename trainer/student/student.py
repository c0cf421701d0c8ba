"""The student: made or loaded, checked against the cache, and wrapped with its loss.

The loss is computed inside the wrapped module's forward, so that whatever the Trainer puts
around it (DDP, FSDP, mixed precision, compilation) sees one ordinary module. A trainer that
calls the model outside its wrapper leaves every rank with gradients of its own.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from cache_tools.errors import ConfigError, IdentityError, LogitcaskError, ModelError
from cache_tools.format import layout
from cache_tools.format.vocabulary import Vocabulary
from cache_tools.mappings import Arguments, ModelInputs
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.loading import LOADING_ERRORS, auto_class
from cache_tools.vocabularies.union import IdMaps
from trainer.config.student_file import HiddenPair, LossConfig, StudentModelConfig
from trainer.data.cached_sequences import IGNORED
from trainer.data.packing import model_inputs
from trainer.data.translation import teacher_ids
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows, counted
from trainer.losses.full import TeacherHead
from trainer.losses.hidden import HiddenMatch
from trainer.student import fused_loss
from trainer.student.checkpoint import load_student
from trainer.student.head import StudentHead
from trainer.student.lora import add_adapter
from trainer.tokenizers.cached import check_tokenizer

logger = logging.getLogger(__name__)


class DistilledStudent(nn.Module):
    """A language model whose forward returns the distillation loss on what a cache holds.

    Args:
        student: Any causal or masked language model of transformers.
        loss: The loss block.
        teacher_head: For ``source: hidden``; see ``losses/distillation_loss.py``.
        match: Losses on hidden states, if the loss has any; trained with the student.
        objective: The loss on several teachers; by default that of one.
    """

    accepts_loss_kwargs = True  # the Trainer then passes the positions of the whole accumulated batch

    def __init__(
        self,
        student: PreTrainedModel,
        loss: LossConfig,
        teacher_head: TeacherHead | None = None,
        match: HiddenMatch | None = None,
        objective: DistillationLoss | None = None,
    ) -> None:
        super().__init__()
        self.student, self.match = student, match
        self.objective = DistillationLoss(loss, teacher_head) if objective is None else objective
        self.config = student.config
        self._no_split_modules = student._no_split_modules  # FSDP gathers each of them by itself
        self.head = StudentHead.of(student)
        if self.head is None:
            logger.warning("%s: the whole batch's logits are kept, for its head is unknown", type(student).__name__)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **predictions: Any,
    ) -> dict[str, Tensor]:
        """Return the loss of one batch, see ``cached_sequences.collate`` for the shapes.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            labels: (B, L) gold ids at kept positions, IGNORED elsewhere.
            position_ids: (B, L) of packed sequences, see ``packing.pack``; None if they are padded.
            num_items_in_batch: Positions to divide by: those of all micro-batches and ranks
                of a step, so that accumulation and world size do not change the loss.
            predictions: The teacher's predictions at the P kept positions, by the names of ``collate``.

        Returns:
            ``loss``, and its parts as sums over the P positions: see ``DistillationLoss``, and ``hidden_loss``
            with ``projection_norm``, P times the mean norm of its projections.
        """
        kept = labels != IGNORED
        gold_P, teacher_rows = labels[kept], TeacherRows.of(predictions)
        counted_BL, gold_C, teacher_C = counted(kept, gold_P, teacher_rows)
        inputs = model_inputs(input_ids, attention_mask, position_ids)
        if self.match is not None:
            inputs["output_hidden_states"] = True

        def loss_of(logits_NV: Tensor, rows: slice) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = self.objective(logits_NV, gold_C[rows], teacher_C[rows])
            return sums

        sums, output = fused_loss.over_positions(self.student, self.head, inputs, counted_BL, loss_of)
        if self.match is not None:
            hidden_loss = self.match(output.hidden_states, kept, teacher_rows.hidden).sum()
            sums |= {"loss": sums["loss"] + hidden_loss, "hidden_loss": hidden_loss.detach()}
            sums["projection_norm"] = self.match.norm() * len(gold_P)
        positions = max(len(gold_P), 1) if num_items_in_batch is None else num_items_in_batch
        return sums | {"loss": sums["loss"] / positions}

    def over_positions(
        self, inputs: ModelInputs, kept_BL: Tensor, loss_of: fused_loss.LossOf
    ) -> tuple[dict[str, Tensor], Any]:
        """Return the sums of any function of the student's logits, see ``fused_loss.over_positions``."""
        return fused_loss.over_positions(self.student, self.head, inputs, kept_BL, loss_of)

    def gradient_checkpointing_enable(self, **arguments: Any) -> None:
        """Pass on to the student; the Trainer calls it."""
        self.student.gradient_checkpointing_enable(**arguments)

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Pass on to the student; the name in later versions of transformers."""
        self.student.activation_checkpointing_enable(**arguments)


def distilled(
    student: PreTrainedModel,
    loss: LossConfig,
    *teachers: CachedTeacher,
    objective: DistillationLoss | None = None,
    to: IdMaps | None = None,
) -> DistilledStudent:
    """Wrap a student with all that its loss needs of cached teachers.

    The teacher's output matrix is multiplied in bfloat16 if the student's weights are of that type, and only its rows
    of the student's tokens, if ``to`` says that these have other ids.

    Raises:
        ConfigError: the loss names a layer that the student does not have.
        DamageError: the teacher's output matrix is missing or not what was written.
    """
    head = match = None
    if loss.source == "hidden" and loss.kd_weight > 0:
        dtype = torch.bfloat16 if student.dtype == torch.bfloat16 else torch.float32
        width = vocabulary_size(student)
        head = TeacherHead(teachers[0].file(layout.HEAD), width, dtype, teacher_ids(to, width))
    if loss.hidden:
        widths = {pair.state: _teacher_width(pair, teachers) for pair in loss.hidden}
        match = HiddenMatch(loss.hidden, _hidden_width(student, loss), widths)
        nn.Module.to(match, student.dtype)
    return DistilledStudent(student, loss, head, match, objective)


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


def build_student(
    config: StudentModelConfig, encoding: Encoding, vocabulary: Vocabulary | None = None
) -> PreTrainedModel:
    """Make or load the student and check that it has the given vocabulary: by default the cache's.

    Raises:
        ModelError: it cannot be made or loaded.
        IdentityError: its tokenizer or vocabulary size does not fit the cache.
        ConfigError: its adapters do not fit it.
    """
    vocabulary = vocabulary or encoding.manifest.vocabulary
    auto = auto_class(encoding.manifest.objective)
    dtype = getattr(torch, config.dtype)
    try:
        if config.source is not None:
            check_tokenizer(config.source, vocabulary, config.revision, config.trust_remote_code)
            student = load_student(
                auto,
                config.source,
                revision=config.revision,
                dtype=dtype,
                attn_implementation=config.attention,
                trust_remote_code=config.trust_remote_code,
            )
        else:
            assert config.config is not None
            keys: Arguments = {"vocab_size": vocabulary.size, "attn_implementation": config.attention}
            made = AutoConfig.for_model(**keys | config.config)
            student = auto.from_config(made, dtype=dtype)  # type: ignore[no-untyped-call]
    except LOADING_ERRORS as error:
        source = config.source or "student.config"
        raise ModelError("the student cannot be made", where=source, found=shorten(str(error), 300)) from error
    check_vocabulary_size(student, vocabulary)
    if config.lora is not None:
        add_adapter(student, config)
    return student


@contextmanager
def first_runs(student: PreTrainedModel, where: str) -> Iterator[None]:
    """Turn what a student's code raises inside the block into a ModelError: some values fail when it first runs.

    Args:
        student: The student.
        where: Folder, hub id or key, for errors.
    """
    try:
        yield
    except (LogitcaskError, torch.OutOfMemoryError):
        raise
    except (*LOADING_ERRORS, IndexError) as error:
        raise ModelError(
            "the student cannot be run",
            where=where,
            expected=f"a {type(student).__name__} with consistent sizes and rates",
            found=shorten(str(error), 300),
            fix="Check the values of its configuration",
        ) from error


def check_vocabulary_size(student: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """Refuse a student with fewer logits than the tokenizer has ids.

    Raises:
        IdentityError: it has.
    """
    if vocabulary_size(student) < vocabulary.size:
        raise IdentityError(
            "the student has fewer logits than its tokenizer has ids",
            where=type(student).__name__,
            expected=f"vocab_size of at least {vocabulary.size}",
            found=vocabulary_size(student),
            why="some gold tokens could not be predicted",
            fix="Set student.config.vocab_size, or choose a student with this tokenizer",
        )


def vocabulary_size(student: PreTrainedModel) -> int:
    """Return the width of the student's logits."""
    return int(student.get_output_embeddings().weight.shape[0])
