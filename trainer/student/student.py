"""The student: made or loaded, checked against the cache, and wrapped with its loss.

The loss is computed inside the wrapped module's forward, so that whatever the Trainer puts
around it (DDP, FSDP, mixed precision, compilation) sees one ordinary module. A trainer that
calls the model outside its wrapper leaves every rank with gradients of its own.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from cache_tools.errors import IdentityError, LogitcaskError, ModelError
from cache_tools.format.vocabulary import Vocabulary
from cache_tools.mappings import Arguments, ModelInputs
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.loading import LOADING_ERRORS, auto_class
from cache_tools.vocabularies.union import IdMaps
from trainer.config.student_file import LossConfig, StudentModelConfig
from trainer.data.packing import model_inputs
from trainer.losses.distillation_loss import DistillationLoss
from trainer.student import fused_loss
from trainer.student.cached_loss import BatchLoss, CachedLoss, StudentShape, cached_loss, vocabulary_size
from trainer.student.checkpoint import load_student
from trainer.student.head import StudentHead
from trainer.student.lora import add_adapter
from trainer.tokenizers.cached import check_tokenizer

logger = logging.getLogger(__name__)


class DistilledStudent(nn.Module):
    """A language model whose forward returns the distillation loss on what a cache holds.

    Args:
        student: Any causal or masked language model of transformers.
        loss: The loss; what it trains besides, projections between hidden states, becomes a part of this module.
    """

    accepts_loss_kwargs = True  # the Trainer then passes the positions of the whole accumulated batch

    def __init__(self, student: PreTrainedModel, loss: CachedLoss) -> None:
        super().__init__()
        self.student, self.loss = student, loss
        self.config = student.config
        self._no_split_modules = student._no_split_modules  # FSDP gathers each of them by itself
        self.head = StudentHead.of(student)
        if self.head is None:
            logger.warning("%s: the whole batch's logits are kept, for its head is unknown", type(student).__name__)

    def forward(self, num_items_in_batch: Tensor | int | None = None, **batch: Any) -> dict[str, Tensor]:
        """Return the loss of one batch.

        Args:
            num_items_in_batch: Positions to divide by: those of all micro-batches and ranks
                of a step, so that accumulation and world size do not change the loss.
            batch: A batch of ``collate`` or ``pack``.

        Returns:
            ``loss``, and its parts as sums over the positions: see ``CachedLoss``.
        """
        inputs = model_inputs(batch["input_ids"], batch["attention_mask"], batch.get("position_ids"))
        if self.loss.match is not None:
            inputs["output_hidden_states"] = True
        states, output = fused_loss.run_student(self.student, self.head, inputs)
        given = {"logits": states} if self.head is None else {"hidden_states": states, "head": self.head}
        layers = None if self.loss.match is None else output.hidden_states
        result: BatchLoss = self.loss(batch, **given, layers=layers, num_positions=num_items_in_batch)
        return result.sums | {"loss": result.loss}

    def over_positions(self, inputs: ModelInputs, kept_BL: Tensor, loss_of: fused_loss.LossOf) -> dict[str, Tensor]:
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
    """Wrap a student with all that its loss needs of cached teachers; arguments as of ``cached_loss``.

    Raises:
        ConfigError: the loss names a layer that the student does not have.
        DamageError: the teacher's output matrix is missing or not what was written.
    """
    return DistilledStudent(student, cached_loss(StudentShape.of(student, loss), loss, teachers, objective, to))


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
    check_vocabulary_size(vocabulary_size(student), vocabulary, type(student).__name__)
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


def check_length(student: PreTrainedModel, longest_tokens: int, where: str) -> None:
    """Refuse a student whose own tokens make sequences longer than it can read.

    Args:
        student: The student.
        longest_tokens: Tokens of the longest sequence.
        where: Which student, for errors.

    Raises:
        ModelError: it cannot.
    """
    limit = getattr(student.config, "max_position_embeddings", None)
    if isinstance(limit, int) and longest_tokens > limit:
        raise ModelError(
            "the student's sequences are longer than it can read",
            where=where,
            expected=f"at most {limit} tokens (max_position_embeddings)",
            found=f"a sequence of {longest_tokens} tokens",
            why="its tokenizer makes more tokens of the same text than the teacher's",
            fix="Capture an encoding with a smaller max_length_tokens, or choose a student that reads longer texts",
        )


def check_vocabulary_size(student_vocabulary_size: int, vocabulary: Vocabulary, where: str) -> None:
    """Refuse a student with fewer logits than the tokenizer has ids.

    Args:
        student_vocabulary_size: Width of its logits.
        vocabulary: What it must know.
        where: Which student, for errors.

    Raises:
        IdentityError: it has.
    """
    if student_vocabulary_size < vocabulary.size:
        raise IdentityError(
            "the student has fewer logits than its tokenizer has ids",
            where=where,
            expected=f"vocab_size of at least {vocabulary.size}",
            found=student_vocabulary_size,
            why="some gold tokens could not be predicted",
            fix="Set student.config.vocab_size, or choose a student with this tokenizer",
        )
