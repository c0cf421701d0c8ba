"""Try a server before it writes: does it draw from its own predictions, by the settings and the seed of each request?

One answer does not show how its tokens were drawn; some hundred tokens do. At temperature 1 the server is asked for the
probabilities of the likeliest tokens beside each token that it draws. The likeliest one must be drawn as often as its
probabilities add up to, and so must tokens outside the listed ones: each count is a sum of independent yes-or-no draws
given the predictions, so its mean and its variance are known. A server that takes the likeliest token, that has a
temperature of its own, or that truncates is many standard deviations away. One that returns probabilities *behind* its
own truncation agrees with itself and is not found; nor is weak truncation. Both show after the capture, where at
temperature 1 the cross-entropy of the text equals the teacher's entropy.

Then the settings of the generation file, where they are not the neutral ones: at temperature 0, or with the narrowest
``top_k`` or ``top_p``, the seed must not matter. And a request that is repeated must give the same tokens, or a
generation that is continued would hold other text than one that was not stopped: vLLM honours the seed of a request,
SGLang only with ``--enable-deterministic-inference``.

Rejected: a temperature at which all tokens are equally likely, where truncation would show at once. vLLM takes none
above 2.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Sampling
from pipeline.generation.completion_requests import Completion, CompletionQuestion

logger = logging.getLogger(__name__)

TRIAL_TOKENS, MOST_PROBES = 512, 64
"""Tokens that are drawn at temperature 1, and in how many completions at most."""

PROBE_TOKENS = 32
"""Longest completion of the trial."""

REPEATED_PROBES = 8
"""Completions that are asked for once more with the same seed, or with another one where it must not matter."""

LIKELIEST = 20
"""Tokens whose probabilities are asked for; servers give no more unless they are told to."""

DEVIATIONS, ROOM = 5.0, 3.0
"""How many standard deviations and draws a count may be away from its mean."""

NARROW = {"top_k": 1, "top_p": 1e-6}
"""The value of each setting that leaves one token to draw, equally likely ones aside."""

UNHEEDED = "sampling would be recorded as the file states it, and the text would be drawn otherwise"

Ask = Callable[[list[CompletionQuestion]], list[Completion]]
"""Asks a server, and returns checked completions in the order of the questions."""


@dataclass(frozen=True)
class Count:
    """How often something was drawn, against the probabilities.

    Attributes:
        draws: Tokens that were drawn.
        found: How often it happened.
        expected: Sum of its probabilities.
        variance: Sum of p (1 - p).
    """

    draws: int
    found: int
    expected: float
    variance: float

    @classmethod
    def of(cls, events: Iterable[tuple[bool, float]]) -> "Count":
        """Count events, each with whether it happened and its probability."""
        happened = list(events)
        probabilities = [min(max(p, 0.0), 1.0) for _, p in happened]
        variance = sum(p * (1 - p) for p in probabilities)
        return cls(len(happened), sum(event for event, _ in happened), sum(probabilities), variance)

    @property
    def is_likely(self) -> bool:
        """Whether chance explains the difference."""
        return abs(self.found - self.expected) <= DEVIATIONS * math.sqrt(self.variance) + ROOM


def check_drawing(probes: list[CompletionQuestion], sampling: Sampling, ask: Ask, server: str) -> None:
    """Ask a server for short completions, and refuse one that draws otherwise than it is asked to.

    Args:
        probes: Questions as they will be asked, each with a seed of its own.
        sampling: How the tokens of the corpus will be drawn.
        ask: Asks it.
        server: Its address, for errors.

    Raises:
        ModelError: it ignores the seed or a setting, or does not draw from its own predictions.
    """
    length = min(PROBE_TOKENS, sampling.max_new_tokens)
    whole = sampling.model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": length})
    few = probes[:REPEATED_PROBES]
    if sampling.temperature != 1:
        _require_no_draws("temperature", "0", _changed(few, whole, {"temperature": 0.0}), ask, server)
    if sampling.temperature == 0:
        return
    for name, value in NARROW.items():
        if getattr(sampling, name) not in (0, 1.0):
            narrow = _changed(few, whole, {name: value, "max_new_tokens": 1})
            _require_no_draws(name, f"{value:g}", narrow, ask, server)
    plain = _changed(probes[: -(-TRIAL_TOKENS // length)], whole, {}, LIKELIEST)
    drawn = ask(plain)
    _require_predictions(drawn, server)
    again = ask(plain[:REPEATED_PROBES])
    _require_seed([one.ids != other.ids for one, other in zip(drawn, again, strict=False)], server)


def _changed(
    questions: list[CompletionQuestion], sampling: Sampling, changes: Mapping[str, float], likeliest: int = 0
) -> list[CompletionQuestion]:
    """Return questions with another sampling."""
    changed = sampling.model_copy(update=changes)
    return [replace(question, sampling=changed, likeliest=likeliest) for question in questions]


def _require_no_draws(name: str, value: str, questions: list[CompletionQuestion], ask: Ask, server: str) -> None:
    """Refuse a server that lets the seed decide where a setting leaves nothing to draw."""
    others = [replace(question, seed=question.seed ^ 1) for question in questions]
    pairs = list(zip(ask(questions), ask(others), strict=True))
    different = sum(first.ids != second.ids for first, second in pairs)
    if different > len(pairs) // 2:
        raise ModelError(
            f"the server ignores {name}",
            where=server,
            expected=f"the same tokens at {name} {value}, whatever the seed",
            found=f"other ones for {different} of {len(pairs)} requests",
            why=UNHEEDED,
            fix=f"Use a server that applies the {name} of each request",
        )


def _require_seed(different: list[bool], server: str) -> None:
    """Refuse a server that answers repeated requests in other ways."""
    changed, asked = sum(different), len(different)
    if changed > asked // 2:
        raise ModelError(
            "the server ignores the seed",
            where=server,
            expected="the same tokens when a request is repeated",
            found=f"other ones for {changed} of {asked} requests",
            why="a generation that is continued would hold other text than one that was not stopped",
            fix="Use a server that honours the seed of each request (SGLang: --enable-deterministic-inference), and "
            "one server behind the address",
        )
    if changed:
        logger.warning(
            "The server wrote other tokens for %d of %d requests that were repeated. Rounding changes a draw now and "
            "then with the requests beside it, so a generation that is continued can differ.",
            changed,
            asked,
        )


def _require_predictions(completions: list[Completion], server: str) -> None:
    """Refuse a server that does not draw from the probabilities that it states."""
    rows = [row for completion in completions for row in zip(completion.ids, completion.rows, strict=False) if row[1]]
    if not rows:
        logger.warning("The server states no probabilities of the tokens that it draws: how it draws is not checked.")
        return
    ordered = [(token, sorted(row.items(), key=lambda entry: (-entry[1], entry[0]))[:LIKELIEST]) for token, row in rows]
    likeliest = Count.of((token == top[0][0], math.exp(top[0][1])) for token, top in ordered)
    inside = Count.of((token in dict(top), sum(math.exp(value) for _, value in top)) for token, top in ordered)
    if likeliest.is_likely and inside.is_likely:
        return
    raise ModelError(
        "the server does not draw from its own predictions",
        where=server,
        expected=f"of {likeliest.draws} tokens at temperature 1 about {likeliest.expected:.0f} the likeliest and "
        f"{inside.draws - inside.expected:.0f} outside the {LIKELIEST} likeliest",
        found=f"{likeliest.found} and {inside.draws - inside.found}",
        why=UNHEEDED,
        fix="Start the server without sampling parameters of its own (vLLM: --generation-config vllm), and let nothing "
        "in between change requests",
    )
