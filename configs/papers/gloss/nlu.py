"""Whether a model still understands: fine-tune the start, LMGC and LMGC-M on tasks that are not about glosses.

    python -m nltk.downloader -d runs/nltk qc rte sentence_polarity
    python -m configs.papers.gloss.nlu runs/wordnet runs/nltk/corpora START PLACE runs/gloss/nlu

With ``--debian runs/debian/en.jsonl`` there is a fifth task, paragraphs that were spun with synonyms (``spun.py``).
START is the model that the students began with; PLACE is the folder in which ``run.py`` made ``corpora`` and
``students``. The student of seed s is fine-tuned with seed s, the start with every seed. A class is a token, predicted
in the place of ``[CLS]`` by the masked-LM head, as the labels of glosses are; all weights are trained. Every step
continues where it was stopped, and the table shows all that has finished, beside a bag of words.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from configs.papers.bag_of_words import answers_on
from configs.papers.gloss import spun, tasks
from configs.papers.gloss.baselines import candidate_of
from configs.papers.gloss.instances import instances
from configs.papers.gloss.run import HELD_OUT_FRACTION
from configs.papers.intervals import Interval, differences, over_seeds, over_seeds_and_items
from configs.papers.markdown import markdown, show, unsigned
from configs.papers.measures import finished_seeds, once, sequences
from configs.papers.mtbert.data import Record, write_lines
from configs.papers.mtbert.start import add_classes
from configs.papers.recipes import (
    Overrides,
    capture_file,
    label_log_probs,
    labelled_sequences,
    make_once,
    overrides_option,
    train_file,
)
from configs.papers.wordnet import synsets
from configs.papers.wordpiece import with_tokenizer_of
from pipeline.encoding.held_out import is_held_out

HERE = Path(__file__).parent
ARMS = ("start", "LMGC", "LMGC-M")
COMPARED = (("LMGC", "start"), ("LMGC-M", "start"), ("LMGC-M", "LMGC"))
MOST_SENSES = 100
"""No word of WordNet has more."""
MOST_TOKENS = 128
MOST_CHARACTERS = 300
"""Longer texts are left out, so that every sequence holds a whole one."""
TRAINING: Overrides = {
    "loss.token_weight": 0,
    "training.per_device_train_batch_size": 32,
    "training.learning_rate": 5e-4,
    "training.max_steps": 200,
    "training.save_strategy": "no",
}

Right = dict[str, dict[int, NDArray[np.float64]]]
"""By arm and seed, which held-out texts were right: (N,)."""


class Sources(NamedTuple):
    """What tasks are read from."""

    wordnet: Path
    nltk: Path
    place: Path
    debian: Path | None


class Task(NamedTuple):
    """A task by how its records are read."""

    records: Callable[[Sources], list[Record]]
    is_pair: bool
    """Whether a text is two, which are read as two segments."""


SPUN = "spun"
TASKS = {
    "questions": Task(lambda sources: tasks.questions(sources.nltk / "qc"), False),
    "polarity": Task(lambda sources: tasks.polarity(sources.nltk / "sentence_polarity"), False),
    "entailment": Task(lambda sources: tasks.entailment(sources.nltk / "rte"), True),
    "word-in-context": Task(lambda sources: word_in_context(sources.wordnet, sources.place), True),
    SPUN: Task(lambda sources: spun_paragraphs(sources), False),
}


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("nltk", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("start", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("place", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--debian",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Descriptions that configs/papers/mergedistill/fetch.py wrote, for the task of spun paragraphs.",
)
@click.option(
    "--task",
    "names",
    multiple=True,
    type=click.Choice(list(TASKS)),
    help="Only these tasks; default: all, spun paragraphs if --debian is given.",
)
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True, help="Number of seeds of each model.")
@overrides_option("--set-student", "student.yaml")
def run(
    wordnet: Path,
    nltk: Path,
    start: Path,
    place: Path,
    work: Path,
    debian: Path | None,
    names: tuple[str, ...],
    seeds: int,
    set_student: Overrides,
) -> None:
    """Fine-tune START and the students in PLACE on tasks of NLTK and WORDNET, in WORK; print accuracies."""
    disable_progress_bar()
    if SPUN in names and debian is None:
        raise click.UsageError("The task of spun paragraphs needs --debian, the file of descriptions.")
    starts = {arm: [start] * seeds if arm == "start" else students(place, arm, seeds) for arm in ARMS}
    words: dict[str, NDArray[np.float64]] = {}
    right: dict[str, Right] = {}
    sources = Sources(wordnet, nltk, place, debian)
    for name in names or [name for name in TASKS if debian is not None or name != SPUN]:
        corpus = written(name, sources, work / name)
        classes = sorted({record["label"] for record in read(corpus)})
        cache = make_cache(TASKS[name], corpus, with_classes(start, classes, 0, work / name / "start"))
        words[name] = answers_on(corpus, cache).right_N.astype(np.float64)
        for seed in range(seeds):
            for arm in ARMS:
                begin = with_classes(starts[arm][seed], classes, seed, work / name / "models" / f"{arm}-{seed}")
                fine_tune(begin, cache, work / name / "tuned" / f"{arm}-{seed}", seed, set_student)
        right[name] = measured(work / name / "tuned", corpus, cache, classes)
        print_accuracies(words, right)
    print_differences(right)


def students(place: Path, arm: str, seeds: int) -> list[Path]:
    """Return the folders of an arm's students, by seed."""
    folders = [place / "students" / f"{arm}-{seed}" / "final" for seed in range(seeds)]
    missing = [str(folder) for folder in folders if not folder.exists()]
    if missing:
        fix = "Train it with configs.papers.gloss.run, or ask for fewer --seeds."
        raise click.UsageError(f"There is no student in {missing[0]}. {fix}")
    return folders


