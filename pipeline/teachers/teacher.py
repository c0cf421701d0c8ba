"""What a capture needs of a teacher: who turns token ids into predictions, and who they are.

A :class:`Teacher` is a body and a head. A :class:`Body` takes a batch of token ids and returns the states at its kept
positions, (P, D), on the device where the head runs; nothing else of it is known, so it may be a model in this process
(``model_body.py``) or an engine in another one. A :class:`Head` turns such states into logits. Everything that a cache
keeps of a distribution is made from these logits, so it does not depend on who read the tokens.

A :class:`RowTeacher` gives the likeliest tokens of each position and the gold token's log-probability, and nothing
else: no logits, so no entropy, no normaliser, no draws, no states. It costs 40 times the stored bytes on the way, and
somebody else forms the batches. It is for teachers that can only be reached as servers.
"""

from collections.abc import Sequence as Several
from dataclasses import asdict, dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools.format.sequences import Sequence
from cache_tools.mappings import Identity, JsonObject
from cache_tools.progress.reporter import Advance, ignore
from pipeline.teachers.batches import Batch
from pipeline.teachers.body_and_head import HeadOutput, run_head, vocabulary_of

OPTIONAL = ("quantisation", "engine")
"""Keys of a manifest's ``model`` that only some teachers have."""

# P: kept positions of a batch, N: positions of a chunk, D: width, V: vocabulary, k: tokens of a row


