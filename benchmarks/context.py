"""How much of a context a student takes into its weights: ``python -m benchmarks.context``.

SmolLM2-135M-Instruct answers questions with a solved example before each, which shows a style
(``configs/smollm2/styles.py``). A student with the same weights does not read the example, and learns from the
teacher's predictions of these answers (context distillation). Measured on the answers to held-out questions: KL of the
teacher with the example against the student without, before and after. The change recovered is ``1 - after / before``.

Two controls learn at the same answers from the same teacher that read the example of *another document*: one of the
other kind, whose style is right for the rest of the questions, or one of a kind and style that no question has. What
these examples change in the teacher itself is in the table.

Where an answer begins, its style is decided, and there the example changes most. So the first tokens of the answers are
also measured by themselves.

A seed sets the order of the batches and the adapters' first weights, and is the same for all arms; questions, answers
and held-out modules are the same for all seeds. Stopped and started again, it continues: what is in the work folder is
not made again, so a larger ``--seeds`` adds to a finished table.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from benchmarks.context_table import FIRST_TOKENS, ContextTable, Measured, recovered_percent, show, table
from benchmarks.work_folder import check_work_folder
from cache_tools.configuration import configured
from cache_tools.errors import LogitcaskError
from cache_tools.format import layout
from cache_tools.json_output import json_text
from cache_tools.mappings import JsonObject
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import write_object
from cache_tools.store.reader import Cache
from configs.smollm2 import fetch, styles
from configs.smollm2.prompts import chosen_questions
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.generation import GenerateConfig
from pipeline.generation.run import run_generation
from pipeline.run import Worker, run_capture
from trainer.config.student_file import StudentConfig
from trainer.data.cached_sequences import CachedSequences
from trainer.evaluation.evaluate import evaluated_sequences
from trainer.evaluation.evaluate import measure as measure_student
from trainer.evaluation.loading import load_evaluated
from trainer.losses.full import TeacherHead, whole_kl
from trainer.run.train import run_training
from trainer.student.cached_loss import vocabulary_size

FILES = Path(fetch.__file__).parent
OWN, OTHER, UNASKED = "its own example", "the other kind's example", "an example of no kind asked"
ENCODINGS = {OWN: "own", OTHER: "other", UNASKED: "unasked"}
"""By arm, its encoding, which has the rows of its context, and the name of its folders; the answers are the same."""

CONTEXTS = {OTHER: styles.swapped, UNASKED: styles.unasked}
"""How a control's record is made of one with its own example."""

EVALUATED_SEQUENCES = 16
"""Sequences of a forward pass when a student is measured."""


@dataclass(frozen=True)
class Scale:
    """The settings of a table.

    Attributes:
        model: Folder of the teacher, whose weights every student starts from.
        questions: Number of questions; a quarter of their modules is held out.
        steps: Optimizer steps of a student, of 8 sequences each.
        learning_rate: Highest learning rate.
        dtype: Number format in which teacher and students compute.
    """

    model: Path
    questions: int = 240
    steps: int = 40
    learning_rate: float = 1e-3
    dtype: str = "bfloat16"


def prepare(scale: Scale, work: Path) -> None:
    """Write questions, the teacher's answers, and one encoding with rows for each arm; what is there stays."""
    prompts, completions = work / "prompts.jsonl", work / "completions"
    if not prompts.exists():
        styles.write_lines(prompts, styles.styled(chosen_questions(scale.questions)))
    paths = {"output": completions, "policy.model": scale.model, "prompts.paths": [prompts]}
    paths |= {"policy.dtype": scale.dtype}
    with timed("answers"):
        run_generation(configured(FILES / "context_generate.yaml", GenerateConfig, paths), Reporter())
    sources = {OWN: completions, **{arm: work / f"{ENCODINGS[arm]}.jsonl" for arm in CONTEXTS}}
    for arm, source in sources.items():
        if not source.exists():
            styles.write_lines(source, map(CONTEXTS[arm], records(completions)))
        changes = {"cache": work / "cache", "corpus.paths": [source], "teachers.0.model": scale.model}
        changes |= {"encoding.name": ENCODINGS[arm], "teachers.0.dtype": scale.dtype}
        with timed(f"rows, {arm}"):
            run_capture(configured(FILES / "context_capture.yaml", CaptureConfig, changes), Worker(), Reporter())


def records(completions: Path) -> Iterator[JsonObject]:
    """Yield the completions of a folder, in order."""
    for path in sorted(completions.glob("*.jsonl")):
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def student_config(arm: str, seed: int, scale: Scale, work: Path) -> StudentConfig:
    """Return the student file of a run; the arms of a seed differ in the rows alone."""
    changes = {
        "cache": work / "cache",
        "encoding": ENCODINGS[arm],
        "student.pretrained": scale.model,
        "student.dtype": scale.dtype,
        "training.bf16": scale.dtype == "bfloat16",
        "training.output_dir": str(work / f"{ENCODINGS[arm]}-{seed}"),
        "training.max_steps": scale.steps,
        "training.learning_rate": scale.learning_rate,
        "training.seed": seed,
    }
    return configured(FILES / "context_student.yaml", StudentConfig, changes)


