"""What the recipes of papers share: intervals, pairing by seed, measures that stay, and the line of a bag of words."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForMaskedLM

from benchmarks.intervals import t_quantile
from configs.papers import bag_of_words, frozen
from configs.papers.gloss.probe import states
from configs.papers.heads import borrowed, head_of, outputs_at
from configs.papers.intervals import differences, over_seeds, over_seeds_and_items, paired
from configs.papers.linear import fitted, mean_deviation
from configs.papers.measures import finished_seeds, once
from configs.papers.wordpiece import untrained
from pipeline.encoding.held_out import is_held_out
from tolerances import model_rounding


def test_over_seeds_is_students_t():
    interval = over_seeds([1.0, 2.0, 4.0])
    half_width = t_quantile(2) * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    assert interval == pytest.approx((7 / 3, 7 / 3 - half_width, 7 / 3 + half_width))


def test_items_that_are_all_alike_leave_the_interval_of_the_seeds():
    values_S = np.array([1.0, 2.0, 4.0])
    interval = over_seeds_and_items(np.tile(values_S[:, None], 50))
    assert interval == pytest.approx(over_seeds(values_S))


def test_seeds_that_are_all_alike_leave_the_interval_of_the_items():
    items_N = np.random.default_rng(0).normal(size=60)
    expected = t_quantile(59) * items_N.std(ddof=1) / np.sqrt(60)
    for values_SN in (items_N[None], np.tile(items_N, (4, 1))):
        interval = over_seeds_and_items(values_SN)
        assert interval == pytest.approx((items_N.mean(), items_N.mean() - expected, items_N.mean() + expected))


@pytest.mark.parametrize("spread_of_seeds", [0, 1, 6])
def test_an_interval_of_three_seeds_holds_the_mean_as_often_as_it_says(spread_of_seeds):
    """Seeds spread by some multiples of the items' standard error; a bootstrap over them held it in 80 % at six."""
    rng, items, trials = np.random.default_rng(1), 100, 600
    held = 0
    for _ in range(trials):
        seeds_S1 = rng.normal(0, spread_of_seeds / np.sqrt(items), (3, 1))
        values_SN = seeds_S1 + rng.normal(size=items) + rng.normal(size=(3, items))
        interval = over_seeds_and_items(values_SN)
        held += interval.low <= 0 <= interval.high
    assert held / trials > 0.93


def test_pairs_are_of_one_seed_and_in_the_order_of_seeds():
    assert paired({2: "c", 0: "a", 1: "b"}, {0: "A", 2: "C", 3: "D"}) == [("a", "A"), ("c", "C")]
    assert differences({0: [1.0, 2.0], 1: [3.0, 4.0]}, {1: [1.0, 1.0]}).tolist() == [[2.0, 3.0]]
    assert len(differences({0: 1.0}, {1: 1.0})) == 0


def test_a_measure_is_made_once_for_each_thing_that_it_is_measured_on(tmp_path):
    made = []

    def measure():
        made.append(len(made))
        return {"value": made[-1]}

    values = [once(tmp_path, "classes", on, measure)["value"] for on in ("one corpus", "another", "one corpus")]
    assert values == [0, 1, 0]
    assert len(list((tmp_path / "measured").iterdir())) == 2


def test_finished_students_are_found_by_arm_and_seed(tmp_path):
    for name in ("LMGC-10", "LMGC-2", "LMGC-M-0"):
        (tmp_path / name / "final").mkdir(parents=True)
    (tmp_path / "LMGC-3").mkdir()  # not finished
    assert finished_seeds(tmp_path, "LMGC") == [2, 10]
    assert finished_seeds(tmp_path, "LMGC-M") == [0]
    assert finished_seeds(tmp_path / "none", "LMGC") == []


def test_a_classifier_finds_what_is_linear_wherever_features_lie():
    rng = np.random.default_rng(0)
    gold_N = rng.integers(3, size=300)
    features_ND = torch.tensor(10 * np.eye(3)[gold_N] @ rng.normal(size=(3, 5)) + 50 + rng.normal(size=(300, 5)))
    classifier = fitted(features_ND[:200].float(), gold_N[:200].tolist(), 3)
    assert (classifier.logits(features_ND[200:].float()).argmax(1).numpy() == gold_N[200:]).mean() > 0.95


