"""How the rows of a prompt are asked for, and where they stand in an answer: one entry for each kind of server.

Every kind gets token ids and must return token ids. Each asks for temperature 1 and for one generated token, because
most servers refuse to generate none. Nothing is judged here but the form: ``row_checks.py`` compares what came back
with what was asked for. A form that cannot be read is an answer with fewer rows.

- ``prompt_logprobs``: vLLM's ``/v1/completions``. Row t is a mapping of ids to log-probabilities: the k likeliest, and
  the token t if it is not among them; the first row is null.
- ``echo``: the prompt as a part of the completion, with ``logprobs`` of OpenAI's first interface. Its keys are texts,
  and different tokens may have the same text, so vLLM's ``return_tokens_as_token_ids`` is asked for, and texts are
  refused.
- ``sglang``: SGLang's ``/generate``, with lists of (log-probability, id, text).

llama.cpp's server gives log-probabilities of generated tokens only, whichever way it is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from cache_tools.mappings import JsonObject

TOKEN_ID = "token_id:"
"""What a server writes before a token's id in place of its text."""

Entry: TypeAlias = tuple[Any, Any]
"""An id and a log-probability, as the server states them."""


@dataclass(frozen=True)
class Sampling:
    """How the token behind the prompt is drawn, which must not change the prompt's rows."""

    temperature: float = 1.0
    top_p: float = 1.0

    def settings(self) -> JsonObject:
        """Return the keys of a request."""
        return dict(vars(self))


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        model: The model's name at the server.
        ids: The prompt.
        k: Tokens of a row.
        sampling: How a token behind the prompt is drawn.
    """

    model: str
    ids: list[int]
    k: int
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Answer:
    """A server's answer, before it is checked.

    Attributes:
        model: The model's name; None if the answer does not state it.
        ids: The ids that the server read; None if the answer does not state them.
        tokens_read: How many tokens the server read; None if the answer does not state it.
        rows: For each token that the server read, its prediction of that token; None where it gave none.
        texts: Whether tokens are named by texts.
    """

    model: object
    ids: list[Any] | None
    tokens_read: object
    rows: list[list[Entry] | None]
    texts: bool = False


@dataclass(frozen=True)
class ServerKind:
    """Servers that understand a kind of request.

    Attributes:
        name: Their name.
        version_path: Where such a server states its version.
    """

    name: str
    version_path: str


VLLM, COMPLETIONS = ServerKind("vllm server", "/version"), ServerKind("completions server", "/version")
SGLANG = ServerKind("sglang server", "/server_info")


@dataclass(frozen=True)
class Interface:
    """A kind of request.

    Attributes:
        kind: The servers that understand it.
        path: Where it goes.
        body: Makes the request.
        answer: Reads the answer.
    """

    kind: ServerKind
    path: str
    body: Callable[[Question], JsonObject]
    answer: Callable[[JsonObject, Question], Answer]


def _completion(question: Question) -> JsonObject:
    prompt = {"model": question.model, "prompt": question.ids, "max_tokens": 1}
    return prompt | question.sampling.settings()


def _vllm_body(question: Question) -> JsonObject:
    return _completion(question) | {"prompt_logprobs": question.k, "return_token_ids": True}


def _vllm_answer(content: JsonObject, question: Question) -> Answer:
    choice = first_of(content.get("choices"))
    rows = [_vllm_row(row) for row in listed(choice.get("prompt_logprobs"))]
    ids = choice.get("prompt_token_ids")
    return Answer(content.get("model"), listed(ids) or None, tokens_read(content.get("usage")), rows)


def _vllm_row(row: object) -> list[Entry] | None:
    if not isinstance(row, dict):
        return None
    return [(_number(token), mapping(entry).get("logprob")) for token, entry in row.items()]


def _echo_body(question: Question) -> JsonObject:
    return _completion(question) | {"echo": True, "logprobs": question.k, "return_tokens_as_token_ids": True}


def _echo_answer(content: JsonObject, question: Question) -> Answer:
    """Read an echoed prompt, and leave out the token that was generated behind it."""
    logprobs = mapping(first_of(content.get("choices")).get("logprobs"))
    tokens, own, top = (listed(logprobs.get(key)) for key in ("tokens", "token_logprobs", "top_logprobs"))
    read = tokens_read(content.get("usage"))
    length = read if isinstance(read, int) and 0 <= read <= len(tokens) else len(question.ids)
    tokens = tokens[:length]
    texts = not all(_is_id(token) for token in tokens)
    rows = [_echo_row(*row) for row in zip(tokens, own, top, strict=False)]
    return Answer(content.get("model"), [token_id(token) for token in tokens] or None, read, rows, texts)


def _echo_row(token: object, log_prob: object, top: object) -> list[Entry] | None:
    if not isinstance(top, dict):
        return None
    return list(({token_id(text): value for text, value in top.items()} | {token_id(token): log_prob}).items())


def _sglang_body(question: Question) -> JsonObject:
    return {
        "input_ids": question.ids,
        "sampling_params": {"max_new_tokens": 1, **question.sampling.settings()},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": question.k,
        "return_text_in_logprobs": False,
    }


def _sglang_answer(content: JsonObject, question: Question) -> Answer:
    facts = mapping(content.get("meta_info"))
    own, top = (sglang_rows(facts.get(key)) for key in ("input_token_logprobs", "input_top_logprobs"))
    read = facts.get("prompt_tokens")
    ids = [row[0][0] if row else None for row in own] if len(own) == read else None
    rows = [_with_own(*row) for row in zip(own, top, strict=False)]
    return Answer(None, ids, read, rows)


def _with_own(own: list[Entry] | None, top: list[Entry] | None) -> list[Entry] | None:
    """Return a row of likeliest tokens with the text's own token, if it is not among them."""
    if not own or not top:
        return None
    return top + [entry for entry in own if entry[0] not in (token for token, _ in top)]


