"""The demo on a language model that people know: SmolLM2-135M-Instruct, cut to a student and distilled.

The student keeps some of the teacher's layers and starts useless. Two copies of it learn for the same number of steps
from the same few documents, one from the text alone and one from the cache. Which layers, how few documents and how
many steps is what ``docs/results/real-model.md`` measures.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from cache_tools.json_output import FLAT
from cache_tools.progress.lines import open_reporter
from pipeline.demo.corpus import write_corpus
from pipeline.demo.paired import Difference
from pipeline.demo.run import STUDENTS, DemoResult, compared, inspection, require_clone, student_stages
from pipeline.demo.stages import ROOT, Say, Stage, run_command, run_python, run_stages

FILES = ROOT / "configs" / "smollm2"

LAYERS = "0,1,2,3,28,29"
"""Of the teacher's thirty, those that the student starts from."""

READ_PERCENT = 6
"""Share of the documents that are read; which they are depends on their names alone."""

PROMPT = "The with statement in Python is used to"


@dataclass(frozen=True)
class RealDemoResult:
    """What the demo shows: the object that ``logitcask demo --real --json`` prints.

    Attributes:
        compared: As of the toy demo.
        gain: By how many nats the student from the cache is better, over held-out documents.
        prompt: The text that all three continue.
        continuations: Its continuation by each model, by name.
    """

    compared: DemoResult = field(metadata=FLAT)
    gain: Difference
    prompt: str
    continuations: dict[str, str]


def run_real_demo(output: Path, say: Say) -> RealDemoResult:
    """Run every stage and return the comparison.

    Args:
        output: Folder for model, corpus, cache and students.
        say: Called with a sentence about each stage.

    Raises:
        LogitcaskError: a stage failed.
    """
    require_clone(FILES)
    results, seconds = run_stages(_stages(output), say)
    texts = dict(zip(("teacher", *STUDENTS), results["continuations"], strict=True))
    comparison = compared(results, seconds, output / "cache")
    return RealDemoResult(comparison, Difference(**results["gain"]), PROMPT, texts)


def _stages(output: Path) -> list[Stage]:
    teacher, start, cache, corpus = (output / name for name in ("teacher", "cut", "cache", "corpus.jsonl"))
    fetch = partial(run_python, "-m", "configs.smollm2.fetch", teacher)
    cut = partial(run_python, "-m", "configs.smollm2.cut", teacher, start, "--layers", LAYERS)
    reading = "The teacher reads the corpus once, and its predictions go into a cache."
    stages = [
        Stage("fetch", "Get the teacher, SmolLM2-135M-Instruct (92 MB).", 60, fetch),
        Stage("cut", f"Make the student's first weights: layers {LAYERS} of the teacher.", 5, cut),
        Stage("corpus", "Write the corpus: part of the interpreter's documentation.", 2, partial(_corpus, corpus)),
        Stage("capture", reading, 90, partial(_capture, output)),
    ]
    for name, (kd_weight, source) in STUDENTS.items():
        train = partial(_train, output, output / name, kd_weight)
        stages += student_stages(name, source, cache, output / name, train, 280, 20)
    finals = [output / name / "final" for name in STUDENTS]
    gain = partial(run_python, "-m", "pipeline.demo.paired", cache, *finals)
    texts = partial(run_python, "-m", "pipeline.demo.continuations", PROMPT, teacher, *finals)
    return [
        *stages,
        inspection(cache),
        Stage("gain", "Compare the students document by document.", 30, partial(_parsed, gain)),
        Stage("continuations", "Teacher and students continue the same prompt.", 30, partial(_parsed, texts)),
    ]


def _parsed(run: Callable[[], str]) -> Any:
    return json.loads(run())


def _corpus(path: Path) -> None:
    if not path.exists():
        with open_reporter() as reporter:
            reporter.stage("writing the corpus", None)
            write_corpus(path, _is_read)


def _is_read(group: str) -> bool:
    return int(sha256(group.encode()).hexdigest(), 16) % 100 < READ_PERCENT


def _capture(output: Path) -> None:
    run_command(
        "capture",
        FILES / "capture.yaml",
        *("--set", f"cache={output / 'cache'}"),
        *("--set", f"corpus.paths.0={output / 'corpus.jsonl'}"),
        *("--set", f"teachers.0.model={output / 'teacher'}"),
    )


def _train(output: Path, folder: Path, kd_weight: float) -> None:
    run_command(
        "train",
        FILES / "student.yaml",
        *("--set", f"cache={output / 'cache'}"),
        *("--set", f"student.pretrained={output / 'cut'}"),
        *("--set", f"training.output_dir={folder}"),
        *("--set", f"loss.kd_weight={kd_weight}"),
    )
