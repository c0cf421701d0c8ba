"""Caches that differ in what mixtures care about: teachers, kinds of targets, groups of documents, sizes."""

import json
from pathlib import Path
from typing import Any

import tiny
from student_fixtures import student_values
from trainer.config.student_file import StudentConfig
from trainer.data.opening import check_teachers, open_teachers
from trainer.data.sources import TrainingSequences, training_sequences

T = 2.0
"""Temperature whose log-normalisers are captured."""
BOTH = [{"name": "toy", "weight": 3}, {"name": "other"}]


def capture_two_teachers(folder: Path) -> Path:
    """Capture ``toy``, 16 slots, and ``other``, 5, over documents of the groups ``a:…`` and ``b:…`` in turns."""
    lines = [{"id": f"doc{i}", "group": f"{'ab'[i % 2]}:{i}", "text": text} for i, text in enumerate(tiny.TEXTS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = tiny.capture_values(folder, target={"k": 16, "exact": True, "temperatures": [T]})
    model = tiny.save_teacher(folder / "second", tiny.model(seed=1))
    other = {"name": "other", "model": str(model), "target": {"k": 5, "temperatures": [T]}}
    values["teachers"].append(values["teachers"][0] | other)
    tiny.run(values)
    return Path(values["cache"])


def capture_draws(folder: Path) -> Path:
    """Capture draws of ``toy`` over half of the documents."""
    tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:18])
    return Path(str(tiny.capture(folder, target={"kind": "sampled", "draws": 20}).path))


def of_caches(*caches: tuple[Path, str], shares: tuple[float, ...] | None = None) -> dict[str, Any]:
    """Return the keys of a student file that name several (cache, teacher)."""
    listed: list[dict[str, Any]] = [{"cache": str(path), "teacher": name} for path, name in caches]
    for each, share in zip(listed, shares or (), strict=False):
        each["share"] = share
    return {"caches": listed}


def config_of(cache: Path, **changes: Any) -> StudentConfig:
    """Return a student file; arguments as for ``student_values``."""
    return StudentConfig.model_validate(student_values(cache, Path("unused"), **changes))


def sequences_of(cache: Path, **changes: Any) -> TrainingSequences:
    """Return what a student file trains on, or refuse it as a run would."""
    config = config_of(cache, **changes)
    teachers = open_teachers(config)
    check_teachers(config, teachers)
    return training_sequences(config, teachers, 300)
