"""Load a teacher and identify it exactly.

A hub id is resolved to a local snapshot first, so both ways in end at a folder. The
identity is a hash over the weight files and the configuration: two revisions under one
name differ, a copy under another path does not. Only weights in safetensors or a GGUF file are read, since
pickled ones can run code.
"""

import json
from pathlib import Path
from textwrap import shorten

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.mappings import Arguments, JsonObject
from cache_tools.models.files import weight_files, weights_sha256, why_not_found
from cache_tools.torch_models.loading import LOADING_ERRORS, load_configuration
from cache_tools.torch_models.quantised import quantisation_of
from cache_tools.torch_models.segments import read_segments
from pipeline.config.engines import ServerConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.teachers.body_and_head import body_of
from pipeline.teachers.checkpoint import load_teacher_checkpoint
from pipeline.teachers.model_body import ModelBody
from pipeline.teachers.process_group import Order, send, send_inputs
from pipeline.teachers.teacher import ComputedWeights, Head, ModelDescription, Teacher
from pipeline.teachers.tensor_plan import meta_model, split_plan

WEIGHTS = "*.safetensors"
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
"""Names of the files of a model on the hub: its weights, and its configuration and tokenizer."""


def resolve_model(config: TeacherConfig, weights: bool = True) -> Path:
    """Return the local folder or GGUF file of a teacher, downloading a hub id if need be.

    Args:
        config: The teacher's block of the capture file.
        weights: Download those too, and not the configuration and tokenizer alone.

    Raises:
        ModelError: neither a folder nor a hub id that can be reached.
    """
    if config.gguf_file is not None:
        what, contents = f"teacher {config.name!r}", config.gguf_file
        return _local_folder(config.model, config.revision, [config.gguf_file], what, contents) / config.gguf_file
    patterns = [*SMALL_FILES, WEIGHTS] if weights else SMALL_FILES
    folder = _local_folder(
        config.model, config.revision, patterns, f"teacher {config.name!r}", "config.json and safetensors"
    )
    _check_generation_config(config.name, folder)
    return folder


def computes_in_half_precision(config: TeacherConfig, folder: Path) -> bool:
    """Return whether a teacher will compute in bfloat16 or float16, by the capture file or its own configuration.

    A checkpoint does not say in which type a server computes, so of a server only the capture file counts.
    """
    dtype: str = config.dtype
    if dtype == "auto" and not isinstance(config.engine, ServerConfig):
        model = load_configuration(folder, config.trust_remote_code).get_text_config()
        dtype = str(model.dtype).removeprefix("torch.")
    return dtype in ("bfloat16", "float16")


def resolve_tokenizer(name: str) -> Path:
    """Return the local folder of a tokenizer, downloading a hub id if need be.

    transformers' own search for a name that does not exist asks the hub for one file after another, and takes most of
    a minute without a network; this asks once.

    Args:
        name: A folder or a hub id.

    Raises:
        ModelError: neither a folder nor a hub id that can be reached.
    """
    return _local_folder(name, None, SMALL_FILES, "the encoding's tokenizer", "tokenizer.json")


def _local_folder(name: str, revision: str | None, patterns: list[str], what: str, contents: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{what} cannot be found",
            where=name,
            expected=f"a folder with {contents}, or a hub id that can be reached",
            found=why_not_found(error),
            fix="Check the name, the network and, for a gated model, your access token",
        ) from error


