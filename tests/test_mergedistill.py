"""The recipe end to end on sentences of our own: teachers, caches, vocabulary, students of every arm, tables."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bilingual import write_texts
from cache_tools.configuration import configured, load_config
from cache_tools.errors import ConfigError
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.manifest import read_manifest
from cache_tools.vocabularies.union import NO_ID
from configs.papers.convergence import Curve, read_curves
from configs.papers.mergedistill import fetch, measures, run, stage_one, tables, words, zero_shot
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.held_out import is_held_out
from student_fixtures import without_pictures
from trainer.config.student_file import LossConfig, StudentConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.data.opening import check_teachers, open_teachers
from trainer.data.translation import student_ids
from trainer.student.student import distilled

RECIPE = Path(run.__file__).parent
SMALL = [
    "student.config.hidden_size=32",
    "student.config.intermediate_size=64",
    "student.config.initializer_range=0.1",
    "student.config.num_attention_heads=2",
    "training.learning_rate=0.02",
    "training.warmup_steps=10",
    "training.per_device_train_batch_size=16",
    "training.use_cpu=true",
]
EVALUATED = ["training.eval_strategy=steps", "training.eval_steps=55"]
CHANGES = {
    "--set-capture": ["encoding.positions_per_shard=4096", "encoding.chunk_positions=1024"],
    "--set-teacher": [*SMALL, "training.max_steps=80"],
    "--set-student": [*SMALL, *EVALUATED, "training.max_steps=110"],
}
TRAINED = ["de", "en"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mergedistill")
    write_texts(folder / "texts", documents=160)
    with without_pictures():
        run_recipe(folder)
    return folder / "work"


def run_recipe(folder):
    options = [word for option, changes in CHANGES.items() for change in changes for word in (option, change)]
    options += ["--tokens", "140", "--left-out", "nl", "--other-k", "1", "--multilingual-steps", "160"]
    result = CliRunner().invoke(run.run, [f"{folder}/texts", f"{folder}/work", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def results(work):
    return json.loads((work / "results.json").read_text())


def nats(work, language):
    """Return the cross-entropy of the language's teacher and of the student of every arm."""
    found = results(work)
    models = {arm: students["0"]["masked"] for arm, students in found["students"].items()}
    models |= {"teacher": found["teachers"], "multilingual teacher": found["multilingual_teacher"]["masked"]}
    return {name: measured[language]["cross_entropy_nats"] for name, measured in models.items() if language in measured}


@pytest.mark.slow
def test_all_models_are_measured_at_the_same_held_out_positions(work):
    found = results(work)
    assert list(found["students"]) == [*run.DEFAULT_ARMS, "k=1"]
    for language in TRAINED:
        held_out = Cache(work / language / "cache").encoding().manifest.splits["held_out"].positions
        students = [each["0"]["masked"] for each in found["students"].values()]
        models = [found["teachers"], found["multilingual_teacher"]["masked"], *students]
        assert {model[language]["positions"] for model in models} == {held_out}


@pytest.mark.slow
@pytest.mark.parametrize("language", TRAINED)
def test_what_teachers_said_elsewhere_does_harm(work, language):
    """That it helps in its own place is too small an effect for seconds of training: docs/results/mergedistill.md."""
    found = nats(work, language)
    assert found["teacher"] < min(found["distilled"], found["text only"])
    assert max(found["distilled"], found["text only"]) + 0.3 < found["control"]


@pytest.mark.slow
@pytest.mark.parametrize("language", TRAINED)
def test_the_multilingual_teacher_read_the_very_sequences_that_a_languages_own_teacher_read(work, language):
    to = student_ids(read_vocabulary(work / "vocabulary"), Cache(work / language / "cache").encoding()).read
    for split in ("train", "held_out"):
        own, same = (sequences(place / "cache", split) for place in (work / language, work / "multilingual" / language))
        assert len(own) == len(same) > 10
        for a, b in zip(own, same, strict=True):
            assert np.array_equal(to[a.input_ids], b.input_ids)
            assert np.array_equal(to[a.original_ids], b.original_ids)
            assert np.array_equal(a.position_mask, b.position_mask)


def sequences(cache, split):
    encoding = Cache(cache).encoding()
    return [each for shard in encoding.split_shards(split) for each in encoding.sequences(shard)]


