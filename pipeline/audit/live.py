"""Compare stored rows with a live teacher: one pass over some sequences, of which only the comparison is kept.

The pass is that of a capture (padded batches, body, head in chunks), but each row of logits is
also read at the tokens that the cache holds there and at its neighbours. Memory: the model, a batch,
one head chunk, and for each position its k answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.codecs.rows import EMPTY_ID, Targets, by_id
from cache_tools.errors import ModelError
from cache_tools.format.layout import ENTROPY, LOGSUMEXP, SCALARS, temperature_of
from cache_tools.format.manifest import TeacherManifest
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.sampling import AT_ONCE
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.requests.in_flight import in_parallel
from cache_tools.store.teacher import CachedTeacher
from pipeline.audit.measures import LOWEST_NATS, Rows, joined_targets
from pipeline.capture.draws import position_keys
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.capture.predict import chunk_positions
from pipeline.teachers.batches import Batch, pad, token_budget_batches
from pipeline.teachers.body_and_head import HeadOutput
from pipeline.teachers.restriction import Restriction
from pipeline.teachers.teacher import Teacher

T = TypeVar("T")

Floats32 = NDArray[np.float32]

# N: positions of a chunk, P: of a batch, V: vocabulary, k: slots, D: width


@dataclass(frozen=True)
class Compared:
    """Some sequences' rows and hidden states, stored and live.

    Attributes:
        rows: In the order of the sequences.
        hidden: (stored, live), both (n, width) float32, by layer.
    """

    rows: Rows
    hidden: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def compare(
    cached: CachedTeacher,
    sequences: list[Sequence],
    layers: list[str],
    teacher: Teacher,
    batch_tokens: int,
    progress: Advance = ignore,
    restriction: Restriction | None = None,
) -> Compared:
    """Read what the cache holds of some sequences, run the teacher over them, and return both sides.

    Args:
        cached: The teacher in the cache; only these sequences' rows are read.
        sequences: Of committed shards.
        layers: Hidden layers that those shards have.
        teacher: The loaded teacher, with logits as wide as the cached one's.
        batch_tokens: Tokens per forward pass, padding included.
        progress: Called with the number of tokens that were read.
        restriction: The tokens that the target is over, if not all.

    Raises:
        ModelError: the live teacher's logits are not numbers.
    """
    stored = joined_targets(_stored(cached, sequences, cached.targets))
    starts = np.cumsum([0, *(sequence.num_positions for sequence in sequences)])
    keep = replace(keep_of_manifest(cached.manifest), restriction=restriction)
    objective = cached.encoding.manifest.objective
    answers, order = [], []
    for indices in token_budget_batches([len(s.input_ids) for s in sequences], batch_tokens):
        where = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        gold = np.concatenate([sequences[i].gold_ids(objective) for i in indices])
        question = _Question(pad(sequences, indices), gold, stored.ids[where], stored.log_probs[where], keep, layers)
        answers.append(_answers(question, teacher))
        order.append(where)
        progress(sum(len(sequences[i].input_ids) for i in indices))
    live = _concatenated(answers).rows(np.argsort(np.concatenate(order)))
    if not np.isfinite(live.scalars[LOGSUMEXP]).all():
        raise ModelError("the live teacher's logits are not numbers", where=f"teacher {cached.name!r}")
    return _both_sides(cached, sequences, stored, live, layers)


def keep_of_manifest(manifest: TeacherManifest) -> Keep:
    """Return what a capture with this manifest kept of each distribution, over whatever tokens."""
    target, settings = manifest.target, manifest.target.settings
    named = {name: temperature_of(name) for name in manifest.scalars if name not in SCALARS}
    return Keep(
        target.kind,
        settings.get("head", target.k),
        settings.get("p", 1.0),
        settings.get("draws", 0),
        settings.get("seed", 0),
        tuple(temperature for temperature in named.values() if temperature),
        tuple(name for name, temperature in named.items() if not temperature),
    )


@dataclass(frozen=True)
class _Question:
    """One batch and what is stored of its kept positions, row by row.

    Attributes:
        batch: The padded sequences.
        gold: (P,) token that each position should predict.
        ids: (P, k) stored ids.
        log_probs: (P, k) stored.
        keep: What the capture kept.
        layers: Hidden layers to answer with.
    """

    batch: Batch
    gold: NDArray[np.uint32]
    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float32]
    keep: Keep
    layers: list[str]


@dataclass(frozen=True)
class _Answers:
    """What a live teacher predicts at P positions, on the host.

    Attributes:
        log_probs: (P, k) at the stored tokens; without meaning in empty slots.
        surprisal: (P, 3) mean surprisal of the stored row before, of this one and of the one after.
        top_log_prob: (P,) of the likeliest token.
        head_log_prob: (P,) of the last token of a hybrid's head; -inf for other kinds.
        kept_ids: (P, k) tokens that the teacher would keep.
        kept_log_probs: (P, k) their log-probabilities.
        scalars: (P,) each, by name.
        hidden: (P, width) each, by layer.
    """

    log_probs: Floats32
    surprisal: Floats32
    top_log_prob: Floats32
    head_log_prob: Floats32
    kept_ids: NDArray[np.int64]
    kept_log_probs: Floats32
    scalars: dict[str, Floats32]
    hidden: dict[str, Floats32]

    def rows(self, order: NDArray[np.intp]) -> "_Answers":
        """Return the positions in another order."""
        return _Answers(
            self.log_probs[order],
            self.surprisal[order],
            self.top_log_prob[order],
            self.head_log_prob[order],
            self.kept_ids[order],
            self.kept_log_probs[order],
            {name: values[order] for name, values in self.scalars.items()},
            {layer: states[order] for layer, states in self.hidden.items()},
        )


def _concatenated(parts: list[_Answers]) -> _Answers:
    return _Answers(
        np.concatenate([part.log_probs for part in parts]),
        np.concatenate([part.surprisal for part in parts]),
        np.concatenate([part.top_log_prob for part in parts]),
        np.concatenate([part.head_log_prob for part in parts]),
        np.concatenate([part.kept_ids for part in parts]),
        np.concatenate([part.kept_log_probs for part in parts]),
        {name: np.concatenate([part.scalars[name] for part in parts]) for name in parts[0].scalars},
        {layer: np.concatenate([part.hidden[layer] for part in parts]) for layer in parts[0].hidden},
    )


@torch.inference_mode()
def _answers(question: _Question, teacher: Teacher) -> _Answers:
    """Run one batch."""
    middle = [layer for layer in question.layers if layer != "last"]
    last_PD, states = teacher.body.states(question.batch, [int(layer) for layer in middle])
    size = chunk_positions(teacher)
    answers = _concatenated(
        [
            _head_answers(question, teacher.head.logits(last_PD[start : start + size]), start)
            for start in range(0, len(last_PD), size)
        ]
    )
    return replace(answers, hidden=answers.hidden | {layer: _host(states[int(layer)]) for layer in middle})


def _host(tensor: Tensor) -> Floats32:
    """Return a tensor as a float32 array."""
    array: Floats32 = tensor.float().cpu().numpy()
    return array


def _head_answers(question: _Question, head: HeadOutput, start: int) -> _Answers:
    """Compare the batch's stored rows from ``start`` on with the logits of as many positions, N."""
    logits_NV, keep, device = head.logits, question.keep, head.logits.device
    if keep.restriction is not None:
        logits_NV = keep.restriction.logits(logits_NV)
    part = slice(start, start + len(logits_NV))
    keys_N = position_keys(keep.seed, question.batch.sequence_ids[part], question.batch.positions[part])
    gold_N = torch.from_numpy(question.gold[part].astype(np.int64))
    live = sparse_targets(logits_NV.clone(), gold_N.to(device), keep, keys_N.to(device))
    logsumexp_N = live.scalars[LOGSUMEXP]
    border_N = torch.full_like(logsumexp_N, -torch.inf)
    if keep.kind.is_drawn and keep.kind.has_head:
        border_N = live.log_probs[:, min(keep.k, logits_NV.shape[1]) - 1]
    beside = [_at_stored(question, logits_NV, logsumexp_N, start + shift) for shift in (-1, 0, 1)]
    return _Answers(
        log_probs=_host(beside[1][0]),
        surprisal=_host(torch.stack([surprisal_N for _, surprisal_N in beside], dim=1)),
        top_log_prob=_host(logits_NV.amax(dim=1) - logsumexp_N),
        head_log_prob=_host(border_N),
        kept_ids=live.ids.cpu().numpy(),
        kept_log_probs=_host(live.log_probs),
        scalars={name: _host(values) for name, values in live.scalars.items()},
        hidden={"last": _host(head.last)} if "last" in question.layers else {},
    )


