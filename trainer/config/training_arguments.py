"""The ``training:`` block: every argument of transformers' ``TrainingArguments`` is honoured, or refused with a reason.

transformers has over a hundred, and a Trainer whose evaluation, sampler and checkpoints are replaced reads fewer.
``argument_rules.py`` says which are honoured and which are refused. A refused argument may be given with the value that
it has here anyway.

Values are checked against their types and ranges before a model is made; otherwise a negative learning rate ends in a
traceback of torch, and ``bf16: "no"`` trains in half precision.
"""

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments, training_args
from transformers.integrations import integration_utils
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS as _OPTIMIZERS
from transformers.training_args import ParallelMode

from cache_tools.errors import ConfigError
from cache_tools.mappings import Arguments
from trainer.config.argument_rules import BOUNDS, FIELDS, FIXED, KINDS, NEEDS, PACKAGES, REFUSED
from trainer.config.best import check_best, direction
from trainer.config.student_file import StudentConfig


def training_arguments(config: StudentConfig) -> TrainingArguments:
    """Build ``TrainingArguments`` from the ``training:`` block.

    Defaults that differ from transformers': no reporting to outside services, CPUs where there is nothing else, a log
    that hides nothing, and no column of a batch is removed.

    Raises:
        ConfigError: an argument is unknown, has no place here or has a wrong value.
    """
    given = config.training
    _check_names(given)
    values = _checked_values(given)
    defaults: Arguments = {
        "report_to": [],
        "use_cpu": not torch.accelerator.is_available(),  # or ranks would not find each other without a GPU
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        "include_num_input_tokens_seen": "non_padding",
        **direction(given),
    }
    with argument_errors():
        arguments = TrainingArguments(**{**defaults, **values, **FIXED})
    check_best(arguments, aligned=config.alignment is not None)
    _check_combinations(arguments, values)
    _check_trackers([*(arguments.report_to or ())])
    if arguments.fsdp and arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(
            "FSDP needs ranks to share a student", where="training.fsdp", fix="Start with torchrun, or leave it out"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # nn.DataParallel would cut predictions apart from their sequences
    return arguments


@contextmanager
def argument_errors(where: str = "training") -> Iterator[None]:
    """Turn what transformers, accelerate or torch raise about arguments inside the block into a ConfigError."""
    try:
        yield
    except (TypeError, ValueError, ImportError, KeyError, AttributeError, OSError) as error:
        raise ConfigError(
            "transformers does not accept these training arguments",
            where=where,
            found=(str(error).splitlines() or [type(error).__name__])[0],
        ) from error


def _check_names(given: Arguments) -> None:
    for name, value in given.items():
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            raise ConfigError(
                "transformers has no training argument of this name",
                where=f"training.{name}",
                expected=f"perhaps {close[0]}" if close else "",
                fix="Check its spelling, or leave it out",
            )
        if name in REFUSED and value != _value_here(name):
            raise ConfigError(
                "this argument cannot be used with logitcask",
                where=f"training.{name}",
                found=value,
                why=REFUSED[name],
                fix="Leave it out",
            )


def _value_here(name: str) -> Any:
    field = FIELDS[name]
    default = field.default_factory() if callable(field.default_factory) else field.default
    return FIXED.get(name, default)


def _checked_values(given: Arguments) -> Arguments:
    """Return the values as their types want them; all that are wrong are reported at once."""
    values, problems = {}, []
    for name, value in given.items():
        try:
            values[name] = value if value is None or name in REFUSED else _adapter(name).validate_python(value)
        except ValidationError as error:
            problems.append(f"training.{name}: {error.errors()[0]['msg']} (found {value!r:.80})")
    steps = values.get("max_steps")
    if isinstance(steps, int) and steps < 1 and steps != -1:
        problems.append(f"training.max_steps: at least 1, or -1 for as many as num_train_epochs make (found {steps})")
    if problems:
        raise ConfigError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  " + "\n  ".join(problems), where="training"
        )
    return values


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    kind: Any = KINDS.get(name, FIELDS[name].type)
    bounded: Any = Annotated[kind, BOUNDS[name]] if name in BOUNDS else kind
    return TypeAdapter(bounded, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))


def _check_combinations(arguments: TrainingArguments, given: Arguments) -> None:
    """Refuse keys inside an argument that nothing reads, and arguments that need another one which is not set."""
    _check_read("optim_args", _assignments(arguments.optim_args), _OPTIMIZERS.get(arguments.optim))
    if isinstance(arguments.fsdp_config, dict):
        names = [key.removeprefix("fsdp_") for key in arguments.fsdp_config]
        _check_read("fsdp_config", names, training_args)
    for name, (needed, why) in NEEDS.items():
        is_set = getattr(arguments, needed) not in (None, False, 0, "no", [])
        if not is_set and given.get(name) is not None and given[name] != _value_here(name):
            raise ConfigError(
                "this argument would have no effect",
                where=f"training.{name}",
                found=given[name],
                why=why,
                fix=f"Set {needed}, or leave it out",
            )


def _check_trackers(names: list[str]) -> None:
    """Refuse a tracker that is not known or not installed; transformers would do so after the run folder is written."""
    supported = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in supported:
            raise ConfigError(
                "transformers does not support this tracker",
                where="training.report_to",
                expected=f"some of {', '.join(supported)}",
                found=name,
            )
        is_available = getattr(integration_utils, f"is_{PACKAGES.get(name, name)}_available")
        if not is_available():
            raise ConfigError(
                f"the package of tracker {name!r} is not installed",
                where="training.report_to",
                why="the run could not be reported to it",
                fix="Install it, or leave report_to out; it may be added when the run is continued",
            )


def _check_read(argument: str, keys: list[str], reader: Any) -> None:
    """Refuse a key that the source of its reader never names; transformers would ignore it."""
    source = inspect.getsource(reader) if keys and reader is not None else ""
    unread = [key for key in keys if f'"{key}"' not in source]
    if unread:
        raise ConfigError(
            "this key is not used",
            where=f"training.{argument}.{unread[0]}",
            fix="Check its spelling, or leave it out",
        )


def _assignments(text: str | None) -> list[str]:
    """Return the names in ``optim_args``: ``name=value, name=value``."""
    pairs = [part.split("=") for part in (text or "").replace(" ", "").split(",") if text]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(
            "optim_args must have the form name=value, name=value", where="training.optim_args", found=text
        )
    return [name for name, _ in pairs]
