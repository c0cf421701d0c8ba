"""A third task: the questions of TREC 10 and what they ask for (Li and Roth, COLING 2002), 50 classes.

    python -m configs.papers.mtbert.questions FOLDER runs/mtbert/questions

FOLDER holds ``train.txt`` and ``test.txt``, a line such as ``ENTY:animal What fowl grabs the spotlight …`` for each
question. They are the corpus ``qc`` of NLTK, ``python -m nltk.downloader qc``, and at
https://cogcomp.seas.upenn.edu/Data/QA/QC/ (``train_5500.label``, ``TREC_10.label``). Both files are read: the split is
made by a hash of the question, as for the other tasks, because 500 questions are too few to tell students apart.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from configs.papers.mtbert.data import Record, digest, write_lines

FILES = ("train.txt", "test.txt")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
def write(folder: Path, output: Path) -> None:
    """Write the questions in FOLDER as OUTPUT/questions.jsonl."""
    once = {record["text"]: record for name in FILES for record in questions(folder / name)}
    output.mkdir(parents=True, exist_ok=True)
    write_lines(output / "questions.jsonl", list(once.values()))
    click.echo(f"{len(once)} different questions of {len({record['label'] for record in once.values()})} classes")


def questions(path: Path) -> Iterator[Record]:
    """Yield the records of a file; the class is a token such as ``[enty:animal]``."""
    for line in path.read_text(encoding="latin-1").splitlines():
        label, _, text = line.strip().partition(" ")
        if text:
            group = digest(text)[:16]
            yield {"id": group, "group": group, "text": text, "label": f"[{label.lower()}]"}


if __name__ == "__main__":
    write()
