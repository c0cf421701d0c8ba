"""The heads of masked language models of any architecture, by what transformers says of them and not by their names.

BERT calls its head ``cls``, RoBERTa ``lm_head``, DistilBERT has three modules for it. Common to all is that a model
consists of its encoder, ``base_model``, and of the head's modules beside it, and that the head ends in an output matrix
(``get_output_embeddings``). What is needed at few positions is computed at these alone: the matrix is most of the work.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

# B: batch, L: length, D: width, N: positions, V: vocabulary


class Outputs(NamedTuple):
    """What a model computes at N positions."""

    pooled_ND: Tensor
    """What the output matrix multiplies: the states behind the head's transform, if it has one."""
    logits_NV: Tensor


def outputs_at(model: Any, inputs: Mapping[str, Tensor], select: Callable[[Tensor], Tensor]) -> Outputs:
    """Run a model, and its output matrix at some positions alone.

    Args:
        model: A masked language model.
        inputs: Arguments of its forward.
        select: Returns the rows of N positions, (N, D), of states (B, L, D).
    """
    rows: list[Tensor] = []

    def narrow(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows.append(select(given[0]))
        return (rows[0][None], *given[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        logits_1NV = model(**inputs).logits
    finally:
        hook.remove()
    return Outputs(rows[0], logits_1NV[0])


def head_of(model: Any) -> dict[str, nn.Module]:
    """Return the modules of a model's head by their names in the model."""
    return {name: module for name, module in model.named_children() if module is not model.base_model}


def give_head(model: Any, head: Mapping[str, nn.Module]) -> None:
    """Replace a model's head by that of a model of the same architecture; both use the same modules from then on."""
    for name, module in head.items():
        setattr(model, name, module)


@contextmanager
def borrowed(model: Any, head: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give a model another head for a while."""
    own = head_of(model)
    give_head(model, head)
    try:
        yield
    finally:
        give_head(model, own)
