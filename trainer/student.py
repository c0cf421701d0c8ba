"""The student: made or loaded, checked against the cache, and wrapped with its loss.

The loss is computed inside the wrapped module's forward, so that whatever the Trainer puts
around it (DDP, FSDP, mixed precision, compilation) sees one ordinary module. A trainer that
calls the model outside its wrapper leaves every rank with gradients of its own.
"""

import logging
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from cache_tools.errors import IdentityError, ModelError
from cache_tools.reader import Encoding
from cache_tools.vocabulary import vocabulary_fingerprint
from trainer import fused
from trainer.config import LossConfig, StudentModelConfig
from trainer.data import IGNORED
from trainer.head import StudentHead
from trainer.losses import cross_entropy, loss_terms
from trainer.packing import model_inputs
from trainer.tails import SparseTargets

logger = logging.getLogger(__name__)

LOADING_ERRORS = (
    ImportError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    StrictDataclassError,
    SafetensorError,
)
"""What transformers raises when a configuration or a model folder is no good."""


class DistilledStudent(nn.Module):
    """A language model whose forward returns the distillation loss on cached targets.

    Args:
        student: Any causal or masked language model of transformers.
        loss: Weights and tail policy.
    """

    accepts_loss_kwargs = True  # the Trainer then passes the positions of the whole accumulated batch

    def __init__(self, student: PreTrainedModel, loss: LossConfig) -> None:
        super().__init__()
        self.student, self.loss = student, loss
        self.config = student.config
        self.head = StudentHead.of(student)
        if self.head is None:
            logger.warning("%s: the whole batch's logits are kept, for its head is unknown", type(student).__name__)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        target_ids: Tensor,
        target_log_probs: Tensor,
        target_log_left_out: Tensor,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss of one batch, see ``data.collate`` for the shapes.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            labels: (B, L) gold ids at kept positions, IGNORED elsewhere.
            target_ids: (P, k).
            target_log_probs: (P, k).
            target_log_left_out: (P,).
            position_ids: (B, L) of packed sequences, see ``packing.pack``; None if they are padded.
            num_items_in_batch: Positions to divide by: those of all micro-batches and ranks
                of a step, so that accumulation and world size do not change the loss.

        Returns:
            ``loss``, and the sums ``kl_nats`` and ``cross_entropy_nats`` over the P positions.
        """
        kept = labels != IGNORED
        gold_P = labels[kept]

        def loss_of(logits_NV: Tensor, rows: slice) -> dict[str, Tensor]:
            weight, gold_N, zero = self.loss.kd_weight, gold_P[rows], logits_NV.new_zeros(())
            if weight == 0:
                value = cross_entropy(logits_NV, gold_N).sum()
                return {"loss": value, "kl_nats": zero, "cross_entropy_nats": value.detach()}
            targets = SparseTargets(target_ids[rows], target_log_probs[rows], target_log_left_out[rows])
            kl, gold = (term.sum() for term in loss_terms(logits_NV, targets, gold_N, self.loss))
            return {
                "loss": weight * kl + (1 - weight) * gold,
                "kl_nats": kl.detach(),
                "cross_entropy_nats": gold.detach(),
            }

        inputs = model_inputs(input_ids, attention_mask, position_ids)
        if self.head is None:
            logits_BLV = self.student(**inputs).logits
            sums = loss_of(logits_BLV[kept].float(), slice(None))
        else:
            hidden_BLD = self.head.hidden(self.student, **inputs)
            sums = fused.chunked_loss(hidden_BLD[kept], self.head, loss_of, fused.CHUNK_POSITIONS)
        positions = max(len(gold_P), 1) if num_items_in_batch is None else num_items_in_batch
        return sums | {"loss": sums["loss"] / positions}

    def gradient_checkpointing_enable(self, **arguments: Any) -> None:
        """Pass on to the student; the Trainer calls it."""
        self.student.gradient_checkpointing_enable(**arguments)

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Pass on to the student; the name in later versions of transformers."""
        self.student.activation_checkpointing_enable(**arguments)


def build_student(config: StudentModelConfig, encoding: Encoding) -> PreTrainedModel:
    """Make or load the student and check that it speaks the cache's vocabulary.

    Raises:
        ModelError: it cannot be made or loaded.
        IdentityError: its tokenizer or vocabulary size does not fit the cache.
    """
    auto = AutoModelForCausalLM if encoding.manifest.objective == "causal" else AutoModelForMaskedLM
    dtype = getattr(torch, config.dtype)
    try:
        if config.pretrained is not None:
            check_tokenizer(config.pretrained, encoding, config.revision, config.trust_remote_code)
            student: PreTrainedModel = auto.from_pretrained(
                config.pretrained,
                revision=config.revision,
                dtype=dtype,
                attn_implementation=config.attention,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
            )
        else:
            assert config.config is not None
            keys = {"vocab_size": encoding.manifest.vocabulary_size, "attn_implementation": config.attention}
            made = AutoConfig.for_model(**keys | config.config)
            student = auto.from_config(made, dtype=dtype)  # type: ignore[no-untyped-call]
    except LOADING_ERRORS as error:
        source = config.pretrained or "student.config"
        raise ModelError("the student cannot be made", where=source, found=shorten(str(error), 300)) from error
    check_vocabulary_size(student, encoding)
    return student


def check_vocabulary_size(student: PreTrainedModel, encoding: Encoding) -> None:
    """Refuse a student with fewer logits than the tokenizer has ids.

    Raises:
        IdentityError: it has.
    """
    if vocabulary_size(student) < encoding.manifest.vocabulary_size:
        raise IdentityError(
            "the student has fewer logits than the cache's tokenizer has ids",
            where=type(student).__name__,
            expected=f"vocab_size of at least {encoding.manifest.vocabulary_size}",
            found=vocabulary_size(student),
            why="some gold tokens could not be predicted",
            fix="Set student.config.vocab_size, or choose a student with this tokenizer",
        )


def check_tokenizer(source: str, encoding: Encoding, revision: str | None = None, remote: bool = False) -> None:
    """Refuse a student whose tokenizer gives ids another meaning than the cache does.

    Raises:
        IdentityError: it does.
        OSError: there is no tokenizer at ``source``.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=remote)
    expected, found = (
        encoding.manifest.identity["tokenizer"]["vocabulary"],
        vocabulary_fingerprint(tokenizer.get_vocab()),
    )
    if found != expected:
        raise IdentityError(
            "the student has another tokenizer than the cache",
            where=source,
            expected=f"vocabulary {expected[:12]}… ({encoding.manifest.vocabulary_size} ids)",
            found=f"{found[:12]}… ({len(tokenizer)} ids)",
            why="it would learn the probabilities of other tokens",
            fix="Capture an encoding with the student's tokenizer and a teacher that shares it",
        )


def vocabulary_size(student: PreTrainedModel) -> int:
    """Return the width of the student's logits."""
    return int(student.get_output_embeddings().weight.shape[0])
