"""The ``training:`` block: every argument of transformers' ``TrainingArguments`` is honoured, or refused with a reason.

transformers has over a hundred, and a Trainer whose evaluation, sampler and checkpoints are replaced reads fewer.
``HONOURED`` names those that have their meaning here, ``REFUSED`` those that have none, or would break a promise, with
the reason. Together they name all of them: a test fails when a new version of transformers brings one that nobody has
decided on. A refused argument may be given with the value that it has here anyway.

Values are checked against their types and ranges before a model is made; otherwise a negative learning rate ends in a
traceback of torch, and ``bf16: "no"`` trains in half precision.
"""

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers import TrainingArguments, training_args
from transformers.integrations import integration_utils
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS as _OPTIMIZERS
from transformers.training_args import ParallelMode

from cache_tools.errors import ConfigError
from trainer.config.student_file import StudentConfig
from trainer.run.best import check_best, direction

FIELDS = TrainingArguments.__dataclass_fields__

_HONOURED_NAMES = """
    output_dir per_device_train_batch_size num_train_epochs max_steps gradient_accumulation_steps seed data_seed
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    bf16 fp16 tf32 full_determinism torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    neftune_noise_alpha
    logging_strategy logging_steps logging_first_step log_level log_level_replica log_on_each_node
    include_num_input_tokens_seen skip_memory_metrics report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size metric_for_best_model greater_is_better
    save_strategy save_steps save_total_limit
    use_cpu dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    fsdp fsdp_config deepspeed
    """
HONOURED = frozenset(_HONOURED_NAMES.split())
"""Arguments that mean here what transformers says they mean."""

_OWN_EVALUATION = "the held-out split is measured as by 'logitcask evaluate', which does not read it"
_OWN_ORDER = "batches come from the cache's own sampler, which does not read it"
_NO_UPLOAD = "nothing is uploaded; upload <output_dir>/final when the run is done"
_CONTINUES = "a stopped run could not go on as if it had never stopped"

REFUSED = {
    "label_smoothing_factor": "the teacher's distribution takes the place of smoothed labels",
    "train_sampling_strategy": _OWN_ORDER,
    "length_column_name": _OWN_ORDER,
    "dataloader_drop_last": "every epoch already has a whole number of steps",
    "accelerator_config": _OWN_ORDER,
    "remove_unused_columns": "the columns of a batch are the cache's, and all of them are used",
    "label_names": _OWN_EVALUATION,
    "average_tokens_across_devices": "every kept position counts alike, however many processes share a step",
    "auto_find_batch_size": "another batch size would change the run; lower per_device_train_batch_size and raise "
    "gradient_accumulation_steps",
    "optim_target_modules": "the optimizers that read it keep states that checkpoints here do not hold",
    "use_liger_kernel": "the losses here never hold the logits of a batch at once, and do not use these kernels",
    "liger_kernel_config": "the losses here do not use these kernels",
    "use_cache": "a key-value cache is of no use in training",
    "parallelism_config": "a student is shared by DDP, FSDP or DeepSpeed",
    "debug": "a loss or gradient that is not finite stops the run already and names the step",
    "logging_nan_inf_filter": "it would report a loss of 0 for a student that is not finite",
    "disable_tqdm": "the progress line is logitcask's own",
    "bf16_full_eval": _OWN_EVALUATION,
    "fp16_full_eval": _OWN_EVALUATION,
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "load_best_model_at_end": "the finished student is the one that a run without a stop ends with",
    "save_only_model": _CONTINUES,
    "save_on_each_node": "one process writes the run folder, and all of them must see it",
    "ignore_data_skip": _CONTINUES,
    "restore_callback_states_from_checkpoint": "no callback here has a state",
    "enable_jit_checkpoint": "a stopped run would be taken for a finished one",
    "resume_from_checkpoint": "the same command continues from the last whole checkpoint by itself",
    "do_train": "'logitcask train' always trains",
    "do_eval": "eval_strategy and eval_on_start say when the held-out split is measured",
    "do_predict": "'logitcask evaluate' measures a student",
    "local_rank": "it comes from the launcher",
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _NO_UPLOAD,
    ),
}
"""Arguments that have no place here, and why."""

PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
"""Trackers whose package transformers calls by another name."""

FIXED = {"remove_unused_columns": False, "logging_nan_inf_filter": False}
"""Refused arguments whose value here is not transformers' default."""

_LOG_LEVEL: Any = Literal[tuple(training_args.trainer_log_levels)]
_CHECKPOINTING: Any = dict[
    Literal["use_reentrant", "preserve_rng_state", "early_stop", "debug", "offload", "every_n_layers"], bool | int
]
KINDS: dict[str, Any] = {
    "fsdp": bool | str | list[str],  # documented as either
    "log_level": _LOG_LEVEL,
    "log_level_replica": _LOG_LEVEL,
    "lr_scheduler_kwargs": dict[str, Any],
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "torch_compile_mode": Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"],
}
"""Types narrower or wider than those that transformers' fields have; each but None, which is the default."""

