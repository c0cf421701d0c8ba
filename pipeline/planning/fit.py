"""Whether a teacher fits the device that it is planned for, and how many devices it takes if not.

From its configuration alone: the model is built on torch's ``meta`` device, so 235 billion weights are counted in
seconds and none is allocated. A device holds its part of the weights, one batch through the body, and the head
(``memory.py``); USABLE_SHARE of its memory is counted as usable, because the driver, kernels and gaps between
tensors take the rest. Two ways of using several devices are counted: ``tensor_parallel`` splits every matrix, in
numbers of processes that divide the attention heads, with the output matrix whole in each; ``device_map`` gives each
device some of the layers, counted here as equal parts, so that number is the least possible. An engine must fit into
what it reserves, and what this program holds beside it into the rest.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from pipeline.config.engines import VllmConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.engines.reservation import machine_bytes, reservation
from pipeline.planning.memory import EngineMemory, MemoryPlan, engine_bytes
from pipeline.teachers.tensor_plan import weight_bytes

USABLE_SHARE = 0.9
"""Share of a device's memory that can be used."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use, where there is one."""


@dataclass(frozen=True)
class DeviceFit:
    """Whether a teacher fits. Where the memory of the device is unknown, all fields that follow from it are None.

    Attributes:
        device: Kind of device, such as ``cuda`` or ``cpu``; ``server`` where another machine computes.
        device_memory_bytes: Memory of one device; for a CPU, that of the machine.
        usable_bytes: The part of it that can be used.
        devices: Devices that the capture file gives one worker.
        devices_needed: The fewest devices that suffice; None if no number does.
        tensor_parallel: The smallest ``tensor_parallel`` that fits; None if none does.
        device_map_gpus: The smallest ``gpus`` that fits with a ``device_map``; None if none does.
        fits: Whether the teacher fits with the capture file as it is.
    """

    device: str
    device_memory_bytes: int | None
    usable_bytes: int | None
    devices: int
    devices_needed: int | None
    tensor_parallel: int | None
    device_map_gpus: int | None
    fits: bool | None


def plan_fit(config: TeacherConfig, model: PreTrainedModel, memory: MemoryPlan) -> DeviceFit:
    """Return whether a teacher fits.

    Args:
        config: The teacher's block of the capture file.
        model: The teacher; no weights are needed.
        memory: What one worker needs.
    """
    on_cpu = memory.device == "cpu"
    total = host_memory_bytes() if on_cpu else memory.device_total_bytes
    devices = 1 if on_cpu else given_devices(config)
    if total is None:
        return DeviceFit(memory.device, None, None, devices, None, None, None, None)
    usable = round(USABLE_SHARE * total)
    if memory.engine is not None:
        return _engine_fit(config, model, memory, memory.engine, total)
    if on_cpu:
        fits = memory.host_bytes <= usable
        return DeviceFit(memory.device, total, usable, devices, 1 if fits else None, None, None, fits)
    share = memory.weights_bytes / weight_bytes(model, config.tensor_parallel)  # below 1 for quantised weights
    weights, batch = math.ceil(share * weight_bytes(model)), max(memory.body_bytes, memory.head_bytes)
    if weights + batch <= usable:
        return DeviceFit(memory.device, total, usable, devices, 1, 1, 1, True)
    parallel, mapped = _tensor_parallel(model, share, batch, usable), _device_map_gpus(model, weights, batch, usable)
    needed = min(filter(None, (parallel, mapped)), default=None)
    fits = memory.device_bytes <= usable
    if config.device_map is not None:
        fits = mapped is not None and mapped <= devices
    return DeviceFit(memory.device, total, usable, devices, needed, parallel, mapped, fits)


def _engine_fit(
    config: TeacherConfig, model: PreTrainedModel, memory: MemoryPlan, engine: EngineMemory, total: int
) -> DeviceFit:
    """Return whether an engine's share holds the model, and the rest of the device what this program needs."""
    on_cpu = memory.device == "cpu"
    taken = engine_bytes(engine, on_cpu)
    beside = (memory.host_bytes if on_cpu else memory.device_bytes) - taken
    rest = round(USABLE_SHARE * (total - taken))
    needed = _engine_devices(config, model, memory, total)
    fits = beside <= rest and needed is not None and needed <= engine.devices
    usable = round(USABLE_SHARE * total)
    return DeviceFit(memory.device, total, usable, engine.devices, needed, None, None, fits)


def _engine_devices(config: TeacherConfig, model: PreTrainedModel, memory: MemoryPlan, total_bytes: int) -> int | None:
    """Return over how many devices an engine's weights fit into what it reserves on each; None if over no number."""
    assert isinstance(config.engine, VllmConfig)
    on_cpu = memory.device == "cpu"
    device_bytes = machine_bytes() if on_cpu else total_bytes
    whole = reservation(config.engine, on_cpu, device_bytes, memory.weights_bytes, memory.body_bytes)
    heads = model.config.get_text_config().num_attention_heads
    return next((size for size in range(1, heads + 1) if whole.over(size).holds_the_model), None)


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


def _device_map_gpus(model: PreTrainedModel, weights: int, batch_bytes: int, usable_bytes: int) -> int | None:
    """Return over how many devices a model's layers can be laid so that each part fits; a device holds whole layers."""
    layers = model.config.get_text_config().num_hidden_layers
    parts = -(-weights // (usable_bytes - batch_bytes)) if batch_bytes < usable_bytes else layers + 1
    return parts if parts <= layers else None


def _tensor_parallel(model: PreTrainedModel, share: float, batch_bytes: int, usable_bytes: int) -> int | None:
    """Return the smallest number of processes over which a model's weights can be split so that each part fits."""
    heads = model.config.get_text_config().num_attention_heads
    for size in range(2, heads + 1):
        try:
            if share * weight_bytes(model, size) + batch_bytes <= usable_bytes:
                return size
        except ModelError:  # it does not divide the heads, or there is no plan to split this architecture
            continue
    return None
