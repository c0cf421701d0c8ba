"""``logitcask audit``: does a cache say what its teacher says?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table


@click.command("audit")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--teacher", metavar="NAME", help="Audit this teacher only.")
@click.option("--shards", type=click.IntRange(1), help="Shards to sample; default: audit.shards in CONFIG, or 8.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the sample; default: audit.seed in CONFIG, or 0.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: audit.sequences_per_shard=32."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def audit_command(
    config: Path,
    teacher: str | None,
    shards: int | None,
    seed: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask the live teachers of CONFIG again about a random sample of its cache; exit 1 if they differ.

    What differs is shown by size, with the worst positions in their text and, where a pattern
    is plain, its likely cause: other weights, shifted rows, tempered or truncated rows.
    Tolerances stand in the audit block of CONFIG.

    \b
    Example:
        logitcask audit configs/demo/capture.yaml
    """
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from cache_tools.progress.lines import open_reporter
    from pipeline.audit.run import run_audit
    from pipeline.config import CaptureConfig
    from pipeline.teachers.tensor_parallel import run_together

    given = {"audit.shards": shards, "audit.seed": seed}
    assignments = tuple(f"{key}={value}" for key, value in given.items() if value is not None)
    settings = load_config(config, CaptureConfig, (*overrides, *assignments))
    disable_progress_bar()
    with open_reporter() as reporter:
        reports = run_together(settings, lambda _: run_audit(settings, teacher, reporter))
    if reports is None:  # another process says what was found
        return
    passed = all(report["passed"] for report in reports)
    if as_json:
        click.echo(json.dumps({"cache": str(settings.cache), "passed": passed, "teachers": reports}, indent=2))
    else:
        for report in reports:
            _print(report)
    if not passed:
        raise SystemExit(1)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    for table in filter(None, (_checks_table(report), _bins_table(report["probability_bins"]))):
        console.print(table)
    lines = _measures(report)
    if not report["passed"]:
        lines += _worst_lines(report["worst"])
        lines += [f"identity differs: {line}" for line in report["identity"]]
        lines += report["diagnosis"]
    lines.append(f"teacher {report['teacher']}: {'passed' if report['passed'] else 'FAILED'}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _checks_table(report: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(
        title=f"teacher {report['teacher']} · {report['positions']:,} positions of {report['sequences']:,} sequences "
        f"in {len(report['shards'])} shards"
    )
    for heading in ("check", "found", "limit", "worst shard", ""):
        table.add_column(heading, justify="right" if heading in ("found", "limit", "worst shard") else "left")
    for check in report["checks"]:
        shard = "" if check["shard"] is None else str(check["shard"])
        verdict = "ok" if check["passed"] else "FAILED"
        table.add_row(check["name"], f"{check['value']:.2g}", f"{check['limit']:.2g}", shard, verdict)
    return table


def _bins_table(bins: list[dict[str, float]] | None) -> "Table | None":
    from rich.table import Table

    if bins is None:
        return None
    table = Table(title="stored minus live log-probability, nats")
    for heading in ("live probability", "entries", "mean", "mean absolute", "largest"):
        table.add_column(heading, justify="right")
    for part in bins:
        errors = (f"{part[name]:.2g}" for name in ("mean", "mean_absolute", "largest"))
        table.add_row(f"{part['above']:g} to {part['up_to']:g}", f"{part['entries']:,}", *errors)
    return table


def _measures(report: dict[str, Any]) -> list[str]:
    """Return the measures that are reported and not judged, as lines."""
    lines = [f"rows with the tokens that the live teacher would keep: {report['same_tokens']:.1%}"]
    if report["kl"]:
        kl, left_out = report["kl"], report["left_out"]
        lines += [
            f"same likeliest token: {report['top1_agreement']:.1%}",
            f"KL of a row: mean {kl['mean']:.2g}, 99 % below {kl['p99']:.2g}, largest {kl['largest']:.2g} nats",
            f"mass left out: mean error {left_out['mean']:.2g}, largest {left_out['largest']:.2g}",
        ]
    if report["excess_surprisal"]:
        excess = report["excess_surprisal"]
        lines.append(
            f"surprisal of the draws beyond the entropy: {excess['mean']:.2g} ± {excess['standard_error']:.2g} nats"
        )
    return lines


def _worst_lines(worst: list[dict[str, Any]]) -> list[str]:
    return [
        f"worst: {item['document_id']}, sequence {item['sequence_id']}, row {item['row']}: "
        f"{item['context']!r}, then {item['token']!r}: stored {item['stored']:.3g}, live {item['live']:.3g}"
        for item in worst
    ]
