"""The recipe end to end on sentences of our own, English and German as the two domains; and what its tables say."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_wordnet import LINES

from bilingual import write_texts
from cache_tools.configuration import configured, load_config
from cache_tools.store.reader import Cache
from configs.papers import convergence
from configs.papers.area import area_under_curve
from configs.papers.cohesive import ngrams, tables, texts, weights
from configs.papers.cohesive.calibration import TEMPERATURES, Calibration, calibrated
from configs.papers.cohesive.run import CONTROL, HERE, arms, run
from configs.papers.intervals import over_seeds
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.held_out import is_held_out
from student_fixtures import without_pictures
from trainer.config.student_file import StudentConfig

DOMAINS = ["de", "en"]
CALIBRATION = Calibration((4.0, 5.0), 0.5, 0.25)
SHAPE = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=1", "num_attention_heads=2"]
SMALL = [f"student.config.{key}" for key in SHAPE] + [
    "training.learning_rate=0.015",
    "training.warmup_steps=5",
    "training.per_device_train_batch_size=16",
    "training.use_cpu=true",
]
CHANGES = {
    "--set-capture": [
        "encoding.positions_per_shard=4096",
        "corpus.held_out_fraction=0.1",
        "teachers.0.target={k: 8}",
        "teachers.1.target={k: 8}",
    ],
    "--set-teacher": [*SMALL, "training.max_steps=110", "training.eval_steps=110"],
    "--set-student": [*SMALL, "training.max_steps=8", "training.eval_steps=4", "loss.allow_biased=true"],
}


def write_domains(folder):
    """Write a corpus of each language, and a mixed one of the same documents, in groups named after their language."""
    plain = write_texts(folder / "plain", documents=200)
    parts = {name: (plain / f"{name}.jsonl").read_text() for name in DOMAINS}
    (folder / "texts").mkdir()
    for name, lines in parts.items():
        records = [json.loads(line) for line in lines.splitlines()]
        documents = [
            texts.Document(f"{name}:{each['id']}", f"{name}:{each['group']}", each["text"]) for each in records
        ]
        texts.write(folder / "texts" / f"{name}.jsonl", documents)
    mixed = "".join((folder / "texts" / f"{name}.jsonl").read_text() for name in DOMAINS)
    (folder / "texts" / "mixed.jsonl").write_text(mixed)
    return folder / "texts"


def invoke(corpora, work):
    options = [word for option, changes in CHANGES.items() for change in changes for word in (option, change)]
    words = [str(corpora), str(work), "--tokens", "150", "--seeds", "2", *options]
    result = CliRunner().invoke(run, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohesive")
    with without_pictures():
        return invoke(write_domains(folder), folder / "work"), folder / "work"


@pytest.fixture(scope="module")
def said(printed):
    return weights.positions_of(Cache(printed[1] / "cache").encoding(), DOMAINS)


@pytest.mark.slow
def test_rules_that_see_the_gold_token_trust_the_expert_of_the_domain_and_beat_the_plain_mean(said):
    """Of the entropy that is not asked here: an expert of one small language is as sure of itself in another."""
    nats = {name: weights.nats(said, weights.weights(said, rule)).mean() for name, rule in weights.RULES.items()}
    for name in ("inverse loss", "gold likelihood"):
        own = weights.matching_weight(said, weights.weights(said, weights.RULES[name]))
        assert np.mean(own > 0.5) > 0.7
        assert nats[name] < nats["uniform"]


def test_the_mixture_is_the_weighted_mean_of_what_the_experts_gave_the_gold_token():
    scalars = {"gold_logprob": torch.tensor([[0.5, 0.1], [0.2, 0.4]]).log(), "entropy": torch.zeros(2, 2)}
    said = weights.Positions(np.array([0, 1]), np.array([0, 1]), scalars)
    plain, gold = (weights.weights(said, weights.RULES[name]) for name in ("uniform", weights.GOLD))
    np.testing.assert_allclose(weights.nats(said, plain), -np.log([0.3, 0.3]), rtol=1e-6)
    np.testing.assert_allclose(gold, [[5 / 6, 1 / 6], [1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(weights.matching_weight(said, gold), [5 / 6, 2 / 3], rtol=1e-6)


def test_items_of_the_bootstrap_are_sequences_and_their_mean_is_that_of_positions():
    said = weights.Positions(np.zeros(3, int), np.array([0, 0, 1]), {})
    assert weights.by_sequence(said, np.array([1.0, 2.0, 5.0])).tolist() == pytest.approx([2.0, 10 / 3])
    said = said._replace(scalars={"entropy": torch.tensor([[1.0, 4.0], [3.0, 4.0], [5.0, 0.0]])})
    assert weights.over_sequences(said).scalars["entropy"].tolist() == [[2.0, 4.0], [2.0, 4.0], [5.0, 0.0]]
    odds = np.exp([2.0, 2.0, -5.0])  # of the first expert, by the means
    weights_NT = weights.weights(said, weights.RULES["sequence entropy"])
    np.testing.assert_allclose(weights_NT[:, 0], odds / (1 + odds), rtol=1e-6)


def two_experts(seed):
    """40 sequences of 5 positions; both experts find the same texts hard, the second is always surer, and each has
    about 0.4 nats less entropy and a better prediction on its own domain, the even sequences the first one's."""
    random, sequence_N = np.random.default_rng(seed), np.repeat(np.arange(40), 5)
    own_NT = np.stack([sequence_N % 2 == 0, sequence_N % 2 == 1], axis=1)
    hard_N = np.repeat(random.uniform(2, 6, 40), 5)
    entropy_NT = hard_N[:, None] - 0.4 * own_NT - np.array([0, 0.8]) + random.normal(0, 0.1, (200, 2))
    scalars = {"entropy": torch.tensor(entropy_NT), "gold_logprob": torch.tensor(-hard_N[:, None] - 1.5 * ~own_NT)}
    return weights.Positions(sequence_N % 2, sequence_N, scalars)


