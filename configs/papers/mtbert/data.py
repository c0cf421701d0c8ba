"""Two tasks with real labels, and plain text to train teachers on before: WordNet's definitions and Debian's packages.

    python -m configs.papers.wordnet runs/wordnet
    python -m configs.papers.mergedistill.fetch runs/debian en --documents 70000
    python -m configs.papers.mtbert.data runs/wordnet runs/debian/en.jsonl runs/mtbert/texts

Written are the tasks, ``wordnet.jsonl`` (the definition of a noun, its lexicographer file) and ``debian.jsonl`` (the
short description of a package, its section), and below ``plain`` text without labels: other definitions, other
descriptions. A class is a token, ``[noun.animal]``. Texts are short, so that a sequence holds a whole one. Groups, by
which stage one splits, are a hash of the text or the source package.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from configs.papers.wordnet import synsets

LONGEST_WORDS = 10
"""Longer texts are left out: padding and attention cost nothing then, and a text fits into any sequence."""
MOST_SECTIONS = 20
NO_SUBJECT = ("libs", "libdevel", "oldlibs", "doc", "debug", "metapackages", "localization", "translations", "misc", "")
"""Sections that describe the form of a package and not its subject."""

Record = dict[str, Any]


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("debian", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--documents", default=12000, show_default=True, help="Texts of each task, at most.")
def write(wordnet: Path, debian: Path, output: Path, documents: int) -> None:
    """Write tasks and plain text from WORDNET and the descriptions in DEBIAN to OUTPUT."""
    (output / "plain").mkdir(parents=True, exist_ok=True)
    for name, records in (("wordnet", definitions(wordnet)), ("debian", descriptions(debian))):
        labelled, plain = parted(records, documents)
        write_lines(output / f"{name}.jsonl", labelled)
        write_lines(output / "plain" / f"{name}.jsonl", plain)
        classes = Counter(record["label"] for record in labelled)
        click.echo(f"{name}: {len(labelled)} texts of {len(classes)} classes, {len(plain)} without one")


def definitions(wordnet: Path) -> Iterator[Record]:
    """Yield WordNet's definitions; a noun's with its lexicographer file."""
    for synset in synsets(wordnet):
        text = synset.definition
        label = f"[{synset.lexname}]" if synset.pos == "n" else None
        yield {"id": synset.id, "group": digest(text)[:16], "text": text, "label": label}


def descriptions(path: Path) -> Iterator[Record]:
    """Yield the short descriptions of Debian's packages; those of the most frequent sections with their section."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sections = Counter(record["section"] for record in records if record["section"] not in NO_SUBJECT)
    commonest = {section for section, _ in sections.most_common(MOST_SECTIONS)}
    for record in records:
        text = record["text"].split(". ")[0]
        label = f"[{record['section']}]" if record["section"] in commonest else None
        yield {"id": record["id"], "group": record["group"], "text": text, "label": label}


def parted(records: Iterable[Record], documents: int) -> tuple[list[Record], list[Record]]:
    """Return labelled records, at most so many, and others without a label, of other groups; each text once."""
    once = {record["text"]: record for record in records if short(record["text"])}
    ordered = sorted(once.values(), key=lambda record: digest(f"chosen {record['group']} {record['id']}"))
    labelled = [record for record in ordered if record["label"]][:documents]
    groups = {record["group"] for record in labelled}
    plain = [record for record in ordered if not record["label"] and record["group"] not in groups]
    return labelled, [{key: value for key, value in record.items() if key != "label"} for record in plain]


def short(text: str) -> bool:
    """Return whether a text is neither empty nor too long for a sequence."""
    return 2 <= len(text.split()) <= LONGEST_WORDS and len(text) <= 7 * LONGEST_WORDS


def digest(text: str) -> str:
    """Return a hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    write()
