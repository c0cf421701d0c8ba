"""Load a checkpoint so that every weight comes from its files.

transformers fills a tensor that the files lack with random numbers, prints a table and goes on. Everything that loads
a model here, teacher or student, goes through :func:`load_checkpoint`, which takes transformers' report in place of
the table and refuses what ``cache_tools/models/loading_report.py`` refuses.
"""

import logging
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.models.files import is_gguf
from cache_tools.models.loading_report import check_report
from cache_tools.torch_models.gguf import as_ordinary, dequantising, named

ADAPTER_SETTINGS = "adapter_config.json"
"""File of a folder that holds an adapter; transformers then loads the base model that it names."""

LOADING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    struct.error,
    StrictDataclassError,
    SafetensorError,
)
"""What transformers raises for a configuration or a model folder that it cannot use."""


def auto_class(objective: Objective) -> type[AutoModelForCausalLM | AutoModelForMaskedLM]:
    """Return transformers' class for a causal or a masked language model."""
    return AutoModelForCausalLM if objective == "causal" else AutoModelForMaskedLM


def check_objective(model_class: str, objective: Objective) -> None:
    """Refuse a masked model where a causal one is needed, and the other way round.

    A class that transformers lists for neither, such as one of the caller's own, is accepted.

    Raises:
        ModelError: transformers lists the class for the other objective alone.
    """
    names = {"causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    listed = {name for name, classes in names.items() if model_class in classes.values()}
    if listed and objective not in listed:
        raise ModelError(
            "this model predicts other tokens than the cached teacher",
            where=model_class,
            expected=f"a {objective} language model",
            found=f"a {listed.pop()} one",
            why="each of its predictions would be compared with that of another token",
            fix=f"Load the student with {auto_class(objective).__name__}",
        )


def load_checkpoint(auto: Any, source: str | Path, subject: str, **arguments: Any) -> PreTrainedModel:
    """Load a model whose files hold exactly its weights.

    Args:
        auto: A class with ``from_pretrained``.
        source: Model folder, hub id or GGUF file, see ``gguf.py``.
        subject: What is loaded, for errors, such as ``the student``.
        arguments: Further arguments of ``from_pretrained``.

    Raises:
        ModelError: Tensors are missing, unexpected or of another shape.
        Exception: One of LOADING_ERRORS: there is no such model, or transformers cannot use it.
    """
    with quiet_loading():
        loaded: tuple[PreTrainedModel, Mapping[str, Iterable[str]]] = auto.from_pretrained(
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # shapes are then in the report, and refused with their names
            **named(source, **arguments, **(dequantising() if is_gguf(source) else {})),
        )
    model, report = loaded
    check_report(report, subject, source, type(model).__name__)
    return as_ordinary(model) if is_gguf(source) else model


def load_configuration(source: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the configuration of a model folder, hub id or GGUF file.

    Raises:
        Exception: One of LOADING_ERRORS: there is none that transformers can use.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(**named(source, trust_remote_code=trust_remote_code))
    return config


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' table of missing tensors and its bar off the screen: the report is judged instead."""
    logger, bars = logging.getLogger("transformers.modeling_utils"), transformers_logging.is_progress_bar_enabled()
    logger.addFilter(_is_no_table)
    transformers_logging.disable_progress_bar()
    gguf_reader: Any = modeling_gguf_pytorch_utils
    gguf_bar, gguf_reader.tqdm = gguf_reader.tqdm, _unshown  # this bar has no switch
    try:
        yield
    finally:
        logger.removeFilter(_is_no_table)
        gguf_reader.tqdm = gguf_bar
        if bars:
            transformers_logging.enable_progress_bar()


def _unshown(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


def _is_no_table(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