def test_calibrated_weights_are_those_of_entropy_less_the_expert_s_mean():
    sample = two_experts(0)
    means = weights.over_sequences(sample).scalars["entropy"].numpy()
    exponents = -(means - np.array(CALIBRATION.means_T)) / CALIBRATION.temperature
    expected = np.exp(exponents) / np.exp(exponents).sum(1, keepdims=True)
    np.testing.assert_allclose(CALIBRATION.weights(weights.CALIBRATED, sample), expected, rtol=1e-4)


def test_calibration_knows_the_domain_where_entropy_follows_the_surer_expert():
    training, sample = two_experts(1), two_experts(2)
    calibration = calibrated(training)
    calibrated_N = weights.matching_weight(sample, calibration.weights(weights.CALIBRATED, sample))
    plain_N = weights.matching_weight(sample, weights.weights(sample, weights.RULES["sequence entropy"]))
    assert np.mean(calibrated_N > 0.5) > 0.95
    assert np.mean(plain_N > 0.5) == 0.5  # always the second expert
    by_temperature = [
        weights.nats(training, Calibration(calibration.means_T, t).weights(weights.CALIBRATED, training)).mean()
        for t in TEMPERATURES
    ]
    assert calibration.temperature == TEMPERATURES[int(np.argmin(by_temperature))]


def test_the_likelihood_of_other_positions_knows_the_domain_and_not_the_answer():
    sample = two_experts(3)
    weights_NT = CALIBRATION.weights(weights.OTHERS, sample)
    assert np.mean(weights.matching_weight(sample, weights_NT) > 0.5) > 0.95
    gold_NT = sample.scalars["gold_logprob"].numpy()
    for n in (0, 7):
        others = (sample.sequence_N == sample.sequence_N[n]) & (np.arange(200) != n)
        expected = np.exp(gold_NT[others].mean(axis=0) / 0.25)
        np.testing.assert_allclose(weights_NT[n], expected / expected.sum(), rtol=1e-3)
    answered = sample._replace(scalars={**sample.scalars, "gold_logprob": sample.scalars["gold_logprob"].clone()})
    answered.scalars["gold_logprob"][7, 0] = -0.01
    np.testing.assert_allclose(CALIBRATION.weights(weights.OTHERS, answered)[7], weights_NT[7], rtol=1e-6)


def test_the_area_counts_pairs_and_ties_half():
    scores, positive = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    assert area_under_curve(scores, positive) == (1 + 0.5 + 1 + 1) / 4


