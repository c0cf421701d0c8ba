"""Check a teacher's checkpoint twice, so that every weight comes from its files.

:func:`check_tensors` compares names and shapes before anything is encoded: it reads the headers of the
safetensors files only, and lets transformers load tensors without storage, so that all its rules for renamed,
merged and tied weights apply; it takes about a second whatever the size. :func:`load_teacher_checkpoint` judges the
report of the real loading, which is needed for what the first check cannot see, such as a quantised checkpoint. What
either refuses is decided by ``cache_tools/models/loading_report.py``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.models.files import INDEX, SINGLE, is_gguf, listed_weight_files
from cache_tools.models.loading_report import check_report
from cache_tools.models.quantised import quantised_weights
from cache_tools.torch_models.loading import ADAPTER_SETTINGS, auto_class, load_checkpoint, quiet_loading
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.tensor_plan import meta_model

ELSEWHERE = ("quantization_config", "transformers_weights", "extra_files")
"""Keys of a configuration with which the files hold other tensors than the model, or other files hold them."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating-point types by the name that safetensors has for them."""


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a safetensors file says of a tensor.

    Attributes:
        dtype: Its type, as safetensors spells it, such as ``BF16`` or ``I8``.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]


def load_teacher_checkpoint(
    config: TeacherConfig, folder: Path, objective: Objective, **placement: Any
) -> PreTrainedModel:
    """Load a teacher whose files hold exactly its weights.

    Args:
        config: The teacher's block of the capture file.
        folder: Its model folder.
        objective: Decides between a causal and a masked language model.
        placement: Further arguments of ``from_pretrained``: where the weights go.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape, or an adapter lies in the folder.
    """
    refuse_adapter(config, folder)
    model = load_checkpoint(
        auto_class(objective),
        folder,
        f"teacher {config.name!r}",
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=config.attention,
        **placement,
    )
    if not is_gguf(folder) and quantised_weights(folder) is None:  # a dequantised model no longer says what it was
        _refuse_other_types(config, folder, model, _stored_tensors(config, folder))
    return model


def check_tensors(config: TeacherConfig, folder: Path, objective: Objective) -> None:
    """Compare the tensors in a teacher's files with those of its model; no weight is read.

    What cannot be compared this way (a GGUF file, a quantised checkpoint, an architecture that transformers cannot
    build without weights) is left to :func:`load_teacher_checkpoint`.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape, a file is missing or cannot be read, or an
            adapter lies in the folder.
    """
    refuse_adapter(config, folder)
    if is_gguf(folder):
        return
    stored = _stored_tensors(config, folder)
    try:
        empty = meta_model(config, objective, folder)
    except Exception:  # whatever it was, loading the weights reports it better
        return
    if _is_elsewhere(empty):
        return
    _refuse_other_types(config, folder, empty, stored)
    tensors = {
        name: torch.empty(tensor.shape, dtype=DTYPES.get(tensor.dtype, torch.float32), device="meta")
        for name, tensor in stored.items()
    }
    try:
        with quiet_loading():
            loaded: tuple[PreTrainedModel, Mapping[str, Iterable[str]]] = type(empty).from_pretrained(  # type: ignore[assignment]
                None,
                config=empty.config,
                state_dict=tensors,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception:  # as above
        return
    check_report(loaded[1], f"teacher {config.name!r}", folder, type(empty).__name__)


def refuse_adapter(config: TeacherConfig, folder: Path) -> None:
    """Refuse a folder with an adapter: transformers would load the model that it names instead of this folder's.

    Raises:
        ModelError: there is one.
    """
    if (folder / ADAPTER_SETTINGS).exists():
        raise ModelError(
            f"the folder of teacher {config.name!r} holds an adapter",
            where=folder / ADAPTER_SETTINGS,
            why="transformers would load the base model that it names, whose weights no fingerprint covers",
            fix="Merge the adapter into its base model, save the result, and name that folder",
        )


def _is_elsewhere(model: PreTrainedModel) -> bool:
    return any(getattr(model.config, key, None) for key in ELSEWHERE)


def _refuse_other_types(
    config: TeacherConfig, folder: Path, model: PreTrainedModel, stored: dict[str, StoredTensor]
) -> None:
    """Refuse weights that are stored as integers or 8-bit numbers, unless the configuration says how to read them.

    transformers would convert them to the model's type without their scales.
    """
    if _is_elsewhere(model):
        return
    parameters = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    wrong = {name: tensor.dtype for name, tensor in stored.items() if tensor.dtype not in DTYPES and name in parameters}
    if wrong:
        name, dtype = next(iter(wrong.items()))
        raise ModelError(
            f"teacher {config.name!r} has quantised weights, and its configuration does not say how to read them",
            where=folder,
            expected="floating-point weights, or a quantization_config",
            found=f"{len(wrong)} tensors of another type, such as {name} of type {dtype}",
            why="they would be taken for the weights themselves, without their scales",
            fix="Use the original checkpoint, or add the quantization_config that belongs to this one",
        )


def _stored_tensors(config: TeacherConfig, folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the files that transformers would read, by name."""
    tensors = {}
    for path in weight_paths(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a dictionary
                    part = file.get_slice(name)
                    tensors[name] = StoredTensor(part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            problem = f"{path.name}: {error}"
            raise ModelError(f"teacher {config.name!r} cannot be loaded", where=folder, found=problem) from error
    return tensors


def weight_paths(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads.

    Raises:
        ModelError: the index cannot be read, or a file that it lists is missing.
    """
    paths = listed_weight_files(folder)
    missing = [path.name for path in paths if not path.is_file()]
    if missing and paths != [folder / SINGLE]:
        raise ModelError(
            "weight files are missing",
            where=folder,
            expected=f"{len(paths)} files, as {INDEX} lists them",
            found=f"{len(paths) - len(missing)}; missing: {', '.join(missing[:4])}",
            fix="Copy or download the model again",
        )
    return paths
