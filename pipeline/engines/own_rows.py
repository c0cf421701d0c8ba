"""An engine's own log-probabilities of a few tokens, with which its states and the head here are compared.

States that come from the right layer of the right model can still lead to wrong predictions: a scale, a soft cap or a
bias that the engine applies behind them, or an output matrix that it replaces. Only the engine's own predictions show
that. An engine that hands over states has no head (vLLM drops it), so a second process is started for this, with the
same options, asked once and ended before the first one starts, because both reserve the same memory. The model is thus
loaded twice, once in a capture's life: before a teacher is declared. ``engine.compare_log_probs: false`` leaves it out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.comparison.rounding import MOST_NATS
from cache_tools.errors import ModelError
from cache_tools.mappings import JsonObject
from pipeline.engines.process import EngineProcess

FIRST_TOKENS = 128
"""Tokens that are compared at most: the mean over as many rows is steady, and their logits take little memory."""

LIKELIEST = 20
"""Tokens of each row; engines give no more unless they are told to."""

LEAST = 1e-7
"""A rest counts as at least this much, so that rounded sums near 1 are no large error."""

# N: rows, k: tokens of a row, V: vocabulary


@dataclass(frozen=True)
class OwnRows:
    """What an engine itself predicts behind each token of a short text but the last.

    Attributes:
        input_ids: (N + 1,) the text.
        ids: (N, k) its likeliest tokens; -1 where a row has fewer.
        log_probs: (N, k) their log-probabilities.
    """

    input_ids: NDArray[np.int64]
    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]

    def check(self, logits_NV: Tensor, dtype: str, engine: str) -> None:
        """Refuse logits that are not those of the engine.

        Args:
            logits_NV: What its states lead to through the head here, behind the same tokens.
            dtype: Type of its activations; decides how far rounding may move them.
            engine: Its name and version.

        Raises:
            ModelError: the mean KL is larger than that of two engines that round differently.
        """
        kl_nats, most_nats = self.kl_nats(logits_NV), MOST_NATS.get(dtype, MOST_NATS["bfloat16"])
        if kl_nats <= most_nats:
            return
        raise ModelError(
            "the engine's states and this model's output matrix do not give the engine's own log-probabilities",
            where=engine,
            expected=f"a mean KL of at most {most_nats:.1g} nats over the first {len(self.ids)} rows",
            found=f"{kl_nats:.2g} nats",
            why="the cache would hold predictions that the engine does not make",
            fix="Report the model and the engine's version, and capture without 'engine'",
        )

    def kl_nats(self, logits_NV: Tensor) -> float:
        """Return the mean KL from the engine's rows to those of the logits, over its likeliest tokens and the rest."""
        given = torch.from_numpy(self.ids).to(logits_NV.device)
        here = logits_NV.double().log_softmax(dim=1).gather(1, given.clamp(min=0))
        own = torch.from_numpy(self.log_probs).to(here)
        p, q = (torch.where(given >= 0, side.exp(), 0) for side in (own, here))
        sides = [torch.cat([side, (1 - side.sum(dim=1, keepdim=True)).clamp(min=LEAST)], dim=1) for side in (p, q)]
        terms = torch.where(sides[0] > 0, sides[0] * (sides[0].log() - sides[1].log()), 0)
        return float(terms.sum(dim=1).mean())


def ask_own_rows(
    start: Callable[[], EngineProcess], settings: JsonObject, input_ids: NDArray[np.int64]
) -> OwnRows | None:
    """Start an engine with its head, ask it, and end it; return None for a text too short to ask about.

    Args:
        start: Starts a process.
        settings: Its first message, as for states.
        input_ids: The text.

    Raises:
        ModelError: the engine cannot be loaded, or answers with an error.
    """
    ids = input_ids[: min(FIRST_TOKENS, settings["max_length_tokens"] - 1)]  # an engine generates one token more
    if len(ids) < 2:
        return None
    process = start()
    process.ask(settings | {"log_probs": LIKELIEST})
    header, content = process.ask({"lengths": [len(ids)]}, ids.astype(np.int32))
    process.stop()
    rows, kept = header["shape"]
    half = 4 * rows * kept
    return OwnRows(
        ids,
        np.frombuffer(content[:half], "<i4").reshape(rows, kept).astype(np.int64),
        np.frombuffer(content[half:], "<f4").reshape(rows, kept).copy(),
    )
