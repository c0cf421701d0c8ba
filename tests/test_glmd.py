"""The recipe end to end on sentences of our own: teachers, vocabularies, caches, students, tables."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForMaskedLM

from bilingual import SCENES
from cache_tools.configuration import assignments, load_config
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.manifest import read_manifest
from configs.papers.glmd import arms, bench, measure, models, run, tables, texts
from configs.papers.wordnet import Synset
from pipeline.config.capture_file import CaptureConfig
from student_fixtures import largest_difference, weights, without_pictures
from tolerances import model_rounding
from trainer.config.student_file import StudentConfig

SHAPE = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "num_attention_heads=2"]
WIDE_START = "initializer_range=0.15"
"""Weights of ordinary size take a small model hundreds of steps to leave."""
SHARDS = ["encoding.positions_per_shard=4096", "encoding.chunk_positions=1024"]
OPTIONS = {
    "--set-capture": SHARDS,
    "--set-teacher": [f"student.config.{key}" for key in [*SHAPE, WIDE_START]]
    + ["training.learning_rate=0.008", "training.warmup_steps=5", "training.per_device_train_batch_size=16"]
    + ["training.use_cpu=true", "training.max_steps=60"],
    "--set-student": [
        "training.per_device_train_batch_size=16",
        "training.learning_rate=0.01",
        "training.warmup_steps=2",
        "training.use_cpu=true",
    ],
}
RIVALS = (arms.STATES, "another structure, P, soft labels")
FORMS = ("whole", "k + rest", "k + lowest")
WORDS = ("bread", "cows", "nets", "books", "wounds", "paint")
"""What each of the grammar's people has to do with: the classes of the task."""


