"""LoRA students: only low-rank adapters are trained, the pretrained weights stay as they are.

peft puts its layers into the student in place, so the student remains a transformers model: its head,
its hidden states and its checkpointing work as before. A checkpoint holds the adapter alone, in
peft's format; the finished folder holds both the adapter and the student with the adapter merged in.

Merging reads the pretrained weights once more and adds the saved adapter to them, on the CPU of one process:
the finished weights are then computed from the files, and the trained module is not changed. Its cost is the
host memory of one more student. Rejected: merging in place, which is only possible where no rank holds a part.

Adapters are float32 whatever the student is: steps of 1e-4 are lost in bfloat16. Merged weights have the
student's own type, so in bfloat16 the learned weights are rounded once.
"""

from pathlib import Path
from textwrap import shorten

from safetensors.torch import load_file
from transformers import PreTrainedModel

from cache_tools.errors import ConfigError
from trainer.config.student_file import StudentModelConfig
from trainer.student.checkpoint import check_names

ADAPTER = "adapter"
"""In a finished student's folder: the adapter alone, for peft."""
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Start of every tensor's name in an adapter's file."""


def add_adapter(student: PreTrainedModel, config: StudentModelConfig) -> None:
    """Give a pretrained student its adapters, in place, and freeze all else.

    Raises:
        ConfigError: peft is not installed, or the ``lora:`` block does not fit the student.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import cast_adapter_dtype
    except ImportError as error:
        raise ConfigError(
            "peft is not installed", where="student.lora", fix="Install it: pip install 'logitcask[lora]'"
        ) from error
    assert config.lora is not None
    try:
        student.add_adapter(LoraConfig(**config.lora.arguments(), revision=config.revision))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "these adapter settings do not fit the student", where="student.lora", found=shorten(str(error), 300)
        ) from error
    _refuse_ends(student)
    cast_adapter_dtype(student, "default")


def has_adapter(student: PreTrainedModel) -> bool:
    """Return whether only adapters of this student are trained."""
    return bool(getattr(student, "_hf_peft_config_loaded", False))


def load_adapter(student: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of a checkpoint into a student that has one of the same form, in place.

    Raises:
        ModelError: the file does not hold exactly the student's adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    check_names(saved.keys(), get_peft_model_state_dict(student).keys(), "the adapter", folder / WEIGHTS)
    set_peft_model_state_dict(student, saved)


def merge_adapter(pretrained: PreTrainedModel, adapter: Path) -> None:
    """Add a saved adapter to the weights of a pretrained student, in place."""
    from peft import LoraModel, PeftConfig

    adapted = LoraModel(pretrained, PeftConfig.from_pretrained(str(adapter)), "default")
    adapted._cast_adapter_dtype("default")  # or what was saved in float32 would be rounded to the student's type
    load_adapter(pretrained, adapter)
    adapted.merge_and_unload(safe_merge=True)


def _refuse_ends(student: PreTrainedModel) -> None:
    """Refuse adapters on embeddings or head: both are often one matrix, and the loss multiplies with the head's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (student.get_input_embeddings(), student.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        raise ConfigError(
            "an adapter would change the embeddings or the head",
            where="student.lora.target_modules",
            why="they are often the same matrix, and merging would change both",
            fix="Name other modules, or all-linear, which excludes the head",
        )
