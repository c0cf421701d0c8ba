"""Who writes: the model as a teacher's identity names it, its tokenizer, how it draws, and whose student it is.

A student's ``final`` folder holds ``logitcask.json``, which training left there: the run, its last step, and who wrote
and scored the text that it learned from. Rollouts of a student carry that, so that training on them can say how stale
they are, and whether its teacher is the one that the student learned from before.

The tokens at which a model stops are those of its generation settings, else of its configuration, else of its
tokenizer. Of a model that a server runs, which is not loaded here, the same three places are read from its files.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cache_tools.errors import ModelError
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import SOFTWARE, Policy, Sampling, StudentOrigin
from cache_tools.format.specs import summary
from cache_tools.models.files import weights_sha256
from cache_tools.torch_models.quantised import Quantisation, quantisation_of
from pipeline.config.generation import PolicyConfig, SamplingConfig
from pipeline.encoding.tokenizer import tokenizer_identity
from pipeline.engines.server_opening import UNKNOWN
from pipeline.engines.server_rows import ServerFacts
from pipeline.teachers.loading import stated_architecture, stated_configuration
from pipeline.teachers.teacher import ModelDescription, Teacher

STUDENT_RECORD, SETTINGS = "logitcask.json", "generation_config.json"


def sampling_of(config: SamplingConfig, stop_ids: tuple[int, ...]) -> Sampling:
    """Return how tokens are drawn, as it is recorded."""
    return Sampling(**config.model_dump(), stop_ids=stop_ids)


def policy_of(teacher: Teacher, folder: Path, tokenizer: PreTrainedTokenizerFast, sampling: Sampling) -> Policy:
    """Return the identity of a model that writes.

    Args:
        teacher: The loaded model.
        folder: Its folder.
        tokenizer: Its tokenizer.
        sampling: How tokens are drawn.

    Raises:
        ModelError: the folder is a student's, and what training recorded there cannot be read.
    """
    computed = teacher.computed
    assert computed.weights is not None, "a model in this process has weights that were read"
    return Policy(
        weights=computed.weights,
        dtype=computed.dtype,
        quantisation=computed.quantisation,
        tokenizer=tokenizer_identity(tokenizer),
        sampling=sampling,
        student=student_origin(folder),
        model=teacher.description.document(),
        software=f"{SOFTWARE}, torch {torch.__version__}, transformers {transformers.__version__}",
    )


def served_policy(
    config: PolicyConfig, facts: ServerFacts, folder: Path, tokenizer: PreTrainedTokenizerFast, sampling: Sampling
) -> Policy:
    """Return the identity of a model that a server runs, as far as it is known.

    Its weights are unknown, unless the generation file names the folder that is served: then they are those of the
    folder, and a student's folder makes the server's model that student.

    Args:
        config: The policy's block of the generation file.
        facts: What the server states.
        folder: The folder of its tokenizer, and of its weights if the file says so.
        tokenizer: Its tokenizer.
        sampling: How tokens are drawn.

    Raises:
        ModelError: the folder has no weights, or is a student's, and what training recorded there cannot be read.
    """
    assert config.engine is not None
    known = config.engine.same_weights
    dtype = None if config.dtype == "auto" else config.dtype
    stored = quantisation_of(folder) if known else Quantisation()
    software = f"{facts.name} {facts.version}"
    description = ModelDescription(
        config.model,
        config.revision,
        stated_architecture(folder) or UNKNOWN,
        dtype or UNKNOWN,
        None,
        stored.words,
        engine=software,
    )
    return Policy(
        weights=weights_sha256(folder) if known else None,
        dtype=dtype,
        quantisation=stored.weights,
        engine=facts.identity(),
        tokenizer=tokenizer_identity(tokenizer),
        sampling=sampling,
        student=student_origin(folder) if known else None,
        model=description.document(),
        software=f"{SOFTWARE}, {software}",
    )


def student_origin(folder: Path) -> StudentOrigin | None:
    """Return the training run that a model folder comes from; None if it is no student of this program.

    Raises:
        ModelError: the record of the run cannot be read.
    """
    path = folder / STUDENT_RECORD
    if not path.is_file():
        return None
    try:
        record: Any = json.loads(path.read_bytes())
        return StudentOrigin(
            run=fingerprint(record["identity"]),
            step=record.get("steps"),
            text_by=record.get("text_by", ()),
            scored_by=record.get("scored_by", ()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise ModelError(
            "this file does not say which run the student comes from",
            where=path,
            expected="what 'logitcask train' wrote",
            found=summary(error),
            fix="Restore it from the run's folder, or delete it to use the model as any other",
        ) from error


def stop_tokens(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the ids at which a loaded model stops.

    Args:
        folder: Its folder, for errors.
        model: The model.
        tokenizer: Its tokenizer.

    Raises:
        ModelError: its generation settings cannot be read.
    """
    settings = model.generation_config.eos_token_id if model.generation_config else None
    configured = getattr(model.config.get_text_config(), "eos_token_id", None)
    return _first_of(folder, settings, configured, tokenizer.eos_token_id)


def stated_stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the ids at which a model stops that is not loaded, by its folder.

    Args:
        folder: A folder with a tokenizer, and perhaps with a configuration and generation settings.
        tokenizer: Its tokenizer.

    Raises:
        ModelError: they are no token ids.
    """
    configuration = stated_configuration(folder)
    text = configuration.get("text_config")
    inner = text.get("eos_token_id") if isinstance(text, dict) else configuration.get("eos_token_id")
    settings = stated_configuration(folder, SETTINGS).get("eos_token_id")
    return _first_of(folder, settings, inner, tokenizer.eos_token_id)


def _first_of(folder: Path, *places: object) -> tuple[int, ...]:
    """Return the ids that the first place states which states any."""
    stated = next((place for place in places if place is not None), None)
    ids = stated if isinstance(stated, list | tuple) else [] if stated is None else [stated]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ModelError("the model's stop tokens are no token ids", where=folder, found=f"eos_token_id {stated!r}")
    return tuple(dict.fromkeys(ids))
