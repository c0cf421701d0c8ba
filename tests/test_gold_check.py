"""Rows against the scalars beside them: nothing a capture writes is suspected, nothing that was exchanged passes."""

import numpy as np
import pytest
import torch

from cache_tools.codecs.registry import DeltaCount, DeltaFloat32, DeltaPower, DenseFloat32, narrow
from cache_tools.format.manifest import Kind
from cache_tools.inspection.gold_check import Claims, Evidence, broken, contradictions
from cache_tools.store.predictions import SCALAR_STEP_NATS, from_steps, to_steps
from pipeline.capture.draws import position_keys
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.teachers.restriction import Restriction

N, V, K, DRAWS = 400, 500, 12, 40

KINDS = {
    "topk": (Keep(k=K), DeltaPower),
    "topk exact": (Keep(k=K), DeltaFloat32),
    "topk of all": (Keep(k=V), DeltaPower),
    "topk tempered": (Keep(k=K, temperatures=(2.0, 4.0)), DeltaPower),
    "topp": (Keep(Kind.TOPP, k=K, p=0.8), DeltaPower),
    "topp exact": (Keep(Kind.TOPP, k=K, p=0.8), DeltaFloat32),
    "hybrid": (Keep(Kind.HYBRID, k=K, draws=DRAWS), DeltaPower),
    "hybrid exact": (Keep(Kind.HYBRID, k=K, draws=DRAWS), DeltaFloat32),
    "dense": (Keep(Kind.DENSE), DenseFloat32),
    "sampled": (Keep(Kind.SAMPLED, draws=DRAWS), DeltaCount),
}


def logits_of(name):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (N, V)).astype(np.float32)
    if name == "peaked":
        logits[np.arange(N), rng.integers(0, V, N)] += rng.choice([8, 16, 30, 60], N)
    if name == "far apart":
        logits *= 300
    if name == "far from zero":
        logits += 3000
    if name == "impossible":
        logits[rng.random(logits.shape) < 0.6] = -np.inf
        logits[:, :3] = 1.0
    if name == "equal":
        logits[...] = 0.25
    if name == "bfloat16":
        return torch.from_numpy(logits * 3).bfloat16().float()
    if name == "float16":
        return torch.from_numpy(logits * 3).half().float()
    return torch.from_numpy(logits)


LOGITS = ("ordinary", "peaked", "far apart", "far from zero", "impossible", "equal", "bfloat16", "float16")


def gold_of(logits, seed=0):
    """Draw a gold token of each row's own distribution, as in a text that the teacher could have written."""
    torch.manual_seed(seed)
    return torch.multinomial(torch.softmax(logits.double(), 1), 1)[:, 0]