@pytest.mark.slow
@pytest.mark.parametrize("language", TRAINED)
def test_the_loss_from_the_cache_is_the_loss_with_the_teacher_at_hand(work, language):
    """The reference asks the teacher itself, in its own ids, and writes the formula down in float64."""
    teacher = Cache(work / language / "k8").encoding().teacher()
    union = read_vocabulary(work / "vocabulary")
    to = student_ids(union, teacher.encoding)
    student = AutoModelForMaskedLM.from_pretrained(work / "students" / "text-only-0" / "final")
    cached = CachedSequences(teacher, "train", len(union.names), to=to)
    batch = collate([cached[index] for index in range(16)])
    cached_nats = distilled(student, LossConfig(kd_weight=0.5))(**batch)["loss"].item()

    live = AutoModelForMaskedLM.from_pretrained(work / language / "teacher" / "final").eval()
    back = torch.full((len(union.names),), 0)
    back[torch.from_numpy(to.predicted.astype(np.int64))] = torch.arange(len(to.predicted))
    kept = batch["gold_ids"] != IGNORED
    inputs = {"attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        p_PV = live(input_ids=back[batch["input_ids"]], **inputs).logits[kept].double().softmax(1)
        q_PU = student.eval()(input_ids=batch["input_ids"], **inputs).logits[kept].double().softmax(1)
    p_PK, own_PK = p_PV.topk(8)
    q_PK = q_PU.gather(1, torch.from_numpy(to.predicted.astype(np.int64))[own_PK])
    p_P, q_P = 1 - p_PK.sum(1), 1 - q_PK.sum(1)
    divergence_P = (p_PK * (p_PK / q_PK).log()).sum(1) + p_P * (p_P / q_P).log()
    gold_P = -q_PU.gather(1, batch["gold_ids"][kept][:, None])[:, 0].log()
    assert cached_nats == pytest.approx(float((divergence_P + gold_P).mean() / 2), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("capture", CaptureConfig),
        ("teacher", StudentConfig),
        ("teacher_multilingual", StudentConfig),
        ("student", StudentConfig),
    ],
)
def test_the_committed_files_are_whole(name, model):
    load_config(RECIPE / f"{name}.yaml", model)


def test_the_gap_closed_is_the_part_of_the_way_to_the_teacher():
    found = tables.gap_closed(np.array([[0.35, 5.5]]), np.array([[0.3, 6.0]]), np.array([0.5, 4.0]))
    assert found == pytest.approx(np.array([[0.25, 0.25]]))


def test_there_is_an_interval_where_there_are_two_seeds():
    assert tables.with_interval(np.array([1.0])) == "+1.000"
    assert tables.with_interval(np.array([1.0, 3.0])).startswith("+2.000 [-10.7")


def test_text_alone_has_caught_up_where_its_curve_passes_what_the_other_had():
    alone = {seed: Curve([10, 20, 30], nats) for seed, nats in enumerate(([6.0, 5.0, 4.0], [6.0, 4.0, 3.0]))}
    distilled = {seed: Curve([10, 20, 30], [5.0, 4.0, 3.5]) for seed in range(2)}
    columns = [[*column.cells] for column in tables.curve_table({"text only": alone, "distilled": distilled}).columns]
    rows = [*zip(*columns, strict=True)]
    assert [row[0] for row in rows] == ["10", "20", "30"]
    assert [row[1:3] for row in rows] == [("6.000", "5.000"), ("4.500", "4.000"), ("3.500", "3.500")]
    assert [row[3].split()[0] for row in rows] == ["-1.000", "-0.500", "+0.000"]
    assert [row[4] for row in rows] == ["18", "25", "more than 30"]  # (20 + 15) / 2, (30 + 20) / 2; seed 0 never


def test_curves_are_compared_at_their_common_steps_and_without_any_there_is_no_row():
    curves = {"text only": {0: Curve([10, 20], [6.0, 5.0])}, "distilled": {0: Curve([20, 40], [4.0, 3.0])}}
    assert tables.curve_table(curves).row_count == 1
    assert tables.curve_table({}).row_count == 0


@pytest.mark.slow
def test_the_renormalised_form_is_taken_as_biased_and_only_because_the_arm_says_so(work):
    changes = run.student_changes(work, TRAINED, "renormalised", 8)
    config = configured(RECIPE / "student.yaml", StudentConfig, changes)
    teachers = open_teachers(config)
    assert check_teachers(config, teachers).level == "biased"
    config = configured(RECIPE / "student.yaml", StudentConfig, {**changes, "loss.allow_biased": False})
    with pytest.raises(ConfigError, match="biased"):
        check_teachers(config, teachers)


@pytest.mark.slow
def test_the_multilingual_teacher_has_its_own_number_of_steps(work):
    steps = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        for folder in (work / "multilingual/teacher", work / "de/teacher")
    ]
    assert steps == [160, 80]


