"""Fine-tuning on tasks: how their records are read and split, and that models are compared on equal terms."""

import json
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_gloss import TOPICS, write_wordnet
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools.configuration import configured
from configs.papers import wordpiece
from configs.papers.gloss import heal, measure, nlu, spun, tasks
from configs.papers.gloss.corpora import Pair
from configs.papers.gloss.instances import Instance
from configs.papers.gloss.run import HERE, save_with_labels
from configs.papers.wordnet import Synset, synsets
from configs.papers.wordpiece import untrained
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.held_out import is_held_out
from student_fixtures import without_pictures
from tolerances import ELEMENTWISE, rounding
from trainer.config.student_file import StudentConfig


def sentences(words, senses_of_a_word, examples):
    """Return instances: each word in so many senses, each sense with so many sentences."""
    return [
        Instance(f"{word}{s}/{n}", word, f'a " {word} " {s} {n}', f"{word}{s}", ())
        for word in words
        for s in range(senses_of_a_word)
        for n in range(examples)
    ]


def test_a_sentence_of_the_word_in_context_task_is_in_one_pair_of_either_label_on_the_same_side():
    records = tasks.word_in_context(sentences([f"w{i}" for i in range(20)], 4, 2), trained=set())
    labels = defaultdict(list)
    for each in records:
        for side, sentence in enumerate(each["text"].split(" [SEP] ")):
            labels[side, sentence].append(each["label"])
    assert len(labels) == 20 * 4 * 2
    assert all(sorted(of_sentence) == [tasks.DIFFERENT, tasks.SAME] for of_sentence in labels.values())


def test_a_sense_with_one_example_and_a_word_with_one_sense_make_no_pair():
    assert tasks.word_in_context(sentences(["w"], 4, 1), set()) == []
    assert tasks.word_in_context(sentences(["w"], 1, 2), set()) == []


def test_no_held_out_pair_holds_a_trained_sense_and_no_other_pair_holds_a_tested_one():
    """Half of the senses were trained on, and each sense is shared by two words."""
    instances = [
        each._replace(lemma=lemma, sentence=f"{each.sentence} {lemma}")
        for each in sentences([f"w{i}" for i in range(60)], 4, 2)
        for lemma in (each.lemma, f"{each.lemma}-too")
    ]
    trained = {each.sense for each in instances if each.sense[-1] in "01"}
    records = tasks.word_in_context(instances, trained)
    sense_of = {each.sentence: each.sense for each in instances}
    sides = {True: set(), False: set()}
    for each in records:
        of_pair = {sense_of[sentence] for sentence in each["text"].split(" [SEP] ")}
        sides[is_held_out(each["group"], tasks.FRACTION)] |= of_pair
    assert sides[True]
    assert sides[True].isdisjoint(trained)
    assert sides[True].isdisjoint(sides[False])
    assert sides[False] & trained


def test_entailment_reads_both_spellings_of_its_label_and_holds_out_by_the_first_text(tmp_path):
    (tmp_path / "rte1_dev.xml").write_text(
        '<c><pair value="TRUE"><t>It\n rains</t><h>Wet</h></pair>'
        '<pair value="FALSE"><t>It rains</t><h>Dry</h></pair></c>'
    )
    (tmp_path / "rte2_dev.xml").write_text('<c><pair entailment="YES"><t>Snow</t><h>Cold</h></pair></c>')
    records = tasks.entailment(tmp_path)
    assert [(each["text"], each["label"]) for each in records] == [
        ("It rains [SEP] Wet", "[entailed]"),
        ("It rains [SEP] Dry", "[open]"),
        ("Snow [SEP] Cold", "[entailed]"),
    ]
    assert records[0]["group"] == records[1]["group"] != records[2]["group"]