def write_texts(folder):
    """Write texts of one language, and a task: which word belongs to who is said to be where."""
    folder.mkdir()
    scene, draw, lines = SCENES["en"], np.random.default_rng(0), {"teacher": [], "task": []}
    for number in range(200):
        who, when = int(draw.integers(6)), scene["when"][int(draw.integers(4))]
        text = f"{scene['who'][who]} {scene['does'][who]} {scene['where'][who]} {when} ."
        lines["teacher"].append({"id": f"text{number}", "text": text})
        cloze = f"[MASK] : {scene['who'][who]} {scene['where'][who]} {when}"
        lines["task"].append({"id": f"task{number}", "text": cloze, "label": WORDS[who]})
    lines["student"] = lines["teacher"][:100]
    for name, records in lines.items():
        texts.write_lines(folder / f"{name}.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``texts``, and ``work`` after the recipe has run on a few arms of each kind."""
    folder = tmp_path_factory.mktemp("glmd")
    write_texts(folder / "texts")
    with pytest.MonkeyPatch.context() as patch, without_pictures():
        small(patch)
        for part in ("forms", "stages", "vocabularies", "few-texts"):
            printed(folder, part)
        yield folder


def small(patch):
    """Leave a few arms of each kind, and the words of the small task as classes."""
    for module in (texts, measure, bench, run):
        patch.setattr(module, "CLASSES", WORDS)
    patch.setattr(bench, "VOCABULARIES", {"1": 1.0, "0.5": 60, "0.5-unknown": 60})
    patch.setattr(tables, "TEMPERATURES", (15,))
    patch.setattr(tables, "LOSSES", FORMS)
    chosen = {
        "forms": {"no training": arms.Arm(())}
        | {f"{name}, T = 15": arms.Arm((arms.form(name, 15),)) for name in FORMS},
        "stages": {name: arms.STAGES[name] for name in ("no training", "P, F1, F2")},
        "vocabularies": {name: arms.RATIOS[name] for name in bench.VOCABULARIES},
        "few-texts": few_of(patch, 30),
    }
    for part, some in chosen.items():
        patch.setitem(run.PARTS, part, (some, *run.PARTS[part][1:]))


def few_of(patch, texts):
    """Leave one number of few texts, in the vocabulary of the other parts, and two of the students."""
    patch.setattr(tables, "FEW_TEXTS", (texts,))
    for module in (arms, tables):
        patch.setattr(module, "SMALL", "0.5")
    students = arms.few(texts)
    return {
        f"{name}; {texts} texts": students[f"{name}; {texts} texts"]
        for name in ("soft labels", arms.WHOLE_CHAIN, *RIVALS)
    }


def printed(folder, part):
    words = [word for option, changes in OPTIONS.items() for change in changes for word in (option, change)]
    numbers = [
        "--tokens",
        "300",
        "--seeds",
        "2" if part == "forms" else "1",
        "--steps",
        "10",
        "10",
        "40",
        "--tuning-steps",
        "60",
        "--layers",
        "1",
    ]
    arguments = [str(folder / "texts"), str(folder / "work"), *numbers, "--part", part, *words]
    return CliRunner().invoke(run.run, arguments, catch_exceptions=False).stdout


def bench_of(folder, where="texts"):
    steps = {"P": 10, "F1": 10, "F2": 40}
    return bench.Bench(
        folder / where, folder / "work", steps, 1, assignments(SHARDS), assignments(OPTIONS["--set-student"])
    )


@pytest.mark.parametrize(
    ("name", "model"),
    [("capture", CaptureConfig), ("task", CaptureConfig), ("teacher", StudentConfig), ("student", StudentConfig)],
)
def test_the_committed_files_are_whole(name, model):
    load_config(bench.HERE / f"{name}.yaml", model)


@pytest.mark.slow
def test_a_student_learns_the_task_from_the_teacher_alone(folder):
    found = {name: bench_of(folder).measured(arm, 0, False).accuracy for name, arm in run.PARTS["stages"][0].items()}
    assert found["no training"] < 0.5 < found["P, F1, F2"]


@pytest.mark.slow
def test_students_of_few_texts_see_so_many_and_are_measured_on_the_same_held_out_ones(folder):
    few, all_texts = (Cache(folder / "work" / "caches" / "0.5" / kind).encoding() for kind in ("labels@30", "labels"))
    ids = {
        (number, split): [s.document_id for shard in of.split_shards(split) for s in of.sequences(shard)]
        for number, of in ((30, few), (200, all_texts))
        for split in ("train", "held_out")
    }
    assert len(ids[30, "train"]) == 30 < len(ids[200, "train"])
    assert set(ids[30, "train"]) <= set(ids[200, "train"])
    assert ids[30, "held_out"] == ids[200, "held_out"]


def test_stages_of_few_texts_have_equal_steps_of_the_last_stage_and_the_longer_one_those_of_all():
    for number in arms.FEW_TEXTS:
        for name, arm in arms.few(number).items():
            last = arm.stages[-1]
            assert last.cache == f"labels@{number}"
            assert last.steps == (arms.EVERY_STEP if "all stages" in name else ("F2",))
            assert last.changes == arms.LABELS_AT_1


@pytest.mark.slow
def test_rivals_learn_from_the_teacher_s_states_or_have_a_structure_of_their_own(folder):
    names = ("soft labels", *RIVALS)
    soft, states, other = (
        bench_of(folder).student(run.PARTS["few-texts"][0][f"{name}; 30 texts"], 0) for name in names
    )
    assert largest_difference(weights(soft), weights(states)) > 0
    none, pairs = (
        json.loads((student.parent / "run.json").read_text())["config"]["loss"]["hidden"] for student in (soft, states)
    )
    assert none == []
    assert [(pair["student_layer"], pair["teacher_layer"]) for pair in pairs] == [(1, "last")]
    config = AutoModelForMaskedLM.from_pretrained(other).config
    assert (config.model_type, config.hidden_size) == ("modernbert", 96)
    assert config.vocab_size == read_manifest(folder / "work" / "vocabularies" / "0.5").size


def test_an_arm_that_no_chosen_part_has_is_refused_before_anything_is_trained(tmp_path):
    words = [str(tmp_path), str(tmp_path / "work"), "--part", "stages", "--arm", "0.25"]
    result = CliRunner().invoke(run.run, words)
    assert result.exit_code == 2
    assert "no such arm: 0.25" in result.output
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_no_gold_label_reaches_a_student(folder):
    """The fine-tuned teacher saw them. With other labels in the texts, its students stay the same bit for bit."""
    shutil.copytree(folder / "texts", folder / "wrong")
    records = [json.loads(line) for line in (folder / "texts" / "task.jsonl").read_text().splitlines()]
    turned = [each["label"] for each in records[1:] + records[:1]]
    texts.write_lines(folder / "wrong" / "task.jsonl", [r | {"label": w} for r, w in zip(records, turned, strict=True)])
    wrong = bench_of(folder, "wrong")
    for name in ("teacher", "tuned", "text", "vocabularies"):
        (folder / "other").mkdir(exist_ok=True)
        (folder / "other" / name).symlink_to(folder / "work" / name)
    wrong = bench.Bench(wrong.texts, folder / "other", *list(vars(wrong).values())[2:-1])
    arm = arms.Arm((arms.F1, arms.F2))
    ours, theirs = (weights(each.student(arm, 0)) for each in (bench_of(folder), wrong))
    assert largest_difference(ours, theirs) == 0


@pytest.mark.slow
def test_a_student_begins_as_the_teacher_s_first_layers_with_the_kept_rows(folder):
    teacher = AutoModelForMaskedLM.from_pretrained(folder / "work" / "teacher" / "final").eval()
    for name in ("1", "0.5"):
        vocabulary = folder / "work" / "vocabularies" / name
        rows = models.teacher_rows(vocabulary)
        model = models.beginning(folder / "work" / "teacher" / "final", 2, vocabulary, folder / f"whole-{name}")
        student = AutoModelForMaskedLM.from_pretrained(model).eval()
        ids = torch.arange(5, len(rows))[None, :40]
        theirs = teacher(input_ids=torch.from_numpy(rows)[ids]).logits[0][:, rows]
        tolerance = model_rounding(student.config, 40, theirs)
        torch.testing.assert_close(student(input_ids=ids).logits[0], theirs, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_embeddings_are_as_many_fewer_as_tokens_and_every_class_is_kept(folder):
    for name, keep in bench.VOCABULARIES.items():
        made, union = (read(folder / "work" / "vocabularies" / name) for read in (read_manifest, read_vocabulary))
        student = AutoModelForMaskedLM.from_pretrained(folder / "work" / "starts" / name)
        assert student.get_input_embeddings().weight.shape == (made.size, 32)
        assert made.size == (made.tokenizers[0].ids if keep == 1 else keep)
        assert set(WORDS) <= set(union.names)


@pytest.mark.slow
def test_the_distance_of_the_start_is_that_of_the_two_models(folder):
    """Measured from the cache, and by running teacher and student over the same held-out text."""
    work, vocabulary = folder / "work", folder / "work" / "vocabularies" / "0.5"
    cached = Cache(work / "caches" / "0.5" / "pretraining").encoding()
    union, rows = read_vocabulary(vocabulary), models.teacher_rows(vocabulary)
    read = union.ids_of(cached.manifest.vocabulary.fingerprint, "").read
    teacher, student = (
        AutoModelForMaskedLM.from_pretrained(place).double().eval()
        for place in (work / "teacher" / "final", work / "starts" / "0.5")
    )
    found = []
    for shard in cached.split_shards("held_out"):
        for sequence in cached.sequences(shard):
            ids, kept = sequence.input_ids.astype(np.int64), sequence.positions()
            with torch.no_grad():
                p = (teacher(torch.from_numpy(ids)[None]).logits[0, kept][:, rows] / 15).log_softmax(1)
                q = (student(torch.from_numpy(read[ids].astype(np.int64))[None]).logits[0, kept] / 15).log_softmax(1)
            found.append((p.exp() * (p - q)).sum(1))
    measured = measure.kl_nats(work / "starts" / "0.5", work / "caches" / "0.5" / "pretraining", vocabulary)[15.0]
    assert measured == pytest.approx(torch.cat(found).mean().item(), rel=0.02)  # hidden states lie there as bfloat16


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_prints_the_same_tables(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*.safetensors")}
    rows = {
        "forms": "| k + rest |",
        "few-texts": f"| {arms.WHOLE_CHAIN}; 30 texts | 1 |",
        "vocabularies": "| 0.5-unknown | 1 | 60 | 1,920 |",
    }
    for part, words in rows.items():
        assert words in printed(folder, part)
    assert {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*.safetensors")} == before


def test_a_cloze_is_the_definition_behind_the_mask_and_no_longer_than_a_sequence():
    synset = Synset("n1", "n", "noun.animal", ("fish",), "one " * 40, ())
    record = texts.cloze(synset)
    assert record["label"] == "animal"
    assert record["text"].startswith("[MASK] : one one")
    assert len(record["text"].split()) == texts.WORDS + 2
    assert texts.word_of(synset._replace(pos="v", lexname="verb.body")) == ""
    assert texts.word_of(synset._replace(lexname="noun.Tops")) not in texts.CLASSES
