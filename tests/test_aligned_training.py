"""Students with their own tokenizer: the rows they get, against naive float64 arithmetic, and what training refuses."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tiny
from alignment_fixtures import save
from cache_tools.alignments.making import align_encoding
from cache_tools.alignments.matching import COMPOSED, NO_ROW, OUTSIDE
from cache_tools.alignments.stored import Alignment
from cache_tools.alignments.token_ids import mapped_ids, student_ids
from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.errors import ConfigError, FormatError, ModelError
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from cache_tools.vocabularies.tokens import Token
from cache_tools.vocabularies.union import NO_ID
from student_fixtures import LLAMA, student_values, train, weights
from trainer.config.student_file import LossConfig, StudentConfig
from trainer.data.aligned_sequences import AlignedSequences
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.data.composed_tokens import with_composed
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows
from trainer.losses.tails import SparseTargets
from trainer.run.explanation import print_explanation
from trainer.run.train import run_training

BIASED = {"loss": {"kd_weight": 0.5, "allow_biased": True}}
LONGER = {"student": {"config": LLAMA | {"max_position_embeddings": 256}}}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    cache = tiny.capture(folder)
    for family in ("unigram", "wordpiece", "byte_level"):
        align_encoding(cache.encoding(), family, open_tokenizer(str(save(family, folder / family))))
    align_encoding(cache.encoding(), "same", open_tokenizer(str(folder / "teacher")))
    return folder, cache.path


@pytest.fixture(scope="module")
def encoding(places):
    return Cache(places[1]).encoding()


def dataset(encoding, name, **options):
    alignment = Alignment(encoding, name)
    return AlignedSequences(encoding.teacher(), alignment, "train", alignment.manifest.vocabulary_size, **options)


def test_the_same_tokenizer_gives_the_same_batches(encoding):
    plain = CachedSequences(encoding.teacher(), "train", 300)
    own = dataset(encoding, "same")
    assert len(own) == len(plain)
    batches = [collate([data[i] for i in range(8)]) for data in (plain, own)]
    different = {name for name in batches[0] if not torch.equal(batches[0][name], batches[1][name])}
    assert different == {"target_sources"}  # which dataset it is


def test_the_same_tokenizer_gives_the_same_student(places, tmp_path):
    loss = {"loss": {"kd_weight": 0.5}}
    without = train(places[1], tmp_path / "without", **loss)
    through = train(places[1], tmp_path / "through", alignment="same", **loss)
    left, right = weights(without), weights(through)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def naive_student_id(teacher, student, family, token_id):
    """Return the student's id of a teacher's token by the vocabularies' own strings."""
    if family == "byte_level":
        return student.token_to_id(teacher.id_to_token(token_id))
    text = teacher.decode([token_id], skip_special_tokens=False)
    if text == "<|end|>":
        return student.token_to_id("</s>") if family == "unigram" else None
    if family == "unigram":
        return student.token_to_id(text.replace(" ", "▁"))
    return student.token_to_id(text[1:]) if text.startswith(" ") else student.token_to_id(f"##{text}")


