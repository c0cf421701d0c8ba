"""At which tokens a model stops: by its generation settings, else by its configuration, else by its tokenizer.

A model that a server runs is not loaded here, so the same three places are read from its files.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cache_tools.errors import ModelError
from pipeline.teachers.loading import stated_configuration

SETTINGS = "generation_config.json"


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
