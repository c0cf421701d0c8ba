"""Check a teacher's checkpoint twice, so that every weight comes from its files.

:func:`check_tensors` compares names and shapes before anything is encoded: it reads the headers of the
safetensors files only, and lets transformers load tensors without storage, so that all its rules for renamed,
merged and tied weights apply; it takes about a second whatever the size. :func:`load_teacher_checkpoint` judges the
report of the real loading, which is needed for what the first check cannot see, such as a quantised checkpoint. What
either refuses is decided by ``cache_tools/models/loading_report.py``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.models.loading_report import check_report
from cache_tools.torch_models.loading import ADAPTER_SETTINGS, auto_class, load_checkpoint, quiet_loading
from pipeline.config import TeacherConfig
from pipeline.teachers.tensor_plan import meta_model

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

ELSEWHERE = ("quantization_config", "transformers_weights", "extra_files")
"""Keys of a configuration with which the files hold other tensors than the model, or other files hold them."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of the first look; it compares names and shapes, so any type may stand for the others."""


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
    return load_checkpoint(
        auto_class(objective),
        folder,
        f"teacher {config.name!r}",
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=config.attention,
        **placement,
    )


def check_tensors(config: TeacherConfig, folder: Path, objective: Objective) -> None:
    """Compare the tensors in a teacher's files with those of its model; no weight is read.

    What cannot be compared this way (a quantised checkpoint, an architecture that transformers cannot build
    without weights) is left to :func:`load_teacher_checkpoint`.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape, a file is missing or cannot be read, or an
            adapter lies in the folder.
    """
    refuse_adapter(config, folder)
    tensors = _tensors_without_storage(config, folder)
    try:
        with quiet_loading():
            empty = meta_model(config, objective, folder)
            if any(getattr(empty.config, key, None) for key in ELSEWHERE):
                return
            loaded: tuple[PreTrainedModel, dict[str, Any]] = type(empty).from_pretrained(  # type: ignore[assignment]
                None,
                config=empty.config,
                state_dict=tensors,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception:  # whatever it was, loading the weights says it better
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


def _tensors_without_storage(config: TeacherConfig, folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the files that transformers would read, on torch's ``meta`` device."""
    tensors = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a dictionary
                    part = file.get_slice(name)
                    dtype = DTYPES.get(part.get_dtype(), torch.float32)
                    tensors[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        except (OSError, SafetensorError) as error:
            found = f"{path.name}: {error}"
            raise ModelError(f"teacher {config.name!r} cannot be loaded", where=folder, found=found) from error
    return tensors


def _files(folder: Path) -> list[Path]:
    """Return the weight files of a folder, in the order in which transformers looks for them."""
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("the index of the weight files cannot be read", where=index, found=error) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            "weight files are missing",
            where=folder,
            expected=f"{len(names)} files, as {INDEX} lists them",
            found=f"{len(names) - len(missing)}; missing: {', '.join(missing[:4])}",
            fix="Copy or download the model again",
        )
    return [folder / name for name in names]