NEEDS = {
    "eval_delay": ("eval_strategy", "the held-out split is not measured on the way"),
    "eval_steps": ("eval_strategy", "the held-out split is not measured on the way"),
    "greater_is_better": ("metric_for_best_model", "no student is the best"),
    "activation_checkpointing_kwargs": ("activation_checkpointing", "no activation is computed again"),
    "gradient_checkpointing_kwargs": ("activation_checkpointing", "no activation is computed again"),
    "dataloader_in_order": ("dataloader_num_workers", "there are no loader workers"),
    "dataloader_persistent_workers": ("dataloader_num_workers", "there are no loader workers"),
    "dataloader_multiprocessing_context": ("dataloader_num_workers", "there are no loader workers"),
    **dict.fromkeys(("run_name", "project"), ("report_to", "the run is reported to nobody")),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ("report_to", "the run is reported to nobody"),
    ),
}
"""Arguments that are read only where another one is set, and what holds where it is not."""

_NOT_NEGATIVE, _POSITIVE, _COUNT = Field(ge=0), Field(gt=0), Field(ge=1)
BOUNDS: dict[str, Any] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("eval_delay", "dataloader_num_workers", "neftune_noise_alpha"), _NOT_NEGATIVE),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), _POSITIVE),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"), _COUNT
    ),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), _COUNT),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Field(ge=0, lt=1)),
    **dict.fromkeys(("seed", "data_seed"), Field(ge=0, lt=2**32)),
}
"""Ranges; where one is missing, every finite number is accepted."""


def training_arguments(config: StudentConfig) -> TrainingArguments:
    """Build ``TrainingArguments`` from the ``training:`` block.

    Defaults that differ from transformers': no reporting to outside services, CPUs where there is nothing else, a log
    that hides nothing, and the columns of a batch are ours, so none is removed.

    Raises:
        ConfigError: an argument is unknown, has no place here or has a wrong value.
    """
    given = config.training
    _check_names(given)
    values = _checked_values(given)
    defaults: dict[str, Any] = {
        "report_to": [],
        "use_cpu": not torch.accelerator.is_available(),  # or ranks would not find each other without a GPU
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        "include_num_input_tokens_seen": "non_padding",
        **direction(given),
    }
    with argument_errors():
        arguments = TrainingArguments(**{**defaults, **values, **FIXED})
    check_best(arguments)
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
            "these arguments are not transformers' TrainingArguments, or do not go together",
            where=where,
            found=(str(error).splitlines() or [type(error).__name__])[0],
        ) from error


def _check_names(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            raise ConfigError(
                "transformers' TrainingArguments have no such argument",
                where=f"training.{name}",
                expected=f"perhaps {close[0]}" if close else "",
                fix="Check its spelling, or leave it out",
            )
        if name in REFUSED and value != _value_here(name):
            raise ConfigError(
                "this argument has no place here",
                where=f"training.{name}",
                found=value,
                why=REFUSED[name],
                fix="Leave it out",
            )


def _value_here(name: str) -> Any:
    field = FIELDS[name]
    default = field.default_factory() if callable(field.default_factory) else field.default
    return FIXED.get(name, default)


def _checked_values(given: dict[str, Any]) -> dict[str, Any]:
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


def _check_combinations(arguments: TrainingArguments, given: dict[str, Any]) -> None:
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
    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in known:
            raise ConfigError(
                "transformers knows no such tracker",
                where="training.report_to",
                expected=f"some of {', '.join(known)}",
                found=name,
            )
        is_available = getattr(integration_utils, f"is_{PACKAGES.get(name, name)}_available")
        if not is_available():
            raise ConfigError(
                f"the package of tracker {name!r} is not installed",
                where="training.report_to",
                why="the run could not be reported to it",
                fix="Install it, or leave it out: the run can be continued with report_to later",
            )


def _check_read(argument: str, keys: list[str], reader: Any) -> None:
    """Refuse a key that the source of its reader never names; transformers would ignore it."""
    source = inspect.getsource(reader) if keys and reader is not None else ""
    unread = [key for key in keys if f'"{key}"' not in source]
    if unread:
        raise ConfigError(
            "nothing reads this key",
            where=f"training.{argument}.{unread[0]}",
            fix="Check its spelling, or leave it out",
        )


def _assignments(text: str | None) -> list[str]:
    """Return the names in ``optim_args``: ``name=value, name=value``."""
    pairs = [part.split("=") for part in (text or "").replace(" ", "").split(",") if text]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError("this is not of the form name=value, name=value", where="training.optim_args", found=text)
    return [name for name, _ in pairs]
