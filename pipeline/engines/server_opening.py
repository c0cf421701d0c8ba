"""Open a server as a teacher: ask who it is, and state what is known of its predictions.

Nobody can hash the weights of a server. Its identity is its name for the model, the kind of request and its version,
so a capture does not continue with another model name or another version; that the same name means the same weights is
the word of whoever runs it. ``logitcask audit`` compares the rows with those of a checkpoint that you have.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.mappings import JsonObject
from pipeline.config.engines import ServerAddress, ServerConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.engines.server_client import ServerClient
from pipeline.engines.server_requests import INTERFACES, ServerKind
from pipeline.engines.server_rows import ServerFacts, ServerRows
from pipeline.teachers.loading import stated_architecture, stated_vocabulary
from pipeline.teachers.teacher import ComputedWeights, ModelDescription, RowTeacher

UNKNOWN = "unknown"
"""What is written where a server does not say."""

GENERATED_TOKENS = 1
"""Tokens that are generated behind each prompt, for which the server needs room."""


@dataclass(frozen=True)
class Connection:
    """A server that answers and serves the model.

    Attributes:
        client: The server.
        facts: What is known of it.
        longest_tokens: Most tokens that it reads and writes in one request; None if it does not say.
    """

    client: ServerClient
    facts: ServerFacts
    longest_tokens: int | None


def connect(address: ServerAddress, model: str, request: str, kind: ServerKind) -> Connection:
    """Ask a server who it is.

    Args:
        address: The server.
        model: The model, as the file names it.
        request: How it will be asked, by its name in the file.
        kind: The servers that understand such requests.

    Raises:
        ConfigError: the variable of the key is not set.
        IdentityError: the server does not serve this model.
        ModelError: it does not answer.
    """
    client = ServerClient(address.url, _key(address), address.timeout_seconds)
    served = model if address.served_model is None else address.served_model
    longest = _longest(client, served)
    return Connection(client, ServerFacts(kind.name, _version(client, kind), served, request), longest)


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
    server = connect(engine, config.model, engine.request, INTERFACES[engine.request].kind)
    _require_room(server.longest_tokens, max_length_tokens)
    dtype = None if config.dtype == "auto" else config.dtype
    vocabulary_size = stated_vocabulary(folder, config.trust_remote_code)
    rows = ServerRows(server.client, server.facts, vocabulary_size, engine.requests_in_flight)
    description = ModelDescription(
        config.model,
        config.revision,
        stated_architecture(folder) or UNKNOWN,
        dtype or UNKNOWN,
        None,
        engine=rows.software,
    )
    return RowTeacher(rows, vocabulary_size, ComputedWeights(None, dtype, engine=server.facts.identity()), description)


def _key(address: ServerAddress) -> str | None:
    if address.key_variable is None:
        return None
    key = os.environ.get(address.key_variable)
    if not key:
        raise ConfigError(
            "the server's key is not there",
            where="engine.key_variable",
            expected=f"the key in the environment variable {address.key_variable}",
            found="nothing",
        )
    return key


def _longest(client: ServerClient, model: str) -> int | None:
    """Compare the model's name with what the server lists, and return its limit; some servers list nothing."""
    listing = client.get("/v1/models")
    entries = listing.get("data") if listing else None
    models = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not models:
        return None
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
    return longest if isinstance(longest, int) else None


def _require_room(longest: int | None, max_length_tokens: int) -> None:
    if longest is not None and max_length_tokens + GENERATED_TOKENS > longest:
        raise ModelError(
            "sequences are longer than the server reads",
            where="encoding.max_length_tokens",
            expected=f"at most {longest - GENERATED_TOKENS}, for a server of {longest} with one generated token",
            found=max_length_tokens,
            fix="Raise the server's limit (vLLM: --max-model-len), or shorten the sequences",
        )


def _version(client: ServerClient, kind: ServerKind) -> str:
    stated: JsonObject = client.get(kind.version_path) or {}
    version = stated.get("version")
    return version if isinstance(version, str) and version else UNKNOWN
