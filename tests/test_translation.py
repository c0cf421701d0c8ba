"""Training through a map of ids: the same loss as of a student whose rows are permuted, and only with the right map."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tiny
from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.errors import ConfigError, IdentityError
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary, write_vocabulary
from cache_tools.vocabularies.union import NO_ID, IdMaps
from logitcask import cli
from student_fixtures import BERT, largest_difference, student_values, train, weights
from tolerances import loss_rounding
from trainer.config.student_file import LossConfig, StudentConfig
from trainer.data.cached_sequences import CachedSequences, collate, fit_vocabulary
from trainer.data.opening import open_teachers
from trainer.data.translation import open_union, student_ids, translated_ids, translated_targets
from trainer.evaluation.evaluate import evaluate_folder
from trainer.student.student import distilled
from vocabulary_fixtures import OTHER_TEXTS, capture_language

STUDENT = {"config": BERT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Caches ``a`` and ``b`` with tokenizers of their own, and ``vocabulary`` of both; b's ids all moved."""
    folder = tmp_path_factory.mktemp("two")
    for seed, (name, texts) in enumerate((("a", tiny.TEXTS), ("b", OTHER_TEXTS))):
        capture_language(
            folder / name,
            texts,
            seed,
            size=150 + 50 * seed,
            target={"k": 8, "exact": True},
            hidden={"layers": ["last"]},
        )
    write_vocabulary(folder / "vocabulary", [open_teacher(folder, name).encoding for name in "ab"])
    return folder


def open_teacher(folder, name):
    return Cache(folder / name / "cache").encoding().teacher()


def several(folder, **changes):
    caches = [{"cache": str(folder / name / "cache")} for name in "ab"]
    return {"caches": caches, "student": STUDENT, "vocabulary": str(folder / "vocabulary")} | changes


def both(folder, **arguments):
    """Return the sequences of cache b with its own ids and with the student's."""
    teacher, union = open_teacher(folder, "b"), read_vocabulary(folder / "vocabulary")
    maps = student_ids(union, teacher.encoding)
    to = maps.predicted
    assert not np.array_equal(to, np.arange(len(to)))
    assert np.array_equal(to, maps.read)
    own = CachedSequences(teacher, "train", teacher.manifest.vocabulary_size, **arguments)
    return own, CachedSequences(teacher, "train", union.vocabulary.size, to=maps, **arguments), to, union


def test_ids_become_those_of_the_same_token_and_probabilities_stay_bit_for_bit(folder):
    own, moved, to, _ = both(folder)
    for index in range(len(own)):
        a, b = own[index], moved[index]
        assert np.array_equal(to[a.input_ids], b.input_ids)
        assert np.array_equal(to[a.gold_ids], b.gold_ids)
        assert np.array_equal(to[a.targets.ids], b.targets.ids)
        assert a.targets.log_probs.tobytes() == b.targets.log_probs.tobytes()
        assert a.targets.log_left_out.tobytes() == b.targets.log_left_out.tobytes()


@pytest.mark.parametrize("tail", ["ghost", "renormalise"])
@pytest.mark.parametrize("kd_weight", [0.0, 0.5, 1.0])
def test_the_loss_is_that_of_a_student_whose_rows_are_permuted(folder, tail, kd_weight):
    """Tokens that cache b does not have are given no probability, as a student without them gives them none."""
    own, moved, to, union = both(folder)
    small = tiny.model("bert", 5, vocab_size=len(to))
    large = tiny.model("bert", 5, vocab_size=union.vocabulary.size)
    large.load_state_dict(permuted(small.state_dict(), large.state_dict(), torch.from_numpy(to.astype(np.int64))))
    settings = LossConfig(kd_weight=kd_weight, tail=tail, allow_biased=True)
    losses = [
        distilled(student, settings)(**collate([data[i] for i in range(6)]))["loss"].item()
        for student, data in ((small, own), (large, moved))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=loss_rounding(large.config, 48, 10))


def permuted(small, large, rows):
    """Return the small student's weights, those of a token where the map puts it; the others' are 0, their bias low."""
    result = {}
    for name, tensor in large.items():
        if tensor.shape == small[name].shape:
            result[name] = small[name]
        else:
            result[name] = torch.full_like(tensor, -1e4 if tensor.ndim == 1 else 0)
            result[name][rows] = small[name]
    return result


