"""Static masks for masked language models.

A cached prediction belongs to the masked input it was made for, so masks are drawn once,
in stage one; several differently masked copies replace new masks in each epoch.
A mask depends on (seed, document, piece, copy) alone: adding documents changes no mask.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.config.encoding import MaskingConfig


def draw_mask(
    input_ids: NDArray[np.uint32],
    maskable: NDArray[np.bool_],
    mask_id: int,
    random_ids: NDArray[np.uint32],
    config: MaskingConfig,
    key: str,
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Choose slots and hide them.

    Args:
        input_ids: (n,) original ids.
        maskable: (n,) true where a slot may be.
        mask_id: Id of the mask token.
        random_ids: Ids that a slot shown as a random token is drawn from.
        config: The ``masking:`` block.
        key: Names the piece and copy.

    Returns:
        (ids that the teacher reads, slots), both (n,). At least one slot if any token is maskable, and
        the probability is not 0.
    """
    digest = hashlib.sha256(f"{config.seed}\0{key}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
    draws = generator.random((3, len(input_ids)))
    slots = maskable & (draws[0] < config.probability)
    if config.probability and not slots.any() and maskable.any():
        slots[np.where(maskable, draws[0], np.inf).argmin()] = True
    shown = input_ids.copy()
    as_mask = slots & (draws[1] < config.mask_share)
    as_random = slots & ~as_mask & (draws[1] < config.mask_share + config.random_share)
    shown[as_mask] = mask_id
    shown[as_random] = random_ids[(draws[2][as_random] * len(random_ids)).astype(np.int64)]
    return shown, slots
