"""Every argument of transformers' ``TrainingArguments``: honoured, or refused with a reason.

``HONOURED`` names those that have their meaning here, ``REFUSED`` those that have none, or would break a promise, with
the reason. Together they name all of them: a test fails when a new version of transformers brings one that nobody has
decided on. The other tables hold the types, ranges and dependencies that the honoured ones are checked against.
"""

from typing import Any, Literal

from pydantic import Field
from transformers import TrainingArguments, training_args

from cache_tools.mappings import JsonObject

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
_CONTINUES = "a stopped run could not continue to the same student"

REFUSED = {
    "label_smoothing_factor": "the teacher's distribution takes the place of smoothed labels",
    "train_sampling_strategy": _OWN_ORDER,
    "length_column_name": _OWN_ORDER,
    "dataloader_drop_last": "every epoch already has a whole number of steps",
    "accelerator_config": _OWN_ORDER,
    "remove_unused_columns": "the columns of a batch are the cache's, and all of them are used",
    "label_names": _OWN_EVALUATION,
    "average_tokens_across_devices": "every kept position has the same weight, however many processes share a step",
    "auto_find_batch_size": "another batch size would change the run; lower per_device_train_batch_size and raise "
    "gradient_accumulation_steps",
    "optim_target_modules": "the optimizers that read it keep states that checkpoints here do not hold",
    "use_liger_kernel": "the losses of logitcask work in chunks and do not use these kernels",
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
    "enable_jit_checkpoint": "a stopped run would look like a finished one",
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
KINDS: dict[str, object] = {
    "fsdp": bool | str | list[str],  # documented as either
    "log_level": _LOG_LEVEL,
    "log_level_replica": _LOG_LEVEL,
    "lr_scheduler_kwargs": JsonObject,
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "torch_compile_mode": Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"],
}
"""Types narrower or wider than those that transformers' fields have; each but None, which is the default."""

NEEDS = {
    "eval_delay": ("eval_strategy", "the held-out split is not measured on the way"),
    "eval_steps": ("eval_strategy", "the held-out split is not measured on the way"),
    "greater_is_better": ("metric_for_best_model", "students are not ranked"),
    "activation_checkpointing_kwargs": ("activation_checkpointing", "no activation is recomputed"),
    "gradient_checkpointing_kwargs": ("activation_checkpointing", "no activation is recomputed"),
    "dataloader_in_order": ("dataloader_num_workers", "there are no loader workers"),
    "dataloader_persistent_workers": ("dataloader_num_workers", "there are no loader workers"),
    "dataloader_multiprocessing_context": ("dataloader_num_workers", "there are no loader workers"),
    **dict.fromkeys(("run_name", "project"), ("report_to", "the run is not reported to a tracker")),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ("report_to", "the run is not reported to a tracker"),
    ),
}
"""Arguments that are read only where another one is set, and what holds where it is not."""

MAX_WORKERS = 1024
"""Loader workers of a process. Each is a process of its own with its part of the cache in memory; more are a slip."""

_NOT_NEGATIVE, _POSITIVE, _COUNT = Field(ge=0), Field(gt=0), Field(ge=1)
BOUNDS: dict[str, object] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("eval_delay", "neftune_noise_alpha"), _NOT_NEGATIVE),
    "dataloader_num_workers": Field(ge=0, le=MAX_WORKERS),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), _POSITIVE),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"), _COUNT
    ),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), _COUNT),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Field(ge=0, lt=1)),
    **dict.fromkeys(("seed", "data_seed"), Field(ge=0, lt=2**32)),
}
"""Ranges; where one is missing, every finite number is accepted."""
