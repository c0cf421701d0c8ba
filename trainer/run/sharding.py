"""FSDP: each rank keeps a piece of every parameter and of its optimizer state.

The Trainer and accelerate do the sharding. This module hides it from checkpoints: they hold whole tensors under the
names and numbers that a single process would give them, so a run that was stopped can continue with FSDP, with DDP or
in one process.

Precision: with ``bf16`` or ``fp16`` parameters are gathered in that type and gradients are summed over ranks in
float32. Inputs and outputs of the student keep their types: accelerate's policy would round the teacher's predictions.

Cost: at the start each rank holds the whole student once, without gradients or optimizer state; a checkpoint is
gathered tensor by tensor, into the memory of the first machine. Rejected: checkpoints in pieces, which save faster
and which nothing but the same kind of run can read.

DeepSpeed shards the optimizer state alone here (ZeRO 1 and 2), and keeps it in its own files, so such a run continues
on the same number of ranks only. ZeRO 3 is refused: it releases the output matrix after its forward pass, and the loss,
which is computed in chunks, needs the matrix after that.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.mappings import Arguments, StateDict

COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}


def keep_sharding(accelerator: Accelerator, plugin_arguments: Arguments | None) -> None:
    """Make accelerate shard wherever FSDP was requested, until the end of the run.

    On CPUs accelerate would silently train with DDP. On any device it copies its state from ``PartialState``, which has
    no FSDP setting, whenever a context of mixed precision is opened.

    Args:
        accelerator: The Trainer's accelerator.
        plugin_arguments: Arguments of FSDP, as ``TrainingArguments`` makes them; None without FSDP.
    """
    state = accelerator.state
    if plugin_arguments is not None and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
    if state.distributed_type == DistributedType.FSDP:
        PartialState().distributed_type = DistributedType.FSDP


def check_sharding(accelerator: Accelerator) -> None:
    """Refuse settings under which a sharded student would differ from one in a single process.

    Raises:
        ConfigError: naming the setting.
    """
    fsdp, deepspeed = getattr(accelerator.state, "fsdp_plugin", None), accelerator.state.deepspeed_plugin
    settings: list[tuple[str, Any, tuple[Any, ...]]] = []
    if fsdp is not None:
        settings.append(("fsdp_config.version", fsdp.fsdp_version, (2,)))
        settings.append(("fsdp_config.cpu_ram_efficient_loading", fsdp.cpu_ram_efficient_loading, (False,)))
    if deepspeed is not None:
        half = deepspeed.deepspeed_config.get("fp16", {}).get("enabled")  # would round the teacher's predictions
        settings.append(("deepspeed: zero_optimization.stage", deepspeed.zero_stage, (0, 1, 2)))
        settings.append(("deepspeed: fp16.enabled", half in (True, "true"), (False,)))
    for name, value, accepted in settings:
        if value not in accepted:
            raise ConfigError(
                "this setting is not supported",
                where=f"training.{name}",
                expected=" or ".join(str(choice).lower() for choice in accepted),
                found=str(value).lower(),
                fix="To shard parameters, set training.fsdp: true; for half precision, training.bf16: true",
            )


def prepare_fsdp(accelerator: Accelerator) -> None:
    """Set what checkpoints and losses need of FSDP, whatever the student file says."""
    plugin = accelerator.state.fsdp_plugin
    plugin.set_state_dict_type("FULL_STATE_DICT")
    if accelerator.mixed_precision in COMPUTED_IN:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            COMPUTED_IN[accelerator.mixed_precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def check_checkpoint(checkpoint: Path, deepspeed_ranks: int) -> None:
    """Refuse to continue from an optimizer state that this run cannot read.

    Args:
        checkpoint: A checkpoint of the Trainer.
        deepspeed_ranks: How many ranks this run has, if they use DeepSpeed; otherwise 0.

    Raises:
        IdentityError: DeepSpeed wrote it with another number of ranks, or only one of both runs uses DeepSpeed.
    """
    saved = len(list(checkpoint.glob("rng_state*.pth"))) if any(checkpoint.glob("global_step*")) else 0
    if saved != deepspeed_ranks:
        raise IdentityError(
            "the optimizer state of this checkpoint cannot be read by this run",
            where=checkpoint,
            expected=f"a checkpoint of DeepSpeed on {deepspeed_ranks} ranks"
            if deepspeed_ranks
            else "a checkpoint without DeepSpeed",
            found=f"a checkpoint of DeepSpeed on {saved} ranks" if saved else "a checkpoint without DeepSpeed",
            why="DeepSpeed writes one part for each rank",
            fix="Continue with the same number of ranks and strategy; only DDP and FSDP runs may change them",
        )


def gathered(state: Any, keep: bool) -> Any:
    """Return a nested state with whole tensors on the CPU; every rank must take part.

    Args:
        state: Dictionaries and lists, with pieces of tensors among the values.
        keep: Whether this rank wants the result; others get None in the place of each piece.
    """
    if isinstance(state, DTensor):
        whole: Tensor = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, dict):
        return {name: gathered(value, keep) for name, value in state.items()}
    return [gathered(value, keep) for value in state] if isinstance(state, list) else state


def gathered_weights(module: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Return a module's whole tensors on the CPU, as :func:`gathered`; tied ones by their first name alone."""
    by_tensor = {id(value): (name, value) for name, value in reversed(module.state_dict(keep_vars=True).items())}
    whole: dict[str, Tensor] = gathered(dict(by_tensor.values()), keep)
    return whole


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors, which every rank has, into a module that may lie in pieces."""
    pieces = module.state_dict()
    module.load_state_dict({name: _piece(value, pieces[name]) for name, value in state.items()})


class WholeOptimizer:
    """Presents an optimizer with a sharded state as one with a whole state, to code that saves or loads it.

    Args:
        optimizer: Whose state it is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._whole: StateDict = {}

    def gather(self, keep: bool) -> None:
        """Put the pieces together; every rank must take part, those that do not keep the result too."""
        self._whole = gathered(self._optimizer.state_dict(), keep)

    def state_dict(self) -> StateDict:
        """Return what ``gather`` kept."""
        return self._whole

    def load_state_dict(self, state: StateDict) -> None:
        """Give this rank its pieces of a whole state."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        self._optimizer.load_state_dict(scattered(state, parameters))


def scattered(state: StateDict, parameters: list[Tensor]) -> StateDict:
    """Return an optimizer's state that one process saved, each tensor of a parameter's shape cut to this rank's piece.

    Args:
        state: ``state`` and ``param_groups``, parameters by number.
        parameters: Parameters of all groups, in order.
    """
    pieces = {
        number: {name: _piece(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": pieces}


def _piece(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    on_device = value.to(parameter.device)  # each rank read the whole tensor, so none has to send it
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
