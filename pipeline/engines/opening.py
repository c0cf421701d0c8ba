"""Open a teacher: in this process, as an engine's process and a head, or as a server."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.mappings import JsonObject
from cache_tools.models.files import weight_files, weights_sha256
from cache_tools.torch_models.quantised import quantisation_of
from pipeline.config.engines import ServerConfig, VllmConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.engines.engine_body import SEQUENCES, EngineBody, EngineFacts
from pipeline.engines.output_head import load_output_head
from pipeline.engines.own_rows import ask_own_rows
from pipeline.engines.process import PROTOCOL, EngineProcess
from pipeline.engines.server_opening import open_server
from pipeline.teachers.loading import chosen_device, load_teacher
from pipeline.teachers.teacher import AnyTeacher, ComputedWeights, Head, ModelDescription, Teacher

CHILDREN = {"vllm": Path(__file__).parent / "vllm_child.py"}
"""What the process of each kind of engine runs."""

WITHOUT_EFFECT = ("gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb", "swap_space", "download_dir")
"""Options of engines that change no prediction; all others stand in the teacher's identity."""


def open_teacher(
    config: TeacherConfig,
    folder: Path,
    objective: Objective,
    max_length_tokens: int,
    first_ids: NDArray[np.int64] | None = None,
    separator: int | None = None,
) -> AnyTeacher:
    """Load a teacher from its folder, by its engine if it has one, or open the server that runs it.

    Args:
        config: The teacher's block of the capture file.
        folder: Where ``resolve_model`` found it.
        objective: Decides between a causal and a masked language model.
        max_length_tokens: Length of the longest sequence that it will read.
        first_ids: Tokens of which an engine is asked for its own log-probabilities, for ``check`` to compare; None if
            it need not be.
        separator: Id of the token behind which a sequence's second segment begins; None if there are no segments.

    Raises:
        ConfigError: the engine's Python cannot be started, or a server's key is not there.
        IdentityError: a server does not serve this model.
        ModelError: the model or the engine cannot be loaded, its head cannot be read apart from its body, or a server
            does not answer.
    """
    if config.engine is None:
        return load_teacher(config, folder, objective, separator)
    if isinstance(config.engine, ServerConfig):
        return open_server(config, config.engine, folder, max_length_tokens)
    return _open_vllm(config, config.engine, folder, objective, max_length_tokens, first_ids)


def _open_vllm(
    config: TeacherConfig,
    engine: VllmConfig,
    folder: Path,
    objective: Objective,
    max_length_tokens: int,
    first_ids: NDArray[np.int64] | None,
) -> Teacher:
    weight_files(folder)  # refused before anything is loaded
    device = chosen_device(config.device)
    model = load_output_head(config, folder, objective, device)
    head = Head(model)
    dtype = model.get_output_embeddings().weight.dtype
    named = str(dtype).removeprefix("torch.")
    settings = _settings(config, engine, folder, named, max_length_tokens)
    start = partial(EngineProcess, engine.python, str(CHILDREN[engine.kind]), f"teacher {config.name!r}")
    own_rows = None
    if engine.compare_log_probs and first_ids is not None:
        own_rows = ask_own_rows(start, settings, first_ids)
    process = start()
    facts = _facts(process, settings)
    if facts.width != model.config.get_text_config().hidden_size:
        raise ModelError(
            "the engine's states are of another width than the model's",
            where=folder,
            expected=model.config.get_text_config().hidden_size,
            found=facts.width,
        )
    stored = quantisation_of(folder)
    description = ModelDescription(
        config.model,
        config.revision,
        type(model).__name__,
        named,
        model.num_parameters(),
        stored.words,
        engine=f"{facts.name} {facts.version}",
    )
    computed = ComputedWeights(weights_sha256(folder), named, stored.weights, _identity(config, engine, facts))
    return Teacher(
        EngineBody(process, facts, device, dtype, _step_tokens(config, max_length_tokens), own_rows),
        head,
        computed,
        description,
        device,
    )


def where_it_runs(config: TeacherConfig) -> str:
    """Return what a message says of a teacher's engine; nothing if it has none."""
    if isinstance(config.engine, ServerConfig):
        return f" at {config.engine.url}"
    return "" if config.engine is None else f" in {config.engine.kind}"


def _settings(
    config: TeacherConfig, engine: VllmConfig, folder: Path, dtype: str, max_length_tokens: int
) -> JsonObject:
    """Return the first message to the process."""
    return {
        "protocol": PROTOCOL,
        "model": str(folder.absolute()),
        "dtype": dtype,
        "trust_remote_code": config.trust_remote_code,
        "max_length_tokens": max_length_tokens,
        "batch_tokens": _step_tokens(config, max_length_tokens),
        "sequences": SEQUENCES,
        "options": engine.options,
    }


def _step_tokens(config: TeacherConfig, max_length_tokens: int) -> int:
    """Return how many tokens the engine computes in one step: a batch; a longer sequence is one of its own."""
    return max(config.batch_tokens, max_length_tokens)


def _facts(process: EngineProcess, settings: JsonObject) -> EngineFacts:
    answer, _ = process.ask(settings)
    if answer.get("protocol") != PROTOCOL:
        raise ModelError(
            "the engine's process speaks another protocol", expected=PROTOCOL, found=answer.get("protocol")
        )
    facts: JsonObject = {name: answer[name] for name in EngineFacts.__dataclass_fields__}
    return EngineFacts(**facts)


def _identity(config: TeacherConfig, engine: VllmConfig, facts: EngineFacts) -> JsonObject:
    options = {name: value for name, value in sorted(engine.options.items()) if name not in WITHOUT_EFFECT}
    return facts.identity() | {"batch_tokens": config.batch_tokens} | ({"options": options} if options else {})
