"""MT-BERT from texts to tables: teachers, stage zero, stage one, the students of all arms, for several seeds.

    python -m configs.papers.mtbert.run runs/mtbert/texts runs/mtbert --task wordnet --seeds 5

Every step continues where it was stopped. After each seed the tables are printed, of all students that have finished:
those of arms and seeds that an earlier command trained are among them.
Teachers are pre-trained once. Stage zero and stage one are done for each of some sets of teachers, which the seeds take
in turn: new heads, other orders of the texts, other wrong labels. A seed is the order in which its students see the
texts, and what their projections begin with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import click
from transformers import AutoConfig, AutoTokenizer

from cache_tools.configuration import configured
from cache_tools.store.reader import Cache
from configs.papers.mtbert import scores
from configs.papers.mtbert.arms import (
    NAMES,
    OWN_TEACHERS,
    STUDENT_LAYERS,
    Arm,
    Hidden,
    Team,
    arms_of,
    student_changes,
)
from configs.papers.mtbert.cofinetune import Tuning, cofinetune, corrupted, training_examples
from configs.papers.mtbert.parts import STUDENTS, write_parts
from configs.papers.mtbert.start import classes, pretrain, take_pretrained
from configs.papers.mtbert.tables import print_tables
from configs.papers.recipes import Overrides, capture_file, overrides_option, train_file
from pipeline.config.capture_file import CaptureConfig

HERE = Path(__file__).parent
WRONG_LABELS = 0.4


class Settings(NamedTuple):
    """The arguments of the command."""

    texts: Path
    work: Path
    task: str
    teacher_sets: int
    tuning: Tuning
    noisy_times: float
    capture: Overrides
    student: Overrides
    names: tuple[str, ...] = NAMES
    hidden: Hidden = OWN_TEACHERS
    own_texts: bool = False

    @property
    def arms(self) -> dict[str, Arm]:
        """All students, by name."""
        return arms_of(self.names)

    @property
    def team(self) -> Team:
        """The names of the tuned teachers."""
        return Team.of(self.names)

    @property
    def task_file(self) -> Path:
        """All labelled texts of the task."""
        return self.texts / f"{self.task}.jsonl"

    @property
    def folder(self) -> Path:
        """Where everything that depends on the task is made."""
        return self.work / (f"{self.task}-own-texts" if self.own_texts else self.task)

    def corpus(self, owner: str = STUDENTS) -> Path:
        """Return the labelled texts of a teacher or of the students: all, unless each has its own."""
        return self.folder / "parts" / f"{owner}.jsonl" if self.own_texts else self.task_file

    def teachers(self, number: int) -> Path:
        """Return the folder of a set of teachers."""
        return self.folder / "teachers" / str(number % self.teacher_sets)

    def students(self, seed: int) -> Path:
        """Return the folder of the students of a seed."""
        return self.folder / "students" / str(seed)


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--task", default="wordnet", show_default=True, help="Name of a file of labelled texts.")
@click.option("--seeds", default=5, show_default=True, help="Number of seeds of the students.")
@click.option(
    "--teacher-sets", default=1, show_default=True, help="Number of sets of teachers; seeds take them in turn."
)
@click.option("--arms", "chosen", multiple=True, metavar="NAME", help="Only these students; default: all.")
@click.option(
    "--pretrained",
    multiple=True,
    metavar="NAME=FOLDER",
    help="A pre-trained teacher, instead of those trained here; may be repeated. Students are cut from the first.",
)
@click.option("--student-layers", default=STUDENT_LAYERS, show_default=True, help="Layers of the students.")
@click.option(
    "--start",
    type=click.Choice(["identity", "ridge"]),
    default="identity",
    show_default=True,
    help="Start of the projections between hidden states.",
)
@click.option("--tokens", default=3000, show_default=True, help="Size of the vocabulary without the classes.")
@click.option("--tuning-steps", default=Tuning().steps, show_default=True, help="Steps of stage zero.")
@click.option("--tuning-rate", default=Tuning().learning_rate, show_default=True, help="Learning rate of stage zero.")
@click.option(
    "--own-texts", is_flag=True, help="Tune each teacher on a part of the texts, and train students on another."
)
@click.option("--noisy-times", default=2.0, show_default=True, help="How much longer wrong labels are learned.")
@overrides_option("--set-capture", "capture.yaml")
@overrides_option("--set-pretrain", "pretrain.yaml")
@overrides_option("--set-student", "student.yaml")
def run(
    texts: Path,
    work: Path,
    task: str,
    seeds: int,
    teacher_sets: int,
    chosen: tuple[str, ...],
    pretrained: tuple[str, ...],
    student_layers: int,
    start: Literal["identity", "ridge"],
    tokens: int,
    tuning_steps: int,
    tuning_rate: float,
    own_texts: bool,
    noisy_times: float,
    set_capture: Overrides,
    set_pretrain: Overrides,
    set_student: Overrides,
) -> None:
    """Make teachers and students from TEXTS in WORK, and print the tables."""
    tuning = Tuning(steps=tuning_steps, learning_rate=tuning_rate)
    models = folders(pretrained)
    depths = {name: AutoConfig.from_pretrained(folder).num_hidden_layers for name, folder in models.items()}
    hidden = Hidden(depths, student_layers, start)
    names, changes = tuple(models or NAMES), (set_capture, set_student)
    if own_texts and STUDENTS in names:
        raise click.UsageError(f"the texts of the students are named {STUDENTS}; give that teacher another name")
    settings = Settings(texts, work, task, teacher_sets, tuning, noisy_times, *changes, names, hidden, own_texts)
    unknown = sorted(set(chosen) - settings.arms.keys())
    if unknown:
        raise click.UsageError(f"no such arm: {', '.join(unknown)}; there are {'; '.join(settings.arms)}")
    arms = chosen or tuple(settings.arms)
    if models:
        take_pretrained(models, texts, work, student_layers)
    else:
        pretrain(texts, work, tokens, set_pretrain)
    if own_texts:
        fraction = capture_config(settings).corpus.held_out_fraction
        write_parts(settings.task_file, names, fraction, settings.corpus().parent)
    needed = {teacher for arm in arms for teacher in settings.arms[arm].teachers}
    for seed in range(seeds):
        if seed < teacher_sets:
            make_teachers(settings, seed, needed)
        make_students(settings, seed, arms)
        print_tables(measured(settings), settings.names, teacher_sets)


def folders(pretrained: Sequence[str]) -> dict[str, Path]:
    """Return the folders of pre-trained teachers by name, from NAME=FOLDER."""
    pairs = [text.partition("=") for text in pretrained]
    wrong = [text for text, (name, _, folder) in zip(pretrained, pairs, strict=True) if not (name and folder)]
    if wrong or len(pairs) == 1:
        found = f"this is not NAME=FOLDER: {wrong[0]}" if wrong else "one teacher was given, and two are needed"
        raise click.UsageError(f"{found}; give --pretrained NAME=FOLDER for each teacher")
    return {name: Path(folder) for name, _, folder in pairs}


def make_teachers(settings: Settings, number: int, needed: set[str]) -> None:
    """Tune the teachers of a set that are needed, and store their predictions."""
    folder = settings.teachers(number)
    for names, starts, how in tunings(settings, number):
        if needed.intersection(names) and not (folder / names[-1]).exists():  # written last
            tune(settings, [folder / name for name in names], starts, how)
    needed_in_order = [name for name in settings.team.everyone if name in needed]
    capture_file(HERE / "capture.yaml", capture_changes(settings, number, needed_in_order))


def tunings(settings: Settings, number: int) -> list[tuple[Sequence[str], Sequence[str], Tuning]]:
    """Return which teachers are tuned together, from which starts, and how: all, each alone, one on wrong labels."""
    names, team = settings.names, settings.team
    ways = [settings.tuning._replace(seed=100 * number + i) for i in range(1 + len(names))]
    alone = [((f"alone-{name}",), (name,), way) for name, way in zip(names, ways[1:], strict=True)]
    longer = ways[-1]._replace(steps=round(settings.noisy_times * settings.tuning.steps))
    return [(team.joint, names, ways[0]), *alone, (team.noisy[-1:], names[-1:], longer)]


def tune(settings: Settings, outputs: Sequence[Path], started_from: Sequence[str], tuning: Tuning) -> None:
    """Tune teachers on the training split of the task, or each on its own part of it."""
    starts = [settings.work / "pretrained" / name / "final" for name in started_from]
    tokenizer, config = AutoTokenizer.from_pretrained(starts[0]), capture_config(settings)
    corpora = dict.fromkeys(settings.corpus(name) for name in started_from)
    examples = [training_examples(corpus, config.corpus.held_out_fraction, tokenizer) for corpus in corpora]
    if outputs[-1].name == settings.team.noisy[-1]:
        examples = [corrupted(part, WRONG_LABELS, tuning.seed) for part in examples]
    cofinetune(starts, examples, outputs, tuning, config.encoding.segments)


def capture_config(settings: Settings) -> CaptureConfig:
    """Return how stage one reads the texts; the same for every set of teachers."""
    return configured(HERE / "capture.yaml", CaptureConfig, capture_changes(settings, 0, settings.team.everyone))


def capture_changes(settings: Settings, number: int, names: Sequence[str]) -> Overrides:
    """Return the overrides of capture.yaml: the teachers that are needed, in place of the three."""
    folder, kept = settings.teachers(number), {"dtype": "float32", "target": {"k": 8}, "batch_tokens": 8192}
    layers = {name: sorted(set(settings.hidden.layers(name).values())) for name in names}
    teachers = [{"name": name, "model": folder / name, "hidden": {"layers": layers[name]}} | kept for name in names]
    places = {"cache": folder / "cache", "corpus.paths": [settings.corpus()]}
    return {"teachers": teachers, **settings.capture, **places}


def make_students(settings: Settings, seed: int, arms: tuple[str, ...]) -> None:
    """Train the students of a seed, unless they are there."""
    cache = settings.teachers(seed) / "cache"
    places = {"cache": cache, "student.pretrained": settings.work / "start", "training.seed": seed}
    for name in arms:
        arm, output = settings.arms[name], run_folder(settings.students(seed), name)
        if not (output / "final").exists():
            total = sum(scores.mean_weight(teacher, cache) for teacher in arm.teachers) if arm.same_total else None
            changes = {**student_changes(arm, total, settings.hidden), **settings.student, **places}
            train_file(HERE / "student.yaml", {**changes, "training.output_dir": output})


def run_folder(seed_folder: Path, arm: str) -> Path:
    """Return the run folder of an arm."""
    return seed_folder / "".join(c if c.isalnum() else "-" for c in arm)


def measured(settings: Settings) -> scores.Results:
    """Measure all finished students and their teachers, and return every measure."""
    labels, sets = classes([settings.task_file]), range(settings.teacher_sets)
    caches = {number: settings.teachers(number) / "cache" for number in sets if settings.teachers(number).exists()}
    models = scores.finished(settings.students(0).parent, settings.arms, run_folder)
    students = {
        arm: {seed: scores.answers([model], caches[seed % len(sets)], labels) for seed, model in by_seed.items()}
        for arm, by_seed in models.items()
    }
    seeds = {seed for by_seed in students.values() for seed in by_seed}
    of_words = scores.bag_of_words(settings.corpus(), caches[0], settings.folder)
    teachers: dict[str, dict[int, scores.Answers]] = {name: {} for name in settings.team.everyone}
    weights: dict[str, dict[int, float]] = {name: {} for name in settings.team.everyone}
    results = scores.Results(students, teachers, {}, weights, {}, dict.fromkeys(sorted(seeds), of_words))
    for number, cache in caches.items():
        of_set = {name: cache.parent / name for name in Cache(cache).encoding().teachers}
        for name, teacher in of_set.items():
            teachers[name][number] = scores.answers([teacher], cache, labels)
            weights[name][number] = scores.mean_weight(name, cache)
        for how, names in (("together", settings.team.joint), ("each alone", settings.team.alone)):
            if of_set.keys() >= set(names):
                several = [of_set[name] for name in names]
                results.ensembles.setdefault(how, {})[number] = scores.answers(several, cache, labels)
                results.agreements.setdefault(how, {})[number] = scores.agreement_of(several, cache, labels)
    return results


if __name__ == "__main__":
    run()
