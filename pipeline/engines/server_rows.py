"""A server as a teacher's rows: one request for each sequence, several at a time, every answer checked.

The server forms the batches, so in half precision a shard that is redone need not have the same bytes; how far the rows
of one request move is measured before the first shard. There the first sequences are read four ways: alone, again with
a temperature of 2 and a nucleus of half the mass, without their second half, and among others. Rows that are
log-probabilities of the tokens before them are the same each time but for rounding. Those of a server that applies the
request's sampling, that answers from an earlier request's memory, or that mixes up requests are not.

Memory: the answers of twice ``requests_in_flight`` sequences, about 6 kB for each position at k = 64.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from cache_tools.errors import ModelError
from cache_tools.format.sequences import Sequence
from cache_tools.mappings import Identity
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.requests.in_flight import in_parallel
from pipeline.engines.row_checks import Place, checked_rows
from pipeline.engines.server_client import ServerClient
from pipeline.engines.server_requests import INTERFACES, Question, Sampling
from pipeline.teachers.teacher import TopRows

logger = logging.getLogger(__name__)

PROBE_TOKENS = 128
"""Tokens on which a server is tried."""

PROBED_SEQUENCES = 8
"""Sequences that are read together in that trial."""

PLAIN = Sampling()
OTHER_SAMPLING = Sampling(temperature=2.0, top_p=0.5)

SAME_ROWS_NATS = 0.02
"""Mean KL between two readings of the same rows, at most. Of SmolLM2-135M in bfloat16, two engines are 2e-3 nats apart,
and a temperature of 2 moves rows by 1.5."""

SMALLEST_MASS = 1e-7
"""A mass counts as at least this much in a KL, so that a sum that float32 rounded to 1 is no infinite divergence."""

ENTRY_BYTES, ROOM_BYTES = 400, 2**20
"""Longest text of one entry of a row, and of everything else in an answer: several times what servers write."""


@dataclass(frozen=True)
class ServerFacts:
    """What is known of a server.

    Attributes:
        name: Which kind of server it is.
        version: Its version, as it states it; ``unknown`` if it does not.
        model: Name of the model that is asked.
        request: How rows are asked for, by its name in the capture file.
    """

    name: str
    version: str
    model: str
    request: str

    def identity(self) -> Identity:
        """Return what of it decides the predictions, as far as anyone can tell from outside."""
        return dict(vars(self))


@dataclass(frozen=True)
class ServerRows:
    """The rows of a server; see ``Rows`` for its methods.

    Attributes:
        client: The server.
        facts: What is known of it.
        vocabulary_size: Ids are below this.
        requests_in_flight: Requests at a time.
    """

    client: ServerClient
    facts: ServerFacts
    vocabulary_size: int
    requests_in_flight: int

    @property
    def software(self) -> str:
        """What runs the model, with its version."""
        return f"{self.facts.name} {self.facts.version}"

    def read(self, sequences: list[Sequence], k: int, progress: Advance = ignore) -> TopRows:
        """Return the rows at the kept positions of some sequences."""
        parts = []
        asked = [sequence for sequence in sequences if sequence.num_positions]
        answers = self._together([(_name(s), s.input_ids.tolist()) for s in asked], k)
        for sequence, rows in zip(asked, answers, strict=True):
            parts.append(rows.at(sequence.positions()))
            progress(len(sequence.input_ids))
        return TopRows.joined(parts, k)

    def check(self, first: list[Sequence], k: int) -> None:
        """Read a few sequences in several ways, and refuse rows that are not the same each time."""
        probes = [(_name(s), s.input_ids[:PROBE_TOKENS].tolist()) for s in first if len(s.input_ids) > 2]
        if not probes:
            return
        probe, half = probes[0], len(probes[0][1]) // 2 + 1
        usual = self._ask(probe, k)
        sampled = kl_nats(usual, self._ask(probe, k, OTHER_SAMPLING))
        if sampled > SAME_ROWS_NATS:
            again = kl_nats(usual, self._ask(probe, k))
            raise self._moved(again) if again > SAME_ROWS_NATS else self._sampled(sampled)
        beginning = usual.at(np.arange(half - 1))
        shortened = kl_nats(beginning, self._ask((probe[0], probe[1][:half]), k))
        if shortened > SAME_ROWS_NATS:
            raise self._leaking(shortened)
        among_others = next(self._together(probes[:PROBED_SEQUENCES], k))
        together = kl_nats(usual, among_others)
        if together > SAME_ROWS_NATS:
            raise self._moved(together)
        moved = max(sampled, shortened, together)
        if moved:
            logger.warning(
                "The rows of %s move by up to %.1e nats of KL with the requests beside them, "
                "so a shard that is redone will not have the same bytes.",
                self.software,
                moved,
            )

    def _together(self, prompts: list[tuple[str, list[int]]], k: int) -> Iterator[TopRows]:
        """Yield the rows of several prompts, in their order, with so many requests at a time."""
        return in_parallel(partial(self._ask, k=k), prompts, self.client.url, self.requests_in_flight)

    def _ask(self, prompt: tuple[str, list[int]], k: int, sampling: Sampling = PLAIN) -> TopRows:
        """Return the rows behind each token of a named prompt but the last."""
        name, ids = prompt
        question, interface = Question(self.facts.model, ids, k, sampling), INTERFACES[self.facts.request]
        most_bytes = ENTRY_BYTES * (k + 2) * len(ids) + ROOM_BYTES
        content = self.client.post(interface.path, interface.body(question), most_bytes)
        place = Place(self.client.url, name, self.vocabulary_size)
        return checked_rows(interface.answer(content, question), question, place)

    def _sampled(self, moved_nats: float) -> ModelError:
        return ModelError(
            "the server applies the request's temperature or nucleus to the prompt's log-probabilities",
            where=self.client.url,
            expected="the same rows at temperature 1 and 2",
            found=f"rows that are {moved_nats:.2g} nats of KL apart",
            why="they may not be those of the model at any temperature, and nothing in an answer tells",
            fix="Let the server return them unprocessed (vLLM: --logprobs-mode raw_logprobs)",
        )

    def _leaking(self, moved_nats: float) -> ModelError:
        return ModelError(
            "the server's rows depend on later tokens or on earlier requests",
            where=self.client.url,
            expected="the same rows for the beginning of a prompt as for the whole",
            found=f"rows that are {moved_nats:.2g} nats of KL apart",
            why="they are stale, or the model is not causal",
            fix="Switch off the server's prefix cache (vLLM: --no-enable-prefix-caching)",
        )

    def _moved(self, moved_nats: float) -> ModelError:
        return ModelError(
            "the server gives other rows when a request is repeated",
            where=self.client.url,
            expected=f"rows within {SAME_ROWS_NATS} nats of KL, which rounding explains",
            found=f"{moved_nats:.2g} nats",
            why="at least one of them is not what the model predicts",
            fix="Ask one server of one model, and not several behind one address",
        )


def kl_nats(rows: TopRows, others: TopRows) -> float:
    """Return the mean KL divergence of rows from other rows of the same positions, over their tokens and the rest.

    A token that only the first rows hold has at most the lowest probability of the other row, and is taken to have it.
    """
    p_Pk = np.exp(rows.log_probs.astype(np.float64))
    q_Pk = np.exp(others.log_probs_of(rows.ids).astype(np.float64))
    p, q = (np.column_stack([x, (1 - x.sum(axis=1)).clip(min=0)]) for x in (p_Pk, q_Pk))
    q = np.maximum(q, np.minimum(p, SMALLEST_MASS))
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return float((p * np.log(ratio) - p + q).sum(axis=1).mean())


def _name(sequence: Sequence) -> str:
    return f"sequence {sequence.sequence_id}"