def restriction():
    """Return every third token, the one before standing in for each other."""
    kept = torch.arange(0, V, 3)
    return Restriction("half", kept, torch.arange(V) // 3 * 3, "tokenizer")


class Stored:
    """Rows as a capture stores them, and as a reader finds them."""

    def __init__(self, kind, logits, gold, restricted=False):
        self.keep, codec_type = KINDS[kind]
        if restricted:
            self.keep = Keep(**{**vars(self.keep), "restriction": restriction()})
        keys = position_keys(0, torch.zeros(len(logits), dtype=torch.int64), torch.arange(len(logits)))
        made = sparse_targets(logits.clone(), gold, self.keep, keys)
        self.codec = codec_type(self.keep.slots(V), V, *self._settings(codec_type))
        self.step = 0.0 if codec_type in (DeltaFloat32, DenseFloat32) else SCALAR_STEP_NATS
        targets = type(made)(*(made.ids, made.log_probs, made.log_left_out), {})
        encoded = self.codec.encode(numpy_targets(targets))
        self.arrays, self.parameters = encoded.arrays, encoded.parameters
        self.scalars = {n: from_steps(to_steps(v.numpy(), self.step), self.step) for n, v in made.scalars.items()}
        self.gold, self.narrowed = gold.numpy().astype(np.uint32), False

    def _settings(self, codec_type):
        return {DeltaCount: (DRAWS,), DeltaPower: (5e-5, self.keep.temperatures)}.get(codec_type, ())

    def narrow(self, k):
        self.codec, self.arrays, self.parameters = narrow(self.codec, self.arrays, self.parameters, k)
        self.narrowed = True
        return self

    def evidence(self, change=lambda targets: None):
        decoded = self.codec.decode(self.arrays, self.parameters)
        low, high = self.codec.bounds(self.arrays, self.parameters, self.narrowed)
        change(decoded)
        if change is shifted:
            low, high = np.roll(low, 1, axis=0), np.roll(high, 1, axis=0)
        scalars = {name: self.scalars[name].astype(np.float64) for name in ("gold_logprob", "entropy", "logsumexp")}
        return Evidence(
            decoded, low, high, self.gold, scalars["gold_logprob"], scalars["entropy"], scalars["logsumexp"]
        )

    def claims(self):
        tokens = self.keep.tokens(V)
        head = min(self.keep.k, self.codec.k)
        return Claims(self.keep.kind, tokens, tokens < V, head, DRAWS, self.step)

    def broken(self, change=lambda targets: None):
        return broken(contradictions(self.claims(), self.evidence(change)))


def numpy_targets(made):
    from cache_tools.codecs.registry import Targets

    return Targets(made.ids.numpy().astype(np.uint32), made.log_probs.numpy(), made.log_left_out.numpy())


every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("name", LOGITS)
@every_kind
def test_nothing_that_a_capture_stores_is_suspected(kind, name, restricted):
    logits = logits_of(name)
    stored = Stored(kind, logits, gold_of(logits), restricted)
    rules = contradictions(stored.claims(), stored.evidence())
    assert {rule: int(rows.sum()) for rule, rows in rules.items() if rows.any()} == {}


@pytest.mark.parametrize("k", [1, 3, 11])
@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("kind", ["topk", "topk exact", "topp"])
def test_rows_of_which_a_subset_keeps_fewer_entries_are_not_suspected(kind, name, k):
    logits = logits_of(name)
    stored = Stored(kind, logits, gold_of(logits)).narrow(k)
    rules = contradictions(stored.claims(), stored.evidence())
    assert {rule: int(rows.sum()) for rule, rows in rules.items() if rows.any()} == {}


@every_kind
def test_rows_in_which_the_teacher_said_nothing_are_not_suspected(kind):
    logits = logits_of("ordinary")
    stored = Stored(kind, logits, gold_of(logits))

    def silenced(targets):
        targets.ids[:50], targets.log_probs[:50], targets.log_left_out[:50] = 0xFFFFFFFF, -np.inf, 0

    for values in stored.scalars.values():
        values[:50] = 0
    assert not stored.broken(silenced)[:50].any()


def moved(targets):
    targets.ids[...] = np.where(targets.ids == 0xFFFFFFFF, targets.ids, (targets.ids + 137) % V)


def shifted(targets):
    for values in vars(targets).values():
        values[...] = np.roll(values, 1, axis=0)


def permuted(targets):
    targets.ids[...] = np.where(
        targets.ids == 0xFFFFFFFF,
        targets.ids,
        np.random.default_rng(0).permutation(V).astype(np.uint32)[targets.ids % V],
    )


@pytest.mark.parametrize("change", [moved, shifted, permuted])
@every_kind
def test_rows_with_other_ids_or_of_other_positions_are_told(kind, change):
    logits = logits_of("ordinary") * 2
    rows = Stored(kind, logits, gold_of(logits)).broken(change)
    assert rows.mean() > 0.3


@pytest.mark.parametrize("change", [moved, shifted, permuted])
@pytest.mark.parametrize("kind", ["topk", "topp", "sampled", "hybrid", "dense"])
def test_they_are_told_of_a_smaller_vocabulary_too(kind, change):
    logits = logits_of("ordinary") * 2
    assert Stored(kind, logits, gold_of(logits), restricted=True).broken(change).mean() > 0.05


@pytest.mark.parametrize("kind", ["topk", "topk exact", "topp", "topp exact"])
def test_rows_that_keep_next_to_nothing_are_told(kind):
    logits = logits_of("ordinary")
    stored = Stored(kind, logits, gold_of(logits))
    evidence = stored.evidence()
    scale = np.log(2e-4) - np.logaddexp.reduce(np.where(evidence.used, evidence.low[:, :-1], -1e9), axis=1)
    for bound in (evidence.low, evidence.high):
        bound[:, :-1] += scale[:, None]
        bound[:, -1] = np.log1p(-2e-4)
    assert broken(contradictions(stored.claims(), evidence)).all()


@pytest.mark.parametrize("name", ["gold_logprob", "entropy"])
@pytest.mark.parametrize("value", [1.0, -0.5, 50.0, np.nan])
def test_scalars_that_no_distribution_has_are_told(name, value):
    logits = logits_of("ordinary")
    stored = Stored("topk", logits, gold_of(logits))
    stored.scalars[name][...] = value
    if (name, value) != ("gold_logprob", -0.5):
        assert stored.broken().all()


def test_one_wrong_row_among_hundreds_is_told_by_its_number():
    logits = logits_of("ordinary") * 2
    stored = Stored("topk", logits, logits.argmax(1))

    def one(targets):
        targets.ids[123] = (targets.ids[123] + 1) % V

    assert np.flatnonzero(stored.broken(one)).tolist() == [123]
