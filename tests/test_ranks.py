"""Distances of sorted probabilities: against naive float64 sums over whole vocabularies, and in training."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import tiny
from alignment_fixtures import save
from cache_tools.alignments.making import align_encoding
from cache_tools.alignments.matching import NO_ROW
from cache_tools.alignments.stored import Alignment
from cache_tools.alignments.token_ids import student_ids
from cache_tools.codecs.registry import EMPTY_ID
from cache_tools.errors import ConfigError
from cache_tools.store.reader import Cache
from cache_tools.torch_models.scaling import Scaling
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from cache_tools.vocabularies.union import NO_ID
from loss_fixtures import naive_divergence, ragged, random_logits, top_k, with_gradient
from student_fixtures import LLAMA, student_values, train
from tolerances import rounding, softmax_roundings
from trainer.config.student_file import LossConfig, StudentConfig
from trainer.data.aligned_sequences import AlignedSequences
from trainer.data.cached_sequences import collate
from trainer.losses.distillation_loss import RankedDistillationLoss, TeacherRows
from trainer.losses.ranks import rank_distance
from trainer.losses.tails import SparseTargets
from trainer.run.explanation import print_explanation
from trainer.run.train import run_training
from trainer.student.fused_loss import chunked_loss
from trainer.student.head import StudentHead

SHAPES = [(7, 507, 301, 12), (5, 123, 400, 1), (4, 31, 12, 31)]
"""(positions, teacher's vocabulary, student's vocabulary, k); the last keeps all, and the student has fewer tokens."""

LONGER = {"student": {"config": LLAMA | {"max_position_embeddings": 256}}}
ALL = {"of": "all", "weight": 1.5}
HYBRID = {"of": "unmapped", "weight": 1.5, "mapped_weight": 0.5}


def assert_close(found, expected, vocabulary):
    """Assert that sums of differences of probabilities agree; each probability is at most 1."""
    atol = 2 * rounding(torch.float32, softmax_roundings(vocabulary))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def sorted_distance(p, q):
    """Return sum |p_i - q_i| of two whole distributions, each sorted, for each row: the definition."""
    width = max(p.shape[1], q.shape[1])
    p, q = (torch.nn.functional.pad(x.sort(dim=1, descending=True).values, (0, width - x.shape[1])) for x in (p, q))
    return (p - q).abs().sum(dim=1)


def naive_bounds(log_p, left_out, q):
    """Return the lower and the upper bound of a distance, row by row, from what a row stores."""
    bounds = []
    for row in range(len(q)):
        p = sorted((x.exp() for x in log_p[row].double() if x > -torch.inf), reverse=True)
        own = sorted(q[row], reverse=True)
        own += [torch.zeros((), dtype=torch.float64)] * (len(p) - len(own))
        head = sum(abs(x - y) for x, y in zip(p, own, strict=False))
        rest = sum(own[len(p) :], torch.zeros((), dtype=torch.float64))
        bounds.append((head + abs(left_out[row].double() - rest), head + left_out[row].double() + rest))
    return [torch.stack(bound) for bound in zip(*bounds, strict=True)]


@pytest.mark.parametrize(("positions", "teacher_size", "student_size", "k"), SHAPES)
@pytest.mark.parametrize("prepare", [lambda targets: targets, ragged], ids=["whole", "ragged"])
def test_value_and_gradient_are_those_of_the_naive_sum(positions, teacher_size, student_size, k, prepare):
    targets = prepare(top_k(random_logits(positions, teacher_size), k))
    student = random_logits(positions, student_size, seed=1)
    left_out = targets.log_left_out.exp()
    found, gradient = with_gradient(lambda x: rank_distance(x, targets.log_probs, left_out), student)
    expected, expected_gradient = with_gradient(
        lambda x: naive_bounds(targets.log_probs, left_out, x.softmax(dim=1))[0], student.double()
    )
    assert_close(found, expected, student_size)
    assert_close(gradient, expected_gradient, student_size)


@pytest.mark.parametrize(("positions", "teacher_size", "student_size", "k"), SHAPES)
def test_the_distance_over_whole_vocabularies_lies_between_the_bounds(positions, teacher_size, student_size, k):
    teacher, student = random_logits(positions, teacher_size), random_logits(positions, student_size, seed=1)
    targets = top_k(teacher, k)
    left_out, q = targets.log_left_out.exp(), student.double().softmax(dim=1)
    exact = sorted_distance(teacher.double().softmax(dim=1), q)
    lower, upper = naive_bounds(targets.log_probs, left_out, q)
    slack = 2 * rounding(torch.float32, softmax_roundings(teacher_size))
    assert (lower <= exact + slack).all()
    assert (exact <= upper + slack).all()
    if k == teacher_size:
        assert_close(rank_distance(student, targets.log_probs, left_out), exact, teacher_size)
    elif k > 1:
        assert (lower > 0.1 * exact).all()


def test_the_distance_is_zero_at_a_permuted_teacher_and_never_above_twice_the_total_variation():
    teacher, student = random_logits(6, 90), random_logits(6, 90, seed=1)
    targets = top_k(teacher, 8)
    left_out = targets.log_left_out.exp()
    shuffled = teacher[:, torch.randperm(90, generator=torch.Generator().manual_seed(3))]
    distance = rank_distance(shuffled, targets.log_probs, left_out)
    assert float(distance.max()) <= 2 * rounding(torch.float32, softmax_roundings(90))
    l1 = (teacher.double().softmax(dim=1) - student.double().softmax(dim=1)).abs().sum(dim=1)
    assert (rank_distance(student, targets.log_probs, left_out) <= l1 + 1e-6).all()


def unmapped_rows(positions, k, seed=0):
    """Return rows of which some tokens have no counterpart; the first row has nothing but left-out mass."""
    targets = top_k(random_logits(positions, 60, seed=seed), k)
    lost = torch.rand(positions, k, generator=torch.Generator().manual_seed(seed)) < 0.4
    lost[0] = True
    unmapped = torch.where(lost, targets.log_probs, -torch.inf)
    unmapped[0] = -torch.inf
    log_probs = torch.where(lost, -torch.inf, targets.log_probs)
    left_out = 1 - log_probs.exp().sum(dim=1)
    rows = SparseTargets(torch.where(lost, 0, targets.ids), log_probs, left_out.log())
    return TeacherRows(rows, unmapped=unmapped)


def naive_hybrid(logits, gold, rows, loss, mapped):
    """Return the sum of a hybrid loss in float64, position by position."""
    q, ranks = logits.double().softmax(dim=1), loss.ranks
    divergences = naive_divergence(logits.double(), rows.targets, gold, loss.model_copy(update={"ranks": None}))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(q)):
        kept = set(rows.targets.ids[row][rows.targets.used[row]].tolist())
        lost = rows.unmapped[row][rows.unmapped[row] > -torch.inf].double().exp()
        own = torch.stack([q[row, v] for v in range(q.shape[1]) if not mapped[v] and v not in kept])
        own, lost = own.sort(descending=True).values, lost.sort(descending=True).values
        left_out = rows.targets.log_left_out[row].double().exp() - lost.sum()
        distance = (lost - own[: len(lost)]).abs().sum() + (own[len(lost) :].sum() - left_out).relu()
        if kept or len(lost):
            total = total + loss.kd_weight * ranks.weight * distance
        total = total + loss.kd_weight * ranks.mapped_weight * divergences[row]
        total = total - (1 - loss.kd_weight) * q[row, gold[row]].log()
    return total


def test_the_hybrid_is_that_of_naive_arithmetic_with_its_gradient():
    rows, gold = unmapped_rows(9, 10), torch.arange(9)
    mapped = torch.arange(60) % 3 > 0
    loss = LossConfig(kd_weight=0.7, ranks=HYBRID)
    module = RankedDistillationLoss(loss, mapped)
    student = random_logits(9, 60, seed=4)
    found, gradient = with_gradient(lambda x: module(x, gold, rows)["loss"], student)
    expected, expected_gradient = with_gradient(lambda x: naive_hybrid(x, gold, rows, loss, mapped), student.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=1e-5)
    sums = module(student, gold, rows)
    assert float(sums["aligned_share"]) == 8
    torch.testing.assert_close(sums["unmapped_mass"], rows.unmapped.exp().sum())


@pytest.mark.parametrize("ranks", [ALL, HYBRID])
def test_a_position_without_a_row_learns_from_the_text_alone(ranks):
    nothing = torch.full((2, 4), -torch.inf)
    rows = TeacherRows(SparseTargets(torch.zeros(2, 4, dtype=torch.long), nothing, torch.zeros(2)), unmapped=nothing)
    student, gold = random_logits(2, 30).requires_grad_(), torch.tensor([3, 4])
    for kd_weight, nats in ((1.0, 0.0), (0.25, 0.75)):
        module = RankedDistillationLoss(LossConfig(kd_weight=kd_weight, ranks=ranks), torch.arange(30) % 2 == 0)
        sums = module(student, gold, rows)
        expected = nats * torch.nn.functional.cross_entropy(student, gold, reduction="sum")
        torch.testing.assert_close(sums["loss"], expected)
        (gradient,) = torch.autograd.grad(sums["loss"], student)
        assert (float(gradient.abs().max()) == 0) == (nats == 0)
        assert float(sums["aligned_share"]) == 0


@pytest.mark.parametrize("ranks", [ALL, HYBRID])
def test_chunks_give_the_sums_and_gradients_of_the_whole(ranks):
    rows, gold, head = unmapped_rows(9, 10), torch.arange(9), torch.nn.Linear(16, 60)
    module = RankedDistillationLoss(LossConfig(kd_weight=0.7, ranks=ranks), torch.arange(60) % 3 > 0)
    hidden = torch.randn(9, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def with_chunks(positions):
        sums = chunked_loss(
            hidden, StudentHead(head, Scaling()), lambda x, at: module(x, gold[at], rows[at]), positions
        )
        return sums, torch.autograd.grad(sums["loss"], hidden)[0]

    (whole, whole_gradient), (cut, cut_gradient) = with_chunks(9), with_chunks(4)
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole_gradient, cut_gradient, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    cache = tiny.capture(folder)
    align_encoding(cache.encoding(), "unigram", open_tokenizer(str(save("unigram", folder / "unigram"))))
    align_encoding(cache.encoding(), "same", open_tokenizer(str(folder / "teacher")))
    return folder, cache.path


def dataset(path, **options):
    encoding = Cache(path).encoding()
    alignment = Alignment(encoding, "unigram")
    return AlignedSequences(encoding.teacher(), alignment, "train", alignment.manifest.vocabulary_size, **options)


@pytest.mark.parametrize("composed", [False, True])
def test_mapped_and_unmapped_tokens_together_are_the_stored_row(places, composed):
    plain, own = (dataset(places[1], composed=composed, keep_unmapped=keep) for keep in (False, True))
    ids = student_ids(own.alignment)
    for index in range(8):
        example, sequence = own[index], own.sequence(index)
        np.testing.assert_array_equal(example.targets.ids, plain[index].targets.ids)
        np.testing.assert_allclose(example.targets.log_probs, plain[index].targets.log_probs, atol=1e-5)
        np.testing.assert_allclose(example.targets.log_left_out, plain[index].targets.log_left_out, atol=1e-5)
        stored = own.teacher.targets(*sequence.rows)
        shard = own.encoding.shard_of(sequence.sequence_id)
        aligned = own.alignment.sequences(shard)[sequence.sequence_id - own.encoding.shards[shard].first_sequence]
        for at, row in enumerate(aligned.first_rows[example.positions].tolist()):
            lost = example.unmapped[at][example.unmapped[at] > -np.inf]
            if row == NO_ROW:
                assert not len(lost)
                continue
            kept = stored.ids[row] != EMPTY_ID
            expected = stored.log_probs[row][kept][ids[stored.ids[row][kept]] == NO_ID]
            if not composed:
                np.testing.assert_allclose(np.sort(lost), np.sort(expected), atol=1e-6)
            assert len(lost) <= len(expected)
    assert collate([own[0], own[1]])["unmapped_log_probs"].shape == collate([own[0], own[1]])["target_ids"].shape


@pytest.mark.parametrize("ranks", [ALL, HYBRID])
def test_a_student_trains_on_ranks_and_the_log_states_the_shares(places, tmp_path, ranks):
    loss = {"loss": {"kd_weight": 0.7, "allow_biased": True, "ranks": ranks}}
    train(places[1], tmp_path / "run", alignment="unigram", **loss, **LONGER)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "rank_distance" in line]
    assert logged
    assert all(0 < line["aligned_share"] < 1 and line["unmapped_mass"] > 0 for line in logged)
    assert all(("kl_nats" in line) == (ranks is HYBRID) for line in logged)


@pytest.mark.parametrize(
    ("ranks", "others", "problem"),
    [
        ({"of": "unmapped"}, {}, "mapped_weight is needed"),
        (ALL | {"mapped_weight": 1}, {}, "mapped_weight is needed"),
        (ALL, {"divergence": "reverse_kl"}, "there is no divergence"),
        (HYBRID, {"temperature": 2}, "temperature 1"),
    ],
)
def test_keys_without_an_effect_are_refused(ranks, others, problem):
    with pytest.raises(ValidationError, match=problem):
        LossConfig(ranks=ranks, **others)


def test_ranks_need_an_alignment_and_the_consent_to_bias(places, tmp_path):
    values = student_values(places[1], tmp_path / "run", loss={"ranks": ALL})
    with pytest.raises(ValidationError, match="set alignment"):
        StudentConfig.model_validate(values)
    values = student_values(places[1], tmp_path / "run", loss={"ranks": ALL}, alignment="unigram", **LONGER)
    with pytest.raises(ConfigError, match="Equal ranks are not equal tokens"):
        run_training(StudentConfig.model_validate(values))


def test_draws_have_no_ranks(tmp_path):
    cache = tiny.capture(tmp_path, target={"kind": "sampled", "draws": 8})
    align_encoding(cache.encoding(), "unigram", open_tokenizer(str(save("unigram", tmp_path / "unigram"))))
    loss = {"ranks": ALL, "allow_biased": True}
    values = student_values(cache.path, tmp_path / "run", loss=loss, alignment="unigram", **LONGER)
    with pytest.raises(ConfigError, match="ranks of drawn tokens"):
        run_training(StudentConfig.model_validate(values))


def test_the_explanation_names_ranks_and_their_verdict(places, tmp_path, capsys):
    loss = {"ranks": HYBRID, "allow_biased": True}
    values = student_values(places[1], tmp_path / "run", loss=loss, alignment="unigram")
    print_explanation(StudentConfig.model_validate(values))
    shown = capsys.readouterr().out
    assert "Ranks of unmapped tokens, weight 1.5" in shown
    assert "biased: equal ranks are not equal tokens" in shown
    values = student_values(places[1], tmp_path / "run", loss={"ranks": {"of": "all"}}, alignment="same")
    print_explanation(StudentConfig.model_validate(values))
    assert "lower bound: the distance of sorted" in capsys.readouterr().out


def test_a_file_without_ranks_is_recorded_as_before_the_key_existed():
    assert "ranks" not in LossConfig().model_dump(mode="json")
