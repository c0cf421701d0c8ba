"""Fetch Debian's package of WordNet 3.0, and read its synsets: a definition, usage examples and a class for each.

    python -m configs.papers.wordnet runs/wordnet

APT downloads ``wordnet-base`` with a list folder of its own and does not install it: the system stays as it is, and its
sources, proxies and keys are used. WordNet's licence is written beside the data and must stay with them.

The format, one synset on a line after the licence (wndb(5WN)): offset, lexicographer file, kind, number of words in
hexadecimal, each word with an id, pointers, for verbs frames, then ``|`` and the gloss. A gloss is a definition,
then examples in quotation marks. Pointers and frames are passed over here.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click

PACKAGE = "wordnet-base"
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""By part of speech: what its data file is called after."""
LEXNAMES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)
"""The lexicographer files by number, lexnames(5WN)."""


class Synset(NamedTuple):
    """A meaning that some words share."""

    id: str
    """Part of speech and offset, such as ``n00001740``."""
    pos: str
    """``n``, ``v``, ``a`` (satellites too) or ``r``."""
    lexname: str
    """Lexicographer file, such as ``noun.animal``: one of 45 broad classes."""
    lemmas: tuple[str, ...]
    """With spaces, in WordNet's order."""
    definition: str
    """The gloss as far as the first example."""
    examples: tuple[str, ...]
    """Without their quotation marks; most contain one of the lemmas, many inflected."""


@click.command()
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
def fetch(output: Path) -> None:
    """Write WordNet's data files and their licence to OUTPUT, unless they are there."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{output.name}.", dir=output.parent) as folder:
            download(Path(folder).absolute())
            unpacked = Path(folder, "usr", "share")
            shutil.move(unpacked / "doc" / PACKAGE / "copyright", unpacked / "wordnet")
            (unpacked / "wordnet").rename(output)
    click.echo(f"{sum(1 for _ in synsets(output))} synsets")


def download(folder: Path) -> None:
    """Download the package through APT and unpack it; nothing is installed."""
    (folder / "lists" / "partial").mkdir(parents=True)
    settings = {"Acquire::Languages": "none", "Dir::State::lists": folder / "lists", "Dir::Cache": folder / "lists"}
    apt = ["apt-get", "-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    try:
        subprocess.run([*apt, "update"], check=True, stdout=sys.stderr)
        subprocess.run([*apt, "download", PACKAGE], check=True, stdout=sys.stderr, cwd=folder)
        subprocess.run(["dpkg-deb", "-x", *folder.glob("*.deb"), folder], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise click.ClickException(
            f"{PACKAGE} could not be had from APT, and WordNet comes from it: {error}"
        ) from error


def synsets(folder: Path) -> Iterator[Synset]:
    """Yield the synsets of ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv``, in the files' order.

    Raises:
        click.ClickException: A file is not there, or a line is not of WordNet's format.
    """
    for pos, name in FILES.items():
        path = folder / f"data.{name}"
        try:
            with path.open(encoding="utf-8") as lines:
                yield from (synset(line, pos) for line in lines if not line.startswith("  "))
        except (OSError, ValueError, IndexError) as error:
            raise click.ClickException(f"{path} is no data file of WordNet 3.0: {error}") from error


def synset(line: str, pos: str) -> Synset:
    """Return the synset on a line of a data file."""
    data, separator, gloss = line.partition(" | ")
    if not separator:
        raise ValueError(f"no gloss in {line[:60]!r}")
    offset, file, _, count, *words = data.split(" ")
    lemmas = tuple(plain(word) for word in words[: 2 * int(count, 16) : 2])
    return Synset(f"{pos}{offset}", pos, LEXNAMES[int(file)], lemmas, *parts(gloss.strip()))


def plain(word: str) -> str:
    """Return a word without the mark of where an adjective may stand, such as ``(a)``, and with spaces."""
    return re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ")


def parts(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Return definition and examples of a gloss. A quotation inside the definition stays in it.

    The first example begins the gloss or follows a semicolon or, by a slip, another point. That reads all but about
    twenty glosses of WordNet 3.0, where points and quotation marks are missing, as a person would.
    """
    first_quote = re.search(r'(?:^|[;:,]\s*)"', gloss)
    if first_quote is None:
        return gloss, ()
    examples = re.findall(r'"([^"]+)"?', gloss[first_quote.end() - 1 :])
    return gloss[: first_quote.start()].strip(), tuple(
        example.strip() for example in examples if example.strip(' ;,."')
    )


if __name__ == "__main__":
    fetch()
