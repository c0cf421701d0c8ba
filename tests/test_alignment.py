"""Targets meet the tokens they were made for: the teacher as its own student has nothing to learn."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import tiny
from cache_tools.store.predictions import SCALAR_STEP_NATS
from tolerances import loss_rounding
from trainer.config.student_file import LossConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.losses.sparse import divergence
from trainer.losses.tails import SparseTargets
from trainer.student.student import distilled

EXACT = {"k": 300, "exact": True}
"""The whole vocabulary in float32: only the arithmetic of two forward passes differs."""

TARGETS = ("target_ids", "target_log_probs", "target_log_left_out")


class Case:
    """A cache, its teacher and the held-out sequences with what the teacher said about them."""

    def __init__(self, folder, model_type, **changes):
        masked = model_type == "bert"
        path = tiny.save_teacher(folder / "teacher", tiny.model(model_type), masked)
        self.cache = tiny.capture(folder, path, target=EXACT, objective="masked" if masked else "causal", **changes)
        self.model_type, self.cached = model_type, self.cache.encoding().teacher()
        self.dataset = CachedSequences(self.cached, "held_out", 300)
        self.teacher = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(path).eval()

    def batch(self, indices=None):
        return collate([self.dataset[i] for i in (range(len(self.dataset)) if indices is None else indices)])


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert"])
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp(request.param), request.param)


@torch.inference_mode()
def kept_logits(model, batch, **inputs):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **inputs).logits
    return logits[batch["gold_ids"] != IGNORED]


def rounding_of(model, batch):
    """Return the tolerance, in nats, of log-probabilities and of their means."""
    return loss_rounding(model.config, batch["input_ids"].shape[1], kept_logits(model, batch))


def kl_nats(model, batch):
    targets, gold = SparseTargets(*(batch[name] for name in TARGETS)), batch["gold_ids"][batch["gold_ids"] != IGNORED]
    return divergence(kept_logits(model, batch), targets, gold, LossConfig())


@torch.inference_mode()
def mean_loss(model, batches, weight):
    """Return the loss per position over batches, as the Trainer would add it up."""
    module = distilled(model, LossConfig(kd_weight=weight))
    positions = sum(len(batch["target_ids"]) for batch in batches)
    return float(sum(module(**batch, num_items_in_batch=positions)["loss"] for batch in batches))


def test_the_teacher_as_student_has_nothing_to_learn_at_any_position(case):
    kl, tolerance = kl_nats(case.teacher, case.batch()), rounding_of(case.teacher, case.batch())
    assert len(kl) == sum(len(case.dataset[i].positions) for i in range(len(case.dataset))) > 100
    assert kl.abs().max() < tolerance


@pytest.mark.parametrize("shift", [1, -1])
def test_targets_that_are_one_position_off_are_noticed(case, shift):
    batch = case.batch()
    kl = kl_nats(case.teacher, batch | {name: batch[name].roll(shift, dims=0) for name in TARGETS})
    assert kl.mean() > 0.1


def test_gold_tokens_are_those_whose_log_probability_the_teacher_stored(case):
    batch = case.batch()
    gold = batch["gold_ids"][batch["gold_ids"] != IGNORED]
    log_prob = kept_logits(case.teacher, batch).log_softmax(1).gather(1, gold[:, None])[:, 0]
    tolerance = SCALAR_STEP_NATS / 2 + rounding_of(case.teacher, batch)
    shards = case.cached.encoding.split_shards("held_out")
    stored = [torch.from_numpy(case.cached.scalar("gold_logprob", *case.cached.shard_rows(s))) for s in shards]
    torch.testing.assert_close(log_prob, torch.cat(stored), rtol=0, atol=tolerance)


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_batch_size_order_and_padding_do_not_change_the_loss(case, weight):
    student = tiny.model(case.model_type, seed=1)
    order = torch.randperm(len(case.dataset), generator=torch.Generator().manual_seed(0)).tolist()
    one_by_one = mean_loss(student, [case.batch([i]) for i in range(len(case.dataset))], weight)
    assert one_by_one > 0.1
    tolerance = rounding_of(student, case.batch())
    for size in (2, 5, len(order)):
        batches = [case.batch(order[start : start + size]) for start in range(0, len(order), size)]
        assert mean_loss(student, batches, weight) == pytest.approx(one_by_one, rel=0, abs=tolerance)


class LeftPadded(nn.Module):
    """Reads a batch that is padded on the left, each sequence from position 0."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self._no_split_modules = model, model.config, model._no_split_modules
        self.get_output_embeddings = model.get_output_embeddings

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, input_ids, attention_mask=None, **options):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self.model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, **options)


def padded_on_the_left(batch):
    lengths, moved = batch["attention_mask"].sum(dim=1), dict(batch)
    for name in ("input_ids", "attention_mask", "gold_ids"):
        rows = [row.roll(batch[name].shape[1] - int(n)) for row, n in zip(batch[name], lengths, strict=True)]
        moved[name] = torch.stack(rows)
    return moved


@pytest.mark.parametrize("case", ["llama", "gpt2"], indirect=True)
def test_left_padding_with_true_position_ids_gives_the_same_loss(case):
    student, batch = tiny.model(case.model_type, seed=1), case.batch()
    left = padded_on_the_left(batch)
    assert not torch.equal(left["input_ids"], batch["input_ids"])
    tolerance = rounding_of(student, batch)
    torch.testing.assert_close(kl_nats(LeftPadded(student), left), kl_nats(student, batch), rtol=0, atol=tolerance)
    expected = pytest.approx(mean_loss(student, [batch], 0.5), rel=0, abs=tolerance)
    assert mean_loss(LeftPadded(student), [left], 0.5) == expected