@pytest.mark.slow
def test_words_that_the_union_splits_otherwise_are_counted_as_a_person_would(work):
    folders = [work / place for place in ("de/untrained", "vocabulary/tokenizer")]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in folders]
    words = ["The", "baker", "in", "der", "Küche", "in", "bakes"]
    different = [word for word in words if tokenizers[0].tokenize(word) != tokenizers[1].tokenize(word)]
    assert 0 < len(different) < len(words)
    assert measures.split_otherwise(*folders, [" ".join(words)]) == pytest.approx(len(different) / len(words))


@pytest.mark.slow
def test_no_held_out_scene_is_in_any_training_split(work):
    """Translations have one group, so what is held out in one language was read in none, by teachers either."""
    groups = {
        split: {
            each.group_id
            for cache in work.rglob("zarr.json")
            if cache.parent.name in ("cache", "text", "k8")
            for each in sequences(cache.parent, split)
        }
        for split in ("train", "held_out")
    }
    assert len(groups["held_out"]) > 10
    assert groups["train"] & groups["held_out"] == set()


@pytest.mark.slow
def test_a_word_of_both_languages_is_one_token_of_the_student(work):
    union, manifest = read_vocabulary(work / "vocabulary"), read_manifest(work / "vocabulary")
    tokenizers = [AutoTokenizer.from_pretrained(work / name / "cache/encodings/main/tokenizer") for name in TRAINED]
    shared = set(tokenizers[0].get_vocab()) & set(tokenizers[1].get_vocab())
    assert {"[MASK]", "in", "."} <= shared
    assert [part.shared for part in manifest.tokenizers] == [len(shared)] * 2
    assert manifest.size == sum(map(len, tokenizers)) - len(shared)
    for tokenizer, ids in zip(tokenizers, union.maps.values(), strict=True):
        assert (ids != NO_ID).all()
        assert np.array(union.names)[ids].tolist() == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_prints_the_same_tables(work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    first = results(work)
    printed = run_recipe(work.parent)
    for title in (
        "Gap closed, nats",
        "Mean of de, en",
        "nl, which no teacher covers",
        "Sections, learned from English",
        "Held-out cross-entropy by step",
    ):
        assert title in printed
    curve = read_curves(work / "students", first["students"])["distilled"][0]
    assert curve.steps == [55, 110]
    measured = [first["students"]["distilled"]["0"]["masked"][language] for language in TRAINED]
    positions = [each["positions"] for each in measured]
    final = np.average([each["cross_entropy_nats"] for each in measured], weights=positions)
    assert curve.at(110) == pytest.approx(final, rel=1e-4)  # sums of up to a thousand float32 terms, in other batches
    assert results(work) == first
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_the_classified_texts_were_read_by_no_student(work):
    """Their groups are held out in every language; what the classifier learns from is not."""
    caches = {name: work / name / "cache" for name in (*TRAINED, "nl")}
    task = zero_shot.read_task(work.parent / "texts", [*caches], 0.15)
    train = {each.group_id for name in TRAINED for each in sequences(caches[name], "train")}
    groups = {name: Counter() for name in caches}
    for name, found in groups.items():
        for record in stage_one.records(work.parent / f"texts/{name}.jsonl"):
            found[record["text"], record["group"] in train] += 1
    assert all(groups["en"][text, True] for text in task.train.texts)
    for name, (texts, sections) in task.test.items():
        assert len(texts) == len(sections) > 10
        assert all(groups[name][text, False] for text in texts)


def test_centring_removes_what_a_language_adds_to_every_text():
    """A language's offset along the classes' directions breaks a classifier of plain features, not of centred ones."""
    rng = np.random.default_rng(0)
    directions, offset = 4 * np.eye(3, 6), np.array([0, 9, 0, 3, 0, 0])

    def features(texts):
        rows = [directions[int(text[-1])] + rng.normal(size=6) + offset * text.startswith("da") for text in texts]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    sections = np.arange(90) % 3
    texts = {name: [f"{name} {section}" for section in sections] for name in ("en", "da")}
    test = {name: zero_shot.Labelled(of_language, sections) for name, of_language in texts.items()}
    task = zero_shot.Task(["a", "b", "c"], test["en"], test, texts, "en")
    right = zero_shot.right_answers(task, features)
    assert right["plain"]["en"] == right["centred"]["en"]
    assert np.mean(right["plain"]["da"]) < 0.5
    assert np.mean(right["centred"]["da"]) > 0.9


@pytest.mark.slow
def test_words_and_models_read_the_same_part_of_a_text(work):
    tokenizer = AutoTokenizer.from_pretrained(work / "vocabulary" / "tokenizer")
    whole = zero_shot.read_task(work.parent / "texts", TRAINED, 0.15)
    short = zero_shot.cut(whole, work / "vocabulary" / "tokenizer", 6)
    assert short.train.texts != whole.train.texts
    for text, cut in zip(whole.train.texts, short.train.texts, strict=True):
        assert text.startswith(cut)
        assert tokenizer(cut)["input_ids"][1:-1] == tokenizer(text)["input_ids"][1:5]


@pytest.mark.slow
def test_lines_without_training_are_those_that_the_recipe_prints_beside_its_students(work):
    found, teacher = results(work), work / "multilingual" / "teacher" / "final"
    words_of = [str(work.parent / "texts"), str(work), "--left-out", "nl", "--tokens", "140", "--encoder", str(teacher)]
    result = CliRunner().invoke(words.lines, words_of, catch_exceptions=False)
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if "|" in line]
    shown = {row[0]: row[3:] for row in rows}
    for language in (*TRAINED, "nl"):
        right = [found["tfidf"], found["tfidf_of_whole_texts"], found["multilingual_teacher"]["right"]]
        expected = [np.mean(answers[how][language]) for answers in right for how in words.HOW]
        assert [float(cell) for cell in shown[language]] == pytest.approx(expected, abs=6e-4)
    right = found["multilingual_teacher"]["right"]
    gaps = [
        np.mean(tables.answers_abroad(right[how]) - tables.answers_abroad(found["tfidf"][how])) for how in words.HOW
    ]
    printed = [float(cell.split()[0]) for cell in shown["texts abroad, less TF-IDF"][4:]]
    assert printed == pytest.approx(gaps, abs=6e-4)


