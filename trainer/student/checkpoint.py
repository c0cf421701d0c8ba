"""Load a student's checkpoint: the weights of a model folder, or an adapter on its base model, both judged.

Used wherever this stage reads a checkpoint: the weights a student starts from, a checkpoint that a run continues
from, a finished student that is evaluated.
"""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.models.loading_report import check_report
from cache_tools.torch_models.loading import ADAPTER_SETTINGS, load_checkpoint

FINAL = "final"
"""In the folder of a run: the finished student."""


def load_student(auto: Any, source: str | Path, **arguments: Any) -> PreTrainedModel:
    """Load a student whose files hold exactly its weights.

    Args:
        auto: A class with ``from_pretrained``.
        source: Model folder or hub id; in a folder with an adapter, the base model that it names is loaded.
        arguments: Further arguments of ``from_pretrained``.

    Raises:
        ModelError: Tensors are missing, unexpected or of another shape.
        Exception: One of LOADING_ERRORS: there is no such model, or transformers cannot use it.
    """
    adapter = Path(source) / ADAPTER_SETTINGS
    if adapter.is_file():
        base = json.loads(adapter.read_bytes())["base_model_name_or_path"]
        model = load_student(auto, base, **arguments)
        report = model.load_adapter(str(source)).to_dict()
        check_report(report, "the adapter", source, type(model).__name__)
        return model
    model = load_checkpoint(auto, source, "the student", **arguments)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "a hub id that holds only an adapter cannot be loaded", where=source, fix="Name a merged model"
        )
    return model


def check_names(saved: Set[str], expected: Set[str], subject: str, where: object) -> None:
    """Refuse a file that does not hold exactly these tensors.

    Raises:
        ModelError: Names are missing or unexpected.
    """
    report = {"missing_keys": expected - saved, "unexpected_keys": saved - expected, "mismatched_keys": ()}
    check_report(report, subject, where, "the student")