def sglang_rows(rows: object) -> list[list[Entry] | None]:
    """Return rows of triples (log-probability, id, text), or single triples, as entries."""
    result: list[list[Entry] | None] = []
    for row in listed(rows):
        several = row if isinstance(row, list) and row and isinstance(row[0], list) else [row]
        triples = [triple for triple in several if isinstance(triple, list) and len(triple) > 1]
        result.append([(triple[1], triple[0]) for triple in triples] or None)
    return result


INTERFACES = {
    "prompt_logprobs": Interface(VLLM, "/v1/completions", _vllm_body, _vllm_answer),
    "echo": Interface(COMPLETIONS, "/v1/completions", _echo_body, _echo_answer),
    "sglang": Interface(SGLANG, "/generate", _sglang_body, _sglang_answer),
}
"""Every kind of request by its name in a capture file."""


def _is_id(token: object) -> bool:
    return isinstance(token, str) and token.startswith(TOKEN_ID) and token.removeprefix(TOKEN_ID).isdecimal()


def token_id(token: object) -> object:
    """Return the id that a text such as ``token_id:15`` names, or what was given."""
    return _number(str(token).removeprefix(TOKEN_ID)) if _is_id(token) else token


def _number(text: str) -> object:
    return int(text) if text.isdecimal() and len(text) < 12 else text


def first_of(values: object) -> JsonObject:
    """Return the first object of a list; an empty one if there is none."""
    return mapping(next(iter(listed(values)), None))


def listed(values: object) -> list[Any]:
    """Return a list, and nothing of anything else."""
    return values if isinstance(values, list) else []


def mapping(value: object) -> JsonObject:
    """Return an object, and an empty one of anything else."""
    return value if isinstance(value, dict) else {}


def tokens_read(usage: object) -> object:
    """Return how many tokens of the prompt a server says it read."""
    return mapping(usage).get("prompt_tokens")