def _check_generation_config(teacher: str, folder: Path) -> None:
    """Refuse a generation_config.json that is not JSON: transformers would silently use another one.

    No capture reads it, but a file that is broken is a sign of a copy that is.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        if isinstance(json.loads(path.read_bytes()), dict):
            return
        problem: object = "JSON, but not an object"
    except (OSError, ValueError, RecursionError) as error:
        problem = error
    raise ModelError(
        f"the generation settings of teacher {teacher!r} cannot be read",
        where=path,
        expected="a JSON object",
        found=problem,
        why="the folder may be a damaged copy",
        fix="Copy or download the model again, or delete this file, which no capture needs",
    )


def load_teacher(config: TeacherConfig, folder: Path, objective: Objective, separator: int | None = None) -> Teacher:
    """Load a teacher from its folder.

    Args:
        config: The teacher's block of the capture file.
        folder: Where ``resolve_model`` found it.
        objective: Decides between a causal and a masked language model.
        separator: Id of the token behind which a sequence's second segment begins; None if there are no segments.

    Raises:
        ModelError: it cannot be loaded, its weights are not safetensors, or it knows no second segment.
    """
    weight_files(folder)  # refused before anything is loaded
    device = chosen_device(config.device)
    if config.tensor_parallel > 1:
        send(Order(config.name, objective))
    model = load_model(config, folder, objective)
    read_segments(model, separator)
    if config.tensor_parallel > 1:
        send_inputs(body_of(model))
    elif config.device_map is None:
        torch.nn.Module.to(model, device)
    else:  # placed already, and hooks move what passes between the devices
        device = _main_device(model)
    dtype = str(model.dtype).removeprefix("torch.")
    stored = quantisation_of(folder, model)
    description = ModelDescription(
        config.model, config.revision, type(model).__name__, dtype, model.num_parameters(), stored.words
    )
    packs = objective == "causal" and (
        model.config._attn_implementation.startswith("flash") if config.packing is None else config.packing
    )
    if config.compile:
        body_of(model).compile(dynamic=True)
    computed = ComputedWeights(weights_sha256(folder), dtype, stored.weights)
    return Teacher(ModelBody(model, device, packs), Head(model), computed, description, device, packs)


def load_model(config: TeacherConfig, folder: Path, objective: Objective) -> PreTrainedModel:
    """Load a teacher's weights, or this process' part of them; arguments and errors as for ``load_teacher``."""
    try:
        placement: Arguments = {"device_map": config.device_map}
        if config.tensor_parallel > 1:
            plan = split_plan(meta_model(config, objective, folder), config.tensor_parallel)
            placement = {"distributed_config": DistributedConfig(config.tensor_parallel, plan)}
        model = load_teacher_checkpoint(config, folder, objective, **placement)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"teacher {config.name!r} cannot be loaded", where=folder, found=shorten(str(error), 300)
        ) from error
    model.eval().requires_grad_(False)
    model.config.use_cache = False  # no generation here, and a key-value cache costs memory
    return model


def chosen_device(name: str) -> torch.device:
    """Return a device that this machine has; ``auto`` prefers a GPU."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ModelError(
            "this device cannot be used", where=f"device {name}", found=shorten(str(error), 300)
        ) from error
    return device


def _main_device(model: PreTrainedModel) -> torch.device:
    """Return the first GPU of a model that a device map has placed; the CPU if there is none."""
    places = getattr(model, "hf_device_map", {"": model.device}).values()  # no map if all went to one device
    return torch.device(next((place for place in places if place not in ("cpu", "disk")), "cpu"))


def max_positions(folder: Path, trust_remote_code: bool) -> int | None:
    """Return the longest input that a model's configuration allows, if it says.

    Raises:
        ModelError: there is no configuration that transformers knows.
    """
    try:
        config = load_configuration(folder, trust_remote_code).get_text_config()
    except LOADING_ERRORS as error:
        raise ModelError(
            "no model configuration could be loaded", where=folder, found=shorten(str(error), 300)
        ) from error
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None


def stated_vocabulary(folder: Path, trust_remote_code: bool) -> int:
    """Return how many tokens a model predicts, by its configuration; by its tokenizer if there is none.

    The configuration is read as it is written, so transformers need not know the architecture.
    """
    configuration = stated_configuration(folder)
    for part in (configuration, configuration.get("text_config")):
        size = part.get("vocab_size") if isinstance(part, dict) else None
        if isinstance(size, int) and size > 0:
            return size
    return 1 + max(load_tokenizer(folder, trust_remote_code=trust_remote_code).get_vocab().values())


def stated_architecture(folder: Path) -> str | None:
    """Return the class of a model, by its configuration; None if that does not say."""
    classes = stated_configuration(folder).get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else None


def stated_configuration(folder: Path, name: str = "config.json") -> JsonObject:
    """Return a JSON file of a model, by default its configuration, as it is written; {} if there is none."""
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