def test_the_table_of_domains_has_the_means_of_sequences_at_home_and_abroad(capsys):
    sample = two_experts(4)
    tables.print_domains(sample, DOMAINS)
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    gold = sample.scalars["gold_logprob"].numpy()
    expected = [-gold[sample.matching_N == domain, expert].mean() for expert in (0, 1) for domain in (0, 1)]
    assert cells == ["cross-entropy", *(f"{value:.3f}" for value in expected), "1.000"]


def test_a_student_gets_the_calibrated_weights_from_the_keys_of_its_file():
    changes = CALIBRATION.changes(weights.CALIBRATED, DOMAINS)
    config = configured(HERE / "student.yaml", StudentConfig, changes)
    given = [teacher.weight_on("any") for teacher in config.teachers]
    assert given[1] / given[0] == pytest.approx(np.exp(2))
    assert config.mixture.model_dump(exclude={"of"}) == CALIBRATION.rules[weights.CALIBRATED][0].model_dump(
        exclude={"of"}
    )


@pytest.mark.slow
def test_counted_words_are_those_of_a_recount(printed):
    encoding = Cache(printed[1] / "cache").encoding()
    texts_by_split = {
        split: [sequence for shard in encoding.split_shards(split) for sequence in encoding.sequences(shard)]
        for split in ("train", "held_out")
    }
    training, size = [s.original_ids.tolist() for s in texts_by_split["train"]], encoding.manifest.vocabulary_size
    total, unigram, bigram = sum(map(len, training)), [], []
    for sequence in texts_by_split["held_out"][:3]:
        for place in np.flatnonzero(sequence.position_mask):
            before, gold = sequence.original_ids[[place - 1, place]].tolist()
            p = (sum(ids.count(gold) for ids in training) + 0.5) / (total + size / 2)
            pairs = sum(ids[i : i + 2] == [before, gold] for ids in training for i in range(len(ids) - 1))
            left = sum(ids[:-1].count(before) for ids in training)
            unigram.append(-np.log(p))
            bigram.append(-np.log((pairs + ngrams.SMOOTHING * p) / (left + ngrams.SMOOTHING)))
    measured = ngrams.counted(encoding)
    np.testing.assert_allclose(measured.unigram[: len(unigram)], unigram, rtol=1e-9)
    np.testing.assert_allclose(measured.bigram[: len(bigram)], bigram, rtol=1e-9)


def test_the_rule_of_the_domain_s_own_listens_to_one_expert_on_each_document():
    config = configured(HERE / "student.yaml", StudentConfig, arms(DOMAINS, CALIBRATION)[tables.OWN])
    listened = {domain: [t.weight_on(f"{domain}:7") for t in config.teachers] for domain in DOMAINS}
    assert listened == {"de": [1, 0], "en": [0, 1]}


def test_every_arm_is_a_student_file():
    for name, changes in arms(DOMAINS, CALIBRATION).items():
        config = configured(HERE / "student.yaml", StudentConfig, changes)
        assert (config.control is not None) == (name == CONTROL)
        assert (config.mixture.per == "sequence") == name.startswith("sequence entropy")
        expected = {weights.CALIBRATED: 0.5, weights.OTHERS: 0.25}.get(name, 1)
        assert config.mixture.temperature == expected
        assert (config.mixture.per == "others") == (name == weights.OTHERS)


def curves_of(nats_by_seed):
    return {seed: convergence.Curve([10, 20], list(nats)) for seed, nats in nats_by_seed.items()}


def test_steps_are_compared_with_the_better_expert_by_the_numbers_of_the_seeds(capsys):
    """The mark is 3; text alone passes it at the last step, and of the mixture seed 0 is missing."""
    curves = {
        tables.TEXT_ALONE: curves_of({0: (4, 3), 1: (4, 3), 2: (4, 3)}),
        "en alone": curves_of({0: (3.5, 2.5), 1: (3.25, 2.75), 2: (4.0, 2.0)}),
        "de alone": curves_of({0: (4, 2.9), 1: (4, 2.9), 2: (4, 2.9)}),
        "entropy": curves_of({1: (3.0, 2.5), 2: (3.0, 2.5)}),
    }
    tables.print_students(curves, ["de alone", "en alone"])
    printed = capsys.readouterr().out
    shares = [10 / curves["en alone"][seed].steps_to(3) for seed in (1, 2)]
    assert tables.percent(over_seeds(shares)) in printed
    assert "of en alone's" in " ".join(printed.split())


