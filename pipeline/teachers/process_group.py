"""The processes that hold one teacher together, and what the first of them sends to the others.

Each group is a world of its own to ``torch.distributed``, so that groups never wait for each other. Orders
are JSON and tensors, nothing that could run code. Tensors on a GPU go by NCCL, all else by gloo.
"""

import json
import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from cache_tools.errors import ConfigError, ModelError
from cache_tools.format.manifest import Objective
from cache_tools.mappings import JsonObject, ModelInputs

PATIENCE = timedelta(days=7)
"""How long a process waits for the next order: the first one may encode for days. A dead process is noticed at
once: by torchrun, which ends the others, and by gloo, whose connections close."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among all that were started together.

    Attributes:
        group: Number of the process' group, in [0, groups).
        groups: How many there are; each holds a whole teacher.
        rank: Of the process in its group; rank 0 leads.
    """

    group: int = 0
    groups: int = 1
    rank: int = 0


def join(size: int) -> Place:
    """Join the group of ``size`` processes that this one belongs to.

    Raises:
        ConfigError: the processes were not started by torchrun, or their number is no multiple of ``size``.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise ConfigError(
            f"tensor_parallel: {size} needs {size} processes",
            found="one",
            fix=f"Start it with 'torchrun --nproc-per-node {size} --no-python logitcask …'",
        )
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world % size:
        raise ConfigError(
            f"tensor_parallel: {size} cannot divide the processes into groups",
            where="torchrun",
            expected=f"a multiple of {size}",
            found=world,
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local)
    place = Place(rank // size, world // size, rank % size)
    everybody, *_ = next(rendezvous("env://"))
    store = PrefixStore(f"group {place.group}", everybody)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=place.rank, world_size=size, timeout=PATIENCE
    )
    return place


def leave() -> None:
    """End the group in good order; all its processes must."""
    dist.destroy_process_group()


@dataclass(frozen=True)
class Order:
    """What the leading process tells the others to do; neither a teacher nor a call tells them to end.

    Attributes:
        teacher: Name of the teacher whose part they load.
        objective: What that teacher predicts.
        call: Keyword arguments of a call of the teacher's body; each tensor as its shape and dtype, because its values
            follow by themselves.
    """

    teacher: str | None = None
    objective: Objective | None = None
    call: JsonObject | None = None


def send(order: Order) -> None:
    """Give the other processes of this group an order.

    Raises:
        ConfigError: this process belongs to no group.
        ModelError: another process is gone.
    """
    if not dist.is_initialized():
        raise ConfigError(
            "tensor_parallel works only in capture and audit, started with torchrun",
            fix="Set tensor_parallel: 1 here, with device_map: auto for a teacher that fits no single GPU",
        )
    content = json.dumps(asdict(order)).encode()
    _broadcast(torch.tensor([len(content)]))
    _broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def receive() -> Order:
    """Wait for an order from the process that leads.

    Raises:
        ModelError: it is gone.
    """
    content = torch.empty(int(_broadcast(torch.empty(1, dtype=torch.long))), dtype=torch.uint8)
    return Order(**json.loads(bytes(_broadcast(content).numpy())))


def send_inputs(module: nn.Module) -> None:
    """Make a module send the arguments of each call to the other processes before it runs."""
    module.register_forward_pre_hook(_send_call, with_kwargs=True)


def receive_inputs(call: JsonObject, device: torch.device) -> ModelInputs:
    """Return the arguments of the call that an order announces."""
    return {name: _received(value, device) for name, value in call.items()}


def _send_call(module: nn.Module, inputs: tuple[Any, ...], named: ModelInputs) -> None:
    assert not inputs, f"{type(module).__name__} is called with unnamed arguments"
    send(Order(call={name: _announced(value) for name, value in named.items()}))
    for value in named.values():
        if isinstance(value, Tensor):
            _broadcast(value.contiguous())


def _announced(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return value


def _received(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return _broadcast(torch.empty(value["shape"], dtype=getattr(torch, value["dtype"]), device=device))
    return value


def _broadcast(tensor: Tensor) -> Tensor:
    try:
        dist.broadcast(tensor, src=0)
    except RuntimeError as error:
        raise ModelError(
            "another process of this teacher has stopped", fix="Read its message, then run the same command again"
        ) from error
    return tensor
