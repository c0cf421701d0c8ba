"""Open whoever writes: a model that is loaded here, or a server that already runs it.

What can be refused cheaply is refused first: the folder, the tokenizer, the server's name and limits. Prompts are read
between the two steps, because they need the tokenizer and the limits, and loading a model may take minutes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from cache_tools.format.manifest import Policy
from cache_tools.models.files import weight_files
from pipeline.config.generation import GenerateConfig
from pipeline.encoding.pieces import known_ids
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.engines.server_opening import Connection, connect
from pipeline.generation.completing import CompletesPrompts, Writer
from pipeline.generation.completion_requests import COMPLETION_INTERFACES
from pipeline.generation.identity import policy_of, sampling_of, served_policy, stated_stop_tokens, stop_tokens
from pipeline.generation.server_writer import ServerWriter
from pipeline.teachers.checkpoint import check_tensors
from pipeline.teachers.loading import (
    chosen_device,
    load_teacher,
    max_positions,
    resolve_model,
    stated_vocabulary,
)


@dataclass(frozen=True)
class PreparedModel:
    """A model that will write, before it is loaded.

    Attributes:
        folder: Its folder.
        tokenizer: Its tokenizer.
        longest_tokens: Most tokens of a prompt and its completion; None if nothing says.
        server: The server that runs it; None if it will be loaded here.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    longest_tokens: int | None
    server: Connection | None


def prepare_model(config: GenerateConfig) -> PreparedModel:
    """Find the model that will write, or ask its server who it is.

    Raises:
        ConfigError: the variable of a server's key is not set.
        IdentityError: a server does not serve this model.
        ModelError: the model cannot be found or read, or a server does not answer.
    """
    policy, model = config.policy, config.policy.as_teacher()
    chosen_device(model.device)
    needs_weights = policy.engine is None or policy.engine.same_weights
    folder = resolve_model(model, weights=needs_weights)
    if needs_weights:
        weight_files(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
    if policy.engine is None:
        check_tensors(model, folder, "causal")
        return PreparedModel(folder, tokenizer, max_positions(folder, model.trust_remote_code), None)
    kind = COMPLETION_INTERFACES[policy.engine.request].kind
    server = connect(policy.engine, policy.model, policy.engine.request, kind)
    return PreparedModel(folder, tokenizer, server.longest_tokens, server)


def open_writer(config: GenerateConfig, prepared: PreparedModel) -> tuple[CompletesPrompts, Policy]:
    """Load the model, or take its server; return what completes prompts, and who that is.

    Raises:
        ModelError: the model cannot be loaded, or is no teacher or student that can be identified.
    """
    folder, tokenizer = prepared.folder, prepared.tokenizer
    if prepared.server is not None:
        return _server_writer(config, prepared, prepared.server)
    teacher = load_teacher(config.policy.as_teacher(), folder, "causal")
    model = teacher.head.model
    sampling = sampling_of(config.sampling, stop_tokens(folder, model, tokenizer))
    policy = policy_of(teacher, folder, tokenizer, sampling)
    return Writer.of(model, teacher.device, sampling, tokenizer, config.batch_prompts), policy


def _server_writer(
    config: GenerateConfig, prepared: PreparedModel, server: Connection
) -> tuple[CompletesPrompts, Policy]:
    folder, tokenizer, engine = prepared.folder, prepared.tokenizer, config.policy.engine
    assert engine is not None
    sampling = sampling_of(config.sampling, stated_stop_tokens(folder, tokenizer))
    policy = served_policy(config.policy, server.facts, folder, tokenizer, sampling)
    vocabulary_size = stated_vocabulary(folder, config.policy.trust_remote_code)
    without_token = ids_without_token(tokenizer, vocabulary_size)
    return (
        ServerWriter(server.client, server.facts, sampling, vocabulary_size, without_token, engine.requests_in_flight),
        policy,
    )


def ids_without_token(tokenizer: PreTrainedTokenizerFast, vocabulary_size: int) -> tuple[int, ...]:
    """Return the ids below a vocabulary's size that mean no token."""
    has_token = known_ids(tokenizer)[:vocabulary_size]
    return (*np.flatnonzero(~has_token).tolist(), *range(len(has_token), vocabulary_size))
