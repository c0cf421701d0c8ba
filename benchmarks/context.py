"""How much of a context a student takes into its weights: ``python -m benchmarks.context``.

SmolLM2-135M-Instruct answers questions with a solved example before each, which shows a style
(``configs/smollm2/styles.py``). A student with the same weights does not read the example, and learns from the
teacher's predictions of these answers (context distillation). Measured on the answers to held-out questions: KL of the
teacher with the example against the student without, before and after. The change recovered is ``1 - after / before``.

Two controls learn at the same answers. One learns from the same teacher that read the example of *another document*,
one of the other kind; what that example changes in the teacher itself is printed below the table. The other learns
from the right predictions at wrong positions (``control: other_positions``): it recovers what training alone does.

Where an answer begins, its style is decided, and there the example changes most. So the first tokens of the answers are
also measured by themselves.

A seed sets the order of the batches and the adapters' first weights, and is the same for both arms; questions,
answers and held-out modules are the same for all seeds. Stopped and started again, it continues: what is in the work
folder is not made again, so a larger ``--seeds`` adds to a finished table.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import t_interval
from benchmarks.work_folder import check_work_folder
from cache_tools.configuration import configured
from cache_tools.errors import LogitcaskError
from cache_tools.format import layout
from cache_tools.json_output import json_text
from cache_tools.mappings import JsonObject
from cache_tools.progress.reporter import Reporter
from cache_tools.quantities import counted
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
OWN, OTHER, MOVED = "its own example", "another document's example", "its own, at other positions"
ENCODINGS = {OWN: "main", OTHER: "other"}
"""Both encodings hold the same questions and answers; the second one has the rows of another context."""

FOLDERS = {OWN: "own", OTHER: "other", MOVED: "moved"}
"""The arms, and how their folders are called."""

FIRST_TOKENS = 4
"""Tokens at the beginning of each answer that are measured by themselves."""

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
    """

    model: Path
    questions: int = 240
    steps: int = 40
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Measured:
    """One student on the held-out answers.

    Attributes:
        kl_nats: Mean KL of the teacher, with the example, against the student, without.
        first_kl_nats: The same at the first tokens of each answer.
        cross_entropy_nats: Mean of -ln p of the answers' tokens.
        core_seconds: Processor time of its training and its measurement.
    """

    kl_nats: float
    first_kl_nats: float
    cross_entropy_nats: float
    core_seconds: float


@dataclass(frozen=True)
class ArmRow:
    """One arm over all seeds; intervals are half the width of Student's 95 %, and None for a single seed.

    Attributes:
        name: What its teacher had read.
        kl_nats: Mean KL after training.
        kl_interval_nats: Its interval.
        recovered_percent: Mean share of the change that was recovered.
        recovered_interval_percent: Its interval.
        first_recovered_percent: Mean share that was recovered at the first tokens of the answers.
        core_minutes: Mean processor time of a student.
    """

    name: str
    kl_nats: float
    kl_interval_nats: float | None
    recovered_percent: float
    recovered_interval_percent: float | None
    first_recovered_percent: float
    core_minutes: float


@dataclass(frozen=True)
class ContextTable:
    """The result.

    Attributes:
        seeds: Students of each arm.
        answers_in_style: Share of the teacher's answers with the example that begin as the style does, in [0, 1].
        held_out_positions: Positions that are measured.
        before_nats: KL of the teacher with the example against itself without.
        first_before_nats: The same at the first tokens of each answer.
        shared_percent: Share of the change that another document's example makes in the teacher itself.
        first_shared_percent: The same at the first tokens of each answer.
        arms: The arms, the first of which is no control.
        difference_percent: Mean difference, within a seed, of the shares with the document's own example and another's.
        difference_interval_percent: Its interval.
    """

    seeds: int
    answers_in_style: float
    held_out_positions: int
    before_nats: float
    first_before_nats: float
    shared_percent: float
    first_shared_percent: float
    arms: tuple[ArmRow, ...]
    difference_percent: float
    difference_interval_percent: float | None


def prepare(scale: Scale, work: Path) -> None:
    """Write questions, the teacher's answers, and one encoding with rows for each arm; what is there stays."""
    prompts, completions, control = work / "prompts.jsonl", work / "completions", work / "control.jsonl"
    if not prompts.exists():
        styles.write_lines(prompts, styles.styled(chosen_questions(scale.questions)))
    paths = {"output": completions, "policy.model": scale.model, "prompts.paths": [prompts]}
    with timed("answers"):
        run_generation(configured(FILES / "context_generate.yaml", GenerateConfig, paths), Reporter())
    if not control.exists():
        styles.write_lines(control, map(styles.swapped, records(completions)))
    for arm, source in ((OWN, completions), (OTHER, control)):
        changes = {"cache": work / "cache", "corpus.paths": [source], "teachers.0.model": scale.model}
        changes |= {"encoding.name": ENCODINGS[arm]}
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
        "encoding": ENCODINGS.get(arm, ENCODINGS[OWN]),
        "control": "other_positions" if arm == MOVED else None,
        "student.pretrained": scale.model,
        "training.output_dir": str(work / f"{FOLDERS[arm]}-{seed}"),
        "training.max_steps": scale.steps,
        "training.learning_rate": scale.learning_rate,
        "training.seed": seed,
    }
    return configured(FILES / "context_student.yaml", StudentConfig, changes)


def student(arm: str, seed: int, scale: Scale, work: Path) -> Measured:
    """Return one student's measures; it is trained unless they are there."""

    def trained() -> Path:
        return run_training(student_config(arm, seed, scale, work)).student

    return _measured(work / "results" / f"{FOLDERS[arm]}-{seed}.json", work, trained)


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


