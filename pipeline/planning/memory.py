"""How much memory a capture needs, from the capture file and the model's configuration alone.

The model is built on torch's ``meta`` device, where parameters have shapes and no storage, so the
weights are counted and not estimated. What a batch needs is a formula for decoder and encoder layers as
transformers writes them (below); ``python -m benchmarks.memory`` compares it with measured peaks.
An engine reserves memory by options of its own (``engines/reservation.py``); beside it this program holds the output
matrix and its logits. Not counted: Python, torch and the tokenizer (about half a gigabyte), what an allocator holds
back, and the driver's context on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.models.quantised import DEQUANTISED_ON_CPU, ORDINARY, quantised_weights
from cache_tools.models.tensors import tensor_entries
from pipeline.capture.host_memory import (
    SHARDS_IN_MEMORY,
    ModelShape,
    kept_bytes_per_position,
    writing_bytes_per_position,
)
from pipeline.capture.predict import HEAD_CHUNK_BYTES
from pipeline.capture.target import ResolvedTeacher
from pipeline.config.encoding import EncodingConfig
from pipeline.config.engines import VllmConfig
from pipeline.config.targets import HiddenConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.engines.reservation import machine_bytes, reservation
from pipeline.teachers.body_and_head import vocabulary_of
from pipeline.teachers.loading import chosen_device
from pipeline.teachers.tensor_plan import weight_bytes

BATCHES_IN_MEMORY = 2
"""One is being computed while the one before is put into its shard."""

SERVER = "server"
"""Kind of device of a teacher that computes on another machine."""

BASIS_BYTES = 24
"""Bytes for each of width² numbers of a basis: it and its inverse (8), which is made in float64 (16)."""


@dataclass(frozen=True)
class EngineMemory:
    """What an engine's process takes, and what stands beside it.

    Attributes:
        set_by: The option or variable that decides how much it reserves, with its value.
        devices: Devices that it uses.
        needed_bytes: What each must hold at least: weights, one batch, and a cache of fixed size.
        reserved_bytes: What it reserves on each; None if that is a share of a memory of unknown size.
        output_matrix_bytes: The output matrix, which this program holds beside it.
    """

    set_by: str
    devices: int
    needed_bytes: int
    reserved_bytes: int | None
    output_matrix_bytes: int


WeightsAre = Literal["ordinary", "quantised", "dequantised", "unknown"]


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that one worker needs at its peak.

    Attributes:
        device: Kind of device, such as ``cuda`` or ``cpu``; ``server`` where another machine computes.
        engine: What an engine takes, whose process then holds weights and body; None for transformers.
        weights_bytes: Weights on the device.
        weights_are: How these are held: ``ordinary``; ``quantised``, counted from the headers of the weight files;
            ``dequantised`` when they are loaded; or ``unknown`` for quantised weights whose files are not here, which
            are then planned as if dequantised, an upper bound.
        body_bytes: One batch in the body, on the device.
        head_bytes: One batch in the head, on the device; body and head follow each other.
        kept_bytes: Predictions of shards, on the host.
        writing_bytes: Encoding and writing one of these shards, on the host.
        batch_bytes: Batches that are put into a shard, on the host.
        device_bytes: All that is on the device.
        host_bytes: All that is on the host; on a CPU that includes ``device_bytes``.
        device_total_bytes: Memory of a GPU that is here or was described; None otherwise.
    """

    device: str
    engine: EngineMemory | None
    weights_bytes: int
    weights_are: WeightsAre
    body_bytes: int
    head_bytes: int
    kept_bytes: int
    writing_bytes: int
    batch_bytes: int
    device_bytes: int
    host_bytes: int
    device_total_bytes: int | None


