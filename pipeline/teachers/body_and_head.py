"""A language model cut into its body and its head, without knowing the architecture.

The body turns tokens into hidden states; the head turns hidden states into logits. Run
together they make a ``[batch, length, vocabulary]`` tensor, which at vocabulary 151,936 is
ten times the size of everything else. Cut apart, the head runs at kept positions only and
a chunk at a time.

The head is not re-implemented: soft-capping, logit scales and prediction transforms differ
by model and change by version. Instead the model's own ``forward`` runs with a stand-in
for its body that returns the hidden states we hand it. :func:`check_head` compares the
result with the model's ordinary logits on real input; a model for which they differ is
refused.

A model may be spread over several devices (see ``TeacherConfig.device_map``). Input may then lie
on any of them, and every result lies where the input did.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from cache_tools.errors import ModelError
from cache_tools.torch_models.scaling import Scaling, measured_scaling
from pipeline.teachers.batches import Batch

# B: batch, L: length, N: kept positions of a chunk, D: width, V: vocabulary


class _BodyOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Hidden states in the shape of a body's output; any other field that a head asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Replay(nn.Module):
    """Stands in for a body: ignores its input and returns the given hidden states.

    Some heads look up constants in their body (Falcon-H1 a multiplier), so all else is the body's own.
    """

    def __init__(self, body: nn.Module, hidden_1ND: Tensor) -> None:
        super().__init__()
        self.body = body
        self.output = _BodyOutput(last_hidden_state=hidden_1ND)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "body" else getattr(self.body, name)

    def forward(self, *_: Any, **__: Any) -> _BodyOutput:
        return self.output


@dataclass(frozen=True)
class HeadOutput:
    """What the head computes for a chunk of positions.

    Attributes:
        logits: (N, V) float32.
        last: (N, D') input of the output matrix: after a prediction transform, where there is one.
    """

    logits: Tensor
    last: Tensor


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return the width of a model's logits, V."""
    return int(model.get_output_embeddings().weight.shape[0])


def body_of(model: PreTrainedModel) -> nn.Module:
    """Return the submodule that turns tokens into hidden states.

    Raises:
        ModelError: the model has none, or no output matrix.
    """
    body = getattr(model, model.base_model_prefix, None)
    if not isinstance(body, nn.Module) or body is model or model.get_output_embeddings() is None:
        raise ModelError(
            "this model cannot be cut into a body and a head",
            where=type(model).__name__,
            expected=f"a submodule {model.base_model_prefix!r} and an output matrix",
            fix="Load it as AutoModelForCausalLM or AutoModelForMaskedLM",
        )
    return body


def run_body(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    hidden: bool,
    position_ids: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Run the body.

    Args:
        model: The whole model.
        input_ids: (B, L).
        attention_mask: (B, L), 0 on padding; None for sequences packed into one row.
        hidden: Whether to return every layer's hidden states too.
        position_ids: (1, L), 0 at the start of each packed sequence.

    Returns:
        Last hidden state (B, L, D), and the tuple of all (or None).
    """
    packing = {} if position_ids is None else {"position_ids": position_ids}
    output = body_of(model)(
        input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=hidden, return_dict=True, **packing
    )
    device = input_ids.device
    states = tuple(layer.to(device) for layer in output.hidden_states) if hidden else None
    return output.last_hidden_state.to(device), states


def run_head(model: PreTrainedModel, hidden_ND: Tensor, as_given: bool = False) -> HeadOutput:
    """Run the model's own head on the last hidden states of N positions.

    Args:
        model: The whole model.
        hidden_ND: (N, D).
        as_given: Leave the logits in the model's own type, instead of float32.
    """
    seen: list[Tensor] = []
    output_matrix = model.get_output_embeddings()
    hook = output_matrix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with _replaced_body(model, _Replay(body_of(model), hidden_ND[None])):
            logits = model(input_ids=torch.zeros(1, len(hidden_ND), dtype=torch.long, device=hidden_ND.device)).logits
    finally:
        hook.remove()
    logits_NV, last_ND = logits[0].to(hidden_ND.device), seen[0][0].to(hidden_ND.device)
    return HeadOutput(logits_NV if as_given else logits_NV.float(), last_ND)


def output_parameters(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Return the output matrix (V, D) and its bias (V,) or None; loaded, if a device map keeps them elsewhere."""
    matrix = model.get_output_embeddings()
    with align_module_device(matrix):
        bias = getattr(matrix, "bias", None)
        return matrix.weight.detach(), None if bias is None else bias.detach()


def check_head(model: PreTrainedModel, input_ids: Tensor) -> None:
    """Compare body and head with the model's ordinary logits on one sequence (1, L).

    Raises:
        ModelError: they differ by more than rounding.
    """
    body, _ = run_body(model, input_ids, torch.ones_like(input_ids), hidden=False)
    whole = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0].to(body.device).float()
    error, tolerance = _error(run_head(model, body[0]).logits, whole), _tolerance(body)
    if not error <= tolerance:
        raise ModelError(
            "logits from body and head differ from the model's own",
            where=type(model).__name__,
            expected=f"a relative difference of at most {tolerance:g}",
            found=f"{error:.2g}",
            why="the cache would hold predictions that the teacher never made",
            fix="Report this architecture; it needs a rule of its own",
        )


@torch.inference_mode()
def check_packing(model: PreTrainedModel, padded: Batch, packed: Batch) -> None:
    """Compare what the body makes of the same sequences, padded and packed into one row.

    In half precision a small leak is lost in rounding, so the last sequence must also stay what it is, bit for
    bit, when all tokens before it in the row are others.

    Raises:
        ModelError: the sequences of a row see each other, or differ from padded ones by more than rounding.
    """
    last = int((packed.position_ids == 0).nonzero()[-1, 1])  # type: ignore[union-attr]
    others = packed.input_ids.clone()
    others[:, :last] = (others[:, :last] + 1) % model.config.get_text_config().vocab_size
    alone, row, changed = (
        _states(model, ids, batch)
        for ids, batch in ((padded.input_ids, padded), (packed.input_ids, packed), (others, packed))
    )
    kept = [states_LD[batch.kept.to(model.device)] for states_LD, batch in ((row, packed), (alone, padded))]
    error = _error(*kept)
    leaks = not torch.equal(row[last:], changed[last:])
    if leaks or not error <= 4 * _tolerance(row):
        raise ModelError(
            "this teacher does not keep packed sequences apart",
            where=f"{type(model).__name__}, attention {model.config._attn_implementation}",
            expected="the hidden states of padded sequences",
            found="states that depend on the sequence before" if leaks else f"a relative difference of {error:.2g}",
            why="it would predict a sequence from the one before",
            fix="Set packing: false",
        )


def _states(model: PreTrainedModel, input_ids: Tensor, batch: Batch) -> Tensor:
    """Return the last hidden states of a batch, with these ids in place of its own: (B * L, D)."""
    ids, mask, positions = (
        None if tensor is None else tensor.to(model.device)
        for tensor in (input_ids, batch.attention_mask, batch.position_ids)
    )
    assert ids is not None
    return run_body(model, ids, mask, hidden=False, position_ids=positions)[0].flatten(0, 1)


def output_scaling(model: PreTrainedModel, head: HeadOutput) -> Scaling:
    """Measure how the model turns the output matrix' product into logits, for ``head.safetensors``.

    Args:
        model: The whole model.
        head: Output of its head on a few positions, which the scaling must reproduce.

    Raises:
        ModelError: no scale and softcap reproduce the logits.
    """
    body = body_of(model)
    if any(parameter.is_meta for parameter in body.parameters()) and not hasattr(body, "_hf_hook"):  # weights elsewhere
        states_13D = head.last.new_zeros(1, 3, model.config.get_text_config().hidden_size)
        with _replaced_body(model, _Replay(body, states_13D)):
            scaling = measured_scaling(model, head.last.device)
    else:
        scaling = measured_scaling(model, head.last.device)
    products = model.get_output_embeddings()(head.last).to(head.last.device).float()
    if scaling is None or not _error(scaling.logits(products), head.logits) <= _tolerance(head.last):
        raise ModelError(
            "the last hidden state does not lead back to this model's logits",
            where=type(model).__name__,
            why="a student could not rebuild the teacher's distribution from it",
            fix="Leave 'last' out of hidden.layers",
        )
    return scaling


def _error(logits: Tensor, truth: Tensor) -> float:
    """Return the largest difference relative to the largest logit; NaN or inf if only one side is a number."""
    neither = ~torch.isfinite(logits) & ~torch.isfinite(truth)  # refused later, by sequence
    largest = torch.where(torch.isfinite(truth), truth, 0).abs().max().clamp(min=1.0)
    return float((logits - truth).masked_fill(neither, 0).abs().max() / largest)


def _tolerance(hidden: Tensor) -> float:
    return 1e-4 if hidden.dtype == torch.float32 else 2**-7  # two steps of bfloat16 at the largest logit


@contextmanager
def _replaced_body(model: PreTrainedModel, stand_in: nn.Module) -> Iterator[None]:
    name = model.base_model_prefix
    body = getattr(model, name)
    setattr(model, name, stand_in)
    try:
        yield
    finally:
        setattr(model, name, body)
