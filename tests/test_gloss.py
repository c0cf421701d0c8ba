"""The gloss recipe on a small WordNet of our own: instances, pairs, splits, scores, and all of it end to end."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache_tools.configuration import configured, load_config
from cache_tools.store.reader import Cache
from configs.papers.gloss import baselines, corpora, instances, scores
from configs.papers.gloss import run as gloss_run
from configs.papers.gloss.run import HELD_OUT_FRACTION, HERE, run, save_with_labels
from configs.papers.wordnet import FILES, LEXNAMES, synsets
from configs.papers.wordpiece import untrained
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.held_out import is_held_out
from student_fixtures import without_pictures
from trainer.config.student_file import StudentConfig

TOPICS = {
    "noun.animal": ["paw", "tail", "fur", "nest", "wing"],
    "noun.food": ["salt", "plate", "oven", "spoon", "butter"],
    "noun.artifact": ["screw", "handle", "steel", "wheel", "engine"],
    "verb.motion": ["road", "leap", "speed", "turn", "step"],
}
"""By lexicographer file, words that definitions and examples of its synsets are made of."""
WORDS = [a + b for a in ("bli", "dra", "fro", "gle", "kno", "sma", "tru", "vle") for b in "nptk"]


def write_wordnet(folder, synsets_of_a_word=8):
    """Write data and index files: each word in several senses, each sense with an example that holds it."""
    draw, lines, senses = Random(0), {pos: [] for pos in FILES}, {}
    for number in range(len(WORDS) * synsets_of_a_word):
        word, lexname = WORDS[number % len(WORDS)], draw.choice(list(TOPICS))
        a, b, c, d = (draw.choice(TOPICS[lexname]) for _ in range(4))
        pos = lexname[0]
        head = f"{number:08} {LEXNAMES.index(lexname):02} {pos} 01 {word} 0 000"
        lines[pos].append(f'{head} | with {a} and {b} {number}; "the {word} has {c} and {d}"; "no {a} of {word}s"  ')
        senses.setdefault((pos, word), []).append(f"{number:08}")
    folder.mkdir()
    for pos, name in FILES.items():
        (folder / f"data.{name}").write_text("\n".join(lines[pos]) + "\n" if lines[pos] else "")
        index = [f"{w} {p} {len(o)} 0 {len(o)} 0 {' '.join(o)}  " for (p, w), o in senses.items() if p == pos]
        (folder / f"index.{name}").write_text("\n".join(index))
    return folder


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("wordnet") / "wordnet")


SMALL = ["training.num_train_epochs=1", "training.use_cpu=true"]


def invoke(wordnet, work, *more):
    start = untrained((each.definition for each in synsets(wordnet)), 200, work.parent / "start")
    options = [word for change in SMALL for word in ("--set-student", change)]
    sizes = ["--instances", "60", "--most-senses", "8", "--probe-texts", "60", "--seeds", "2"]
    words = [str(wordnet), str(start), str(work), *sizes, *options, *more]
    result = CliRunner().invoke(run, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def printed(wordnet, tmp_path_factory):
    work = tmp_path_factory.mktemp("gloss") / "work"
    with without_pictures():
        return invoke(wordnet, work), work


def test_pairs_are_captured_with_segments_and_plain_text_without(tmp_path, monkeypatch):
    files = {}
    monkeypatch.setattr(gloss_run, "capture_file", lambda file, changes: files.update({changes["cache"].name: changes}))
    monkeypatch.setattr(gloss_run, "with_tokenizer_of", lambda model, folder: folder)
    gloss_run.make_caches(tmp_path / "start", tmp_path, segments=True)
    configs = {name: configured(HERE / "capture.yaml", CaptureConfig, changes) for name, changes in files.items()}
    assert set(configs) == set(gloss_run.CACHES)
    assert {name for name, config in configs.items() if not config.encoding.segments} == {"text"}
    gloss_run.make_caches(tmp_path / "start", tmp_path, segments=False)
    assert not any(changes["encoding.segments"] for changes in files.values())


def records(work, name):
    return [json.loads(line) for line in (work / "balanced" / "corpora" / f"{name}.jsonl").read_text().splitlines()]


def held_out(group):
    return is_held_out(group, HELD_OUT_FRACTION)


@pytest.mark.slow
def test_a_gloss_of_a_held_out_synset_is_in_no_training_pair(printed):
    trained = [each for each in records(printed[1], "pairs") if not held_out(each["group"])]
    assert trained
    assert not any(held_out(corpora.group_of(baselines.candidate_of(each["id"]))) for each in trained)


@pytest.mark.slow
def test_a_held_out_instance_has_all_senses_of_its_word_and_one_right_gloss(printed, wordnet):
    senses = instances.by_lemma(list(synsets(wordnet)))
    pairs = [each for each in records(printed[1], "pairs") if held_out(each["group"])]
    by_instance = {}
    for each in pairs:
        by_instance.setdefault(each["id"].partition("|")[0], []).append(each)
    assert len(by_instance) > 5
    for each in by_instance.values():
        assert {baselines.candidate_of(pair["id"]) for pair in each} == set(senses[baselines.lemma_of(each[0]["text"])])
        assert Counter(pair["label"] for pair in each) == {"[yes]": 1, "[no]": len(each) - 1}


@pytest.mark.slow
def test_seen_instances_are_of_trained_synsets_and_their_sentences_are_new(printed):
    trained = [each for each in records(printed[1], "pairs") if not held_out(each["group"])]
    seen = records(printed[1], "seen")
    assert seen
    assert {each["group"] for each in seen} <= {each["group"] for each in trained}
    ids = [{each["id"].partition("|")[0] for each in part} for part in (trained, seen)]
    assert ids[0].isdisjoint(ids[1])


@pytest.mark.slow
def test_glosses_are_definitions_without_examples(printed, wordnet):
    examples = [example for each in synsets(wordnet) for example in each.examples]
    glosses = {each["text"].partition(" [SEP] ")[2] for each in records(printed[1], "pairs")}
    assert not any(example in gloss for gloss in glosses for example in examples)


@pytest.mark.slow
def test_swapped_pairs_differ_in_the_sentence_alone(printed):
    right = [each for each in records(printed[1], "pairs") if held_out(each["group"])]
    swapped = records(printed[1], "swapped")
    assert [(each["id"], each["label"]) for each in right] == [(each["id"], each["label"]) for each in swapped]
    for one, other in zip(right, swapped, strict=True):
        (sentence, _, gloss), (other_sentence, _, other_gloss) = (x["text"].partition(" [SEP] ") for x in (one, other))
        assert gloss == other_gloss
        assert sentence != other_sentence


@pytest.mark.slow
def test_each_gloss_is_right_in_as_many_training_pairs_as_it_is_wrong_in(printed):
    trained = [each for each in records(printed[1], "pairs") if not held_out(each["group"])]
    counts = Counter((baselines.candidate_of(each["id"]), each["label"]) for each in trained)
    glosses = {gloss for gloss, _ in counts}
    assert len(glosses) > 10
    assert all(counts[gloss, "[yes]"] == counts[gloss, "[no]"] > 0 for gloss in glosses)


@pytest.mark.slow
def test_the_student_of_masked_words_alone_learns_no_label(printed):
    recorded = json.loads((printed[1] / "balanced" / "students" / "masked-words-0" / "run.json").read_text())
    loss = recorded["config"]["loss"]
    assert (loss["kd_weight"], loss["label_weight"], loss["token_weight"]) == (0, 0, 1)


def test_balanced_pairs_are_as_many_as_the_rarer_kind_allows():
    """Synset a has two right pairs and one wrong; b has one right and two wrong; c has wrong ones only."""
    three = [
        instances.Instance("a/0", "x", "s0", "a", ("a", "b")),
        instances.Instance("a/1", "x", "s1", "a", ("a", "b", "c")),
        instances.Instance("b/0", "x", "s2", "b", ("a", "b")),
    ]
    found = corpora.balanced(three)
    kept = Counter((candidate, candidate == each.sense) for each in found for candidate in each.candidates)
    assert kept == {("a", True): 1, ("a", False): 1, ("b", True): 1, ("b", False): 1}
    assert corpora.balanced(three) == found


def test_each_right_gloss_is_once_a_stranger_and_never_of_the_same_word():
    """Ten words have two senses each, and every sense is right once; two draws on average are of the same word."""
    right = [
        instances.Instance(f"{word}{sense}/0", f"Word{word}", "s", f"{word}{sense}", (f"{word}{sense}",))
        for word in range(10)
        for sense in "ab"
    ]
    without_right_sense = right[0]._replace(id="0a/1", candidates=("0b",))
    senses = {f"word{word}": {f"{word}a", f"{word}b"} for word in range(10)}
    *extended, last = corpora.with_strangers([*right, without_right_sense], senses)
    assert last == without_right_sense
    strangers = [(instance.lemma, sense) for instance in extended for sense in instance.candidates[1:]]
    assert not any(sense in senses[lemma.lower()] for lemma, sense in strangers)
    counts = Counter(sense for _, sense in strangers)
    assert set(counts.values()) == {1}
    assert len(counts) >= len(right) - 4


def test_instances_all_of_whose_candidates_have_an_example_are_named_in_their_order():
    pairs = [corpora.Pair(name, "g", "text", "[no]") for name in ("i/0|a", "i/0|b", "j/0|a", "j/0|c", "k/1|b")]
    assert corpora.all_with_examples(pairs, {"a", "b"}) == [True, False, True]


def test_shuffled_glosses_are_the_same_glosses_elsewhere():
    glosses = {f"n{i}": f"gloss {i}" for i in range(200)}
    found = corpora.shuffled(glosses)
    assert sorted(found.values()) == sorted(glosses.values())
    assert sum(found[name] == glosses[name] for name in glosses) < 10


@pytest.mark.slow
def test_labels_stand_at_the_first_token_and_the_separator_is_read_as_one(printed):
    encoding = Cache(printed[1] / "balanced" / "caches" / "labels").encoding()
    sequences = [each for shard in encoding.split_shards("train") for each in encoding.sequences(shard)]
    assert all(each.positions().tolist() == [0] for each in sequences)
    first = sequences[0]
    separators = [i for i, token in enumerate(first.input_ids.tolist()) if token == first.input_ids[-1]]
    assert len(separators) == 2


@pytest.mark.slow
def test_masked_pairs_keep_the_label_and_some_tokens(printed):
    encoding = Cache(printed[1] / "balanced" / "caches" / "masked").encoding()
    sequences = [each for shard in encoding.split_shards("train") for each in encoding.sequences(shard)]
    assert all(each.positions()[0] == 0 and each.num_positions > 1 for each in sequences)


@pytest.mark.slow
def test_every_student_is_in_the_tables_and_has_two_tokens_more(printed):
    output = printed[0]
    for name in ("chance", "first sense", "TF-IDF", "LSA", "LMGC", "LMGC-M", "shuffled", "masked words"):
        assert name in output
    assert "LMGC-M minus masked words: text" in output
    width, tokens = 8, len(corpora.LABELS)
    before, after = (int(x.replace(",", "")) for x in output.split("parameters: ")[1].split() if x[0].isdigit())
    assert after - before == tokens * (width + 1)


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_prints_the_same_tables(printed, wordnet):
    output, work = printed
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.suffix in (".safetensors", ".json")}
    assert invoke(wordnet, work) == output
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_the_named_students_alone_are_trained_and_begin_with_the_healed_start(wordnet, tmp_path):
    with without_pictures():
        output = invoke(wordnet, tmp_path / "work", "--heal-steps", "3", "--arm", "LMGC-M")
    place = tmp_path / "work" / "balanced-healed-3"
    assert sorted(run.name for run in (place / "students").iterdir()) == ["LMGC-M-0", "LMGC-M-1"]
    recorded = json.loads((place / "students" / "LMGC-M-0" / "run.json").read_text())
    healed = place / "healing" / "3-steps" / "final"
    assert Path(recorded["config"]["student"]["pretrained"]) == place / "begin"
    assert (healed / "model.safetensors").exists()
    assert "cosine of the start's states" in output


@pytest.mark.parametrize(
    ("sentence", "lemma", "expected"),
    [
        ("he danced well", "dance", 'he " danced " well'),
        ("Dogs bark", "dog", '" Dogs " bark'),
        ("she stopped", "stop", 'she " stopped "'),
        ("two ponies", "pony", 'two " ponies "'),
        ("they took a bow", "take a bow", None),
        ("hotdog", "dog", None),
    ],
)
def test_a_word_is_marked_in_its_regular_forms(sentence, lemma, expected):
    assert instances.marked(sentence, lemma) == expected


def test_senses_are_numbered_as_the_index_lists_them(tmp_path):
    for name in FILES.values():
        (tmp_path / f"index.{name}").write_text("  1 a licence\n")
    (tmp_path / "index.noun").write_text("hot_dog n 2 1 @ 2 0 00000300 00000100  \n")
    assert instances.sense_numbers(tmp_path) == {("hot dog", "n00000300"): 1, ("hot dog", "n00000100"): 2}


def test_hits_go_to_the_highest_candidate_and_ties_are_shared():
    ids = ["a|1", "a|2", "b|1", "b|2", "b|3"]
    found = scores.scored(ids, [True, False, False, True, False], [0.9, 0.1, 0.5, 0.5, 0.5])
    assert scores.hits(found).tolist() == [1.0, pytest.approx(1 / 3)]


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    right, values = rng.random(60) < 0.3, rng.integers(8, size=60)
    naive = np.mean([(x > y) + (x == y) / 2 for x in values[right] for y in values[~right]])
    found = scores.scored([f"a|{i}" for i in range(60)], right, values)
    assert scores.summary(found)["area"] == pytest.approx(naive)


def test_both_sides_of_a_pair_go_without_the_word_itself():
    text = 'he ate a " roll " today [SEP] roll : small rounded bread'
    assert baselines.sides(text) == ("he ate a   today", "small rounded bread")
    assert baselines.lemma_of(text) == "roll"


def test_word_vectors_find_texts_that_share_rare_words():
    texts = ["salt and butter", "butter and plate", "salt and plate", "wheel and steel", "steel and engine"] * 3
    vectors = baselines.WordVectors(texts, 2)
    found_ND = vectors.lsa(["salt", "butter plate", "engine steel"])
    assert found_ND[0] @ found_ND[1] > found_ND[0] @ found_ND[2] + 0.3  # though the first two share no word
    norms = torch.linalg.vector_norm(vectors.tfidf(texts).to_dense(), dim=1)
    torch.testing.assert_close(norms, torch.ones(15))


def test_labels_are_single_tokens_of_the_starting_model(tmp_path):
    from transformers import AutoTokenizer

    start = untrained(["some words here"] * 3, 60, tmp_path / "plain")
    save_with_labels(start, tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert [len(tokenizer.tokenize(label)) for label in corpora.LABELS] == [1, 1]


@pytest.mark.parametrize(("name", "model"), [("capture", CaptureConfig), ("student", StudentConfig)])
def test_the_committed_files_are_whole(name, model):
    load_config(HERE / f"{name}.yaml", model)