def word_in_context(wordnet: Path, place: Path) -> list[Record]:
    """Return the task of WordNet's examples; no held-out pair holds a sense that the students were trained on."""
    trained = {
        synset
        for pair in read(place / "corpora" / "pairs.jsonl")
        if not is_held_out(pair["group"], HELD_OUT_FRACTION)
        for synset in (pair["group"].partition(":")[2], candidate_of(pair["id"]))
    }
    return tasks.word_in_context(list(instances(list(synsets(wordnet)), MOST_SENSES)), trained)


def spun_paragraphs(sources: Sources) -> list[Record]:
    """Return the task of spun paragraphs."""
    assert sources.debian is not None
    return spun.paragraphs(sources.debian, list(synsets(sources.wordnet)))


def written(name: str, sources: Sources, folder: Path) -> Path:
    """Return the file of a task's records, written once; long texts are left out."""

    def make(made: Path) -> None:
        made.mkdir(parents=True)
        records = TASKS[name].records(sources)
        write_lines(made / "task.jsonl", [record for record in records if len(record["text"]) <= MOST_CHARACTERS])

    return make_once(folder / "corpus", make) / "task.jsonl"


def make_cache(task: Task, corpus: Path, start: Path) -> Path:
    """Encode a task; the model that is named as its teacher is not used."""
    return capture_file(
        HERE / "capture.yaml",
        {
            "corpus.paths": [corpus],
            "corpus.held_out_fraction": tasks.FRACTION,
            "encoding.max_length_tokens": MOST_TOKENS,
            "encoding.segments": task.is_pair,
            "teachers.0.model": with_tokenizer_of(start, corpus.parent / "nobody"),
            "cache": corpus.parents[1] / "cache",
        },
    )


def with_classes(model: Path, classes: Sequence[str], seed: int, folder: Path) -> Path:
    """Return a folder with a model whose tokenizer has the classes; their rows depend on the seed alone."""

    def make(made: Path) -> None:
        torch.manual_seed(seed)
        add_classes(model, classes, made)

    folder.parent.mkdir(parents=True, exist_ok=True)
    return make_once(folder, make)


def fine_tune(model: Path, cache: Path, output: Path, seed: int, changes: Overrides) -> None:
    """Train a model on a task."""
    places = {"student.pretrained": model, "cache": cache, "training.output_dir": output, "training.seed": seed}
    train_file(HERE / "student.yaml", {**TRAINING, **changes, **places})


def measured(tuned: Path, corpus: Path, cache: Path, classes: Sequence[str]) -> Right:
    """Return which held-out texts each finished model classifies rightly."""
    label_of = {record["id"]: record["label"] for record in read(corpus)}
    gold_N = np.array([classes.index(label_of[sequence.document_id]) for sequence in labelled_sequences(cache)])

    def right(folder: Path) -> list[float]:
        predicted_N = label_log_probs(folder / "final", cache, classes).argmax(axis=1)
        return [float(hit) for hit in predicted_N == gold_N]

    return {
        arm: {seed: np.array(kept(tuned / f"{arm}-{seed}", cache, right)) for seed in finished_seeds(tuned, arm)}
        for arm in ARMS
    }


def kept(folder: Path, cache: Path, measure: Callable[[Path], Any]) -> Any:
    """Return what is measured of a model on a cache, measured once."""
    return once(folder, "right", sequences(cache), lambda: measure(folder))


def print_accuracies(words: dict[str, NDArray[np.float64]], right: dict[str, Right]) -> None:
    """Print the accuracy of each model on each task, and of a bag of words."""
    table = markdown("task", "held out", "TF-IDF", *ARMS, title="accuracy after fine-tuning")
    for name, of_task in right.items():
        cells = [unsigned(over_seeds_and_items(np.stack(list(of_task[arm].values())))) for arm in ARMS]
        of_words = unsigned(over_seeds_and_items(words[name][None]))
        table.add_row(name, str(len(words[name])), of_words, *cells)
    show(table)


def print_differences(right: dict[str, Right]) -> None:
    """Print one model minus another, paired by seed and text, in points; the mean of all tasks over the seeds."""
    table = markdown("points", *(f"{arm} minus {other}" for arm, other in COMPARED))
    for name, of_task in right.items():
        table.add_row(name, *(points(over_seeds_and_items(d_SN)) for d_SN in compared(of_task)))
    means = zip(*([d_SN.mean(axis=1) for d_SN in compared(of_task)] for of_task in right.values()), strict=True)
    table.add_row("mean of the tasks", *(points(over_seeds(np.mean(of_tasks, axis=0))) for of_tasks in means))
    show(table)


def compared(of_task: Right) -> list[NDArray[np.float64]]:
    """Return the differences of each two models that are compared: (S, N)."""
    return [differences(of_task[arm], of_task[other]) for arm, other in COMPARED]


def points(interval: Interval) -> str:
    """Return a difference of accuracies in points."""
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def read(corpus: Path) -> list[Record]:
    """Return the records of a corpus."""
    return [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    run()