def write_nltk(folder, texts=60):
    """Write tiny versions of two of NLTK's corpora, whose classes have words of their own."""
    draw, topics = Random(0), list(TOPICS.values())
    (folder / "qc").mkdir(parents=True)
    (folder / "sentence_polarity").mkdir()
    lines = [
        f"{name}:{name} {draw.choice(words)} {draw.choice(words)} {i}"
        for i in range(texts)
        for name, words in zip(("ENTY", "HUM"), topics, strict=False)
    ]
    (folder / "qc" / "train.txt").write_text("\n".join(lines[2:]))
    (folder / "qc" / "test.txt").write_text("\n".join(lines[:3]))  # one of them is in both
    for label, words in zip(("neg", "pos"), topics, strict=False):
        lines = [f"{draw.choice(words)} {draw.choice(words)} {i} " for i in range(texts)]
        (folder / "sentence_polarity" / f"rt-polarity.{label}").write_text("\n".join([*lines, lines[0]]))
    return folder


def test_questions_have_coarse_classes_and_each_text_is_there_once(tmp_path):
    nltk = write_nltk(tmp_path / "nltk")
    questions, polarity = tasks.questions(nltk / "qc"), tasks.polarity(nltk / "sentence_polarity")
    assert Counter(each["label"] for each in questions) == {"[enty]": 60, "[hum]": 60}
    assert Counter(each["label"] for each in polarity) == {"[neg]": 60, "[pos]": 60}
    for records in (questions, polarity):
        assert len({each["id"] for each in records}) == len({each["text"] for each in records}) == 120


def synset(number, *lemmas, pos="n"):
    return Synset(f"{pos}{number:08}", pos, "noun.act", lemmas, "", ())


THESAURUS = [synset(i, *(f"{x}{y}word" for x in "abcdefgh" for y in "klmnopqr"[i : i + 2])) for i in range(7)]


def test_a_word_that_comes_in_is_of_a_synset_of_the_word_and_never_comes_in_on_both_sides():
    both = [spun.synonyms(THESAURUS, is_test) for is_test in (False, True)]
    incoming = [{word for others in side.values() for word in others} for side in both]
    assert min(map(len, incoming)) > 10
    assert incoming[0].isdisjoint(incoming[1])
    assert all(
        any({word, other} <= set(each.lemmas) and word != other for each in THESAURUS)
        for side in both
        for word, others in side.items()
        for other in others
    )


def test_words_are_replaced_by_those_of_the_part_of_speech_of_most_of_their_synsets():
    """The word is a verb in one synset and a noun in two; names and compounds neither go nor come."""
    nouns = [synset(i, "walking", *(f"{letter}oun" for letter in "abcdef"), "two words", "Name") for i in (1, 2)]
    verb = synset(3, "walking", *(f"{letter}erb" for letter in "abcdef"), pos="v")
    found = spun.synonyms([verb, *nouns], is_test=False)
    assert found["walking"]
    assert {word[1:] for word in found["walking"]} == {"oun"}
    assert not {"two words", "Name", "name"} & (found.keys() | {word for of in found.values() for word in of})


def test_a_share_of_the_words_is_replaced_and_the_rest_of_the_text_stays():
    text = "One word, another Word; and words: word word word word word word word."
    of_side = {"word": ["term"]}
    found = spun.spun(text, of_side, 0.4, Random(0))
    assert len(spun.replaceable(text, of_side)) == 9
    assert found.lower().count("term") == 4
    assert found.replace("term", "word").replace("Term", "Word") == text


def test_a_paragraph_ends_with_a_sentence():
    long = "A sentence of v1.2 stands here. " * 20
    assert len(spun.beginning(long)) > 250
    assert spun.beginning(long).endswith("v1.2 stands here.")
    assert spun.beginning("No point") == "No point"


