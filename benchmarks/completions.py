"""How many completions differ between two runs: ``python -m benchmarks.completions FOLDER OTHER``.

Both folders are written by ``logitcask generate`` from the same prompts with the same seed and, say, other batch
sizes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from cache_tools.json_output import json_text


@dataclass(frozen=True)
class Differences:
    """How two runs differ.

    Attributes:
        completions: Completions of each.
        different: Completions that are not the same in both.
        tokens: Tokens up to the first that differs, over all completions.
    """

    completions: int
    different: int
    tokens: int


def compare(folder: Path, other: Path) -> Differences:
    """Return in how many completions two folders differ."""
    left, right = dict(_completions(folder)), dict(_completions(other))
    if left.keys() != right.keys():
        raise click.ClickException("the folders hold completions of other prompts")
    pairs = [(left[name], right[name]) for name in left]
    return Differences(len(pairs), sum(a != b for a, b in pairs), sum(_common(a, b) for a, b in pairs))


def _completions(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            yield line["id"], line["ids"][line["prompt_tokens"] :]


def _common(left: list[int], right: list[int]) -> int:
    """Return the number of tokens that were drawn before two completions part, the first different one included."""
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return min(len(left), len(right)) if same is None else same + 1


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("other", type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(folder: Path, other: Path, as_json: bool) -> None:
    """Print in how many completions FOLDER and OTHER differ."""
    result = compare(folder, other)
    words = f"{result.different:,} of {result.completions:,} completions differ, one draw in "
    words += f"{result.tokens / max(1, result.different):,.0f}" if result.different else f"none of {result.tokens:,}"
    click.echo(json_text(result) if as_json else words)


if __name__ == "__main__":
    main()
