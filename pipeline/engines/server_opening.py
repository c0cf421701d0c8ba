"""Open a server as a teacher: ask who it is, and state what is known of its predictions.

Nobody can hash the weights of a server. Its identity is its name for the model, the kind of request and its version,
so a capture does not continue with another model name or another version; that the same name means the same weights is
the word of whoever runs it. ``logitcask audit`` compares the rows with those of a checkpoint that you have.
"""

import os
from pathlib import Path

from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.mappings import JsonObject
from pipeline.config.engines import ServerConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.engines.server_client import ServerClient
from pipeline.engines.server_requests import INTERFACES
from pipeline.engines.server_rows import ServerFacts, ServerRows
from pipeline.teachers.loading import stated_architecture, stated_vocabulary
from pipeline.teachers.teacher import ComputedWeights, ModelDescription, RowTeacher

UNKNOWN = "unknown"
"""What is written where a server does not say."""

GENERATED_TOKENS = 1
"""Tokens that are generated behind each prompt, for which the server needs room."""


def open_server(config: TeacherConfig, engine: ServerConfig, folder: Path, max_length_tokens: int) -> RowTeacher:
    """Open a server as a teacher.

    Args:
        config: The teacher's block of the capture file.
        engine: Its engine.
        folder: The folder of its tokenizer and configuration.
        max_length_tokens: Length of the longest sequence that it will read.

    Raises:
        ConfigError: the variable of the key is not set.
        IdentityError: the server does not serve this model.
        ModelError: it does not answer, or its prompts are shorter than the sequences.
    """
    client = ServerClient(engine.url, _key(engine), engine.timeout_seconds)
    model = config.model if engine.served_model is None else engine.served_model
    _check_model(client, model, max_length_tokens)
    facts = ServerFacts(INTERFACES[engine.request].name, _version(client, engine), model, engine.request)
    dtype = None if config.dtype == "auto" else config.dtype
    vocabulary_size = stated_vocabulary(folder, config.trust_remote_code)
    rows = ServerRows(client, facts, vocabulary_size, engine.requests_in_flight)
    description = ModelDescription(
        config.model,
        config.revision,
        stated_architecture(folder) or UNKNOWN,
        dtype or UNKNOWN,
        None,
        engine=rows.software,
    )
    return RowTeacher(rows, vocabulary_size, ComputedWeights(None, dtype, engine=facts.identity()), description)


def _key(engine: ServerConfig) -> str | None:
    if engine.key_variable is None:
        return None
    key = os.environ.get(engine.key_variable)
    if not key:
        raise ConfigError(
            "the server's key is not there",
            where="engine.key_variable",
            expected=f"the key in the environment variable {engine.key_variable}",
            found="nothing",
        )
    return key


def _check_model(client: ServerClient, model: str, max_length_tokens: int) -> None:
    """Compare the model's name and the longest prompt with what the server lists; some servers list nothing."""
    listing = client.get("/v1/models")
    entries = listing.get("data") if listing else None
    models = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not models:
        return
    served = {str(entry.get("id")): entry for entry in models}
    if model not in served:
        raise IdentityError(
            "the server does not serve this model",
            where=client.url,
            expected=model,
            found=", ".join(served),
            fix="Name the model in engine.served_model as the server lists it",
        )
    longest = served[model].get("max_model_len")
    if isinstance(longest, int) and max_length_tokens + GENERATED_TOKENS > longest:
        raise ModelError(
            "sequences are longer than the server reads",
            where="encoding.max_length_tokens",
            expected=f"at most {longest - GENERATED_TOKENS}, for a server of {longest} with one generated token",
            found=max_length_tokens,
            fix="Raise the server's limit (vLLM: --max-model-len), or shorten the sequences",
        )


def _version(client: ServerClient, engine: ServerConfig) -> str:
    stated: JsonObject = client.get(INTERFACES[engine.request].version_path) or {}
    version = stated.get("version")
    return version if isinstance(version, str) and version else UNKNOWN