def test_a_paragraph_is_original_or_spun_with_the_words_of_its_side(tmp_path):
    words = [lemma for each in THESAURUS for lemma in each.lemmas]
    draw = Random(0)
    texts = [" ".join(draw.sample(words, 20)) for _ in range(80)]
    lines = [json.dumps({"id": str(i), "group": f"source{i // 2}", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "en.jsonl").write_text("\n".join(lines))
    records = spun.paragraphs(tmp_path / "en.jsonl", THESAURUS)
    sides = {side: spun.synonyms(THESAURUS, side) for side in (False, True)}
    assert len(records) == 80
    for each, text in zip(records, texts, strict=True):
        came = set(each["text"].split()) - set(text.split())
        of_side = sides[is_held_out(each["group"], tasks.FRACTION)]
        assert came <= {word for others in of_side.values() for word in others}
        assert (each["text"] == text) == (each["label"] == spun.ORIGINAL)
    assert 25 < Counter(each["label"] for each in records)[spun.SPUN] < 55


def test_spun_paragraphs_without_a_file_of_descriptions_are_refused(wordnet, tmp_path):
    paths = [str(path) for path in (wordnet, tmp_path, tmp_path, tmp_path, tmp_path / "work")]
    result = CliRunner().invoke(nlu.run, [*paths, "--task", "spun"])
    assert result.exit_code == 2
    assert "needs --debian" in result.output


def test_students_that_were_not_trained_are_named(wordnet, tmp_path):
    (tmp_path / "students" / "LMGC-0" / "final").mkdir(parents=True)
    paths = [str(path) for path in (wordnet, tmp_path, tmp_path, tmp_path, tmp_path / "work")]
    result = CliRunner().invoke(nlu.run, [*paths, "--seeds", "2"])
    assert result.exit_code == 2
    assert "LMGC-1/final" in result.output.replace("\n", "").replace("│", "").replace(" ", "")
    assert not (tmp_path / "work").exists()


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("wordnet") / "wordnet")


def start_of(wordnet, folder):
    plain = untrained((each.definition for each in synsets(wordnet)), 200, folder / "plain")
    save_with_labels(plain, folder / "start")
    return folder / "start"


def test_healing_reads_both_forms_of_text_and_no_label(wordnet, tmp_path, monkeypatch):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(Pair("a/0|b", "wordnet:a", 'the " x " [SEP] x : y', "[no]")._asdict()) + "\n")
    called = {}
    monkeypatch.setattr(heal, "capture_file", lambda file, changes: called.update(capture=changes) or changes["cache"])
    monkeypatch.setattr(heal, "train_file", lambda file, changes: called.update(train=changes))
    start, lengths = start_of(wordnet, tmp_path), lambda texts: [65 if "0 and" in text else 64 for text in texts]
    heal.healed(wordnet, start, lengths, pairs, tmp_path / "work", steps=7, segments=True, set_heal={})
    capture = configured(HERE / "capture.yaml", CaptureConfig, called["capture"])
    student = configured(HERE / "student.yaml", StudentConfig, called["train"])
    assert capture.corpus.label_field is None
    assert capture.encoding.masking.probability == 0.15
    assert (student.loss.kd_weight, student.loss.label_weight, student.loss.token_weight) == (0, None, None)
    records = [json.loads(line) for line in (tmp_path / "work" / "corpus" / "both.jsonl").read_text().splitlines()]
    assert not any("label" in each for each in records)
    assert len(records) == len(list(synsets(wordnet))) + 1
    assert records[-1]["text"] == 'the " x " [SEP] x : y'


