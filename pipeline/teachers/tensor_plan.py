"""Plan how a teacher's weights are split over the processes of tensor parallelism, from its configuration alone.

A model on torch's ``meta`` device has names and shapes and no storage; so a plan can be made, and refused, before
a weight is read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.torch_models.loading import auto_class, load_configuration
from pipeline.config.teacher import TeacherConfig


def meta_model(config: TeacherConfig, objective: Objective, folder: Path) -> PreTrainedModel:
    """Build a teacher without weights."""
    trusted = config.trust_remote_code
    described = load_configuration(folder, trusted)
    dtype = {} if config.dtype == "auto" else {"dtype": config.dtype}
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(objective).from_config(described, trust_remote_code=trusted, **dtype)  # type: ignore[no-untyped-call]
    return model


def split_plan(model: PreTrainedModel, size: int) -> dict[str, str]:
    """Return transformers' rules for splitting a model over processes, changed so that the output matrix stays whole.

    Args:
        model: Any model of the architecture, also one without weights.
        size: Number of processes.

    Returns:
        Style by module, layers written as ``*``.

    Raises:
        ModelError: the architecture has no rules, or its attention heads cannot be shared out.
    """
    plan, config = model.tp_plan or {}, model.config.get_text_config()
    if not plan:
        raise ModelError(
            "transformers has no plan to split this architecture",
            where=type(model).__name__,
            fix="Use device_map: auto instead of tensor_parallel",
        )
    for key in ("num_attention_heads", "num_key_value_heads"):
        if (getattr(config, key, None) or 0) % size:
            raise ModelError(
                f"tensor_parallel: {size} does not divide the attention heads",
                where=type(model).__name__,
                expected=f"a divisor of {key}",
                found=getattr(config, key),
            )
    names = {module: name for name, module in model.named_modules()}
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = [embeddings] if embeddings.weight is head.weight else []
    return plan | {names[module]: "replicate" for module in (head, *tied)}


def weight_bytes(model: PreTrainedModel, size: int = 1) -> int:
    """Return the bytes of parameters and buffers in one of ``size`` processes; tied ones count once."""
    plan = split_plan(model, size) if size > 1 else {}
    return sum(-(-int(tensor.nbytes) // (size if _is_split(name, plan) else 1)) for name, tensor in _tensors(model))


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_split(name: str, plan: dict[str, str]) -> bool:
    general = re.sub(r"\.\d+(?=\.|$)", ".*", name)
    style = plan.get(general) or plan.get(general.rpartition(".")[0]) or ""
    return "colwise" in style or "rowwise" in style
