"""Labels: a class is a token, predicted at the first kept position of its sequence."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

import tiny
from cache_tools.errors import ConfigError, CorpusError
from cache_tools.inspection.decoding import token_texts
from cache_tools.inspection.views import sequence_view
from loss_fixtures import naive_divergence
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import MaskingConfig
from student_fixtures import BERT, student_values, train
from tolerances import loss_rounding, rounding
from trainer.config.student_file import StudentConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.data.position_weights import PositionWeights
from trainer.evaluation.evaluate import evaluate_folder
from trainer.losses.distillation_loss import TeacherRows
from trainer.student.student import build_student, distilled

MASK, CLS = 3, 1
LABELS = {"e": 0, "t": 1}
"""Two tokens of the tokenizer that stand for classes, by the parity of the document."""


def write_corpus(folder, cloze=False, labels=("e", "t"), texts=None):
    prefix = "[MASK] " if cloze else ""
    texts = [" ".join(text.split()[:4]) for text in tiny.TEXTS] if texts is None else texts
    records = [{"id": f"doc{i}", "text": prefix + text, "label": labels[i % 2]} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def capture(folder, masking=None, cloze=False, **changes):
    write_corpus(folder, cloze)
    teacher = tiny.save_teacher(folder / "teacher", masked=True)
    masking = {"probability": 0, "keep": "all"} if masking is None else masking
    return tiny.capture(
        folder, teacher, objective="masked", overlap_tokens=0, label_field="label", masking=masking, **changes
    )


def sequences(cache):
    encoding = cache.encoding()
    return [each for shard in range(len(encoding.shards)) for each in encoding.sequences(shard)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Labels at [CLS], every token kept, nothing masked."""
    return capture(tmp_path_factory.mktemp("labels"), target={"k": 300})


@pytest.mark.parametrize("cloze", [False, True])
@pytest.mark.parametrize(
    "masking",
    [{"probability": 0}, {"probability": 0.3}, {"probability": 0, "keep": "all"}, {"keep": "all", "copies": 2}],
)
def test_the_label_is_the_gold_token_of_the_first_kept_position(tmp_path, cloze, masking):
    cache = capture(tmp_path, masking, cloze)
    ids = tiny.tokenizer(masked=True).get_vocab()
    for each in sequences(cache):
        first, expected = each.positions()[0], ("e", "t")[int(each.document_id[3:]) % 2]
        assert each.gold_ids("masked")[0] == ids[expected]
        assert (first, each.input_ids[first]) == ((1, MASK) if cloze else (0, CLS))


def test_what_the_teacher_reads_is_what_it_reads_without_labels(tmp_path, cache):
    write_corpus(tmp_path)
    teacher = tiny.save_teacher(tmp_path / "teacher", masked=True)
    without = tiny.capture(
        tmp_path, teacher, objective="masked", overlap_tokens=0, masking={"probability": 0, "keep": "all"}
    )
    for one, other in zip(sequences(cache), sequences(without), strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.position_mask[1:], other.position_mask[1:])
        assert np.array_equal(one.gold_ids("masked")[1:], other.gold_ids("masked"))


@pytest.mark.parametrize("probability", [0, 0.3])
def test_kept_positions_are_the_slots_or_all_ordinary_tokens(tmp_path, probability):
    kept = {}
    for keep in ("slots", "all"):
        folder = tmp_path / keep
        folder.mkdir()
        kept[keep] = sequences(capture(folder, {"probability": probability, "keep": keep}))
    for slots, everything in zip(kept["slots"], kept["all"], strict=True):
        assert np.array_equal(slots.input_ids, everything.input_ids)
        ordinary = ~np.isin(everything.original_ids, [0, CLS, 2, MASK])  # the label's token is ordinary too
        assert np.array_equal(everything.position_mask, ordinary)
        assert not (slots.position_mask & ~ordinary).any()
        assert (slots.num_positions == 1) == (probability == 0)


def test_encodings_that_keep_slots_are_what_they_were():
    """The key came later; caches made before it must be continued."""
    assert "keep" not in MaskingConfig().identity()
    assert MaskingConfig(keep="all").identity()["keep"] == "all"


def masked_values(folder, masking, **corpus):
    values = {"cache": str(folder / "cache"), "corpus": {"paths": [str(folder)]} | corpus}
    values["encoding"] = {"objective": "masked", "masking": masking}
    return values | {"teachers": [{"name": "toy", "model": "x"}]}


