"""``logitcask inspect``: what is in a cache, as tables or JSON."""

import json
from typing import TYPE_CHECKING, Any

import click

from cache_tools.cli_places import CacheType

if TYPE_CHECKING:
    from rich.table import Table

    from cache_tools.storage import StorePath


@click.command("inspect")
@click.argument("cache", type=CacheType())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect_command(cache: "StorePath", as_json: bool) -> None:
    """Show what CACHE holds: splits, teachers, sizes, statistics and progress.

    Reads manifests and receipts only, so it is quick on a cache of any size and works
    while a capture is running.

    \b
    Example:
        logitcask inspect runs/demo/cache
    """
    from cache_tools.reader import Cache
    from cache_tools.summary import summarise

    summary = summarise(Cache(cache))
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    from rich.console import Console

    console = Console()
    for encoding in summary["encodings"]:
        console.print(_splits_table(encoding))
        for teacher in encoding["teachers"]:
            console.print(_teacher_table(teacher))
    if not summary["encodings"]:
        console.print("This cache is empty: no encoding has been committed yet.")


def _splits_table(encoding: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(
        title=f"encoding {encoding['name']} · {encoding['objective']} · vocabulary {encoding['vocabulary_size']:,}"
    )
    for column in ("split", "documents", "sequences", "tokens", "positions", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, totals in encoding["splits"].items():
        table.add_row(name, *(f"{value:,}" for value in totals.values()))
    return table


def _teacher_table(teacher: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title=f"teacher {teacher['name']}", show_header=False)
    for key, value in _teacher_rows(teacher):
        table.add_row(key, value)
    return table


def _teacher_rows(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    model, target = teacher["model"], teacher["target"]
    rows = [
        ("model", f"{model['name']} · {model['architecture']} · {model['parameters']:,} parameters · {model['dtype']}"),
        (
            "target",
            f"{target['kind']}, k = {target['k']}, {_codec(target['codec'])}",
        ),
        ("captured", f"{teacher['shards_done']} of {teacher['shards']} shards, {teacher['positions']:,} positions"),
    ]
    if not teacher["positions"]:
        return rows
    rows.append(("stored", f"{teacher['stored_bytes']:,} bytes · {teacher['bytes_per_position']:.1f} per position"))
    for name, size in teacher["bytes_by_array"].items():
        rows.append((f"  {name}", f"{size / teacher['positions']:.1f} bytes per position"))
    for split, means in teacher["statistics"].items():
        rows.append(
            (
                split,
                f"cross-entropy {_nats(means['cross_entropy_nats'])} (perplexity {means['perplexity']:.1f}) · "
                f"entropy {means['entropy_nats']:.3f} nats · kept mass {means['kept_mass']:.1%}"
                + _error("codec error", means.get("codec_kl_nats"), "nats")
                + (f" · {means['skipped_positions']:,.0f} skipped" if "skipped_positions" in means else ""),
            )
        )
    rows += [(f"  hidden {layer}", _hidden(layer, spec, teacher)) for layer, spec in teacher["hidden"].items()]
    return rows


def _codec(codec: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value:g}" for key, value in codec.items() if key != "name")
    return f"{codec['name']} ({settings})" if settings else str(codec["name"])


def _hidden(layer: str, spec: dict[str, Any], teacher: dict[str, Any]) -> str:
    text = f"{spec['width']} values, {spec['codec']}"
    positions = teacher["positions_by_group"].get(f"hidden/{layer}", 0)
    if positions:
        text += (
            f", {teacher['bytes_by_array'].get(f'hidden/{layer}', 0) / positions / spec['width']:.2f} bytes per value"
        )
    if positions < teacher["positions"]:
        text += f", {positions:,} of {teacher['positions']:,} positions"
    for name, unit in (("kl_nats", "nats of KL"), ("relative_error", "relative error")):
        errors = [m[f"hidden_{layer}_{name}"] for m in teacher["statistics"].values() if f"hidden_{layer}_{name}" in m]
        if errors:
            text += f", {max(errors):.1e} {unit}"
    return text


def _error(name: str, value: float | None, unit: str) -> str:
    return "" if value is None else f" · {name} {value:.1e} {unit}"


def _nats(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3f} nats"
