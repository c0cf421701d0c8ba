"""The memory that an engine reserves when it starts, from its options; this program's part stands beside it.

vLLM takes a share of each device's memory, ``gpu_memory_utilization``, and fills what weights and one step leave of it
with the cache of keys and values. On a CPU it is the share of the machine's memory in spite of the name. A fixed size
of that cache (``kv_cache_memory_bytes``, or ``VLLM_CPU_KVCACHE_SPACE`` in GiB on a CPU) replaces the share; weights and
a step then come on top. A capture reads each batch in one step and needs hardly any of that cache, so on a shared
machine a small share is right. Options and defaults are those of vLLM 0.32.
"""

import os
from dataclasses import dataclass, replace

from cache_tools.errors import ConfigError
from pipeline.config.engines import VllmConfig

SHARE_OPTION, CACHE_OPTION, CACHE_VARIABLE = (
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "VLLM_CPU_KVCACHE_SPACE",
)
DEFAULT_SHARE = 0.92
"""What vLLM reserves unless it is told otherwise."""

DEVICE_OPTIONS = ("tensor_parallel_size", "pipeline_parallel_size")
"""Options whose product is the number of devices."""


@dataclass(frozen=True)
class Reservation:
    """What an engine reserves.

    Attributes:
        set_by: The option or variable that decides, with its value.
        devices: Devices that it uses, each with a part of the weights.
        weights_bytes: All of its weights.
        step_bytes: Activations of one batch, on each device.
        share: Share of a device's memory that it reserves; None if the size of its cache is fixed.
        cache_bytes: That size, on each device; None if a share is reserved.
        memory_bytes: Memory of one device; None if unknown.
    """

    set_by: str
    devices: int
    weights_bytes: int
    step_bytes: int
    share: float | None
    cache_bytes: int | None
    memory_bytes: int | None

    @property
    def needed_bytes(self) -> int:
        """What a device must hold: its part of the weights, a step, and a cache of fixed size."""
        return -(-self.weights_bytes // self.devices) + self.step_bytes + (self.cache_bytes or 0)

    @property
    def reserved_bytes(self) -> int | None:
        """What it reserves on each device; None if that is a share of an unknown size."""
        if self.share is None:
            return self.needed_bytes
        return None if self.memory_bytes is None else round(self.share * self.memory_bytes)

    @property
    def holds_the_model(self) -> bool:
        """Whether what it reserves is enough for its part of the weights and a step."""
        return self.reserved_bytes is None or self.needed_bytes <= self.reserved_bytes

    def over(self, devices: int) -> "Reservation":
        """Return the same over another number of devices."""
        return replace(self, devices=devices)


def reservation(
    engine: VllmConfig, on_cpu: bool, memory_bytes: int | None, weights_bytes: int, step_bytes: int
) -> Reservation:
    """Return what an engine reserves.

    Args:
        engine: The engine's block of the capture file.
        on_cpu: Whether it computes on a CPU.
        memory_bytes: Memory of one of its devices; None if unknown.
        weights_bytes: All of its weights.
        step_bytes: Activations of one batch.

    Raises:
        ConfigError: an option about memory or devices is no number.
    """
    variable = os.environ.get(CACHE_VARIABLE) if on_cpu else None
    cache = _number(engine, CACHE_OPTION)
    share, set_by = None, f"{CACHE_OPTION}: {cache}"
    if variable:
        cache, set_by = _gibibytes(variable), f"{CACHE_VARIABLE}={variable} (GiB)"
    elif cache is None:
        stated = _number(engine, SHARE_OPTION)
        share = DEFAULT_SHARE if stated is None else stated
        set_by = f"{SHARE_OPTION}: {share:g}" + (", its default" if stated is None else "")
    devices = 1
    for option in DEVICE_OPTIONS:
        devices *= max(1, int(_number(engine, option) or 1))
    fixed = None if cache is None else int(cache)
    return Reservation(set_by, devices, weights_bytes, step_bytes, share, fixed, memory_bytes)


def machine_bytes() -> int | None:
    """Return this machine's memory, of which an engine on a CPU takes its share; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _number(engine: VllmConfig, option: str) -> float | None:
    value = engine.options.get(option)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ConfigError(
        "this option of the engine is no number", where=f"engine.options.{option}", expected="a number", found=value
    )


def _gibibytes(text: str) -> int:
    try:
        return int(text) * 2**30
    except ValueError as error:
        raise ConfigError(
            "this environment variable is no number of GiB", where=CACHE_VARIABLE, expected="an integer", found=text
        ) from error
