"""Run a teacher on real rows before its first shard, and refuse a teacher whose predictions depend on the wrong tokens.

``cache_tools/models/probe.py`` defines the probes, and how rounding is told apart from a leak; here the teacher runs as
it will in the capture. Cost: six small batches.
"""

import numpy as np
import torch

from cache_tools.models.probe import Ids, Probe, States, check_model, step_of
from cache_tools.store.reader import Encoding
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.batches import whole
from pipeline.teachers.teacher import Teacher


def check_rows(encoding: Encoding, teacher: Teacher, config: TeacherConfig) -> None:
    """Refuse a teacher whose rows depend on later tokens, on padding, or on other sequences of a batch.

    Padding and batch-mates are not probed where each sequence is read alone (``batch_tokens: 1``), nor where a batch is
    packed into one row, which is checked by itself.

    Raises:
        ModelError: they do.
    """
    objective = encoding.manifest.objective
    probe = Probe(
        rows=[sequence.input_ids for sequence in encoding.sequences(0)],
        causal=objective == "causal",
        batched=config.batch_tokens > 1 and not teacher.packs,
        step=_step(teacher),
    )

    @torch.inference_mode()
    def states_of(input_ids: Ids, attention_mask: Ids) -> States:
        batch = whole(input_ids, attention_mask)
        kept: States = teacher.body.states(batch)[0].float().cpu().numpy()
        states = np.zeros((input_ids.size, kept.shape[1]), np.float32)
        states[batch.kept.numpy()] = kept
        return states.reshape(*input_ids.shape, -1)

    check_model(states_of, probe, f"teacher {config.name!r}", teacher.description.architecture, objective)


def _step(teacher: Teacher) -> float:
    """Return the step of the teacher's activations."""
    return step_of(teacher.body.dtype, teacher.device.type, torch.get_float32_matmul_precision())