def plan_memory(
    teacher: ResolvedTeacher, model: PreTrainedModel, encoding: EncodingConfig, device_memory_bytes: int | None = None
) -> MemoryPlan:
    """Return the bytes that one worker needs at its peak; with tensor parallelism, the first process of one.

    Tensor parallelism divides the weights that are split by the number of processes. What a batch needs is then an
    upper bound: the larger half of a layer's activations is split too, but not counted so.

    On a GPU the host holds the weights once too, while they are loaded; on a CPU, host and device are the same memory.
    A GGUF file is planned with dequantised weights, another quantised checkpoint with those that will be in memory.

    Args:
        teacher: The planned teacher.
        model: The same teacher, with or without weights.
        encoding: How long sequences and shards are.
        device_memory_bytes: Memory of a GPU that is not here, to plan for that GPU.
    """
    config = teacher.config
    device = torch.device("cuda") if device_memory_bytes else chosen_device(config.device)
    chunk_bytes = HEAD_CHUNK_BYTES.get(device.type, HEAD_CHUNK_BYTES["cuda"])
    tokens = max(config.batch_tokens, encoding.max_length_tokens)  # a longer sequence is a batch of its own
    weights, weights_are = held_weights(teacher, model, device.type)
    body = body_bytes(model, tokens, encoding.max_length_tokens, config.hidden.layers)
    head = head_bytes(model, tokens, chunk_bytes)
    shape = ModelShape.of(model)
    per_position = kept_bytes_per_position(teacher, shape)
    kept = SHARDS_IN_MEMORY * encoding.shard_positions * per_position
    batches = BATCHES_IN_MEMORY * tokens * per_position
    writing = encoding.shard_positions * writing_bytes_per_position(teacher, shape)
    writing += basis_bytes(config.hidden, model)
    total = device_memory_bytes or _gpu_bytes(device)
    engine = engine_memory(config, model, device.type == "cpu", total, weights, body)
    on_device, host = weights + max(body, head), kept + batches + writing
    if engine is not None:
        on_device = engine_bytes(engine, device.type == "cpu") + engine.output_matrix_bytes + head
    loading = weights + (dequantising_bytes(model) if weights_are == "dequantised" else 0)
    return MemoryPlan(
        device=device.type,
        engine=engine,
        weights_bytes=weights,
        weights_are=weights_are,
        body_bytes=body,
        head_bytes=head,
        kept_bytes=kept,
        writing_bytes=writing,
        batch_bytes=batches,
        device_bytes=on_device,
        host_bytes=max(loading, on_device + host if device.type == "cpu" else host),
        device_total_bytes=total,
    )


def plan_server_memory(teacher: ResolvedTeacher, shape: ModelShape, encoding: EncodingConfig) -> MemoryPlan:
    """Return the bytes that a worker needs whose teacher is a server: rows of shards, and nothing of a model."""
    kept = SHARDS_IN_MEMORY * encoding.shard_positions * kept_bytes_per_position(teacher, shape)
    writing = encoding.shard_positions * writing_bytes_per_position(teacher, shape)
    return MemoryPlan(SERVER, None, 0, "ordinary", 0, 0, kept, writing, 0, 0, kept + writing, None)


def engine_memory(
    config: TeacherConfig,
    model: PreTrainedModel,
    on_cpu: bool,
    device_total_bytes: int | None,
    weights_bytes: int,
    step_bytes: int,
) -> EngineMemory | None:
    """Return what a teacher's engine takes; None without an engine."""
    if not isinstance(config.engine, VllmConfig):
        return None
    total = machine_bytes() if on_cpu else device_total_bytes
    reserved = reservation(config.engine, on_cpu, total, weights_bytes, step_bytes)
    matrix = model.get_output_embeddings().weight
    return EngineMemory(
        reserved.set_by, reserved.devices, reserved.needed_bytes, reserved.reserved_bytes, int(matrix.nbytes)
    )


def engine_bytes(engine: EngineMemory, on_cpu: bool) -> int:
    """Return what an engine takes of one device's memory; all of its processes share that of a CPU."""
    taken = engine.needed_bytes if engine.reserved_bytes is None else engine.reserved_bytes
    return taken * (engine.devices if on_cpu else 1)


