"""Load a student's checkpoint so that every weight comes from its files.

Used wherever this stage reads a checkpoint: the weights a student starts from, a checkpoint that a run continues
from, a finished student that is evaluated. What is refused is decided by ``cache_tools/loading_report.py``.
An adapter is read onto its base model, and both are judged.
"""

import json
import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.models.loading_report import check_report

ADAPTER = "adapter_config.json"


def load_checkpoint(auto: Any, source: str | Path, **arguments: Any) -> PreTrainedModel:
    """Load a student whose files hold exactly its weights.

    Args:
        auto: A class with ``from_pretrained``.
        source: Model folder or hub id; in a folder with an adapter, the base model that this one names is loaded.
        arguments: Of ``from_pretrained``.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape.
        OSError: there is no such model; transformers raises several other types for one that is no good.
    """
    adapter = Path(source) / ADAPTER
    if adapter.is_file():
        base = json.loads(adapter.read_bytes())["base_model_name_or_path"]
        model = load_checkpoint(auto, base, **arguments)
        report = model.load_adapter(str(source)).to_dict()
        check_report(report, "the adapter", source, type(model).__name__)
        return model
    with _quiet_loading():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto.from_pretrained(
            str(source),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # shapes are then in the report, and refused with their names
            **arguments,
        )
    model, report = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "a hub id that holds only an adapter cannot be loaded", where=source, fix="Name a merged model"
        )
    check_report(report, "the student", source, type(model).__name__)
    return model


def check_names(saved: Set[str], expected: Set[str], subject: str, where: object) -> None:
    """Refuse a file that does not hold exactly these tensors.

    Raises:
        ModelError: names are missing or unexpected.
    """
    report = {"missing_keys": expected - saved, "unexpected_keys": saved - expected, "mismatched_keys": ()}
    check_report(report, subject, where, "the student")


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers' table of missing tensors off the screen: it is judged, and refused in one sentence."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_no_table)
    try:
        yield
    finally:
        logger.removeFilter(_no_table)


def _no_table(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
