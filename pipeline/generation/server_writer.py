"""A server that completes prompts: one request for each completion, several at a time, every answer checked.

A completion depends on (seed, id of the prompt, number of the sample) by the seed of its request, and on nothing else
but rounding: the server forms the batches, so in half precision a draw now and then changes with the requests beside
it. How a server turns a seed into draws is its own affair, so its text is another one than that of transformers.

Before the first completion some prompts are asked several times. That finds a server that

- ignores the seed, so that a generation that is continued would not be the same (vLLM honours it; SGLang only with
  ``--enable-deterministic-inference``);
- ignores the temperature, or draws from few tokens although the request allows all: at a temperature of 100 nearly all
  tokens are equally likely, and drawing the same ones again and again gives it away;
- ignores ``top_k`` or ``top_p``, if the generation file sets them: with the narrowest of each, all draws are equal.

A nucleus that a server adds of its own, or another temperature than it was given, moves the text too little to be seen
so. It shows after the capture: at temperature 1 the cross-entropy of the text equals the teacher's entropy.

Memory: the answers of twice ``requests_in_flight`` completions.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from cache_tools.errors import ModelError
from cache_tools.format.manifest import Sampling
from cache_tools.requests.in_flight import in_parallel
from pipeline.engines.row_checks import Place
from pipeline.engines.server_client import ServerClient
from pipeline.engines.server_rows import ServerFacts
from pipeline.generation.completing import Request
from pipeline.generation.completion_checks import checked_completion, require_tokens
from pipeline.generation.completion_requests import COMPLETION_INTERFACES, CompletionQuestion, request_seed

logger = logging.getLogger(__name__)

PROBES, PROBE_TOKENS = 8, 16
"""Completions that are asked for twice, and their length."""

SPREAD_PROBES = 64
"""Completions of one token at a temperature of 100: all draws are from one distribution."""

HOT = 100.0
"""A temperature at which logits that are 20 apart give probabilities within a fifth of each other."""

NARROW = {"top_k": 1, "top_p": 1e-6}
"""The value of each setting that leaves one token to draw."""

TOKEN_BYTES, ROOM_BYTES = 200, 2**20
"""Longest text of one token and its id in an answer, and of everything else in it: several times what servers write."""

UNHEEDED = "sampling would be recorded as the file states it, and the text would be drawn otherwise"


@dataclass(frozen=True)
class ServerWriter:
    """A server that completes prompts; see ``CompletesPrompts`` for its methods.

    Attributes:
        client: The server.
        facts: What is known of it.
        sampling: How tokens are drawn.
        vocabulary_size: Ids are below this.
        without_token: Ids below that which have no token.
        requests_in_flight: Requests at a time.
    """

    client: ServerClient
    facts: ServerFacts
    sampling: Sampling
    vocabulary_size: int
    without_token: tuple[int, ...]
    requests_in_flight: int

    @property
    def batch_completions(self) -> int | None:
        """Nothing: the server forms the batches, so a part is asked for as a whole."""
        return None

    def complete(self, requests: Several[Request], progress: Callable[[int, int], object]) -> list[list[int]]:
        """Return the tokens that continue each prompt, a stop token at the end included."""
        questions = [self._question(request) for request in requests]
        excluded, tokens = frozenset(self.without_token), []
        for question, ids in zip(questions, self._asked(questions), strict=True):
            require_tokens(ids, excluded, self._place(question))
            tokens.append(ids)
            progress(1, len(ids))
        return tokens

    def check(self, requests: Several[Request]) -> None:
        """Ask some prompts several times, and refuse a server that draws otherwise than it was asked to."""
        probes = [requests[number % len(requests)] for number in range(PROBES)]
        short = self.sampling.model_copy(update={"max_new_tokens": min(PROBE_TOKENS, self.sampling.max_new_tokens)})
        self._check_repeated([self._probe(request, number, short) for number, request in enumerate(probes)])
        if self.sampling.temperature == 0:
            return
        whole = {"temperature": HOT, "top_p": 1.0, "top_k": 0}
        spread = self.sampling.model_copy(update=whole | {"max_new_tokens": 1})
        self._check_spread([self._probe(requests[0], number, spread) for number in range(SPREAD_PROBES)])
        for name in ("top_k", "top_p"):
            if getattr(self.sampling, name) not in (0, 1.0):
                narrow = self.sampling.model_copy(update=whole | {name: NARROW[name], "max_new_tokens": 1})
                self._check_narrow(name, [self._probe(requests[0], number, narrow) for number in range(PROBES)])

    def _check_repeated(self, questions: list[CompletionQuestion]) -> None:
        """Refuse a server that answers the same request in two ways, or draws where nothing is to be drawn."""
        greedy = self.sampling.temperature == 0
        again = [replace(question, seed=question.seed ^ 1) for question in questions] if greedy else questions
        first, second = list(self._asked(questions)), list(self._asked(again))
        different = sum(one != other for one, other in zip(first, second, strict=True))
        if different > len(questions) // 2:
            raise self._drawing(different, len(questions)) if greedy else self._unseeded(different, len(questions))
        if different:
            logger.warning(
                "%s wrote other tokens for %d of %d requests that were repeated. Rounding changes a draw now and then "
                "with the requests beside it, so a generation that is continued can differ.",
                self.facts.name,
                different,
                len(questions),
            )

    def _check_spread(self, questions: list[CompletionQuestion]) -> None:
        """Refuse a server that draws from few tokens where nearly all are equally likely."""
        drawn = Counter(token for ids in self._asked(questions) for token in ids)
        equal_pairs = sum(count * (count - 1) // 2 for count in drawn.values())
        expected = drawn.total() * (drawn.total() - 1) / 2 / self.vocabulary_size
        if equal_pairs > expected + 6 * expected**0.5 + 4:
            raise ModelError(
                "the server draws from few tokens although it was asked to draw from all",
                where=self.client.url,
                expected=f"about {expected:.0f} pairs of equal tokens among {drawn.total()} at temperature {HOT:g}",
                found=f"{equal_pairs} pairs, {len(drawn)} different tokens",
                why=UNHEEDED,
                fix="Start the server without sampling parameters of its own (vLLM: --generation-config vllm), and let "
                "nothing in between change requests",
            )

    def _check_narrow(self, name: str, questions: list[CompletionQuestion]) -> None:
        """Refuse a server that draws several tokens where a setting leaves one."""
        drawn = {tuple(ids) for ids in self._asked(questions)}
        if len(drawn) > len(questions) // 2:
            raise ModelError(
                f"the server ignores {name}",
                where=self.client.url,
                expected=f"one token at {name} {NARROW[name]:g}, whatever the seed",
                found=f"{len(drawn)} different tokens",
                why=UNHEEDED,
                fix=f"Use a server that applies it, or remove sampling.{name}",
            )

    def _unseeded(self, different: int, asked: int) -> ModelError:
        return ModelError(
            "the server ignores the seed",
            where=self.client.url,
            expected="the same tokens when a request is repeated",
            found=f"other ones for {different} of {asked} requests",
            why="a generation that is continued would hold other text than one that was not stopped",
            fix="Use a server that honours the seed of each request (SGLang: --enable-deterministic-inference), and "
            "one server behind the address",
        )

    def _drawing(self, different: int, asked: int) -> ModelError:
        return ModelError(
            "the server draws tokens where it was asked for the likeliest",
            where=self.client.url,
            expected="the same tokens at temperature 0, whatever the seed",
            found=f"other ones for {different} of {asked} requests",
            why=UNHEEDED,
            fix="Use a server that applies the temperature of each request",
        )

    def _probe(self, request: Request, number: int, sampling: Sampling) -> CompletionQuestion:
        """Return a question of its own seed."""
        seed = request_seed(sampling.seed, f"probe of {request.prompt.id}", number)
        return replace(self._question(request), seed=seed, sampling=sampling)

    def _question(self, request: Request) -> CompletionQuestion:
        prompt, sampling = request.prompt, self.sampling
        seed = request_seed(sampling.seed, prompt.id, request.sample)
        return CompletionQuestion(prompt.id, self.facts.model, prompt.ids.tolist(), seed, sampling, self.without_token)

    def _asked(self, questions: list[CompletionQuestion]) -> Iterator[list[int]]:
        """Yield completions in the order of their questions, with so many requests at a time."""
        return in_parallel(self._ask, questions, self.client.url, self.requests_in_flight)

    def _ask(self, question: CompletionQuestion) -> list[int]:
        interface = COMPLETION_INTERFACES[self.facts.request]
        most_bytes = TOKEN_BYTES * (len(question.ids) + question.sampling.max_new_tokens) + ROOM_BYTES
        content = self.client.post(interface.path, interface.body(question), most_bytes)
        return checked_completion(interface.answer(content), question, self._place(question))

    def _place(self, question: CompletionQuestion) -> Place:
        return Place(self.client.url, f"prompt {question.name!r}", self.vocabulary_size)
