"""The choice of a teacher: candidates that differ in what they read, and how well they foretell their students."""

import numpy as np
import pytest
from click.testing import CliRunner

from bilingual import write_texts
from cache_tools.store.reader import Cache
from configs.papers.mergedistill import selection
from student_fixtures import without_pictures

SMALL = [
    "student.config.hidden_size=32",
    "student.config.intermediate_size=64",
    "student.config.num_attention_heads=2",
    "training.warmup_steps=2",
    "training.per_device_train_batch_size=8",
    "training.use_cpu=true",
    "training.max_steps=10",
]
CHANGES = {"--set-capture": ["encoding.positions_per_shard=4096"], "--set-teacher": SMALL, "--set-student": SMALL}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    write_texts(folder / "texts", documents=120)
    with without_pictures():
        result = choose(folder, "de", "--seeds", "2")
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def choose(folder, language, *words):
    options = [word for option, changes in CHANGES.items() for change in changes for word in (option, change)]
    options += ["--related", "en", "--unrelated", "nl", "--tokens", "140", *words]
    return CliRunner().invoke(selection.run, [f"{folder}/texts", f"{folder}/work", language, *options])


@pytest.mark.slow
def test_candidates_predict_the_same_masked_tokens_and_differ_in_their_weights(printed):
    folder, _ = printed
    place = folder / "work" / "selection" / "de"
    caches = [Cache(place / name / "cache").encoding() for name in ("own", "related-en", "multilingual")]
    assert len({encoding.manifest.contents_fingerprint for encoding in caches}) == 1
    assert len({encoding.teacher().manifest.fingerprint for encoding in caches}) == 3


@pytest.mark.slow
def test_the_table_has_each_candidate_beside_its_students(printed):
    _, output = printed
    rows = [line for line in output.rpartition("| teacher")[2].splitlines() if line.startswith("| ")]
    names = ["text only", "own", "own, early", "related en", "unrelated nl", "multilingual"]
    assert [row.split("|")[1].strip() for row in rows] == names
    assert all(" ± " in row for row in rows)
    assert "Same order: " in output
    assert output.rstrip().endswith(" of 2 seeds")


def test_a_language_without_texts_is_refused(tmp_path):
    write_texts(tmp_path / "texts")
    result = choose(tmp_path, "xx")
    assert result.exit_code == 2
    assert "no text of xx" in result.output


def test_the_order_is_counted_by_pairs_and_seeds_that_all_candidates_have():
    teachers = {"a": 4.0, "b": 5.0, "c": 6.0}
    students = {"a": {0: 1.0, 1: 1.0}, "b": {0: 2.0, 1: 3.0, 2: 9.0}, "c": {0: 3.0, 1: 2.0}}
    assert selection.same_order(teachers, students) == pytest.approx(np.array([1, 2 / 3]))


def test_the_choice_is_right_in_seeds_where_no_other_candidate_has_a_better_student():
    teachers = {"a": 6.0, "b": 4.0}
    students = {"a": {0: 2.0, 1: 1.0, 2: 3.0}, "b": {0: 1.0, 1: 2.0}, "text only": {0: 0.5, 1: 0.5}}
    assert selection.best_chosen(teachers, students).tolist() == [True, False]
