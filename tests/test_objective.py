"""What training minimises, on real captures, against float64 sums over the cache or the live teacher's softmax."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from loss_fixtures import loss, naive_divergence, naive_sum
from student_fixtures import GRADIENT_ROUNDING
from tolerances import loss_rounding, model_rounding, rounding
from trainer.config.student_file import HiddenPair
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, Reading, collate
from trainer.losses.distillation_loss import LOGGED, TeacherRows
from trainer.losses.divergences import gradient_scale
from trainer.losses.tails import SparseTargets
from trainer.student.student import distilled
from trainer.verdicts.compatibility import TargetSummary, check_loss

VOCABULARY, T = 300, 2.0
CAPTURES = {
    "topk": {"target": {"k": 12, "exact": True, "temperatures": [T]}, "hidden": {"layers": ["last", 1]}},
    "whole": {"target": {"k": VOCABULARY, "exact": True}, "hidden": {"layers": ["last"], "codec": "float32"}},
    "sampled": {"target": {"kind": "sampled", "draws": 20}},
    "hybrid": {"target": {"kind": "hybrid", "k": 5, "draws": 20}},
}
CASES = [
    ("topk", loss("forward_kl", kd_weight=0.5)),
    ("topk", loss("reverse_kl")),
    ("topk", loss("jensen_shannon", beta=0.3)),
    ("topk", loss("total_variation", "none")),
    ("topk", loss("forward_kl", "gold", allow_biased=True)),
    ("topk", loss("forward_kl", temperature=T, kd_weight=0.7)),
    ("topk", loss("reverse_kl", temperature=T)),
    ("whole", loss("forward_kl", temperature=T)),
    ("whole", loss("total_variation", temperature=T)),
    ("whole", loss("forward_kl", None, source="hidden", kd_weight=0.5)),
    ("whole", loss("reverse_kl", None, source="hidden", temperature=T)),
    ("whole", loss("jensen_shannon", None, source="hidden")),
    ("sampled", loss("forward_kl", kd_weight=0.5)),
    ("hybrid", loss("forward_kl")),
    ("hybrid", loss("total_variation", allow_biased=True)),
]
"""Of each kind and source, divergences that the table accepts."""


class Captured:
    """A cache, its teacher in memory, and a student that is another one."""

    def __init__(self, folder, name):
        self.teacher = tiny.capture(folder, **CAPTURES[name]).encoding().teacher()
        self.live = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
        self.student = tiny.model(seed=1)

    def batch(self, settings):
        dataset = CachedSequences(
            self.teacher, "train", VOCABULARY, reading=Reading.of(self.teacher.manifest, settings)
        )
        return collate([dataset[i] for i in range(2)])


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Captured(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


def kept_logits(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[batch["gold_ids"] != IGNORED]


def truth(case, settings, batch):
    """Return (mean divergence, mean cross-entropy, student in float64), the first two differentiable in the third."""
    student = copy.deepcopy(case.student).double()
    logits, gold = kept_logits(student, batch), batch["gold_ids"][batch["gold_ids"] != IGNORED]
    temperature = settings.temperature
    if TargetSummary.of(case.teacher.manifest, settings).family in ("hidden", "whole"):
        with torch.no_grad():
            p = (kept_logits(case.live, batch).double() / temperature).softmax(1)
        q = (logits / temperature).softmax(1)
        divergence = torch.stack([naive_sum(*row, settings) for row in zip(p, q, strict=True)])
    else:
        divergence = naive_divergence(logits, tempered_by_the_live_teacher(case, batch, temperature), gold, settings)
    return divergence.mean(), torch.nn.functional.cross_entropy(logits, gold), student


def tempered_by_the_live_teacher(case, batch, temperature):
    """Return the targets of a batch; at another temperature, those of the teacher's own softmax at the kept ids."""
    targets = TeacherRows.of(batch).targets
    if temperature == 1:
        return targets
    with torch.no_grad():
        p = (kept_logits(case.live, batch).double() / temperature).softmax(1).gather(1, targets.ids)
    return SparseTargets(targets.ids, p.log(), (1 - p.sum(1)).log())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_loss_and_every_gradient_equal_a_float64_computation(captured, name, settings):
    case = captured(name)
    check_loss(case.teacher.manifest, settings)
    batch = case.batch(settings)
    module = distilled(copy.deepcopy(case.student), settings, case.teacher)
    found = module(**batch)
    found["loss"].backward()
    divergence, cross_entropy, student = truth(case, settings, batch)
    expected = settings.kd_weight * divergence + (1 - settings.kd_weight) * cross_entropy
    expected.backward()
    found, divergence, expected = found | {"loss": found["loss"].detach()}, divergence.detach(), expected.detach()
    rounded = loss_rounding(tiny.model().config, 48, kept_logits(case.student, batch)) * gradient_scale(settings)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=0, abs=rounded)
    for (parameter, mine), its in zip(module.student.named_parameters(), student.parameters(), strict=True):
        error = (mine.grad.double() - its.grad).norm() / its.grad.norm().clamp(min=1e-3)
        assert error < 10 * GRADIENT_ROUNDING, parameter  # a divergence weighs with log ratios of up to 10 nats
    if name not in ("sampled", "hybrid"):
        logged = float(found[LOGGED[settings.divergence]]) / len(batch["target_ids"])
        assert logged == pytest.approx(float(divergence) / gradient_scale(settings), rel=0, abs=rounded)


