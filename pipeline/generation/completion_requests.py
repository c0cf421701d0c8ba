"""How a completion is asked for, and where it stands in an answer: one entry for each kind of server.

Every kind gets token ids and must return the ids that it drew. Each request states all that decides a draw, with the
values that change nothing where the generation file is silent: servers fill in a model's own ``generation_config.json``
otherwise. Nothing is judged here but the form; ``completion_checks.py`` compares what came back with what was asked.

- ``completions``: vLLM's ``/v1/completions`` with ``return_token_ids``. ``ignore_eos`` and ``stop_token_ids`` together
  make it stop at the tokens of the request and at no other.
- ``sglang``: SGLang's ``/generate``. Its ``ignore_eos`` would ignore the stop tokens as well, so it is not sent, and
  ``no_stop_trim`` keeps the stop token in the answer.

The seed of a request is a hash of (seed, id of the prompt, number of the sample), below 2^53 so that every JSON reader
keeps it whole. Ids that have no token get the lowest bias that servers take: the logits of many models are wider than
their vocabulary, and transformers never draws these here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cache_tools.format.manifest import Sampling
from cache_tools.mappings import JsonObject
from pipeline.engines.server_requests import (
    SGLANG,
    VLLM,
    Answer,
    ServerKind,
    first_of,
    listed,
    mapping,
    sglang_rows,
    token_id,
    tokens_read,
)
from pipeline.generation.drawing import draw_key

SEED_BITS = 53
"""A JSON number of so many bits is exact for every reader."""

LOWEST_BIAS = -100.0
"""The lowest bias of a logit that the interface of completions has."""


@dataclass(frozen=True)
class CompletionQuestion:
    """What is asked.

    Attributes:
        name: Id of the prompt, for errors.
        model: The model's name at the server.
        ids: The prompt.
        seed: Seed of the draws of this completion.
        sampling: How tokens are drawn, and at which they stop.
        without_token: Ids that have no token.
        likeliest: How many of the likeliest tokens are asked for, with their log-probabilities, beside each drawn one.
    """

    name: str
    model: str
    ids: list[int]
    seed: int
    sampling: Sampling
    without_token: tuple[int, ...] = ()
    likeliest: int = 0


@dataclass(frozen=True)
class Completion:
    """A checked completion.

    Attributes:
        ids: The tokens that were drawn, a stop token at the end included.
        rows: For each drawn token, the log-probabilities of the likeliest tokens and of itself, by id; empty if the
            server gave none.
    """

    ids: list[int]
    rows: list[dict[int, float]]


@dataclass(frozen=True)
class CompletionAnswer:
    """A server's answer, before it is checked.

    Attributes:
        prompt: What it states of the model and of the prompt that it read.
        completions: How many completions it holds.
        ids: The ids that were drawn; None if the answer does not state them.
        reason: Why it ended: ``stop``, ``length`` or something else.
        stated_tokens: How many tokens the server says it drew; None if it does not.
        rows: As in :class:`Completion`, not yet compared with the drawn tokens.
    """

    prompt: Answer
    completions: int
    ids: list[Any] | None
    reason: object
    stated_tokens: object
    rows: list[dict[int, float]]


@dataclass(frozen=True)
class CompletionInterface:
    """A kind of request.

    Attributes:
        kind: The servers that understand it.
        path: Where it goes.
        body: Makes the request.
        answer: Reads the answer.
    """

    kind: ServerKind
    path: str
    body: Callable[[CompletionQuestion], JsonObject]
    answer: Callable[[JsonObject], CompletionAnswer]


def request_seed(seed: int, prompt: str, sample: int) -> int:
    """Return the seed of a completion, from 0 to below 2^53: it depends on nothing else."""
    return draw_key(seed, prompt, sample) % (1 << SEED_BITS)


def _settings(question: CompletionQuestion) -> JsonObject:
    """Return what both kinds name alike."""
    sampling = question.sampling
    bias = {"logit_bias": {str(token): LOWEST_BIAS for token in question.without_token}}
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(sampling.stop_ids),
        "skip_special_tokens": False,
    } | (bias if question.without_token else {})


def _completions_body(question: CompletionQuestion) -> JsonObject:
    return (
        _settings(question)
        | {
            "model": question.model,
            "prompt": question.ids,
            "max_tokens": question.sampling.max_new_tokens,
            "top_k": question.sampling.top_k,
            "seed": question.seed,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        | ({"logprobs": question.likeliest, "return_tokens_as_token_ids": True} if question.likeliest else {})
    )


def _completions_answer(content: JsonObject) -> CompletionAnswer:
    choices, usage = listed(content.get("choices")), mapping(content.get("usage"))
    choice = first_of(choices)
    ids = choice.get("token_ids")
    read = listed(choice.get("prompt_token_ids")) or None
    prompt = Answer(content.get("model"), read, tokens_read(usage), [])
    drawn = ids if isinstance(ids, list) else None
    rows = [_row(mapping(row).items()) for row in listed(mapping(choice.get("logprobs")).get("top_logprobs"))]
    stated = usage.get("completion_tokens")
    return CompletionAnswer(prompt, len(choices), drawn, choice.get("finish_reason"), stated, rows)


def _sglang_body(question: CompletionQuestion) -> JsonObject:
    settings = _settings(question) | {
        "max_new_tokens": question.sampling.max_new_tokens,
        "top_k": question.sampling.top_k or -1,
        "sampling_seed": question.seed,
        "no_stop_trim": True,
    }
    asked = {"return_logprob": True, "top_logprobs_num": question.likeliest, "return_text_in_logprobs": False}
    return {"input_ids": question.ids, "sampling_params": settings} | (asked if question.likeliest else {})


def _sglang_answer(content: JsonObject) -> CompletionAnswer:
    facts, ids = mapping(content.get("meta_info")), content.get("output_ids")
    prompt = Answer(None, None, facts.get("prompt_tokens"), [])
    drawn = ids if isinstance(ids, list) else None
    reason = mapping(facts.get("finish_reason")).get("type")
    own, top = (sglang_rows(facts.get(key)) for key in ("output_token_logprobs", "output_top_logprobs"))
    rows = [_row([*(likeliest or []), *(drawn_one or [])]) for likeliest, drawn_one in zip(top, own, strict=False)]
    return CompletionAnswer(prompt, 1, drawn, reason, facts.get("completion_tokens"), rows)


def _row(entries: Iterable[tuple[Any, Any]]) -> dict[int, float]:
    """Return log-probabilities by id; of an answer that states something else, none."""
    row = {}
    for name, value in entries:
        token = token_id(name)
        if type(token) is not int or type(value) not in (int, float) or not value <= 0:
            return {}
        row[token] = float(value)
    return row


COMPLETION_INTERFACES = {
    "completions": CompletionInterface(VLLM, "/v1/completions", _completions_body, _completions_answer),
    "sglang": CompletionInterface(SGLANG, "/generate", _sglang_body, _sglang_answer),
}
"""Every kind of request by its name in a generation file."""
