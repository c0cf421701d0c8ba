"""Check transformers' report on loading a checkpoint, so that no weight is ever replaced by random numbers.

If a checkpoint lacks a tensor, transformers fills it with random numbers; if the model has no place for a tensor, it is
dropped; then transformers prints a table and continues. The identity of a teacher is a hash over its files, so two
captures with two different random heads would have the same identity. Both stages therefore load through a function
that passes transformers' report to :func:`check_report`, which refuses

- missing tensors, except buffers that are rebuilt from the configuration. Tied weights are never in a report, because
  transformers removes them, and neither are tensors that an architecture declares as optional;
- tensors of another shape than the configuration describes;
- unexpected tensors, except those that cannot change a prediction (``HARMLESS``): the pooler and the
  next-sentence head of BERT-like checkpoints, heads that predict further tokens for speculative decoding, and
  buffers of older versions. Any other tensor means that configuration and files belong to two different models: the
  file holds more layers, packed integers of a lost quantisation, or an adapter that was not merged. Unknown tensors
  are refused.

Only names and shapes are checked, so this needs neither torch nor transformers. Rejected: a key that allows new heads,
which neither a teacher nor an evaluation could use.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cache_tools.errors import ModelError

REBUILT = re.compile(
    r"(^|\.)(original_inv_freq|inv_freq|cos_cached|sin_cached|position_ids|token_type_ids|num_batches_tracked)$"
    r"|(^|\.)attn\.(attention\.)?(bias|masked_bias)$|(^|\.)attention\.masked_bias$"
)
"""Buffers whose content follows from the configuration: frequencies, positions, causal masks; and a counter."""

HARMLESS = re.compile(r"(^|\.)pooler\.|^cls\.seq_relationship\.|^sop_classifier\.|(^|\.)mtp\.")
"""Tensors that no prediction of the next or of a masked token depends on."""

NAMED = 4
"""How many tensors of each kind a message names; the others are counted."""

CAUSES = (
    (r"lora_[AB]|lora_embedding", "merge the adapter into its base model and save the result (peft: merge_and_unload)"),
    (
        r"(qweight|qzeros|g_idx|scales|absmax|quant_map|SCB|weight_scale|weight_scale_inv|quant_state\.\w+)$",
        "restore the quantization_config in config.json: the files hold quantised weights",
    ),
    (r"(^|\.)(layers|h|layer|block|blocks)\.\d+\.", "restore the configuration that was saved with these weights"),
)
"""Names of unexpected tensors, and the advice of the message; the first pattern that matches is used."""

HEAD = re.compile(
    r"^(lm_head|cls|predictions|generator_\w+|vocab_\w+|embed_out|output_layer|pred_layer|lm_loss|head)\b"
)


def check_report(report: Mapping[str, Iterable[Any]], subject: str, where: object, model: str) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors of its model.

    Args:
        report: From ``from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)``:
            ``missing_keys`` and ``unexpected_keys``, names; ``mismatched_keys``, triples of a name, the shape in the
            file and the shape in the model. The last argument is what puts shapes into the report, where
            transformers would otherwise raise an error without names.
        subject: The role of the model, such as ``teacher 'large'``.
        where: Its folder or hub id.
        model: Name of the model's class.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape.
    """
    missing = sorted(name for name in report["missing_keys"] if not REBUILT.search(name))
    unexpected = sorted(
        name for name in report["unexpected_keys"] if not REBUILT.search(name) and not HARMLESS.search(name)
    )
    shapes = sorted(report["mismatched_keys"])
    if not (missing or unexpected or shapes):
        return
    reshaped = [f"{name} {_shape(in_file)} instead of {_shape(in_model)}" for name, in_file, in_model in shapes]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    raise ModelError(
        f"the weights of {subject} are not those of the model that its configuration describes",
        where=where,
        expected=f"exactly the tensors of {model}",
        found="; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names),
        why=_reason(missing, unexpected),
        fix=_advice(missing, unexpected),
    )


def _shape(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes)) or "scalar"


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _reason(missing: list[str], unexpected: list[str]) -> str:
    if missing:
        return "transformers would fill the gaps with random numbers"
    if unexpected:
        return "a part of the model would be left out of its predictions"
    return "the files hold these tensors only in another shape"


def _advice(missing: list[str], unexpected: list[str]) -> str:
    for pattern, advice in CAUSES:
        if any(re.search(pattern, name) for name in unexpected):
            return advice
    if missing and all(HEAD.search(name) for name in missing):
        return (
            "use a checkpoint that was saved with its language-model head, and the objective that it was trained "
            "for; encoders and embedding models have no head"
        )
    return "get the complete checkpoint, with the configuration that was saved with it"