def held_weights(teacher: ResolvedTeacher, model: PreTrainedModel, device: str) -> tuple[int, WeightsAre]:
    """Return the bytes of a teacher's weights in memory, and how they are held.

    Quantised weights stay as they are stored, with their scales. What is not quantised, such as norms and embeddings,
    takes the type that the teacher computes in. With tensor parallelism the share of a process is that of ordinary
    weights.

    Args:
        teacher: The teacher.
        model: The same teacher with ordinary weights, which need no storage.
        device: Kind of device that it runs on.
    """
    ordinary = weight_bytes(model, teacher.config.tensor_parallel)
    if teacher.config.gguf_file is not None:
        return ordinary, "dequantised"
    stored = quantised_weights(teacher.folder)
    if stored is None:
        return ordinary, "ordinary"
    if stored.dequantised or (device == "cpu" and stored.method in DEQUANTISED_ON_CPU):
        return ordinary, "dequantised"
    entries = tensor_entries(teacher.folder)
    if not entries:
        return ordinary, "unknown"
    itemsize, own = model.dtype.itemsize, dict(model.named_parameters())
    held = sum(
        own[name].numel() * itemsize if name in own and entry.dtype in ORDINARY else entry.bytes
        for name, entry in entries.items()
    )
    return -(-held * ordinary // weight_bytes(model)), "quantised"


def dequantising_bytes(model: PreTrainedModel) -> int:
    """Return what dequantising takes beside the weights: one tensor at a time in float32."""
    return 4 * max(parameter.numel() for parameter in model.parameters())


def _gpu_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU that is here; None of anything else."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


def body_bytes(model: PreTrainedModel, tokens: int, length_tokens: int, layers: Sequence[int | str]) -> int:
    """Return the activations of one batch in its largest layer, without gradients.

    Of T tokens in sequences of length L, width D, inner width I, H query and G key heads of width d, there live at
    once the embeddings, the layer's input, the residual and its normed copy, and then the larger of the two blocks::

        T (4 D + max(3 I, (4 H + 2 G) d + L))

    3 I: the gate, the other half, and their product. (4 H + 2 G) d: the queries, keys and values, and three
    intermediate results of rotating the queries; L: the attention mask as numbers. On top come the mask as
    truth values, T L bytes, and the states of every layer, if one of the middle is kept.

    Args:
        model: The teacher.
        tokens: T.
        length_tokens: L.
        layers: Hidden layers that are kept.
    """
    config = model.config.get_text_config()
    width, heads = config.hidden_size, config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or width // heads
    attention = (4 * heads + 2 * key_heads) * head_width + length_tokens
    layer = 4 * width + max(3 * _inner_width(config), attention)
    middle = any(name != "last" for name in layers)
    states = (config.num_hidden_layers + 1) * width if middle else 0
    return int(tokens * ((layer + states) * model.dtype.itemsize + length_tokens))


def head_bytes(model: PreTrainedModel, tokens: int, chunk_bytes: int) -> int:
    """Return what the head needs: logits in three forms (``capture/predict.py``), and a batch's last states twice."""
    vocabulary, width, itemsize = vocabulary_of(model), model.config.get_text_config().hidden_size, model.dtype.itemsize
    given, looked_at = (min(tokens, max(1, chunk_bytes // (size * vocabulary))) for size in (itemsize, 4))
    converted = looked_at if itemsize < 4 else 0
    logits = vocabulary * (given * itemsize + 4 * converted + 4 * -(-looked_at // 2))
    return int(logits + 2 * tokens * width * itemsize)  # all and kept


def basis_bytes(hidden: HiddenConfig, model: PreTrainedModel) -> int:
    """Return the bytes of the bases of quantised hidden states."""
    layers = len(hidden.layers) if HIDDEN_CODECS[hidden.stored_codec].has_transform else 0
    return int(layers * BASIS_BYTES * model.config.get_text_config().hidden_size ** 2)


def _inner_width(config: PreTrainedConfig) -> int:
    """Return I; a mixture's is that of the experts that one token visits."""
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    expert, visited = getattr(config, "moe_intermediate_size", None), getattr(config, "num_experts_per_tok", None)
    return int(max(dense, (expert or dense) * (visited or 1)))