@pytest.mark.parametrize("family", ["byte_level", "unigram", "wordpiece"])
def test_targets_are_those_of_naive_arithmetic(places, encoding, family):
    teacher, data, alignment = encoding.teacher(), dataset(encoding, family), Alignment(encoding, family)
    theirs = Tokenizer.from_file(str(places[0] / "teacher" / "tokenizer.json"))
    own = Tokenizer.from_file(str(places[0] / family / "tokenizer.json"))
    composed = 0
    for index in range(12):
        example, sequence = data[index], data.sequence(index)
        aligned = alignment.sequences(encoding.shard_of(sequence.sequence_id))[
            sequence.sequence_id - encoding.shards[encoding.shard_of(sequence.sequence_id)].first_sequence
        ]
        stored, gold = teacher.targets(*sequence.rows), teacher.scalar("gold_logprob", *sequence.rows)
        gold_ids = sequence.gold_ids("causal")
        assert example.gold_ids.tolist() == aligned.input_ids[example.positions + 1].tolist()
        for at, position in enumerate(example.positions.tolist()):
            kept, left_out = {}, 1.0
            row = int(aligned.first_rows[position])
            if row != NO_ROW:
                left_out = math.exp(stored.log_left_out[row])
                for token_id, log_prob in zip(stored.ids[row].tolist(), stored.log_probs[row].tolist(), strict=True):
                    if token_id == EMPTY_ID:
                        continue
                    own_id = naive_student_id(theirs, own, family, token_id)
                    if own_id is None:
                        left_out += math.exp(log_prob)
                    else:
                        kept[own_id] = math.exp(log_prob)
                count = int(aligned.num_rows[position])
                if aligned.kinds[position] == COMPOSED and count > 1:
                    composed += 1
                    product = math.exp(sum(float(x) for x in gold[row : row + count]))
                    first = naive_student_id(theirs, own, family, int(gold_ids[row]))
                    product = min(product, kept.get(first, left_out))
                    if first in kept:
                        kept[first] -= product
                    else:
                        left_out -= product
                    kept[int(example.gold_ids[at])] = kept.get(int(example.gold_ids[at]), 0) + product
            used = example.targets.log_probs[at] > -np.inf
            actual = dict(zip(example.targets.ids[at][used].tolist(), example.targets.log_probs[at][used], strict=True))
            expected = {token: p for token, p in kept.items() if p > 1e-12}
            assert actual.keys() >= expected.keys()
            for token, log_prob in actual.items():
                assert math.exp(log_prob) == pytest.approx(kept.get(token, 0), abs=1e-6)
            assert math.exp(example.targets.log_left_out[at]) == pytest.approx(left_out, abs=1e-6)
    if family == "byte_level":
        assert composed > 0


@settings(deadline=None)
@given(data=st.data())
def test_the_product_rule_moves_mass_and_loses_none(data):
    k, positions = 4, data.draw(st.integers(1, 5))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    masses = generator.dirichlet(np.ones(k + 1), positions)
    ids = np.stack([generator.permutation(8)[:k] for _ in range(positions)]).astype(np.uint32)
    with np.errstate(divide="ignore"):
        targets = Targets(ids, np.log(masses[:, :k]).astype(np.float32), np.log(masses[:, k]).astype(np.float32))
    chains = generator.choice([0, 2, 3], positions)
    gold = np.log(generator.random(positions + 3)).astype(np.float32)
    first_ids, gold_ids = generator.integers(0, 10, (2, positions)).astype(np.uint32)
    rows = np.arange(positions, dtype=np.int32)
    moved = with_composed(targets, chains, rows, gold, first_ids, gold_ids)
    total = np.exp(moved.log_probs).sum(axis=1) + np.exp(moved.log_left_out)
    np.testing.assert_allclose(total, masses.sum(axis=1), atol=1e-6)
    assert not np.isnan(moved.log_probs).any()
    for row in range(positions):
        used = moved.ids[row][moved.log_probs[row] > -np.inf]
        assert len(set(used.tolist())) == len(used)
        if not chains[row]:
            np.testing.assert_array_equal(moved.log_probs[row, :k], targets.log_probs[row])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
@pytest.mark.parametrize("tail", ["ghost", "renormalise", "none"])
def test_a_position_without_a_row_has_no_divergence_and_no_gradient_from_it(divergence, tail):
    logits = torch.randn(3, 20, requires_grad=True)
    targets = SparseTargets(torch.zeros(3, 4, dtype=torch.long), torch.full((3, 4), -torch.inf), torch.zeros(3))
    loss = DistillationLoss(LossConfig(kd_weight=1, divergence=divergence, tail=tail))
    result = loss(logits, torch.tensor([1, 2, 3]), TeacherRows(targets))
    (gradient,) = torch.autograd.grad(result["loss"], logits)
    assert float(result["loss"].detach()) == 0
    assert float(gradient.abs().max()) == 0


