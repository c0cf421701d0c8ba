"""Check that every damaged byte is noticed: ``python -m benchmarks.damage --flips 10000``.

Each time, one bit of one file of a small cache is flipped, or the file is cut short. ``verify --deep`` must
find the damage, and each reading (targets, scalars, hidden states, sequences, tokenizer, head, transforms) must be
refused or return what was written. Printed for each kind of file: bits flipped, files cut, how many of both verify
found, after how many a reading was refused, after how many all readings were right, failures. Exits 1 after a
failure.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from cache_tools.errors import LogitcaskError
from cache_tools.maintenance.verify import verify
from cache_tools.store import chunk_reader
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
Items = dict[str, Any]
"""What a reader finds, by name: plain Python values that compare by content."""


@dataclass(frozen=True)
class Finding:
    """The result of one damage.

    Attributes:
        key: The file, relative to the cache.
        kind: ``flip`` or ``cut``.
        place: Index of the flipped bit, or the size that was left.
        verified: Verify found it.
        refused: A reader refused something.
        wrong: What was read with other values, or failed with another error.
    """

    key: str
    kind: str
    place: int
    verified: bool
    refused: bool
    wrong: tuple[str, ...]


def kind_of(key: str) -> str:
    """Return the kind of the file at a key of a cache."""
    parts = key.split("/")
    if parts[-1] == "zarr.json":
        if parts[-2:-1] in (["encodings"], ["teachers"], ["hidden"]):
            return "group"
        return "array" if "teachers" in parts and len(parts) > 5 else "manifest"
    folders = {"sequences": "sequences", "parts": "table", "tokenizer": "tokenizer", "receipts": "receipt"}
    for folder, kind in (folders | {"transforms": "transform"}).items():
        if folder in parts:
            return kind
    return "head" if parts[-1] == "head.safetensors" else "object"


def read_all(path: Path) -> tuple[Items, list[Exception]]:
    """Read everything that a cache holds, each thing by itself; return it, and the errors of the rest."""
    items: Items = {}
    errors: list[Exception] = []
    try:
        for name, read in _readers(path):
            try:
                items[name] = read()
            except Exception as error:
                errors.append(error)
    except Exception as error:
        errors.append(error)
    return items, errors


def _readers(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    cache = Cache(path)
    for name in cache.encodings:
        encoding = cache.encoding(name)
        yield f"{name}: tokenizer", partial(_tokenizer, encoding)
        for shard in range(len(encoding.shards)):
            yield f"{name}: sequences {shard}", partial(_sequences, encoding, shard)
        for teacher in map(encoding.teacher, encoding.teachers):
            yield from _teacher_readers(encoding, teacher)


def _teacher_readers(encoding: Encoding, teacher: CachedTeacher) -> Iterator[tuple[str, Callable[[], Any]]]:
    for key in teacher.manifest.files:
        yield f"{teacher.name}: {key}", partial(teacher.file, key)
    for shard in range(len(encoding.shards)):
        rows = teacher.shard_rows(shard)
        yield f"{teacher.name}: targets {shard}", partial(_targets, teacher, *rows)
        for name in teacher.manifest.scalars:
            yield f"{teacher.name}: {name} {shard}", partial(_bytes, teacher.scalar, name, *rows)
        for layer in teacher.manifest.hidden:
            yield f"{teacher.name}: hidden {layer} {shard}", partial(_bytes, teacher.hidden, layer, *rows)


def _targets(teacher: CachedTeacher, start: int, stop: int) -> list[bytes]:
    return [values.tobytes() for values in vars(teacher.targets(start, stop)).values()]


def _bytes(read: Callable[[str, int, int], Any], name: str, start: int, stop: int) -> bytes:
    content: bytes = read(name, start, stop).tobytes()
    return content


def _sequences(encoding: Encoding, shard: int) -> list[list[Any]]:
    return [
        [value.tobytes() if isinstance(value, np.ndarray) else value for value in vars(sequence).values()]
        for sequence in encoding.sequences(shard)
    ]


def _tokenizer(encoding: Encoding) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        encoding.save_tokenizer(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def damage(path: Path, number: int, seed: int = 0) -> Iterator[Finding]:
    """Damage a cache ``number`` times, each time only a little, and restore it after each.

    Args:
        path: A local cache that no other process uses.
        number: How often.
        seed: Seed of the random choice of files and bits.
    """
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    keys, rng = [key for key, content in files.items() if content], np.random.default_rng(seed)
    expected, errors = read_all(path)
    if errors or verify(path, deep=True):
        raise ValueError(f"{path} is damaged already: {errors}")
    for _ in range(number):
        key = keys[rng.integers(len(keys))]
        kind = "cut" if rng.random() < 0.3 else "flip"
        place = int(rng.integers(len(files[key]) * (8 if kind == "flip" else 1)))
        (path / key).write_bytes(_damaged(files[key], kind, place))
        try:
            yield _finding(path, key, kind, place, expected)
        finally:
            (path / key).write_bytes(files[key])


def _damaged(content: bytes, kind: str, place: int) -> bytes:
    if kind == "cut":
        return content[:place]
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _finding(path: Path, key: str, kind: str, place: int, expected: Items) -> Finding:
    wrong = []
    chunk_reader._indexes.clear()  # a new process remembers nothing
    try:
        verified = bool(verify(path, deep=True))
    except LogitcaskError:
        verified = True
    except Exception as error:
        verified, wrong = True, [f"verify: {type(error).__name__}"]
    chunk_reader._indexes.clear()
    items, errors = read_all(path)
    wrong += [name for name, value in items.items() if expected[name] != value]
    wrong += [f"{type(error).__name__}: {error}" for error in errors if not isinstance(error, LogitcaskError)]
    if not errors and items.keys() != expected.keys():
        wrong.append("something is silently missing")
    return Finding(key, kind, place, verified, bool(errors), tuple(wrong))


COLUMNS = ("flipped", "cut", "found", "refused", "as before", "failed")


def tally(findings: Iterator[Finding]) -> tuple[dict[str, Counter[str]], list[Finding]]:
    """Count findings by kind of file; also return the failures."""
    counts: dict[str, Counter[str]] = {}
    failed = []
    for finding in findings:
        count = counts.setdefault(kind_of(finding.key), Counter())
        bad = bool(finding.wrong) or not finding.verified
        outcomes = (finding.kind == "flip", finding.kind == "cut", finding.verified, finding.refused)
        for column, value in zip(COLUMNS, (*outcomes, not finding.refused and not bad, bad), strict=True):
            count[column] += value
        if bad:
            failed.append(finding)
    return counts, failed


@click.command()
@click.option("--flips", type=click.IntRange(1), default=10_000, show_default=True, help="How often to damage a file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choice of files and bits.")
@click.argument("caches", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(flips: int, seed: int, caches: tuple[Path, ...]) -> None:
    """Damage copies of CACHES (default: the golden ones of the tests) and count what is noticed."""
    damaged_caches = caches or tuple(sorted(folder for folder in GOLDEN.iterdir() if (folder / "zarr.json").exists()))
    total: dict[str, Counter[str]] = {}
    failed: list[Finding] = []
    for number, cache in enumerate(damaged_caches):
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(shutil.copytree(cache, Path(folder) / "cache"))
            share = flips // len(damaged_caches) + (number < flips % len(damaged_caches))
            counts, bad = tally(damage(copied, share, seed + number))
        failed += bad
        for kind, count in counts.items():
            total.setdefault(kind, Counter()).update(count)
    click.echo(f"{'kind of file':<14}" + "".join(f"{column:>10}" for column in COLUMNS))
    for kind, count in [*sorted(total.items()), ("all", sum(total.values(), Counter[str]()))]:
        click.echo(f"{kind:<14}" + "".join(f"{count[column]:>10,}" for column in COLUMNS))
    for finding in failed[:20]:
        click.echo(str(finding))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
