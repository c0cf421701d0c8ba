"""A teacher that gives no entropy and no log-normaliser, or no scalar at all: everything works on what is there.

The teachers are captured by the ordinary capture, whose list of scalars is cut short, as one from an engine is that can
say no more. Beside them stands one with all scalars.
"""

import json

import pytest
from test_view import visitor

import tiny
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from refusal_fixtures import command_line, write_yaml
from student_fixtures import curve, student_values

TARGETS = {
    "topk": {"k": 16},
    "sampled": {"kind": "sampled", "draws": 20},
    "hybrid": {"kind": "hybrid", "k": 4, "draws": 20},
}
GIVEN = {"none": (), "gold": ("gold_logprob",)}
TEACHERS = [f"{kind}-{given}" for kind in TARGETS for given in GIVEN]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a cache with a complete teacher and one teacher for each target and list of scalars."""
    folder = tmp_path_factory.mktemp("scalars")
    values = tiny.capture_values(folder, max_length_tokens=24, batch_tokens=400)
    tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:12])
    (complete,) = values["teachers"]
    tiny.run(values)
    for given, scalars in GIVEN.items():
        named = [complete | {"name": f"{kind}-{given}", "target": target} for kind, target in TARGETS.items()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.capture.keep.SCALARS", scalars)
            tiny.run(values | {"teachers": named})
    return folder


@pytest.fixture(scope="module")
def teachers(made):
    encoding = Cache(made / "cache").encoding()
    return {name: encoding.teacher(name) for name in TEACHERS}


def run_json(capsys, *arguments, code=0):
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        assert command_line(patch, *arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def run_words(capsys, *arguments):
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        assert command_line(patch, *arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", TEACHERS)
def test_receipts_hold_the_means_of_the_scalars_that_are_there(teachers, name):
    teacher = teachers[name]
    scalars = GIVEN[name.split("-")[1]]
    assert teacher.manifest.scalars == scalars
    statistics = teacher.receipt(0).statistics
    assert "kept_mass" in statistics
    assert "entropy_nats" not in statistics
    assert ("cross_entropy_nats" in statistics) == ("gold_logprob" in scalars)


def test_every_value_is_sound(made):
    assert verify(made / "cache", deep=True) == []


def test_looking_shows_what_is_there(made, teachers, capsys):
    cache = made / "cache"
    summary = run_json(capsys, "inspect", cache)
    assert {teacher["name"] for teacher in summary["encodings"][0]["teachers"]} == {"toy", *TEACHERS}
    words = run_words(capsys, "inspect", cache)
    assert "nan" not in words
    assert run_words(capsys, "show", cache, 0)
    page = made / "report.html"
    run_words(capsys, "report", cache, "--output", page)
    assert "nan" not in page.read_text().lower().split("<body")[1].replace("nano", "")
    client = visitor(cache)
    assert client.get("/api/summary").status_code == 200
    assert client.get("/api/main/sequences/0").status_code == 200
    assert client.get("/api/main/sequences/0/1").status_code == 200


def test_two_teachers_are_compared_by_their_rows(made, capsys):
    cache = made / "cache"
    arguments = ("diff", cache, cache, "--teacher-a", "topk-none", "--teacher-b", "toy")
    assert run_json(capsys, *arguments)["all"]["kl_ab_nats"] < 1e-6


@pytest.mark.parametrize("name", TEACHERS)
def test_an_audit_judges_what_is_there(made, capsys, name):
    values = tiny.capture_values(made, made / "teacher", max_length_tokens=24, batch_tokens=100)
    kind, given = name.split("-")
    values["teachers"][0] |= {"name": name, "target": TARGETS[kind]}
    report = run_json(capsys, "audit", write_yaml(made, values))["teachers"][0]
    assert report["passed"]
    assert set(report["scalars"]) == set(GIVEN[given])
    assert len(report["worst"]) == 5


@pytest.mark.parametrize("name", ["topk-none", "sampled-none"])
def test_an_audit_finds_other_weights(made, tmp_path, capsys, name):
    kind, _ = name.split("-")
    other = tiny.save_teacher(tmp_path, tiny.model(seed=7))
    values = tiny.capture_values(made, other, max_length_tokens=24, batch_tokens=400)
    values["teachers"][0] |= {"name": name, "target": TARGETS[kind]}
    report = run_json(capsys, "audit", write_yaml(tmp_path, values), code=1)["teachers"][0]
    assert any(not check["passed"] for check in report["checks"])
    assert report["diagnosis"]


def test_a_subset_keeps_them(made, tmp_path, capsys):
    run_words(capsys, "subset", made / "cache", tmp_path / "part", "--split", "held_out")
    part = Cache(tmp_path / "part").encoding()
    assert {name: part.teacher(name).manifest.scalars for name in TEACHERS} == {
        name: GIVEN[name.split("-")[1]] for name in TEACHERS
    }


@pytest.mark.parametrize("name", ["topk-none", "sampled-none", "sampled-gold"])
def test_a_student_is_trained_and_measured(made, tmp_path, capsys, name):
    changes = {"teacher": name, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings = write_yaml(tmp_path, student_values(made / "cache", tmp_path / "run", **changes))
    run_words(capsys, "train", settings)
    (step, *_) = curve(tmp_path / "run")
    assert step["loss"] > 0
    result = run_json(capsys, "evaluate", tmp_path / "run" / "final", made / "cache", "--teacher", name)
    kind, given = name.split("-")
    assert result["kl_to_teacher_is"] == ("lower bound" if kind == "topk" else "upper bound")
    assert (result["teacher_cross_entropy_nats"] is None) == (given == "none")
    assert result["kl_to_teacher_nats"] > 0
    assert run_words(capsys, "evaluate", tmp_path / "run" / "final", made / "cache", "--teacher", name)
