"""Complete prompts in batches, by transformers' ``generate`` with its key-value cache.

Of a model's own generation settings (``generation_config.json``) only the tokens at which it stops are used.
Temperatures and penalties that its author recommends would make the text a sample of another distribution than the one
that a capture stores; whoever wants a temperature states it.

Whoever completes prompts is a ``CompletesPrompts``. This module holds the writer that runs in this process.

Prompts of a batch are padded on the left. That a model reads past the padding is checked on the first batch: one prompt
is read alone and beside the longest, and the two predictions are compared with the bounds of
``cache_tools/models/probe.py``.
"""

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Sampling
from cache_tools.models.probe import Probe, differences, step_of
from pipeline.encoding.pieces import known_ids
from pipeline.generation.drawing import draw_key, processors
from pipeline.generation.prompts import Prompt

# B: completions of a batch, L: tokens of the longest prompt, V: vocabulary


@dataclass(frozen=True)
class Request:
    """One completion that is to be written.

    Attributes:
        prompt: The prompt.
        sample: Number of the sample, from 0.
    """

    prompt: Prompt
    sample: int


class CompletesPrompts(Protocol):
    """Whoever completes prompts: a model in this process, or a server (``server_writer.py``)."""

    @property
    def batch_completions(self) -> int | None:
        """Completions that are written together, of prompts of similar lengths; None for a whole part."""

    def check(self, requests: Several[Request]) -> None:
        """Refuse a writer whose completions would depend on anything but their prompts and the sampling.

        Args:
            requests: The first ones.

        Raises:
            ModelError: they would.
        """

    def complete(self, requests: Several[Request], progress: Callable[[int, int], object]) -> list[list[int]]:
        """Return the tokens that continue each prompt, a stop token at the end included.

        Args:
            requests: A batch.
            progress: Called with the number of completions that ended, and of tokens that were drawn, since the last
                call.
        """


@dataclass(frozen=True)
class Writer:
    """A model in this process that completes prompts; see ``CompletesPrompts`` for its methods.

    Attributes:
        model: The loaded model.
        device: Where its inputs go.
        sampling: How tokens are drawn.
        has_token: (n,) bool for each id up to the highest that has a token.
        batch_completions: Completions that are written together.
    """

    model: PreTrainedModel
    device: torch.device
    sampling: Sampling
    has_token: NDArray[np.bool_]
    batch_completions: int

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        device: torch.device,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerFast,
        batch_completions: int,
    ) -> "Writer":
        """Take the model's own generation settings away from it, and return a writer."""
        model.generation_config = GenerationConfig()
        return cls(model, device, sampling, known_ids(tokenizer), batch_completions)

    @torch.inference_mode()
    def complete(self, requests: Several[Request], progress: Callable[[int, int], object]) -> list[list[int]]:
        """Return the tokens that continue each prompt, a stop token at the end included."""
        ids_BL, mask_BL = _padded([request.prompt.ids for request in requests])
        sampling, width = self.sampling, ids_BL.shape[1]
        keys_B = torch.tensor([draw_key(sampling.seed, request.prompt.id, request.sample) for request in requests])
        output_BN = self._generate(
            ids_BL,
            mask_BL,
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=processors(sampling, self.has_token, keys_B, width),
            stopping_criteria=StoppingCriteriaList(
                [CountedTokens(sampling.stop_ids, lambda tokens: progress(0, tokens))]
            ),
        )
        progress(len(requests), 0)
        return [_until_stop(row[width:], sampling.stop_ids) for row in output_BN.tolist()]

    def check(self, requests: Several[Request]) -> None:
        """Refuse a model whose prediction changes with the padding before a prompt."""
        rows = [request.prompt.ids for request in requests[: self.batch_completions]]
        shortest, longest = min(rows, key=len), max(rows, key=len)
        if len(shortest) == len(longest):
            return
        together, alone = self._first_logits([longest, shortest])[1], self._first_logits([shortest])[0]
        dtype = str(self.model.dtype).removeprefix("torch.")
        step = step_of(dtype, self.device.type, torch.get_float32_matmul_precision())
        limit = Probe(rows, causal=True, batched=True, step=step).reshaped
        difference = float(differences(together, alone))
        if not difference <= limit:
            raise ModelError(
                "the padding before a prompt changes what this model writes",
                where=type(self.model).__name__,
                expected=f"a relative difference of at most {limit:.1g}",
                found=f"{difference:.2g}",
                why="a completion would depend on which prompts share a batch",
                fix="Set batch_prompts: 1",
            )

    @torch.inference_mode()
    def _first_logits(self, rows: Several[NDArray[np.uint32]]) -> NDArray[np.float32]:
        """Return what is predicted after each prompt: (B, V)."""
        output: Any = self._generate(*_padded(rows), max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        logits: NDArray[np.float32] = output.logits[0].float().cpu().numpy()
        return logits

    def _generate(
        self,
        ids_BL: Tensor,
        mask_BL: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **settings: Any,
    ) -> Any:
        stop_ids = list(self.sampling.stop_ids)
        config = GenerationConfig(
            do_sample=False,
            use_cache=True,
            eos_token_id=stop_ids or None,
            pad_token_id=stop_ids[0] if stop_ids else 0,  # behind the end of a completion, and cut off again
            **settings,
        )
        generate: Any = self.model.generate
        return generate(
            input_ids=ids_BL.to(self.device),
            attention_mask=mask_BL.to(self.device),
            generation_config=config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
        )


class CountedTokens(StoppingCriteria):
    """Stops nothing, and reports how many tokens each step has drawn, for a progress that moves within a batch.

    Args:
        stop_ids: A completion that has drawn one of these draws no more.
        progress: Called with the number of tokens.
    """

    def __init__(self, stop_ids: tuple[int, ...], progress: Callable[[int], object]) -> None:
        self._stop_ids, self._progress = torch.tensor(stop_ids, dtype=torch.int64), progress
        self._open_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return that no completion has to end: (B,) bool."""
        last_B = input_ids[:, -1].cpu()
        open_B = torch.ones(len(last_B), dtype=torch.bool) if self._open_B is None else self._open_B
        self._progress(int(open_B.sum()))
        self._open_B = open_B & ~torch.isin(last_B, self._stop_ids)
        return torch.zeros(len(last_B), dtype=torch.bool, device=input_ids.device)


def _padded(rows: Several[NDArray[np.uint32]]) -> tuple[Tensor, Tensor]:
    """Return prompts padded on the left, and their attention mask: (B, L) int64 each."""
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _until_stop(tokens: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """Return tokens up to the first stop token, that one included."""
    end = next((place + 1 for place, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]