def test_an_item_survives_a_loader_worker(encoding):
    own = dataset(encoding, "unigram")
    other = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(own[3].targets.log_probs, other[3].targets.log_probs)
    np.testing.assert_array_equal(own[3].input_ids, other[3].input_ids)


def test_a_student_trains_with_its_own_tokenizer_and_the_log_states_the_share(places, tmp_path):
    final = train(places[1], tmp_path / "run", alignment="unigram", **BIASED, **LONGER)
    own = Tokenizer.from_file(str(final / "tokenizer.json"))
    expected = Tokenizer.from_file(str(places[0] / "unigram" / "tokenizer.json"))
    assert own.get_vocab() == expected.get_vocab()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["aligned_share"] for line in lines if "aligned_share" in line]
    assert shares
    assert all(0 < share < 1 for share in shares)


def test_positions_are_those_of_answers_and_of_nothing_else(encoding):
    for family in ("unigram", "wordpiece", "byte_level"):
        alignment = Alignment(encoding, family)
        for shard in range(len(encoding.shards)):
            for sequence, aligned in zip(encoding.sequences(shard), alignment.sequences(shard), strict=True):
                rows = aligned.first_rows[aligned.kinds == OUTSIDE]
                assert (rows == NO_ROW).all()
                assert aligned.first_rows.max() < sequence.num_positions


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "biased for a student with its own tokenizer"),
        ({"loss": {"tail": "uniform", "allow_biased": True}}, "cannot be used with an alignment"),
        ({**BIASED, **LONGER, "eval_strategy": "steps", "metric_for_best_model": "accuracy"}, "measure that ranks"),
    ],
)
def test_what_has_no_meaning_is_refused(places, tmp_path, changes, problem):
    values = student_values(places[1], tmp_path / "run", alignment="unigram", **changes)
    with pytest.raises(ConfigError, match=problem):
        run_training(StudentConfig.model_validate(values))
    assert not (tmp_path / "run").exists()


def test_a_student_that_reads_shorter_texts_is_refused(places, tmp_path):
    short = {"student": {"config": LLAMA | {"max_position_embeddings": 48}}}
    values = student_values(places[1], tmp_path / "run", alignment="unigram", **BIASED, **short)
    with pytest.raises(ModelError, match="longer than it can read"):
        run_training(StudentConfig.model_validate(values))


def test_an_unknown_alignment_is_named(places, tmp_path):
    values = student_values(places[1], tmp_path / "run", alignment="other", **BIASED)
    with pytest.raises(FormatError, match="no alignment 'other'"):
        run_training(StudentConfig.model_validate(values))


def test_the_explanation_states_the_share_and_the_verdict(places, tmp_path, capsys):
    values = student_values(places[1], tmp_path / "run", alignment="unigram", **BIASED)
    print_explanation(StudentConfig.model_validate(values))
    shown = capsys.readouterr().out
    assert "Alignment unigram:" in shown
    assert "biased: the student has another tokenizer" in shown
    values = student_values(places[1], tmp_path / "run", alignment="same")
    print_explanation(StudentConfig.model_validate(values))
    assert "(100.0%)" in capsys.readouterr().out


def test_ids_map_by_bytes_and_injectively(encoding):
    ids = student_ids(Alignment(encoding, "unigram"))
    used = ids[ids != NO_ID]
    assert len(used) > 20
    assert len(set(used.tolist())) == len(used)
    assert student_ids(Alignment(encoding, "same")) is None
    theirs = {0: Token("inside", b"\xe2"), 1: Token("inside", b"a"), 2: Token("start", b"a")}
    own = {5: Token("byte", b"\xe2"), 6: Token("byte", b"a"), 7: Token("start", b"a")}
    assert mapped_ids(theirs, own).tolist() == [5, NO_ID, 7]
