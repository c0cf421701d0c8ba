"""Fetch Debian's package descriptions and their translations: real text in many languages, some of it parallel.

    python -m configs.papers.mergedistill.fetch runs/mergedistill/texts en de fr --documents 4000

Written is ``<language>.jsonl``: the package as id; its source package as group, so that near copies (-dev, -doc) and
translations are held out together; Debian's section of it, such as ``games``; its text. APT fetches its own
index with a list folder of its own: the system's lists stay as they are, and the system's sources, proxies and keys
are used. The texts belong to the packages and have their licences; do not publish them as a corpus.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click


@click.command()
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.argument("languages", nargs=-1, required=True)
@click.option("--documents", type=int, default=4000, show_default=True, help="Descriptions of each language, at most.")
def fetch(output: Path, languages: tuple[str, ...], documents: int) -> None:
    """Write Debian's package descriptions in LANGUAGES to OUTPUT."""
    lists = (output / "lists").absolute()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    if not all(index_files(lists, language) for language in languages):
        update(lists, languages)
    packages = {stanza["Package"]: stanza for path in lists.glob("*_Packages*") for stanza in stanzas(path)}
    sources = {package: source_of(stanza) for package, stanza in packages.items()}
    for language in languages:
        paths = index_files(lists, language)
        texts = {s["Package"]: description(s, language) for path in paths for s in stanzas(path)}
        packages_of = {text: package for package, text in reversed(texts.items())}  # of equal texts the first
        written = sorted(packages_of.items(), key=lambda item: by_hash(sources.get(item[1], item[1])))[:documents]
        lines = []
        for text, package in written:
            section = packages.get(package, {}).get("Section", "").rpartition("/")[2]
            record = {"id": package, "group": sources.get(package, package), "section": section, "text": text}
            lines.append(json.dumps(record, ensure_ascii=False))
        (output / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        click.echo(f"{language}: {len(written)} of {len(packages_of)} descriptions")


def update(lists: Path, languages: tuple[str, ...]) -> None:
    """Let APT fetch its index in some languages."""
    settings = {"Acquire::Languages": ",".join(languages), "Dir::State::lists": str(lists), "Dir::Cache": str(lists)}
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    try:
        subprocess.run(["apt-get", "-q", *options, "update"], check=True, stdout=sys.stderr)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise click.ClickException(f"apt-get update failed, and this recipe's texts come from it: {error}") from error


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Yield the stanzas of an index, compressed or not, as field and value; further lines of a value stay in it."""
    content = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, capture_output=True).stdout
    for block in content.decode("utf-8", "replace").split("\n\n"):
        fields = re.findall(r"^([A-Za-z0-9-]+(?:_[A-Z]+)?): ?(.*(?:\n .*)*)", block, re.MULTILINE)
        if fields:
            yield dict(fields)


def index_files(lists: Path, language: str) -> list[Path]:
    """Return the files with the descriptions of a language; APT writes an underscore in a name as %5f."""
    return sorted(lists.glob(f"*_Translation-{language.replace('_', '%5f')}*"))


def source_of(stanza: dict[str, str]) -> str:
    """Return the name of a package's source package."""
    return stanza.get("Source", stanza["Package"]).split()[0]


def description(stanza: dict[str, str], language: str) -> str:
    """Return a description as running text: the short one, then the paragraphs of the long one."""
    short, *long = stanza[f"Description-{language}"].split("\n")
    return " ".join([f"{short}.", *(line.strip() for line in long if line.strip() != ".")])


def by_hash(source: str) -> str:
    """Return a sort key of sources: a random order that is the same in every language.

    Not the hash of the name alone: stage one splits by that, and the first of its order are all held out.
    """
    return hashlib.sha256(f"chosen {source}".encode()).hexdigest()


if __name__ == "__main__":
    fetch()
