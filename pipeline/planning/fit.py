"""Whether a teacher fits the device that it is planned for, and how many devices it takes if not.

From its configuration alone: the model is built on torch's ``meta`` device, so 235 billion weights are counted in
seconds and none is allocated. A device holds its part of the weights, one batch through the body, and the head
(``memory.py``); USABLE_SHARE of its memory is taken for usable, because the driver, kernels and gaps between
tensors take the rest. Two ways of using several devices are counted: ``tensor_parallel`` splits every matrix, in
numbers of processes that divide the attention heads, with the output matrix whole in each; ``device_map`` gives each
device some of the layers, counted here as equal parts, so that number is the least possible.
"""

import os
from pathlib import Path
from typing import Any

import torch

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from pipeline.config import TeacherConfig
from pipeline.teachers.tensor_plan import meta_model, weight_bytes

USABLE_SHARE = 0.9
"""Of a device's memory."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use, where there is one."""


def plan_fit(config: TeacherConfig, objective: Objective, folder: Path, memory: dict[str, Any]) -> dict[str, Any]:
    """Return whether a teacher fits.

    Args:
        config: Its block of the capture file.
        objective: Objective of the encoding.
        folder: Its model folder; no weights are needed.
        memory: What ``plan_memory`` returned.

    Returns:
        ``device``; ``device_memory_bytes`` of one (of a CPU, the machine's); ``usable_bytes`` of that; ``devices`` that
        the capture file gives one worker; ``tensor_parallel`` and ``device_map_gpus``, the smallest settings that fit,
        None where none does; ``devices_needed``, the smaller of the two; ``fits``, with the capture file as it is.
        Where the memory is unknown, it and what follows from it are None.
    """
    there = host_memory_bytes() if memory["device"] == "cpu" else memory["device_total_bytes"]
    fit: dict[str, Any] = {
        "device": memory["device"],
        "device_memory_bytes": there,
        "usable_bytes": None,
        "devices": 1 if memory["device"] == "cpu" else given_devices(config),
        "devices_needed": None,
        "tensor_parallel": None,
        "device_map_gpus": None,
        "fits": None,
    }
    if there is None:
        return fit
    usable = round(USABLE_SHARE * there)
    fit["usable_bytes"] = usable
    if memory["device"] == "cpu":
        fits = memory["host_bytes"] <= usable
        return fit | {"fits": fits, "devices_needed": 1 if fits else None}
    model = meta_model(config, objective, folder)
    weights, batch = weight_bytes(model), max(memory["body_bytes"], memory["head_bytes"])
    if weights + batch <= usable:
        return fit | {"fits": True, "devices_needed": 1, "tensor_parallel": 1, "device_map_gpus": 1}
    parallel = _tensor_parallel(model, batch, usable)
    layers = model.config.get_text_config().num_hidden_layers
    parts = -(-weights // (usable - batch)) if batch < usable else layers + 1
    mapped = parts if parts <= layers else None  # a device holds whole layers
    needed = min(filter(None, (parallel, mapped)), default=None)
    fits = memory["device_bytes"] <= usable
    if config.device_map is not None:
        fits = mapped is not None and mapped <= fit["devices"]
    return fit | {"fits": fits, "devices_needed": needed, "tensor_parallel": parallel, "device_map_gpus": mapped}


def given_devices(config: TeacherConfig) -> int:
    """Return how many GPUs the capture file gives one worker; a device map takes all that are here."""
    if config.device_map is None:
        return config.tensor_parallel
    return max(config.gpus, torch.cuda.device_count())


def host_memory_bytes() -> int | None:
    """Return this machine's memory, or what its container may use; None where the system does not say."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(installed, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # there is no container, or no limit: "max"
        return installed


def _tensor_parallel(model: Any, batch_bytes: int, usable_bytes: int) -> int | None:
    """Return the smallest number of processes over which a model's weights can be split so that each part fits."""
    heads = model.config.get_text_config().num_attention_heads
    for size in range(2, heads + 1):
        try:
            if weight_bytes(model, size) + batch_bytes <= usable_bytes:
                return size
        except ModelError:  # it does not divide the heads, or there is no plan to split this architecture
            continue
    return None