def student(arm: str, seed: int, scale: Scale, work: Path) -> Measured:
    """Return one student's measures; it is trained unless they are there."""

    def trained() -> Path:
        return run_training(student_config(arm, seed, scale, work)).student

    return _measured(work / "results" / f"{ENCODINGS[arm]}-{seed}.json", work, trained)


def before(scale: Scale, work: Path) -> Measured:
    """Return the measures of the teacher's own weights without the example."""
    return _measured(work / "results" / "before.json", work, lambda: scale.model)


def _measured(path: Path, work: Path, model: Callable[[], Path]) -> Measured:
    """Return what a file holds, or measure a model on the held-out answers, against rows with their own examples."""
    if not path.exists():
        began = time.process_time()
        teacher = Cache(str(work / "cache")).encoding(ENCODINGS[OWN]).teacher()
        loaded = load_evaluated(model(), teacher, "cpu", None, "float32", False)
        answers = evaluated_sequences(teacher, "held_out", vocabulary_size(loaded))
        measures = measure_student(loaded, answers, EVALUATED_SEQUENCES)
        kl_nats, means = measures.values(), measures.means()
        first = first_tokens(answers)
        seconds = time.process_time() - began
        figures = Measured(means.kl_to_teacher_nats, float(kl_nats[first].mean()), means.cross_entropy_nats, seconds)
        write_object(path, json.dumps(asdict(figures)).encode())
    return Measured(**json.loads(path.read_text()))


def first_tokens(answers: CachedSequences) -> NDArray[np.bool_]:
    """Return which positions are among the first tokens of an answer, in the order of reading."""
    lengths = [answers.sequence(i).num_positions for i in range(len(answers))]
    return np.concatenate([np.arange(length) < FIRST_TOKENS for length in lengths])


def between_teachers(arm: str, work: Path) -> float:
    """Return the mean KL of the teacher with the own example against itself with a control's.

    It is on the held-out answers, over the whole vocabulary, from the stored last hidden states.
    """
    path = work / "results" / f"teacher-{ENCODINGS[arm]}.json"
    if not path.exists():
        teachers = [Cache(str(work / "cache")).encoding(ENCODINGS[name]).teacher() for name in (OWN, arm)]
        width = teachers[0].encoding.manifest.vocabulary.size
        head = TeacherHead(teachers[0].file(layout.HEAD), width)
        answers = [evaluated_sequences(teacher, "held_out", width) for teacher in teachers]
        kl_nats = [
            whole_kl(*(head(torch.from_numpy(read[i].hidden["last"])) for read in reversed(answers)))
            for i in range(len(answers[0]))
        ]
        write_object(path, json.dumps({"kl_nats": float(torch.cat(kl_nats).mean())}).encode())
    return float(json.loads(path.read_text())["kl_nats"])


def in_style(completions: Path) -> float:
    """Return the share of answers that begin as their style does."""
    answers = [(styles.MARKS[styles.kind_of(line)], line["completion"]) for line in records(completions)]
    return statistics.fmean(answer.startswith(mark) for mark, answer in answers)


def measure(scale: Scale, work: Path, seeds: int) -> ContextTable:
    """Return the result; makes all that is not there yet.

    Raises:
        IdentityError: the work folder holds a table with other settings.
    """
    check_work_folder(asdict(scale), work)
    fetch.fetch_model(scale.model)
    prepare(scale, work)
    first = before(scale, work)
    click.echo(f"before: {first.kl_nats:.4f} nats, {first.core_seconds:.0f} s of a core", err=True)
    students: dict[str, list[Measured]] = {arm: [] for arm in ENCODINGS}
    for seed in range(seeds):
        for arm, made in students.items():
            made.append(student(arm, seed, scale, work))
            share, seconds = recovered_percent(first.kl_nats, made[-1].kl_nats), made[-1].core_seconds
            click.echo(
                f"seed {seed}, {arm}: {made[-1].kl_nats:.4f} nats, {share:.1f} % recovered, {seconds:.0f} s", err=True
            )
    positions = Cache(str(work / "cache")).encoding(ENCODINGS[OWN]).manifest.splits["held_out"].positions
    teachers_nats = {arm: between_teachers(arm, work) for arm in CONTEXTS}
    return table(first, teachers_nats, students, in_style(work / "completions"), positions)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Print the processor time of a stage."""
    began = time.process_time()
    yield
    click.echo(f"{stage}: {time.process_time() - began:.0f} s of a core", err=True)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/context"), show_default=True)
@click.option(
    "--model", type=click.Path(path_type=Path), default=Path("runs/smollm2"), show_default=True, help="Model folder."
)
@click.option("--seeds", type=click.IntRange(1, 10), default=5, show_default=True, help="Students of each arm.")
@click.option("--questions", type=click.IntRange(8), default=Scale.questions, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=Scale.steps, show_default=True, help="Steps of a student.")
@click.option("--learning-rate", type=float, default=Scale.learning_rate, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default=Scale.dtype,
    show_default=True,
    help="float32 is the faster one on processors without bfloat16 instructions.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    work: Path,
    model: Path,
    seeds: int,
    questions: int,
    steps: int,
    learning_rate: float,
    dtype: str,
    as_json: bool,
) -> None:
    """Measure how much of the change that an example makes a student recovers without it."""
    disable_progress_bar()
    try:
        result = measure(Scale(model, questions, steps, learning_rate, dtype), work, seeds)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json_text(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