def test_an_id_without_a_token_goes_into_the_left_out_mass():
    targets = Targets(
        np.array([[0, 2, 5], [1, 2, EMPTY_ID]], np.uint32),
        np.log(np.array([[0.5, 0.25, 0.125], [0.5, 0.5, 1e-45]], np.float32)),
        np.log(np.array([0.125, 1e-45], np.float32)),
    )
    to = IdMaps(
        np.array([7, 3, NO_ID], np.uint32), np.zeros(3, np.uint32)
    )  # 2 has no token, 5 is padding of the teacher's vocabulary
    found = fit_vocabulary(translated_targets(targets, to), 8)
    assert found.ids.tolist() == [[7, EMPTY_ID, EMPTY_ID], [3, EMPTY_ID, EMPTY_ID]]
    assert np.exp(found.log_left_out) == pytest.approx([0.5, 0.5])
    assert np.exp(found.log_probs).sum(axis=1) + np.exp(found.log_left_out) == pytest.approx([1, 1])


def test_a_text_with_an_id_without_a_token_is_refused():
    with pytest.raises(IdentityError, match="no token"):
        translated_ids(np.array([0, 1], np.uint32), IdMaps(*[np.array([4, NO_ID], np.uint32)] * 2))


def test_one_cache_through_a_vocabulary_of_it_alone_trains_to_the_same_weights(folder, tmp_path):
    cache = folder / "b" / "cache"
    write_vocabulary(tmp_path / "vocabulary", [Cache(cache).encoding()])
    direct = train(cache, tmp_path / "direct", student=STUDENT)
    mapped = train(cache, tmp_path / "mapped", student=STUDENT, vocabulary=str(tmp_path / "vocabulary"))
    assert largest_difference(weights(direct), weights(mapped)) == 0


def test_caches_of_two_tokenizers_train_one_student_that_knows_the_union(folder, tmp_path):
    final = train(Path(), tmp_path, **several(folder), eval_strategy="steps", eval_steps=2)
    union = read_vocabulary(folder / "vocabulary")
    assert weights(final)["bert.embeddings.word_embeddings.weight"].shape[0] == union.vocabulary.size
    assert json.loads((tmp_path / "run.json").read_text())["identity"]["vocabulary"] == union.fingerprint
    for name in "ab":
        result = evaluate_folder(final, open_teacher(folder, name), "held_out", union=union)
        arguments = [str(final), str(folder / name / "cache"), "--vocabulary", str(folder / "vocabulary"), "--json"]
        printed = CliRunner().invoke(cli, ["evaluate", *arguments], catch_exceptions=False).stdout
        assert json.loads(printed)["cross_entropy_nats"] == pytest.approx(result.cross_entropy_nats)
        assert result.kl_to_teacher_is == "lower bound"  # of hidden states it would be exact, in the teacher's ids
    with pytest.raises(IdentityError, match="another tokenizer"):
        evaluate_folder(final, open_teacher(folder, "a"), "held_out")


def test_without_a_vocabulary_caches_of_two_tokenizers_are_refused_by_a_message_that_names_the_cure(folder):
    values = student_values(Path(), Path("unused"), **several(folder, vocabulary=None))
    with pytest.raises(IdentityError, match="logitcask vocabulary"):
        open_teachers(StudentConfig.model_validate(values))


def test_a_vocabulary_that_lacks_a_cache_s_tokenizer_is_refused(folder, tmp_path):
    write_vocabulary(tmp_path / "vocabulary", [open_teacher(folder, "a").encoding])
    with pytest.raises(IdentityError, match="not part of the vocabulary"):
        train(Path(), tmp_path / "run", **several(folder, vocabulary=str(tmp_path / "vocabulary")))


def test_another_vocabulary_makes_another_run(folder, tmp_path):
    train(Path(), tmp_path / "run", **several(folder))
    write_vocabulary(tmp_path / "turned", [open_teacher(folder, name).encoding for name in "ba"])
    with pytest.raises(IdentityError, match="vocabulary: "):
        train(Path(), tmp_path / "run", **several(folder, vocabulary=str(tmp_path / "turned")))


def test_a_rebuilt_distribution_is_not_translated(folder):
    with pytest.raises(ConfigError, match="cannot be used with a union"):
        open_union(folder / "vocabulary", [open_teacher(folder, "a")], LossConfig(source="hidden"))


def test_the_control_gives_every_position_what_was_said_half_a_shard_away(folder):
    own, _, _, _ = both(folder)
    turned = CachedSequences(open_teacher(folder, "b"), "train", 300, other_positions=True)
    straight, moved = ([data[i] for i in range(data.shard_sizes[0])] for data in (own, turned))
    ids, turned_ids = (np.concatenate([e.targets.ids for e in each]) for each in (straight, moved))
    assert np.array_equal(np.roll(ids, len(ids) // 2, axis=0), turned_ids)
    assert not np.array_equal(ids, turned_ids)
    for a, b in zip(straight, moved, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert np.array_equal(a.gold_ids, b.gold_ids)


def test_the_control_is_part_of_the_run(folder, tmp_path):
    real, control = (train(Path(), tmp_path / str(c), **several(folder, control=c)) for c in (None, "other_positions"))
    assert largest_difference(weights(real), weights(control)) > 0