def test_refuses_settings_under_which_nothing_is_predicted(tmp_path):
    with pytest.raises(ValueError, match="leaves nothing to predict"):
        CaptureConfig.model_validate(masked_values(tmp_path, {"probability": 0}))
    CaptureConfig.model_validate(masked_values(tmp_path, {"probability": 0}, label_field="label"))
    with pytest.raises(ValueError, match="label_field is for documents of plain text"):
        CaptureConfig.model_validate(masked_values(tmp_path, {}, label_field="label", ids_field="ids"))
    values = masked_values(tmp_path, {}, label_field="label")
    values["encoding"] = {"objective": "causal"}
    with pytest.raises(ValueError, match=r"label_field needs encoding\.objective: masked"):
        CaptureConfig.model_validate(values)


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ({"labels": ("e", "no such token")}, r"id 'doc1'\): this label is not a token.*'no such token'"),
        ({"texts": ["short", "very long " * 40]}, r"id 'doc1'\): a labelled document is longer than one sequence"),
    ],
)
def test_refuses_a_label_that_is_no_token_and_a_document_that_does_not_fit(tmp_path, corpus, words):
    write_corpus(tmp_path, **corpus)
    teacher = tiny.save_teacher(tmp_path / "teacher", masked=True)
    with pytest.raises(CorpusError, match=words):
        tiny.capture(tmp_path, teacher, objective="masked", label_field="label")


def dataset(cache, loss=None, **options):
    """Return the training sequences as a student with a loss would see them."""
    values = student_values(cache.path, cache.path / "never", student={"config": BERT}, loss=loss or {})
    config, teacher = StudentConfig.model_validate(values), cache.encoding().teacher()
    found = PositionWeights.of(teacher.encoding, "train", config.loss)
    return config, CachedSequences(teacher, "train", 300, weights=found, **options)


