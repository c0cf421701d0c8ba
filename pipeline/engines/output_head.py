"""The head of a model folder without its body: what an engine's states are multiplied with.

The model is built without storage; then only the tensors that lie outside the body are read from the files: the output
matrix and its bias, or the embeddings that it is tied to. The model's own forward pass runs on them as everywhere
(``body_and_head.py``), so scales and soft caps need no rule here. Memory: the output matrix once.
"""

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.body_and_head import body_of
from pipeline.teachers.checkpoint import DTYPES, weight_paths
from pipeline.teachers.tensor_plan import meta_model


def load_output_head(
    config: TeacherConfig, folder: Path, objective: Objective, device: torch.device
) -> PreTrainedModel:
    """Return a model of which only the head has weights.

    Args:
        config: The teacher's block of the capture file.
        folder: Its model folder.
        objective: Decides between a causal and a masked language model.
        device: Where the head lies.

    Raises:
        ModelError: the model has no output matrix, or the files do not hold it as floating-point numbers.
    """
    model = meta_model(config, objective, folder)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    inside = {id(module) for module in body_of(model).modules()}
    names = _names(model)
    for module in model.modules():
        if id(module) in inside:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            tensor = _stored(config, folder, names[id(parameter)])
            setattr(module, name, nn.Parameter(tensor.to(device, parameter.dtype), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, _stored(config, folder, names[id(buffer)]).to(device, buffer.dtype))
    return model


def _names(model: PreTrainedModel) -> dict[int, list[str]]:
    """Return the names of each parameter and buffer, several where it is tied, by the object's identity."""
    names = defaultdict(list)
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        names[id(tensor)].append(name)
    return names


def _stored(config: TeacherConfig, folder: Path, names: list[str]) -> Tensor:
    """Return the tensor that the files hold under one of these names."""
    kind = ""
    for path in weight_paths(folder):
        with safe_open(path, framework="pt") as file:
            for name in sorted(set(names) & set(file.keys())):
                kind = file.get_slice(name).get_dtype()
                if kind in DTYPES:
                    tensor: Tensor = file.get_tensor(name)
                    return tensor
    raise ModelError(
        f"the output matrix of teacher {config.name!r} cannot be read apart from its body",
        where=folder,
        expected=f"floating-point numbers under the name {' or '.join(names)}",
        found=f"type {kind}" if kind else "no such tensor",
        fix="Capture it without 'engine', or use a checkpoint whose output matrix is not quantised",
    )
