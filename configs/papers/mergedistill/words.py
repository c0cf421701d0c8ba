"""The lines of zero-shot classification that need no training: TF-IDF, and pre-trained encoders as they come.

    python -m configs.papers.mergedistill.words runs/mergedistill/texts runs/mergedistill --left-out pt_BR
    python -m configs.pretrained.fetch e5-small
    python -m configs.papers.mergedistill.words runs/mergedistill/texts runs/mergedistill --left-out pt_BR \
      --encoder runs/pretrained/e5-small

The text is cut by the tokenizer of the union, which depends on the languages' tokenizers and nothing else; so a few
texts of each language are encoded, below ``words``, and nothing is trained. The tokenizers are those that ``run.py``
continues with, and it prints the same lines of words beside its students.

An encoder that knows all languages shows whether classes can be carried over at all from the text that students read.
It reads that text with its own tokenizer and is not trained; half an hour for 18,000 texts on shared cores.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from cache_tools.configuration import load_config
from configs.papers.intervals import over_seeds_and_items
from configs.papers.markdown import markdown, show
from configs.papers.mergedistill import stage_one, zero_shot
from configs.papers.recipes import command, make_once
from configs.papers.wordpiece import untrained
from pipeline.config.capture_file import CaptureConfig
from trainer.config.student_file import StudentConfig

HERE = Path(__file__).parent
SAMPLE = 100
"""Texts of each language that are encoded, for the sake of the tokenizer."""
TOKENIZER = "vocabulary/tokenizer"
HOW = ("plain", "centred")
"""Features as they are, and each language's moved by its own mean."""


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--left-out", metavar="LANGUAGE", help="Language that no teacher covers.")
@click.option(
    "--held-out-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of packages to test on; by default that of capture.yaml.",
)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of an encoder; may be repeated.",
)
@click.option("--tokens", default=2000, show_default=True, help="Size of each teacher's vocabulary.")
def lines(
    texts: Path,
    work: Path,
    left_out: str | None,
    held_out_fraction: float | None,
    encoders: tuple[Path, ...],
    tokens: int,
) -> None:
    """Print the accuracy of classifiers that learn from English, for each <language>.jsonl in TEXTS."""
    logging.set_verbosity_error()  # an encoder's head is not used, and may be missing
    logging.disable_progress_bar()
    languages = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != left_out)
    folder = make_once(work / "words", lambda made: unite(texts, work, languages, tokens, made))
    usual_fraction = load_config(HERE / "capture.yaml", CaptureConfig).corpus.held_out_fraction
    fraction = usual_fraction if held_out_fraction is None else held_out_fraction
    teacher = load_config(HERE / "teacher.yaml", StudentConfig).student.config
    assert teacher is not None
    whole = zero_shot.read_task(texts, [*languages, *([left_out] if left_out else [])], fraction)
    cut = zero_shot.cut(whole, folder / TOKENIZER, int(str(teacher["max_position_embeddings"])))
    print_lines(whole, cut, encoders)


def unite(texts: Path, work: Path, languages: Sequence[str], tokens: int, folder: Path) -> None:
    """Write the union of the languages' vocabularies, from a few encoded texts of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in languages:
        corpus, sample = texts / f"{language}.jsonl", folder / f"{language}.jsonl"
        model = untrained(
            (record["text"] for record in stage_one.records(corpus)), tokens, work / language / "untrained", False
        )
        with corpus.open(encoding="utf-8") as records:
            sample.write_text("".join(islice(records, SAMPLE)), encoding="utf-8")
        stage_one.capture(folder / language, sample, model, stage_one.TEXT_ALONE)
    command("vocabulary", *(folder / language for language in languages), "-o", folder / "vocabulary")


def print_lines(whole: zero_shot.Task, cut: zero_shot.Task, encoders: Sequence[Path]) -> None:
    """Print accuracies by language, the mean over all but the one that is learned from, and encoders less TF-IDF."""
    right = {"TF-IDF": zero_shot.of_words(cut), "TF-IDF of whole texts": zero_shot.of_words(whole)}
    for folder in encoders:
        read = [cut.train.texts, *cut.unlabelled.values(), *(test.texts for test in cut.test.values())]
        click.echo(f"{folder}: {sum(map(len, read)):,} texts to read", err=True)
        right[folder.name] = zero_shot.right_answers(cut, zero_shot.model_features(folder))
    commonest, abroad = zero_shot.commonest_section(whole), [name for name in whole.test if name != whole.source]
    columns = [of_model[how] for of_model in right.values() for how in HOW]
    table = markdown(
        *("asked", "texts", "commonest", *(heading for name in right for heading in (name, "centred"))),
        title=f"Sections, learned from {len(whole.train.texts):,} texts in {whole.source}",
    )
    for name, (texts, _) in whole.test.items():
        cells = [commonest[name], *(np.mean(answers[name]) for answers in columns)]
        table.add_row(name, str(len(texts)), *(f"{cell:.3f}" for cell in cells))
    means = [np.mean([np.mean(answers[name]) for name in abroad]) for answers in columns]
    table.add_row("mean abroad", "", f"{np.mean([commonest[n] for n in abroad]):.3f}", *(f"{m:.3f}" for m in means))
    if encoders:
        words, *others = ({how: in_a_row(of_model[how], abroad) for how in HOW} for of_model in right.values())
        less = [str(over_seeds_and_items((other[how] - words[how])[None])) for other in others for how in HOW]
        table.add_row("texts abroad, less TF-IDF", *[""] * 4, *less)
    show(table)


def in_a_row(answers: Mapping[str, Sequence[int]], languages: Sequence[str]) -> NDArray[np.float64]:
    """Return the answers to the texts of some languages, one after another: (N,)."""
    return np.array([answer for language in languages for answer in answers[language]], np.float64)


if __name__ == "__main__":
    lines()
