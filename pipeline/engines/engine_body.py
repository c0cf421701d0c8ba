"""An engine's process as a teacher's body: token ids in, the states behind the last norm out.

A batch of the capture is one call of the engine, or several if it has more than SEQUENCES sequences; which sequences
share a call depends on the shard and ``batch_tokens`` alone, so a shard that is redone is computed in the same batches.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.errors import ModelError
from cache_tools.format.sequences import Sequence
from cache_tools.mappings import Identity
from pipeline.engines.own_rows import OwnRows
from pipeline.engines.process import EngineProcess
from pipeline.teachers.batches import Batch, whole
from pipeline.teachers.teacher import Head

SEQUENCES = 256
"""Sequences of one call at most; engines reserve room for each."""

UNIT_NORM = 1e-2
"""States whose norms are all this near to 1 were normalised."""

# B: sequences, L: length, P: kept positions, D: width


@dataclass(frozen=True)
class EngineFacts:
    """What an engine states about itself.

    Attributes:
        name: Its name.
        version: Its version.
        attention: Its implementation of attention.
        device: What it computes on, such as ``cpu`` or the name of a GPU.
        dtype: Type of its activations, by torch's name.
        width: Values of a state.
    """

    name: str
    version: str
    attention: str
    device: str
    dtype: str
    width: int

    def identity(self) -> Identity:
        """Return what of it decides the predictions, up to rounding."""
        return {key: value for key, value in asdict(self).items() if key not in ("device", "width")}


@dataclass(frozen=True)
class EngineBody:
    """The body of a model in an engine; see ``Body`` for its methods.

    Attributes:
        process: The engine.
        facts: Its name, version and settings, as it states them.
        device: Where the states go.
        head_dtype: The type in which the head takes them.
        most_tokens: Tokens that the engine computes in one step.
        own_rows: What the engine itself predicts of a few tokens, if it was asked.
    """

    process: EngineProcess
    facts: EngineFacts
    device: torch.device
    head_dtype: torch.dtype
    most_tokens: int
    own_rows: OwnRows | None = None

    @property
    def software(self) -> str:
        """What runs it, with its version."""
        return f"{self.facts.name} {self.facts.version} on {self.facts.device}"

    @property
    def dtype(self) -> str:
        """Type of its activations."""
        return self.facts.dtype

    def states(self, batch: Batch, layers: Several[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the states at the batch's kept positions: (P, D)."""
        if layers:
            raise ModelError(
                f"{self.facts.name} gives no states of a layer in the middle",
                where="hidden.layers",
                expected="last, or none",
                found=", ".join(map(str, layers)),
                fix="Capture such layers without 'engine', which then reads them with transformers",
            )
        parts = [self._read(*call) for call in _calls(batch, self.most_tokens)]
        return torch.cat(parts).to(self.device, self.head_dtype), {}

    def check(self, head: Head, probe: Batch, first: list[Sequence]) -> None:
        """Refuse states that are not what the output matrix takes: normalised, of another layer, of another model.

        Where the engine gave its own log-probabilities of a few tokens, states and head must lead to these.
        """
        states_PD, _ = self.states(probe)
        log_probs_PV = head.logits(states_PD).logits.log_softmax(dim=1)
        norms_P = states_PD.float().norm(dim=1)
        following = probe.input_ids[0, 1:].to(self.device)
        loss_nats = -float(log_probs_PV[:-1].gather(1, following[:, None]).mean()) if len(following) else 0.0
        most_nats = 2 * float(np.log(head.vocabulary_size))
        problem = ""
        if bool(((norms_P - 1).abs() < UNIT_NORM).all()):
            problem = "states of length 1: they were normalised"
        elif not loss_nats <= most_nats:
            problem = f"a loss of {loss_nats:.2f} nats per token, more than twice that of guessing"
        if problem:
            raise ModelError(
                "the engine's states do not lead to predictions through this model's output matrix",
                where=f"{self.facts.name} {self.facts.version}",
                expected="the states behind the last norm",
                found=problem,
                why="the cache would hold predictions that the teacher never made",
                fix="Report the model and the engine's version, and capture without 'engine'",
            )
        if self.own_rows is not None:
            ids_1L = self.own_rows.input_ids[None]
            states_LD, _ = self.states(whole(ids_1L, np.ones_like(ids_1L)))
            self.own_rows.check(head.logits(states_LD[:-1]).logits, self.dtype, self.software)

    def _read(self, ids: NDArray[np.int32], lengths: list[int], places: NDArray[np.int32], kept: list[int]) -> Tensor:
        """Return the states at the kept places of some sequences: (P, D), in the engine's type."""
        header, content = self.process.ask({"lengths": lengths, "kept": kept}, ids, places)
        dtype = getattr(torch, str(header["dtype"]))
        if (
            header["shape"] != [sum(kept), self.facts.width]
            or len(content) != sum(kept) * self.facts.width * dtype.itemsize
        ):
            raise ModelError(
                f"{self.facts.name} returned states of another shape than it was asked for",
                expected=[sum(kept), self.facts.width],
                found=header["shape"],
            )
        if not content:
            return torch.empty(0, self.facts.width, dtype=dtype)
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(sum(kept), self.facts.width)


def _calls(
    batch: Batch, most_tokens: int
) -> Iterator[tuple[NDArray[np.int32], list[int], NDArray[np.int32], list[int]]]:
    """Yield a padded batch as calls: ids without padding, lengths, kept places in each sequence, their numbers."""
    assert batch.attention_mask is not None
    ids_BL, lengths_B = batch.input_ids.numpy().astype(np.int32), batch.attention_mask.sum(dim=1).numpy()
    rows_P, places_P = np.divmod(batch.kept.numpy(), ids_BL.shape[1])
    for rows in _groups(lengths_B.tolist(), most_tokens):
        of_call = (rows_P >= rows.start) & (rows_P < rows.stop)
        yield (
            np.concatenate([ids_BL[row, : lengths_B[row]] for row in rows]),
            [int(lengths_B[row]) for row in rows],
            places_P[of_call].astype(np.int32),
            np.bincount(rows_P[of_call] - rows.start, minlength=len(rows)).tolist(),
        )


def _groups(lengths: list[int], most_tokens: int) -> Iterator[range]:
    """Yield sequences, one after another, in groups that the engine computes in one step."""
    start, tokens = 0, 0
    for row, length in enumerate(lengths):
        if row > start and (tokens + length > most_tokens or row - start == SEQUENCES):
            yield range(start, row)
            start, tokens = row, 0
        tokens += length
    yield range(start, len(lengths))