@pytest.mark.parametrize("name", ["sampled", "hybrid"])
def test_the_kl_that_is_logged_of_draws_is_unbiased(captured, name):
    """The draws' cross-entropy less the teacher's entropy, which the cache keeps in steps of 0.001 nats."""
    case, settings = captured(name), loss("forward_kl")
    batch = case.batch(settings)
    with torch.no_grad():
        found = distilled(copy.deepcopy(case.student), settings, case.teacher)(**batch)["kl_nats"]
        live, log_q = (kept_logits(m, batch).double().log_softmax(1) for m in (case.live, case.student))
    entropy = -(live.exp() * live).sum(1)
    drawn = -(batch["target_log_probs"].exp() * log_q.gather(1, batch["target_ids"])).sum(1)
    assert float(found) / len(entropy) == pytest.approx(float((drawn - entropy).mean()), abs=1e-3)
    own = float(truth(case, settings, batch)[0].detach())
    assert abs(own - float(found) / len(entropy)) > 0.01  # the draws' own value says something else


def test_hidden_states_add_their_loss_and_its_gradient(captured):
    case = captured("topk")
    pair = HiddenPair(student_layer=2, teacher_layer=1, weight=0.5)
    alone, together = loss(), loss(hidden=(pair,))
    batch = case.batch(together)
    torch.manual_seed(0)
    module = distilled(copy.deepcopy(case.student), together, case.teacher)
    found, without = module(**batch), distilled(case.student, alone, case.teacher)(**case.batch(alone))
    kept = batch["gold_ids"] != IGNORED
    output = module.student(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    )
    mine = output.hidden_states[2][kept] @ module.loss.match.projections[0].weight.T
    expected = 0.5 * (mine.double() - batch["hidden"]["1"].double()).square().mean()
    value = float(expected.detach())
    relative = 2 * model_rounding(case.student.config, 48)
    assert float(found["hidden_loss"]) / int(kept.sum()) == pytest.approx(value, rel=relative)
    assert float((found["loss"] - without["loss"]).detach()) == pytest.approx(
        value, rel=0, abs=2 * rounding(torch.float32, int(kept.sum()), found["loss"])
    )
    (gradient,) = torch.autograd.grad(expected, module.loss.match.projections[0].weight, retain_graph=True)
    found["loss"].backward()
    error = (module.loss.match.projections[0].weight.grad - gradient).norm() / gradient.norm()
    assert error < GRADIENT_ROUNDING


@pytest.mark.parametrize("budget", [1e-4, 1e-2])
def test_a_quantised_last_state_costs_no_more_than_its_budget(tmp_path, budget):
    hidden = {"layers": ["last"], "codec": "budget", "max_kl_nats": budget}
    teacher = tiny.capture(tmp_path, hidden=hidden).encoding().teacher()
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").eval()
    settings = loss("forward_kl", None, source="hidden")
    dataset = CachedSequences(teacher, "train", VOCABULARY, reading=Reading.of(teacher.manifest, settings))
    with torch.no_grad():
        sums = distilled(live, settings, teacher)(**collate([dataset[i] for i in range(len(dataset))]))
    assert budget / 10 < float(sums["loss"]) < 1.2 * budget


def test_the_teacher_s_matrix_is_no_part_of_what_is_trained_or_saved(captured):
    module = distilled(tiny.model(seed=1), loss("forward_kl", None, source="hidden"), captured("whole").teacher)
    assert not list(module.loss.objective.parameters())
    assert all(name.startswith("student.") for name in module.state_dict())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_no_more_is_read_than_the_loss_needs(captured, name, settings):
    batch = captured(name).batch(settings)
    scalars = {"sampled": {"entropy"}, "hybrid": {"entropy"}}.get(name, set())
    if name == "topk" and settings.temperature == T:
        scalars = {"logsumexp", "logsumexp_t2"}
    drawn_value = settings.divergence == "forward_kl" or name not in ("sampled", "hybrid")
    assert batch.get("scalars", {}).keys() == (scalars if drawn_value else set())
    assert batch.get("hidden", {}).keys() == ({"last"} if settings.source == "hidden" else set())


def test_what_is_read_besides_the_targets_is_what_the_reader_gives(captured):
    teacher = captured("topk").teacher
    dataset = CachedSequences(teacher, "train", VOCABULARY, reading=Reading(("entropy",), ("1", "last")))
    sequences = [s for shard in teacher.encoding.split_shards("train") for s in teacher.encoding.sequences(shard)]
    for index in range(0, len(dataset), 7):
        item, sequence = dataset[index], sequences[index]
        assert (item.scalars["entropy"] == teacher.scalar("entropy", *sequence.rows)).all()
        for layer in ("1", "last"):
            assert (item.hidden[layer] == teacher.hidden(layer, *sequence.rows)).all()