@pytest.mark.parametrize("kd_weight", [0.0, 0.4, 1.0])
def test_the_loss_over_an_epoch_is_the_weighted_sum_of_two_means(cache, kd_weight):
    config, examples = dataset(cache, {"label_weight": 3.0, "token_weight": 0.5, "kd_weight": kd_weight})
    teacher = cache.encoding().teacher()
    torch.manual_seed(0)
    module = distilled(build_student(config.student, teacher.encoding), config.loss, teacher).eval()
    all_examples = [examples[i] for i in range(len(examples))]
    batch = collate(all_examples)
    with torch.no_grad():
        logits = module.student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        kept = batch["gold_ids"] != IGNORED
        gold_P, logits_PV = batch["gold_ids"][kept], logits[kept]
        divergence_P = naive_divergence(logits_PV, TeacherRows.of(batch).targets, gold_P, config.loss)
        each_P = kd_weight * divergence_P + (1 - kd_weight) * F.cross_entropy(logits_PV, gold_P, reduction="none")
        first_P = torch.cat([torch.arange(len(e.positions)) == 0 for e in all_examples])
        expected = 3 * each_P[first_P].mean() + 0.5 * each_P[~first_P].mean()
        assert float(module(**batch)["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("without", ["label", "token"])
def test_what_weighs_nothing_teaches_nothing(cache, without):
    """With other gold tokens there, the loss must not change; with others elsewhere, it must."""
    config, examples = dataset(cache, {"kd_weight": 0, f"{without}_weight": 0})
    teacher = cache.encoding().teacher()
    module = distilled(build_student(config.student, teacher.encoding), config.loss, teacher).eval()
    batch = collate([examples[i] for i in range(8)])
    kept = batch["gold_ids"] != IGNORED
    first = kept & (kept.cumsum(dim=1) == 1)
    with torch.no_grad():
        label, token, own = (
            float(module(**batch | {"gold_ids": torch.where(changed, 7, batch["gold_ids"])})["loss"])
            for changed in (first, kept & ~first, kept & False)
        )
    assert (label == own, token == own) == (without == "label", without == "token")


def test_refuses_to_weight_labels_where_there_are_none(tmp_path):
    cache = tiny.capture(tmp_path, tiny.save_teacher(tmp_path / "teacher", masked=True), objective="masked")
    with pytest.raises(ConfigError, match=r"loss\.label_weight: the loss sets a weight for labels"):
        train(cache.path, tmp_path / "run", student={"config": BERT}, loss={"label_weight": 1})
    with pytest.raises(ConfigError, match="labels cannot be measured alone"):
        evaluate_folder(tmp_path / "teacher", cache.encoding().teacher(), "train", positions="labels")
    with pytest.raises(ValueError, match="both 0"):
        StudentConfig.model_validate(student_values(tmp_path, tmp_path, loss={"label_weight": 0, "token_weight": 0}))


def test_refuses_labels_without_weight_where_nothing_else_was_kept(tmp_path):
    cache = capture(tmp_path, {"probability": 0})
    with pytest.raises(ConfigError, match="labels have weight 0, and no other position"):
        train(cache.path, tmp_path / "run", student={"config": BERT}, loss={"label_weight": 0})


@pytest.mark.slow  # that of the loss over an epoch is the fast one
def test_a_student_learns_the_classes_from_labels_alone_and_says_so(cache, tmp_path):
    """Texts of the two classes differ in nothing but themselves, so this is learning by heart, of the train split."""
    loss = {"kd_weight": 0, "label_weight": 1, "token_weight": 0}
    final = train(cache.path, tmp_path / "run", student={"config": BERT}, loss=loss, max_steps=200)
    measured = evaluate_folder(final, cache.encoding().teacher(), "train", positions="labels")
    assert measured.positions == len(dataset(cache)[1])
    assert measured.accuracy > 0.9
    tokens = evaluate_folder(final, cache.encoding().teacher(), "train", positions="tokens")
    assert tokens.accuracy < 0.3


def test_measures_of_labels_and_tokens_add_up_to_those_of_all_positions(cache, tmp_path):
    teacher = cache.encoding().teacher()
    student = tiny.save_teacher(tmp_path / "student", tiny.model("bert", seed=1), masked=True)
    found = {name: evaluate_folder(student, teacher, "train", positions=name) for name in ("all", "labels", "tokens")}
    total = found["all"].positions
    assert found["labels"].positions + found["tokens"].positions == total
    for measure in ("cross_entropy_nats", "kl_to_teacher_nats", "accuracy", "teacher_cross_entropy_nats"):
        parts = sum(getattr(found[name], measure) * found[name].positions for name in ("labels", "tokens")) / total
        assert parts == pytest.approx(getattr(found["all"], measure), rel=rounding(torch.float32, total)), measure


@pytest.mark.parametrize("cloze", [False, True])
def test_a_sequence_is_shown_with_its_label(tmp_path, cloze):
    encoding = capture(tmp_path, cloze=cloze).encoding()
    sequence = encoding.sequence(0)
    tokens = sequence_view(encoding, sequence, [encoding.teacher()], token_texts(encoding)).tokens
    shown, before = tokens[1 if cloze else 0], "[MASK]" if cloze else "[CLS]"
    assert (shown.seen, shown.text, shown.masked) == (before, "et"[int(sequence.document_id[3:]) % 2], True)
    assert [token.masked for token in tokens].count(True) == 1


def test_labels_of_a_finished_student_are_those_of_the_model_itself(cache, tmp_path):
    from configs.papers.recipes import label_log_probs, labelled_sequences

    student = tiny.save_teacher(tmp_path / "student", tiny.model("bert", seed=1), masked=True)
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    found = label_log_probs(student, cache.path, ["e", "t"], "train")
    ids = tiny.tokenizer(masked=True).get_vocab()
    for row, each in zip(found, labelled_sequences(cache.path, "train"), strict=True):
        with torch.no_grad():
            logits_V = model(input_ids=torch.from_numpy(each.input_ids.astype(np.int64))[None]).logits[0, 0]
        expected = torch.log_softmax(logits_V[[ids["e"], ids["t"]]], dim=0)
        np.testing.assert_allclose(row, expected, rtol=0, atol=loss_rounding(model.config, 48, logits_V))


def test_positions_that_weigh_nothing_need_no_logits(cache):
    """Hidden states are compared there nevertheless."""
    config, examples = dataset(cache, {"kd_weight": 0.5, "label_weight": 1, "token_weight": 0})
    teacher = cache.encoding().teacher()
    module = distilled(build_student(config.student, teacher.encoding), config.loss, teacher)
    batch, rows, objective = collate([examples[i] for i in range(6)]), [], module.loss.objective.forward
    module.loss.objective.forward = lambda logits, gold, said: rows.append(len(logits)) or objective(logits, gold, said)
    module(**batch)
    assert rows == [6]
    assert len(batch["target_ids"]) > 6 * 5