@pytest.mark.parametrize("trained", [True, False])
def test_a_rule_is_compared_with_the_plain_mean_where_both_were_trained_and_no_line_is_left_unfinished(capsys, trained):
    nats = {0: (4, 3), 1: (4, 3.5)}
    curves = {name: curves_of(nats) for name in (tables.TEXT_ALONE, "en alone", weights.OTHERS)}
    tables.print_students(curves | ({"uniform": curves_of(nats)} if trained else {}), ["en alone"])
    assert ("does not see the answer" in capsys.readouterr().out) == trained


@pytest.mark.slow
def test_all_students_are_in_the_table_and_one_mark_is_reached_by_all(printed):
    output, work = printed
    for arm in arms(DOMAINS, CALIBRATION):
        assert arm in output
    curves = [convergence.Curve.read(folder) for folder in (work / "students").iterdir()]
    assert len(curves) == 2 * len(arms(DOMAINS, CALIBRATION))
    assert {tuple(curve.steps) for curve in curves} == {(4, 8)}
    mark = convergence.common_mark(curves)
    assert all(curve.steps_to(mark) <= 8 for curve in curves)


@pytest.mark.slow
def test_no_expert_has_read_a_held_out_document_of_the_mixed_corpus(printed):
    work = printed[1]
    groups = {}
    for name, split in (("cache", "held_out"), *((f"{domain}/text", "train") for domain in DOMAINS)):
        encoding = Cache(work / name).encoding()
        groups[name] = {s.group_id for shard in encoding.split_shards(split) for s in encoding.sequences(shard)}
    assert len(groups["cache"]) > 20
    assert all(groups["cache"].isdisjoint(groups[f"{domain}/text"]) for domain in DOMAINS)


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_prints_the_same_tables(printed):
    output, work = printed
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    assert invoke(work.parent / "texts", work) == output
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before


def test_a_mark_between_two_measurements_is_passed_on_the_straight_line():
    curve = convergence.Curve([10, 20, 30], [4.0, 3.0, 2.5])
    assert [curve.steps_to(mark) for mark in (4.5, 3.5, 2.5)] == [10, 15, 30]
    with pytest.raises(ValueError, match="never"):
        curve.steps_to(2.4)
    assert convergence.common_mark([curve, convergence.Curve([10, 20], [3.5, 3.2])]) == 3.2


def test_shares_are_printed_for_people():
    assert tables.percent(tables.Interval(0.5, 0.25, 0.75)) == "50% [25%, 75%]"


@pytest.mark.parametrize(
    ("name", "model"), [("capture", CaptureConfig), ("teacher", StudentConfig), ("student", StudentConfig)]
)
def test_the_committed_files_are_whole(name, model):
    load_config(HERE / f"{name}.yaml", model)


def test_corpora_are_the_domains_with_groups_and_a_part_of_both(tmp_path):
    (tmp_path / "wordnet").mkdir()
    for name, lines in LINES.items():
        (tmp_path / "wordnet" / f"data.{name}").write_text("\n".join(lines) + "\n")
    records = [{"id": f"toy{i}", "group": f"toy{i // 2}", "text": f"A toy, number {i}."} for i in range(10)]
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    words = [str(tmp_path / "wordnet"), str(tmp_path / "en.jsonl"), str(tmp_path / "out"), "--mixed", "0.4"]
    result = CliRunner().invoke(texts.texts, words, catch_exceptions=False)
    assert result.exit_code == 0
    found = {
        path.stem: [texts.Document(**json.loads(line)) for line in path.read_text().splitlines()]
        for path in (tmp_path / "out").iterdir()
    }
    assert [len(found[name]) for name in ("wordnet", "debian", "mixed")] == [5, 10, 6]
    assert found["mixed"] == [*found["wordnet"][:2], *found["debian"][:4]]
    assert {each.domain for each in found["mixed"]} == {"wordnet", "debian"}
    bird = next(each for each in found["wordnet"] if each.id == "wordnet:n00000100")
    examples = "the grebling dived; it came up; two lake greblings"
    assert bird.text == f"grebling, lake grebling: a small wet bird; {examples}"
    assert found["debian"][3].group == "debian:toy1"


def test_a_group_is_on_the_same_side_in_every_corpus():
    """What the split goes by is the name of the group alone, so one name in two corpora is enough."""
    names = [f"wordnet:n{i:08}" for i in range(400)]
    assert 0 < sum(is_held_out(name, 0.05) for name in names) < 60
