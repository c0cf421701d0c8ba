"""The lines of zero-shot classification that need no model: TF-IDF, on the text that models read and on all of it.

    python -m configs.papers.mergedistill.words runs/mergedistill/texts runs/mergedistill --left-out pt_BR

The text is cut by the tokenizer of the union, which depends on the languages' tokenizers and nothing else; so a few
texts of each language are encoded, below ``words``, and nothing is trained. The tokenizers are those that ``run.py``
continues with, and it prints the same lines beside its students.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click
import numpy as np

from cache_tools.configuration import load_config
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


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--left-out", metavar="LANGUAGE", help="Language that no teacher covers.")
@click.option("--tokens", default=2000, show_default=True, help="Size of each teacher's vocabulary.")
def lines(texts: Path, work: Path, left_out: str | None, tokens: int) -> None:
    """Print the accuracy of classifiers of words that learn from English, for each <language>.jsonl in TEXTS."""
    languages = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != left_out)
    folder = make_once(work / "words", lambda made: unite(texts, work, languages, tokens, made))
    fraction = load_config(HERE / "capture.yaml", CaptureConfig).corpus.held_out_fraction
    teacher = load_config(HERE / "teacher.yaml", StudentConfig).student.config
    assert teacher is not None
    whole = zero_shot.read_task(texts, [*languages, *([left_out] if left_out else [])], fraction)
    print_lines(whole, zero_shot.cut(whole, folder / TOKENIZER, int(str(teacher["max_position_embeddings"]))))


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


def print_lines(whole: zero_shot.Task, cut: zero_shot.Task) -> None:
    """Print accuracies by language, and the mean over all languages but the one that is learned from."""
    commonest, answers = zero_shot.commonest_section(whole), [zero_shot.of_words(task) for task in (cut, whole)]
    columns = [right[how] for right in answers for how in ("plain", "centred")]
    table = markdown(
        *("asked", "texts", "commonest", "TF-IDF", "centred", "TF-IDF of whole texts", "centred"),
        title=f"Sections, learned from {len(whole.train.texts):,} texts in {whole.source}",
    )
    abroad = [name for name in whole.test if name != whole.source]
    for name, (texts, _) in whole.test.items():
        cells = [commonest[name], *(np.mean(right[name]) for right in columns)]
        table.add_row(name, str(len(texts)), *(f"{cell:.3f}" for cell in cells))
    means = [np.mean([np.mean(right[name]) for name in abroad]) for right in (*columns,)]
    table.add_row("mean abroad", "", f"{np.mean([commonest[n] for n in abroad]):.3f}", *(f"{m:.3f}" for m in means))
    show(table)


if __name__ == "__main__":
    lines()
