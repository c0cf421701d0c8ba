"""Students and live teachers of ``benchmarks.step``: Llamas of random weights, or model folders."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

ONLINE = {f"online KD, teacher {times}x": times for times in (1, 4, 10)}
"""Rows with a live teacher: its parameters by the student's."""
LIVE = "online KD, --teacher"


@dataclass(frozen=True)
class Sizes:
    """What a step works on; counts, and ``length`` in tokens.

    Attributes:
        student: Model folder, whose sizes count instead of ``hidden`` and ``layers``.
        teacher: Model folder of the live teacher; its vocabulary is the student's.
        bfloat16: Whether the student computes under autocast, and the live teacher in bfloat16.
        compiled: Whether the models are compiled.
    """

    vocabulary: int = 32_000
    hidden: int = 256
    layers: int = 4
    batch: int = 2
    length: int = 256
    k: int = 64
    student: str | None = None
    teacher: str | None = None
    bfloat16: bool = False
    compiled: bool = False


def made_student(sizes: Sizes, device: str) -> PreTrainedModel:
    """Return the student in float32, for training."""
    if sizes.student is None:
        model = llama(sizes, sizes.hidden, sizes.layers)
    else:
        model = AutoModelForCausalLM.from_pretrained(sizes.student, dtype=torch.float32, use_safetensors=True)
    student: PreTrainedModel = nn.Module.to(model, device).train()
    return student


def made_teacher(name: str, sizes: Sizes, device: str) -> PreTrainedModel:
    """Return the live teacher of a row."""
    dtype = torch.bfloat16 if sizes.bfloat16 else torch.float32
    if sizes.teacher is not None:
        model = AutoModelForCausalLM.from_pretrained(sizes.teacher, dtype=dtype, use_safetensors=True)
    else:
        layers = sizes.layers if ONLINE[name] == 1 else 2 * sizes.layers
        model = llama(sizes, teacher_width(sizes, ONLINE[name], layers), layers).to(dtype)  # type: ignore[arg-type]
    teacher: PreTrainedModel = nn.Module.to(model, device).eval()
    return teacher


def llama(sizes: Sizes, hidden: int, layers: int) -> PreTrainedModel:
    """Make a Llama with random weights and heads of 64 channels."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=sizes.length,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def teacher_width(sizes: Sizes, times: float, layers: int) -> int:
    """Return the width of a Llama with ``times`` the student's parameters, in steps of 64."""

    def parameters(hidden: int, layers: int) -> int:
        return 2 * sizes.vocabulary * hidden + layers * 13 * hidden**2

    teacher_parameters = times * parameters(sizes.hidden, sizes.layers)
    return min(range(64, 16_384, 64), key=lambda hidden: abs(parameters(hidden, layers) - teacher_parameters))
