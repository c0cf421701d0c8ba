"""A server that completes prompts: one request for each completion, several at a time, every answer checked.

A completion depends on (seed, id of the prompt, number of the sample) by the seed of its request, and on nothing else
but rounding: the server forms the batches, so in half precision a draw now and then changes with the requests beside
it. How a server turns a seed into draws is its own affair, so its text is another one than that of transformers.

Memory: the answers of twice ``requests_in_flight`` completions.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from cache_tools.format.manifest import Sampling
from cache_tools.requests.in_flight import in_parallel
from pipeline.engines.row_checks import Place
from pipeline.engines.server_client import ServerClient
from pipeline.engines.server_rows import ServerFacts
from pipeline.generation.completing import Request
from pipeline.generation.completion_checks import checked_completion, require_tokens
from pipeline.generation.completion_requests import (
    COMPLETION_INTERFACES,
    Completion,
    CompletionQuestion,
    request_seed,
)
from pipeline.generation.trial import MOST_PROBES, check_drawing

TOKEN_BYTES, ENTRY_BYTES, ROOM_BYTES = 200, 100, 2**20
"""Longest text of one token and its id in an answer, of one entry of a row, and of everything else in it: several times
what servers write."""


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
        for question, completion in zip(questions, self._asked(questions), strict=True):
            require_tokens(completion.ids, excluded, self._place(question))
            tokens.append(completion.ids)
            progress(1, len(completion.ids))
        return tokens

    def check(self, requests: Several[Request]) -> None:
        """Refuse a server that draws otherwise than it is asked to; see ``trial.py``."""
        probes = [self._probe(requests[number % len(requests)], number) for number in range(MOST_PROBES)]
        check_drawing(probes, self.sampling, lambda questions: list(self._asked(questions)), self.client.url)

    def _probe(self, request: Request, number: int) -> CompletionQuestion:
        """Return a question of its own seed."""
        seed = request_seed(self.sampling.seed, f"trial of {request.prompt.id}", number)
        return replace(self._question(request), seed=seed)

    def _question(self, request: Request) -> CompletionQuestion:
        prompt, sampling = request.prompt, self.sampling
        seed = request_seed(sampling.seed, prompt.id, request.sample)
        return CompletionQuestion(prompt.id, self.facts.model, prompt.ids.tolist(), seed, sampling, self.without_token)

    def _asked(self, questions: list[CompletionQuestion]) -> Iterator[Completion]:
        """Yield completions in the order of their questions, with so many requests at a time."""
        return in_parallel(self._ask, questions, self.client.url, self.requests_in_flight)

    def _ask(self, question: CompletionQuestion) -> Completion:
        interface = COMPLETION_INTERFACES[self.facts.request]
        token_bytes = TOKEN_BYTES + ENTRY_BYTES * question.likeliest
        most_bytes = token_bytes * (len(question.ids) + question.sampling.max_new_tokens) + ROOM_BYTES
        content = self.client.post(interface.path, interface.body(question), most_bytes)
        return checked_completion(interface.answer(content), question, self._place(question))

    def _place(self, question: CompletionQuestion) -> Place:
        return Place(self.client.url, f"prompt {question.name!r}", self.vocabulary_size)
