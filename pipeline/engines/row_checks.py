"""Compare a server's answer with what it was asked, and refuse it with what the server did.

A server that answers in the right form may have read another text, another number of tokens, with another model; may
have left rows out because it had read the prompt before, or filled them with what lay in its memory. Each of these
would be a cache that looks right. So every answer passes here, and each fault has a sentence of its own. What a single
answer cannot show (a temperature, rows of another request that are distributions too) is found by asking twice; see
``server_rows.py``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import MASS_TOLERANCE
from cache_tools.errors import IdentityError, LogitcaskError, ModelError
from pipeline.engines.server_requests import Answer, Entry, Question
from pipeline.teachers.teacher import TopRows

ABOVE_ZERO_NATS = 1e-4
"""How far rounding may lift a log-probability above 0."""

NEVER_NATS = -9999.0
"""What servers write for a token that is impossible, because JSON has no infinity; this and less is -inf here."""

HIGHEST_ID = 2**32
"""No vocabulary reaches it."""

OTHER_TEXT = "what the model predicts there belongs to another text"
NO_TARGET = "a student would learn something that the teacher did not predict"


@dataclass(frozen=True)
class Place:
    """Where an answer belongs, for errors.

    Attributes:
        server: Address of the server.
        subject: What was asked about, such as ``sequence 12``.
        vocabulary_size: Ids are below this.
    """

    server: str
    subject: str
    vocabulary_size: int


def checked_rows(answer: Answer, question: Question, place: Place) -> TopRows:
    """Return the rows behind each token of a prompt but the last: n - 1 rows of n tokens.

    Raises:
        IdentityError: another model answers, or it read other ids.
        ModelError: rows are missing, or are not the k likeliest tokens of a distribution.
    """
    require_prompt(answer, question, place)
    entries = _required_rows(answer, question, place)
    _require_gold(entries, question, place)
    _require_k(entries, question, place)
    rows = _arrays(entries, question, place)
    _require_distributions(rows, question, place)
    return rows


def refusal(
    kind: type[LogitcaskError], problem: str, place: Place, row: int | None = None, **parts: object
) -> LogitcaskError:
    """Return an error that names the server, what it was asked about, and the token of the prompt if one is meant."""
    where = f"{place.server}, {place.subject}" + ("" if row is None else f", token {row}")
    return kind(problem, where=where, **parts)  # type: ignore[arg-type]


def require_prompt(answer: Answer, question: Question, place: Place) -> None:
    """Refuse an answer by another model than was asked, or to another prompt than was sent.

    Raises:
        IdentityError: another model answers, or it read other ids, more or fewer.
        ModelError: the server names tokens by their texts.
    """
    _require_model(answer, question, place)
    _require_ids(answer, question, place)


def _require_model(answer: Answer, question: Question, place: Place) -> None:
    if answer.model not in (None, question.model):
        raise refusal(
            IdentityError,
            "another model answered than was asked",
            place,
            expected=question.model,
            found=answer.model,
            why="what is recorded of one model would be the work of two",
            fix="Name the model in engine.served_model as the server lists it, and let nothing in between choose one",
        )


def _require_ids(answer: Answer, question: Question, place: Place) -> None:
    """Compare the ids that the server read with those that it was given."""
    sent, read = question.ids, answer.ids
    if answer.texts:
        raise refusal(
            ModelError,
            "the server names tokens by their texts",
            place,
            expected="token ids, such as 'token_id:15' in place of a text",
            found=repr(next((token for token in read or [] if not isinstance(token, int)), "texts")),
            why="different tokens may have the same text, so that rows would lose or mix them",
            fix="Use a server that returns ids: vLLM, or SGLang with request: sglang",
        )
    length = len(read) if read is not None else answer.tokens_read
    if isinstance(length, int) and not isinstance(length, bool) and length != len(sent):
        _refuse_length(length, answer, question, place)
    if read is not None and read != sent:
        token = next(i for i, pair in enumerate(zip(read, sent, strict=True)) if pair[0] != pair[1])
        raise refusal(
            IdentityError,
            "the server read other token ids than it was sent",
            place,
            token,
            expected=f"id {sent[token]}",
            found=f"id {read[token]}",
            why=OTHER_TEXT,
            fix="Use the tokenizer and the server of the same model",
        )


def _refuse_length(length: int, answer: Answer, question: Question, place: Place) -> None:
    sent, read = question.ids, answer.ids
    expected, found = f"{len(sent)} tokens", f"{length} tokens"
    if length > len(sent):
        begins = read is None or read[-len(sent) :] == sent
        what = "before those it was sent" if begins else "to those it was sent"
        raise refusal(
            IdentityError,
            f"the server added {length - len(sent)} of its own tokens {what}",
            place,
            expected=expected,
            found=found,
            why=OTHER_TEXT,
            fix="Switch off what it adds, such as a token for the beginning of a text, or a template",
        )
    raise refusal(
        IdentityError,
        "the server cut the prompt",
        place,
        expected=expected,
        found=found,
        why=OTHER_TEXT,
        fix="Raise the server's longest prompt, or shorten what it reads (of a capture: encoding.max_length_tokens)",
    )


def _required_rows(answer: Answer, question: Question, place: Place) -> list[list[Entry]]:
    """Return the rows of all tokens but the first, before which nothing is predicted."""
    rows, length = answer.rows[1:], len(question.ids) - 1
    if not any(rows):
        raise refusal(
            ModelError,
            "the server returned no rows for the prompt",
            place,
            expected=f"{length} rows",
            found="log-probabilities of generated tokens at most",
            fix="Use a server that scores prompts, and the 'engine.request' that belongs to it",
        )
    missing = next((i for i, row in enumerate(rows) if not row), len(rows))
    if len(rows) != length or missing < len(rows):
        empty = length - sum(bool(row) for row in rows)
        raise refusal(
            ModelError,
            "the server left rows out",
            place,
            1 + missing,
            expected=f"{length} rows",
            found=f"{length - empty} rows",
            why="tokens whose states the server had kept from an earlier prompt have none",
            fix="Switch off the server's prefix cache (vLLM: --no-enable-prefix-caching)",
        )
    return [row for row in rows if row]


def _require_gold(entries: list[list[Entry]], question: Question, place: Place) -> None:
    for number, (row, gold) in enumerate(zip(entries, question.ids[1:], strict=True), 1):
        if not any(token == gold for token, _ in row):
            raise refusal(
                ModelError,
                "a row lacks the token that the text has there",
                place,
                number,
                expected=f"id {gold} among its entries",
                found=f"ids {', '.join(str(token) for token, _ in row[:4])}, …",
                why="the row belongs to another token, or the gold token's log-probability would be lost",
                fix="Use a server that returns the prompt's own token with each row",
            )


def _require_k(entries: list[list[Entry]], question: Question, place: Place) -> None:
    for number, row in enumerate(entries, 1):
        if not question.k <= len(row) <= question.k + 1:
            fewer = len(row) < question.k
            raise refusal(
                ModelError,
                "the server returned fewer tokens of a row than it was asked for"
                if fewer
                else "a row has too many tokens",
                place,
                number,
                expected=f"{question.k} tokens, and the text's own",
                found=f"{len(row)} tokens",
                fix="Raise the server's limit (vLLM: --max-logprobs), or set target.k to it" if fewer else "",
            )


def _arrays(entries: list[list[Entry]], question: Question, place: Place) -> TopRows:
    """Return rows by falling log-probability; of k + 1 entries the least likely is left out."""
    n, k = len(entries), question.k
    ids, log_probs, gold = np.empty((n, k), np.int64), np.empty((n, k)), np.empty(n)
    for number, (row, token) in enumerate(zip(entries, question.ids[1:], strict=True)):
        tokens, values = zip(*(_entry(entry, number + 1, place) for entry in row), strict=True)
        order = sorted(range(len(row)), key=lambda slot: -values[slot])[:k]
        ids[number], log_probs[number] = [tokens[slot] for slot in order], [values[slot] for slot in order]
        gold[number] = values[tokens.index(token)]
    _require_ids_of_vocabulary(ids, place)
    with np.errstate(over="ignore"):
        log_probs32, gold32 = log_probs.astype(np.float32), gold.astype(np.float32)
    return TopRows(ids.astype(np.uint32), np.where(log_probs32 <= NEVER_NATS, np.float32(-np.inf), log_probs32), gold32)


def _entry(entry: Entry, number: int, place: Place) -> tuple[int, float]:
    """Return an entry, whose id and log-probability must be numbers."""
    token, value = entry
    if type(value) not in (int, float) or math.isnan(value) or value == math.inf:
        raise refusal(
            ModelError,
            "a log-probability is not a number",
            place,
            number,
            found=f"{value!r} for id {token}",
            why="every student that learns from such a row would be damaged",
            fix="Try another dtype at the server, such as bfloat16 or float32 instead of float16",
        )
    if type(token) is not int or abs(token) > HIGHEST_ID:
        raise refusal(ModelError, "a row names something else than a token id", place, number, found=repr(token))
    return token, float(value)


def _require_ids_of_vocabulary(ids: NDArray[np.int64], place: Place) -> None:
    beyond = (ids < 0) | (ids >= place.vocabulary_size)
    if beyond.any():
        row, slot = np.argwhere(beyond)[0].tolist()
        raise refusal(
            IdentityError,
            "a row holds an id beyond the vocabulary",
            place,
            row + 1,
            expected=f"ids below {place.vocabulary_size}",
            found=ids[row, slot],
            why="the server runs a model with another vocabulary, or the row is damaged",
            fix="Put the model's own config.json beside the tokenizer in the folder that 'model' names",
        )
    ordered = np.sort(ids, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if twice.any():
        raise refusal(ModelError, "a row holds a token twice", place, int(np.flatnonzero(twice)[0]) + 1, why=NO_TARGET)


def _require_distributions(rows: TopRows, question: Question, place: Place) -> None:
    """Refuse values that no distribution has: uninitialised memory, zeros, probabilities in place of logarithms."""
    stale = "the server returned what was in its memory, or something else than natural log-probabilities"
    highest = np.maximum(rows.log_probs.max(axis=1), rows.gold_log_probs)
    if (highest > ABOVE_ZERO_NATS).any():
        row = int(np.flatnonzero(highest > ABOVE_ZERO_NATS)[0])
        raise refusal(
            ModelError,
            "a log-probability is above 0",
            place,
            row + 1,
            found=f"{highest[row]:.4g} nats",
            why=stale,
            fix="Switch off the server's prefix cache; use a version without this fault",
        )
    mass = np.exp(rows.log_probs.astype(np.float64)).sum(axis=1)
    if (mass > 1 + MASS_TOLERANCE).any():
        row = int(mass.argmax())
        raise refusal(
            ModelError,
            "the probabilities of a row sum to more than 1",
            place,
            row + 1,
            expected="at most 1",
            found=f"{mass[row]:.4g}",
            why=stale,
            fix="Switch off the server's prefix cache; use a version without this fault",
        )
    if question.k == place.vocabulary_size and (mass < 1 - MASS_TOLERANCE).any():
        row = int(mass.argmin())
        raise refusal(
            ModelError,
            "the probabilities of all tokens do not sum to 1",
            place,
            row + 1,
            found=f"{mass[row]:.4g}",
            why="a filter or a penalty was applied to them",
            fix="Start the server without default sampling parameters (vLLM: --generation-config vllm)",
        )