class Body(Protocol):
    """Turns tokens into hidden states."""

    @property
    def software(self) -> str:
        """What runs it, with its version, for the receipt."""

    @property
    def dtype(self) -> str:
        """Type of its activations, by torch's name."""

    def states(self, batch: Batch, layers: Several[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Read a batch.

        Args:
            batch: Sequences, padded or packed.
            layers: Which layers' states are wanted too: indices in transformers' ``hidden_states``.

        Returns:
            The states that the head takes, (P, D), and those of each layer, (P, D'), at the batch's kept positions.

        Raises:
            ModelError: it has no such layer, or cannot read.
        """

    def check(self, head: "Head", probe: Batch, first: list[Sequence]) -> None:
        """Refuse a body whose states do not lead through the head to what the whole model predicts.

        Args:
            head: The head that belongs to it.
            probe: A short sequence, all of whose positions are kept.
            first: A few sequences, to compare other forms of batches with padded ones.

        Raises:
            ModelError: they do not.
        """


@dataclass(frozen=True)
class Head:
    """Turns hidden states into logits, by the forward pass of a model of which only the head is used.

    Attributes:
        model: Holds the output matrix, and whatever else comes behind the body.
    """

    model: PreTrainedModel

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits, V."""
        return vocabulary_of(self.model)

    def logits(self, states_ND: Tensor, as_given: bool = False) -> HeadOutput:
        """Return logits (N, V) in float32, or in the model's own type if ``as_given``; see ``run_head``."""
        return run_head(self.model, states_ND, as_given)


@dataclass(frozen=True)
class ComputedWeights:
    """What determines a teacher's predictions besides the text: its weights and how it computes.

    Attributes:
        weights: Hash of the weight files and the configuration; None where nobody can read them.
        dtype: Type in which it computes; None if unknown.
        quantisation: How the weights are stored, if they are quantised; None for ordinary ones.
        engine: The engine that reads the tokens, with all that decides its rounding; None for transformers.
    """

    weights: str | None
    dtype: str | None
    quantisation: str | None = None
    engine: JsonObject | None = None

    def identity(self) -> Identity:
        """Return its part of a teacher's identity in the cache."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ModelDescription:
    """Which model a teacher is, for people.

    Attributes:
        name: Folder or hub id, as the capture file has it.
        revision: Branch, tag or commit of a hub id, if the capture file names one.
        architecture: Class of the model.
        dtype: Type in which it computes.
        parameters: Number of its parameters; None if unknown.
        quantisation: How weights and output matrix are stored, if they are quantised; None for ordinary ones.
        engine: Name and version of the engine that reads the tokens; None for transformers.
    """

    name: str
    revision: str | None
    architecture: str
    dtype: str
    parameters: int | None
    quantisation: str | None = None
    engine: str | None = None

    def document(self) -> JsonObject:
        """Return the ``model`` of a teacher's manifest; what is written only where it is known."""
        document = asdict(self)
        return {key: value for key, value in document.items() if value is not None or key not in OPTIONAL}


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        body: Reads tokens.
        head: Predicts from the body's states.
        computed: What determines its predictions.
        description: Which model it is, for people.
        device: Device of the body's states and of the head's input; with a device map only a part of the model runs
            there.
        packs: Whether the sequences of a batch are read in one row, kept apart by their positions.
    """

    body: Body
    head: Head
    computed: ComputedWeights
    description: ModelDescription
    device: torch.device
    packs: bool = False

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that it predicts, V."""
        return self.head.vocabulary_size

    @property
    def software(self) -> str:
        """What reads the tokens, with its version."""
        return self.body.software


@dataclass(frozen=True)
class TopRows:
    """The k likeliest tokens at each of P positions.

    Attributes:
        ids: (P, k) uint32, by falling probability.
        log_probs: (P, k) float32.
        gold_log_probs: (P,) float32, of the token that the text has there.
    """

    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float32]
    gold_log_probs: NDArray[np.float32]

    def at(self, positions: NDArray[np.int64]) -> "TopRows":
        """Return the rows of some positions."""
        return TopRows(self.ids[positions], self.log_probs[positions], self.gold_log_probs[positions])

    @classmethod
    def joined(cls, parts: list["TopRows"], k: int) -> "TopRows":
        """Return several parts, of k tokens a row, one after the other."""
        none = cls(np.empty((0, k), np.uint32), np.empty((0, k), np.float32), np.empty(0, np.float32))
        fields = [(part.ids, part.log_probs, part.gold_log_probs) for part in (none, *parts)]
        return cls(*map(np.concatenate, zip(*fields, strict=True)))

    def log_probs_of(self, ids_Pm: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Return log-probabilities of some tokens of each row, (P, m); of others the most they can have."""
        log_probs = np.empty(ids_Pm.shape, np.float32)
        for row, ids in enumerate(ids_Pm):
            order = np.argsort(self.ids[row])
            slots = order[np.searchsorted(self.ids[row], ids, sorter=order).clip(max=len(order) - 1)]
            log_probs[row] = np.where(
                self.ids[row][slots] == ids, self.log_probs[row][slots], self.log_probs[row].min()
            )
        return log_probs


class Rows(Protocol):
    """Turns tokens into rows of likeliest tokens."""

    @property
    def software(self) -> str:
        """What runs it, with its version, for the receipt."""

    def read(self, sequences: list[Sequence], k: int, progress: Advance = ignore) -> TopRows:
        """Return the rows at the kept positions of some sequences, in their order.

        Args:
            sequences: What to read.
            k: Tokens of a row.
            progress: Called with the number of tokens that were read.

        Raises:
            ModelError: it cannot read, or its rows are not the k likeliest tokens of these ids.
            IdentityError: another model answers, or it reads other ids.
        """

    def check(self, first: list[Sequence], k: int) -> None:
        """Refuse rows that depend on anything but the tokens before them.

        Args:
            first: A few sequences of the encoding.
            k: Tokens of a row.

        Raises:
            ModelError: they do.
        """


@dataclass(frozen=True)
class RowTeacher:
    """A teacher of which only the likeliest tokens can be asked.

    Attributes:
        rows: Reads tokens.
        vocabulary_size: Number of tokens that it predicts, V.
        computed: What determines its predictions, as far as it is known.
        description: Which model it is, for people.
    """

    rows: Rows
    vocabulary_size: int
    computed: ComputedWeights
    description: ModelDescription

    @property
    def software(self) -> str:
        """What reads the tokens, with its version."""
        return self.rows.software


AnyTeacher: TypeAlias = Teacher | RowTeacher
"""A teacher, whatever can be asked of it."""