@pytest.mark.parametrize("segments", [False, True])
def test_labels_are_ahead_of_all_other_tokens_by_the_stated_nats_and_no_other_weight_changes(
    wordnet, tmp_path, segments
):
    text = 'the " paw " [SEP] paw : with fur'
    heal.set_label_rows(start_of(wordnet, tmp_path), [text], segments, tmp_path / "begin")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "begin")
    before, after = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("start", "begin"))
    labels = tokenizer.convert_tokens_to_ids(["[yes]", "[no]"])
    sides = text.split(" [SEP] ") if segments else [text]
    logits_V = after(**tokenizer(*sides, return_tensors="pt")).logits[0, 0].detach()
    others = [token for token in range(len(logits_V)) if token not in labels]
    ahead_L = logits_V[labels] - logits_V[others].logsumexp(dim=0)
    rows_LD = after.get_output_embeddings().weight[labels].detach()
    width = rows_LD.shape[1]  # rows are multiplied by the output of a layer norm, of length √width at most
    tolerance = rounding(torch.float32, 2 * width + ELEMENTWISE, float(rows_LD.norm(dim=1).max()) * width**0.5)
    assert ahead_L.tolist() == pytest.approx([heal.AHEAD_NATS] * 2, abs=tolerance)
    weights = [dict(model.named_parameters()) for model in (before, after)]
    (changed,) = (name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name]))
    changed_rows = (weights[0][changed] != weights[1][changed]).any(dim=1)
    assert changed_rows.nonzero().flatten().tolist() == sorted(labels)


def test_cosines_compare_sentence_and_gloss_without_the_word_in_both(monkeypatch):
    """States count the letters x and y; the word itself is made of the letter that the wrong gloss has."""

    def states(model, texts):
        return torch.tensor([[1.0 + text.count("x"), 1.0 + text.count("y")] for text in texts])

    monkeypatch.setattr(measure.probe, "states", states)
    text = 'xx " yyyyyy " x [SEP] yyyyyy : '
    pairs = [Pair("i|a", "g", text + "xxx", "[yes]"), Pair("i|b", "g", text + "yyy", "[no]")]
    assert measure.cosines(HERE, pairs) == {"hits": [1.0], "area": 1.0}
    assert measure.cosines(HERE, [each._replace(text=text + "z") for each in pairs]) == {"hits": [0.5], "area": 0.5}


def test_rows_of_classes_depend_on_the_seed_alone(wordnet, tmp_path):
    from transformers import AutoModelForMaskedLM

    start = start_of(wordnet, tmp_path)
    rows = [
        AutoModelForMaskedLM.from_pretrained(nlu.with_classes(start, ["[a]", "[b]"], seed, tmp_path / name))
        .get_input_embeddings()
        .weight[-2:]
        .detach()
        .numpy()
        for name, seed in (("first", 1), ("second", 1), ("third", 2))
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.abs(rows[0] - rows[2]).max() > 0


@pytest.mark.slow
def test_all_models_are_tuned_on_the_same_texts_and_learn_them(wordnet, tmp_path, monkeypatch):
    """The students are the start under other names, so their accuracies must be equal and their differences 0."""
    wide = {"hidden_size": 32, "intermediate_size": 32, "initializer_range": 0.1}
    monkeypatch.setattr(wordpiece, "SMALLEST", wordpiece.SMALLEST | wide)
    nltk, start, place = write_nltk(tmp_path / "nltk"), start_of(wordnet, tmp_path), tmp_path / "place"
    for arm in ("LMGC", "LMGC-M"):
        for seed in range(2):
            (place / "students" / f"{arm}-{seed}").mkdir(parents=True)
            (place / "students" / f"{arm}-{seed}" / "final").symlink_to(start)
    changes = {"training.max_steps": 60, "training.use_cpu": "true", "training.learning_rate": 0.01}
    options = [word for key, value in changes.items() for word in ("--set-student", f"{key}={value}")]
    words = [*map(str, (wordnet, nltk, start, place, tmp_path / "work")), "--seeds", "2", "--task", "questions"]
    with without_pictures():
        result = CliRunner().invoke(nlu.run, [*words, *options], catch_exceptions=False)
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if line.startswith("| questions")).split("|")[4:7]
    assert row[0] == row[1] == row[2]
    assert float(row[0].split()[0]) > 0.8
    assert "+0.0 [+0.0, +0.0]" in result.stdout