def _at_stored(question: _Question, logits_NV: Tensor, logsumexp_N: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Read logits at the tokens of the stored rows from ``start`` on; rows beyond the batch's ends are its end rows.

    Returns:
        Log-probabilities (N, k), without meaning in empty slots, and the rows' mean surprisal (N,).
    """
    rows = np.clip(np.arange(start, start + len(logits_NV)), 0, len(question.ids) - 1)
    used = question.ids[rows] != EMPTY_ID
    ids_Nk = torch.from_numpy(np.where(used, question.ids[rows], 0).astype(np.int64)).to(logits_NV.device)
    weights_Nk = torch.from_numpy(np.where(used, np.exp(question.log_probs[rows]), 0)).to(logits_NV.device)
    log_probs_Nk = logits_NV.gather(1, ids_Nk) - logsumexp_N[:, None]
    return log_probs_Nk, -(weights_Nk * log_probs_Nk.clamp(min=LOWEST_NATS)).sum(dim=1)


def _stored(cached: CachedTeacher, sequences: list[Sequence], read: Callable[[int, int], T]) -> list[T]:
    """Return what ``read`` reads of each sequence's rows; in a bucket, of several sequences at a time."""
    return list(in_parallel(lambda sequence: read(*sequence.rows), sequences, cached.path, AT_ONCE))


def _both_sides(
    cached: CachedTeacher, sequences: list[Sequence], stored: Targets, live: _Answers, layers: list[str]
) -> Compared:
    scalars = {}
    for name in cached.manifest.scalars:
        held = np.concatenate(_stored(cached, sequences, partial(cached.scalar, name)))
        scalars[name] = (held.astype(np.float64), live.scalars[name].astype(np.float64))
    hidden = {
        layer: (np.concatenate(_stored(cached, sequences, partial(cached.hidden, layer))), live.hidden[layer])
        for layer in layers
    }
    ends = np.cumsum([sequence.num_positions for sequence in sequences])
    edges = np.concatenate([ends - 1, [0], ends[:-1]])
    surprisal = live.surprisal.astype(np.float64)
    surprisal[edges] = np.nan
    kept_ids, _ = by_id(live.kept_ids.astype(np.uint32), live.kept_log_probs)
    rows = Rows(
        stored=stored,
        log_probs=np.where(stored.ids == EMPTY_ID, -np.inf, live.log_probs.astype(np.float64)),
        top_log_prob=live.top_log_prob.astype(np.float64),
        head_log_prob=live.head_log_prob.astype(np.float64),
        surprisal=surprisal,
        same_tokens=(kept_ids == np.sort(stored.ids, axis=1)).all(axis=1),
        entropy=live.scalars[ENTROPY].astype(np.float64),
        scalars=scalars,
    )
    return Compared(rows, hidden)
