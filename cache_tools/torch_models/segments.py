"""Segments of a pair: what follows the first separator of a sequence is read as its second segment.

BERT was trained on pairs, *first [SEP] second [SEP]*, and told the sides apart by ``token_type_ids``. A model that gets
none reads both as the first, which a pre-trained one has never seen of a pair. An encoding with ``segments: true``
holds pairs as one text each; its manifest names the separator, and every model that reads it, teacher or student, gets
segments from the ids themselves::

    segment of token t = 1 if a separator stands before t, else 0

which is what ``tokenizer(first, second)`` gives. Padding behind the last separator gets a 1 that nobody reads.

They are made in a hook before the model's encoder, so no batch, loss or loop has to carry them, and a model that is
saved is as it was. Rejected: a column of every batch, which each caller of a model would have to pass on, and which a
caller that forgets it loses without a word.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cache_tools.errors import IdentityError, ModelError
from cache_tools.mappings import ModelInputs

MARK = "logitcask_separator"


def read_segments(model: Any, separator: int | None) -> None:
    """Make a model read pairs by their segments from now on; done twice, it is done once.

    Args:
        model: A masked language model.
        separator: Id of the separator; None, of an encoding without segments, changes nothing.

    Raises:
        ModelError: The model knows no second segment.
        IdentityError: It already reads segments by another separator.
    """
    if separator is None:
        return
    encoder = model.base_model
    marked = getattr(encoder, MARK, separator)
    if marked != separator:
        raise IdentityError(
            "this model reads segments by another separator",
            where=type(model).__name__,
            expected=separator,
            found=marked,
            fix="Load the model again",
        )
    if getattr(model.config, "type_vocab_size", 0) < 2:
        raise ModelError(
            "this model cannot read pairs by their segments",
            where=type(model).__name__,
            expected="type_vocab_size of at least 2, as BERT has",
            found=getattr(model.config, "type_vocab_size", None),
            fix="Capture with encoding.segments: false, or choose another model",
        )
    if not hasattr(encoder, MARK):
        setattr(encoder, MARK, separator)
        encoder.register_forward_pre_hook(partial(_with_segments, separator), with_kwargs=True)


def segments_of(input_ids: Tensor, separator: int) -> Tensor:
    """Return 1 for each token that a separator stands before, else 0: int64, the shape of ``input_ids`` (…, L)."""
    is_separator = (input_ids == separator).long()
    return (is_separator.cumsum(dim=-1) - is_separator > 0).long()


def _with_segments(
    separator: int, module: nn.Module, positional: tuple[Any, ...], named: ModelInputs
) -> tuple[tuple[Any, ...], ModelInputs]:
    input_ids = named.get("input_ids", positional[0] if positional else None)
    if not isinstance(input_ids, torch.Tensor) or named.get("token_type_ids") is not None:
        return positional, named
    return positional, named | {"token_type_ids": segments_of(input_ids, separator)}