def test_sparse_features_give_the_classifier_of_dense_ones():
    dense_ND = (torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) - 0.6).clamp(min=0)
    sparse_ND, gold = dense_ND.to_sparse_coo().coalesce(), [row % 3 for row in range(60)]
    assert mean_deviation(sparse_ND) == pytest.approx(mean_deviation(dense_ND), rel=1e-6)
    ours, theirs = (fitted(x_ND, gold, 3).logits(dense_ND) for x_ND in (sparse_ND, dense_ND))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)  # both have converged


def test_tfidf_is_what_its_formula_says():
    features = bag_of_words.tfidf(["a b", "a c", "a b b"])
    row = features(["b b a x"]).to_dense()[0].numpy()
    a, b = np.log(3 / 3) * 1, np.log(3 / 2) * (1 + np.log(2))  # c and x are in fewer than two texts
    assert row == pytest.approx(np.array([a, b]) / np.hypot(a, b), rel=1e-5)
    assert features(["x", ""]).to_dense().numpy().tolist() == [[0, 0], [0, 0]]


ARCHITECTURES = {
    "bert": {},
    "roberta": {"pad_token_id": 0},
    "electra": {"embedding_size": 8},
    "distilbert": {},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def small(kind, seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=40, **SMALL, **ARCHITECTURES[kind])
    return AutoModelForMaskedLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_at_some_positions_are_those_of_the_whole_model(kind):
    model, ids_BL = small(kind), torch.arange(12).reshape(3, 4) + 4
    kept_BL = torch.tensor([[True, False, True, False]] * 3)
    inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    with torch.no_grad():
        whole_NV = model(**inputs).logits[kept_BL]
        outputs = outputs_at(model, inputs, lambda states: states[kept_BL])
    tolerance = model_rounding(model.config, ids_BL.shape[1], whole_NV)
    torch.testing.assert_close(outputs.logits_NV, whole_NV, rtol=0, atol=tolerance)
    assert outputs.pooled_ND.shape[0] == 6
    assert model(**inputs).logits.shape == (3, 4, 40)  # nothing stays changed


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_borrowed_head_is_another_model_s_and_is_given_back(kind):
    model, other, ids = small(kind), small(kind, seed=1), torch.arange(5, 9)[None]
    own = model(ids).logits
    with borrowed(model, head_of(other)):
        assert model.get_output_embeddings() is other.get_output_embeddings()
        assert not torch.equal(model(ids).logits, own)
    assert torch.equal(model(ids).logits, own)


def test_frozen_encoders_and_their_mean_stand_beside_the_words(tmp_path):
    """The mean is that of the encoders' probabilities; the words tell the class by construction."""
    texts = [f"{word} number {i}" for i in range(60) for word in [("fish", "bread", "oak")[i % 3]]]
    lines = [{"id": f"t{i}", "text": text, "label": f"[{text.split()[0]}]"} for i, text in enumerate(texts)]
    corpus = tmp_path / "task.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders = [untrained(texts, tokens, tmp_path / str(tokens)) for tokens in (60, 70)]
    words = [
        str(corpus),
        "--held-out-fraction",
        "0.3",
        *(word for folder in folders for word in ("--model", str(folder))),
    ]
    result = CliRunner().invoke(frozen.lines, words, catch_exceptions=False)
    train, test = bag_of_words.split_of(corpus, 0.3)
    log_p = [
        bag_of_words.log_probs(train, states(folder, train.texts), states(folder, test.texts)) for folder in folders
    ]
    expected = bag_of_words.judged(np.log((np.exp(log_p[0]) + np.exp(log_p[1])) / 2), train, test)
    (row,) = (line for line in result.stdout.splitlines() if "mean of their probabilities" in line)
    assert f"{expected.right_N.mean():.3f} [" in row
    assert f"{expected.nats_N.mean():.3f} |" in row
    assert "| TF-IDF and logistic regression | 1.000" in result.stdout
    assert "The mean less the best of them" in result.stdout


def test_the_line_is_of_the_split_that_stage_one_makes(tmp_path):
    subjects = {"fish": "[animal]", "bread": "[food]"}
    lines = [
        {"id": f"t{i}", "group": f"g{i // 2}", "text": f"{word} number {i}", "label": label}
        for i in range(200)
        for word, label in [list(subjects.items())[i % 2]]
    ]
    corpus = tmp_path / "task.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"id": "plain", "text": "no label"}]))
    held_out = sum(is_held_out(line["group"], 0.3) for line in lines)
    result = CliRunner().invoke(bag_of_words.line, [str(corpus), "--held-out-fraction", "0.3"], catch_exceptions=False)
    assert f"{200 - held_out} texts to learn from, {held_out} held out, 2 classes" in result.output
    assert "accuracy 1.000 [1.000, 1.000]" in result.output
