"""``training.neftune_noise_alpha``: noise on the embeddings of a student in training (NEFTune, arXiv 2310.05914).

transformers looks for the embeddings in the module that it trains. Here that is a wrapper, which must not name them:
accelerate would then shard them apart from a head that is the same matrix. So the hook is set on the student itself.
It acts in training mode alone, is no part of what is saved, and draws from torch's generator, whose state checkpoints
hold: a continued run draws what it would have drawn.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.integrations.neftune import activate_neftune, deactivate_neftune


@contextmanager
def noisy_embeddings(student: PreTrainedModel, alpha: float | None) -> Iterator[None]:
    """Add noise inside the block; none if ``alpha`` is None."""
    if alpha is None:
        yield
        return
    hook = activate_neftune(student, alpha)
    try:
        yield
    finally:
        deactivate_neftune(student, hook)