INDEX = {
    "pool_Packages": [
        "Package: libtoy-dev\nSource: toy (1.0)\nSection: libdevel\n",
        "Package: toy\nSection: contrib/games\n",
    ],
    "pool_Translation-pt%5fBR": [
        "Package: libtoy-dev\nDescription-md5: 1\nDescription-pt_BR: Zum Bauen\n Was man dazu\n braucht.\n .\n Mehr.\n",
        "Package: toy\nDescription-md5: 2\nDescription-pt_BR: Spielzeug\n Ein Ball: rund.\n",
        "Package: toy-again\nDescription-md5: 3\nDescription-pt_BR: Spielzeug\n Ein Ball: rund.\n",
        "Package: libtoy-dev\nDescription-md5: 4\nDescription-pt_BR: Zum Bauen\n Was man dazu\n braucht.\n .\n Mehr.\n",
    ],
}


@pytest.mark.skipif(not Path("/usr/lib/apt/apt-helper").exists(), reason="only where there is APT")
def test_descriptions_become_running_text_under_the_name_of_their_source(tmp_path):
    (tmp_path / "lists").mkdir()
    for name, stanzas in INDEX.items():
        (tmp_path / "lists" / name).write_text("\n".join(stanzas))
    result = CliRunner().invoke(fetch.fetch, [str(tmp_path), "pt_BR"], catch_exceptions=False)
    assert result.output == "pt_BR: 2 of 2 descriptions\n"
    lines = [json.loads(line) for line in (tmp_path / "pt_BR.jsonl").read_text().splitlines()]
    assert sorted((each["id"], each["group"], each["section"], each["text"]) for each in lines) == [
        ("libtoy-dev", "toy", "libdevel", "Zum Bauen. Was man dazu braucht. Mehr."),
        ("toy", "toy", "games", "Spielzeug. Ein Ball: rund."),
    ]


def test_the_documents_that_are_chosen_are_not_those_that_are_held_out():
    """Both go by a hash of the source package; by the same one, all training text would be missing."""
    names = [f"package{i}" for i in range(2000)]
    chosen = sorted(names, key=fetch.by_hash)[:400]
    assert 0.05 < sum(is_held_out(name, 0.1) for name in chosen) / len(chosen) < 0.15


def test_arms_without_text_alone_are_compared_with_the_distilled_one(capsys):
    def masked(nats):
        return {"masked": {name: {"top1": 0.2, "cross_entropy_nats": nats, "positions": 10} for name in ("de", "nl")}}

    students = {"distilled": {"0": masked(4.0), "1": masked(4.25)}, "k=1": {"0": masked(4.5), "1": masked(4.75)}}
    results = {"teachers": masked(3.0)["masked"], "multilingual_teacher": masked(3.0), "students": students}
    tables.print_tables(results | {"words_split_otherwise": {"de": 0.1, "nl": 0.1}}, ["de", "nl"], None)
    assert "| k=1       | 0.200 | 4.625 | +0.500 [+0.500, +0.500]      |" in capsys.readouterr().out