def between_teachers(work: Path) -> tuple[float, float]:
    """Return the mean KL of the teacher with the own example against itself with the other's, and of first tokens.

    Both are on the held-out answers, over the whole vocabulary, from the stored last hidden states.
    """
    path = work / "results" / "teachers.json"
    if not path.exists():
        teachers = [Cache(str(work / "cache")).encoding(ENCODINGS[arm]).teacher() for arm in (OWN, OTHER)]
        width = teachers[0].encoding.manifest.vocabulary.size
        head = TeacherHead(teachers[0].file(layout.HEAD), width)
        answers = [evaluated_sequences(teacher, "held_out", width) for teacher in teachers]
        kl_nats = [
            whole_kl(*(head(torch.from_numpy(read[i].hidden["last"])) for read in reversed(answers)))
            for i in range(len(answers[0]))
        ]
        values = torch.cat(kl_nats).numpy()
        write_object(path, json.dumps([float(values.mean()), float(values[first_tokens(answers[0])].mean())]).encode())
    mean_nats, first_nats = json.loads(path.read_text())
    return mean_nats, first_nats


def recovered_percent(first_nats: float, last_nats: float) -> float:
    """Return which share of the change a student recovered."""
    return 100 * (1 - last_nats / first_nats)


def table(
    first: Measured,
    teachers_nats: tuple[float, float],
    students: Mapping[str, Sequence[Measured]],
    answers_in_style: float,
    positions: int,
) -> ContextTable:
    """Return the result.

    Args:
        first: The weights that every student starts from.
        teachers_nats: See :func:`between_teachers`.
        students: Those of each arm, by seed.
        answers_in_style: See :class:`ContextTable`.
        positions: Positions that are measured.
    """
    shares = {arm: [recovered_percent(first.kl_nats, last.kl_nats) for last in made] for arm, made in students.items()}
    differences = [own - other for own, other in zip(shares[OWN], shares[OTHER], strict=True)]
    arms = tuple(
        ArmRow(
            arm,
            *_interval([last.kl_nats for last in made]),
            *_interval(shares[arm]),
            first_recovered_percent=statistics.fmean(
                recovered_percent(first.first_kl_nats, last.first_kl_nats) for last in made
            ),
            core_minutes=statistics.fmean(last.core_seconds for last in made) / 60,
        )
        for arm, made in students.items()
    )
    return ContextTable(
        len(differences),
        answers_in_style,
        positions,
        first.kl_nats,
        first.first_kl_nats,
        recovered_percent(first.kl_nats, teachers_nats[0]),
        recovered_percent(first.first_kl_nats, teachers_nats[1]),
        arms,
        *_interval(differences),
    )


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its interval, None for a single value."""
    return t_interval(values) if len(values) > 1 else (values[0], None)


def in_style(completions: Path) -> float:
    """Return the share of answers that begin as their style does."""
    answers = [(styles.MARKS[styles.kind_of(line)], line["completion"]) for line in records(completions)]
    return statistics.fmean(answer.startswith(mark) for mark, answer in answers)


def show(result: ContextTable) -> None:
    """Print the result for people."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{counted(result.seeds, 'seed')}, {result.held_out_positions:,} held-out positions")
    for heading in ("the teacher had read", "KL, nats", "recovered, %", f"of first {FIRST_TOKENS}, %", "core-minutes"):
        shown.add_column(heading, justify="left" if heading.startswith("the") else "right")
    shown.add_row("(before training)", f"{result.before_nats:.4f}", "0", "0", "")
    for arm in result.arms:
        kl = _cell(arm.kl_nats, arm.kl_interval_nats, 4)
        share = _cell(arm.recovered_percent, arm.recovered_interval_percent, 1)
        shown.add_row(arm.name, kl, share, f"{arm.first_recovered_percent:.1f}", f"{arm.core_minutes:.1f}")
    console = Console(width=100)
    console.print(shown)
    difference = _cell(result.difference_percent, result.difference_interval_percent, 1)
    console.print(f"its own example minus another document's: {difference} %")
    console.print(
        f"what another document's example changes in the teacher itself: {result.shared_percent:.1f} % of it, "
        f"{result.first_shared_percent:.1f} % at the first {FIRST_TOKENS} tokens"
    )
    console.print(f"before training, at the first {FIRST_TOKENS} tokens: {result.first_before_nats:.4f} nats")
    console.print(f"answers of the teacher with the example in its style: {result.answers_in_style:.1%}")


def _cell(mean: float, half_width: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if half_width is None else f" ± {half_width:.{digits}f}")


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
    students: dict[str, list[Measured]] = {arm: [] for arm in FOLDERS}
    for seed in range(seeds):
        for arm, made in students.items():
            made.append(student(arm, seed, scale, work))
            share, seconds = recovered_percent(first.kl_nats, made[-1].kl_nats), made[-1].core_seconds
            click.echo(
                f"seed {seed}, {arm}: {made[-1].kl_nats:.4f} nats, {share:.1f} % recovered, {seconds:.0f} s", err=True
            )
    positions = Cache(str(work / "cache")).encoding(ENCODINGS[OWN]).manifest.splits["held_out"].positions
    return table(first, between_teachers(work), students, in_style(work / "completions"), positions)


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(work: Path, model: Path, seeds: int, questions: int, steps: int, learning_rate: float, as_json: bool) -> None:
    """Measure how much of the change that an example makes a student recovers without it."""
    disable_progress_bar()
    try:
        result = measure(Scale(model, questions, steps, learning_rate), work, seeds)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json_text(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
