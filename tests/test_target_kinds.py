"""Each kind of target: what it keeps of a distribution, and that a whole capture stores and reads it."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import tiny
from cache_tools.codecs.registry import EMPTY_ID
from cache_tools.format.layout import TAIL_SCALARS, tempered_name
from cache_tools.format.manifest import Kind
from cache_tools.maintenance.verify import verify
from pipeline.capture.draws import position_keys
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.config.targets import TargetConfig
from tolerances import log_prob_rounding, loss_rounding, rounding, softmax_roundings

ROWS, VOCABULARY, K, DRAWS = 6, 90, 8, 30
LOGITS = torch.from_numpy(np.random.default_rng(0).normal(0, 2.5, (ROWS, VOCABULARY)).astype(np.float32))
GOLD = torch.arange(ROWS) * 13
MASS, LOG_PROB = rounding(torch.float32, softmax_roundings(VOCABULARY)), log_prob_rounding(VOCABULARY, LOGITS)
"""Tolerances of a sum of probabilities, and of a log-probability."""


def keep(seed=0, kind="topk", **changes):
    keys = position_keys(seed, torch.zeros(ROWS, dtype=torch.long), torch.arange(ROWS))
    return sparse_targets(LOGITS.clone(), GOLD, Keep(Kind(kind), **{"k": K, **changes}), keys)


def true_probabilities():
    return torch.softmax(LOGITS.double(), dim=1)


def dense(targets):
    """Return the weights of all tokens: (ROWS, VOCABULARY) float64."""
    weights = targets.log_probs.double().exp()
    return torch.zeros(ROWS, VOCABULARY, dtype=torch.float64).scatter_add_(1, targets.ids, weights)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_topp_keeps_the_fewest_tokens_that_reach_the_mass(p):
    targets = keep(kind="topp", k=VOCABULARY, p=p)
    falling = true_probabilities().sort(dim=1, descending=True).values.numpy()
    for row, kept in enumerate((targets.log_probs > -torch.inf).sum(dim=1).tolist()):
        assert falling[row, :kept].sum() >= p - MASS
        assert falling[row, : kept - 1].sum() < p + MASS
    left_out = targets.log_left_out.double().exp()
    assert torch.allclose(dense(targets).sum(dim=1) + left_out, torch.ones(ROWS, dtype=torch.float64), atol=MASS)


def test_topp_keeps_at_most_k():
    assert torch.equal(keep(kind="topp", p=1.0).log_probs, keep(kind="topk").log_probs)


@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_the_mean_over_many_seeds_is_the_distribution(kind):
    seeds = 1500
    mean = torch.stack([dense(keep(seed, kind=kind, draws=DRAWS)) for seed in range(seeds)]).mean(dim=0)
    standard_error = (true_probabilities() / (DRAWS * seeds)).sqrt()  # of a draw; hybrid's is smaller
    assert (abs(mean - true_probabilities()) <= 5 * standard_error + MASS).all()


def test_hybrid_varies_less_than_sampled():
    found = {
        kind: torch.stack([dense(keep(seed, kind=kind, draws=DRAWS)) for seed in range(50)]).var(dim=0).sum()
        for kind in ("sampled", "hybrid")
    }
    assert found["hybrid"] < 0.5 * found["sampled"]


def test_hybrid_keeps_its_head_exactly_and_never_draws_from_it():
    targets, head = keep(kind="hybrid", draws=DRAWS), keep(kind="topk")
    assert torch.equal(targets.ids[:, :K], head.ids)
    assert torch.equal(targets.log_probs[:, :K], head.log_probs)
    drawn = targets.log_probs[:, K:] > -torch.inf
    assert not (drawn[:, :, None] & (targets.ids[:, K:, None] == head.ids[:, None, :])).any()
    assert torch.allclose(dense(targets).sum(dim=1), torch.ones(ROWS, dtype=torch.float64), atol=MASS)


@pytest.mark.parametrize("kind", ["sampled", "hybrid", "dense"])
def test_unbiased_and_whole_rows_leave_nothing_out(kind):
    assert torch.isneginf(keep(kind=kind, draws=DRAWS).log_left_out).all()


def test_dense_keeps_every_logit_up_to_a_constant():
    targets = keep(kind="dense")
    logits = targets.log_probs + targets.scalars["logsumexp"][:, None]
    assert torch.allclose(logits, LOGITS.gather(1, targets.ids), rtol=0, atol=LOG_PROB)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 15.0, 1000.0])
def test_the_tempered_normaliser_tempers_kept_probabilities_exactly(temperature):
    targets = keep(temperatures=(temperature,))
    logits = targets.log_probs.double() + targets.scalars["logsumexp"].double()[:, None]
    found = logits / temperature - targets.scalars[tempered_name(temperature)].double()[:, None]
    true = torch.log_softmax(LOGITS.double() / temperature, dim=1).gather(1, targets.ids)
    assert torch.allclose(found, true, rtol=0, atol=2 * LOG_PROB * max(1, 1 / temperature))


def test_optional_scalars_equal_their_definition():
    scalars = keep(scalars=("gold_rank", *TAIL_SCALARS)).scalars
    for row in range(ROWS):
        logits = np.sort(LOGITS[row].double().numpy())[::-1]
        tail = logits[K:]
        gold = float(LOGITS[row, GOLD[row]])
        expected = {"gold_rank": (logits > gold).sum(), "tail_mean": tail.mean(), "tail_variance": tail.var()}
        expected["tail_minimum"] = tail.min()
        assert {name: float(scalars[name][row]) for name in expected} == pytest.approx(
            expected, rel=rounding(torch.float32, VOCABULARY), abs=rounding(torch.float32, VOCABULARY, LOGITS)
        )


def test_impossible_tokens_do_not_enter_the_tail():
    logits = LOGITS.clone()
    logits[:, ::2] = -torch.inf
    scalars = sparse_targets(logits, GOLD, Keep(k=K, scalars=TAIL_SCALARS, temperatures=(2.0,))).scalars
    assert all(torch.isfinite(scalars[name]).all() for name in (*TAIL_SCALARS, tempered_name(2.0)))


KINDS = {
    "topp": {"kind": "topp", "k": 12, "p": 0.5},
    "sampled": {"kind": "sampled", "draws": 20},
    "hybrid": {"kind": "hybrid", "k": 4, "draws": 10},
    "dense": {"kind": "dense"},
    "exact": {"k": 12, "exact": True},
    "scalars": {"k": 12, "temperatures": [0.5, 2], "scalars": ["gold_rank", "tail_mean"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_stores_every_kind_whatever_the_batches(tmp_path, kind):
    teacher = tiny.save_teacher(tmp_path / "teacher")
    caches = []
    for name, batch_tokens in (("small", 100), ("large", 900)):
        (tmp_path / name).mkdir()
        tiny.write_corpus(tmp_path / name / "corpus.jsonl", tiny.TEXTS[:15])
        caches.append(tiny.capture(tmp_path / name, teacher, target=KINDS[kind], batch_tokens=batch_tokens))
    readers = [cache.encoding().teacher() for cache in caches]
    assert [verify(cache.path, deep=True) for cache in caches] == [[], []]
    assert readers[0].manifest.fingerprint == readers[1].manifest.fingerprint
    exact, rounded = kind in ("sampled", "dense", "exact"), loss_rounding(tiny.model().config, 48, 10)
    for shard in range(len(readers[0].encoding.shards)):
        left, right = (reader.targets(*reader.shard_rows(shard)) for reader in readers)
        same = (left.ids == right.ids).all(axis=1)
        assert same.mean() > 0.98  # rounding may move a draw or a tie between batches, never more
        used = (left.ids != EMPTY_ID) & same[:, None]
        assert np.allclose(
            left.log_probs[used],
            right.log_probs[used],
            rtol=0,
            atol=rounded + (0 if exact else 0.1),  # a coarse step
        )
    for name in readers[0].manifest.scalars:
        assert np.isfinite(readers[0].scalar(name, *readers[0].shard_rows(0))).all()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"kind": "topp"}, "needs p"),
        ({"kind": "sampled"}, "needs draws"),
        ({"kind": "sampled", "draws": 5, "k": 3}, "does not use k"),
        ({"p": 0.5}, "does not use p"),
        ({"seed": 3}, "does not use seed"),
        ({"exact": True, "max_kl_nats": 1e-4}, "exact: true does not use max_kl_nats"),
        ({"kind": "dense", "exact": True}, "does not use exact"),
        ({"kind": "topp", "p": 1.5}, "less than or equal to 1"),
    ],
)
def test_refuses_settings_that_would_do_nothing(target, message):
    with pytest.raises(ValidationError, match=message):
        TargetConfig.model_validate(target)
