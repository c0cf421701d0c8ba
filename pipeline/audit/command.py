"""``logitcask audit``: compare a cache with its live teachers."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.quantities import counted

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.audit.run import TeacherAudit
    from pipeline.audit.summary import Measures, ProbabilityBin
    from pipeline.audit.worst import WorstPosition


@click.command("audit")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--teacher", metavar="NAME", help="Audit this teacher only.")
@click.option(
    "--engine",
    metavar="PYTHON",
    help="Ask vLLM, in the environment of this Python, or 'transformers'; default: what CONFIG names.",
)
@click.option("--shards", type=click.IntRange(1), help="Shards to sample; default: audit.shards in CONFIG, or 8.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the sample; default: audit.seed in CONFIG, or 0.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: audit.sequences_per_shard=32."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def audit_command(
    config: Path,
    teacher: str | None,
    engine: str | None,
    shards: int | None,
    seed: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the live teachers of CONFIG on a random sample of its cache; exit 1 if the predictions differ.

    Differences are shown with their size, the worst positions with their text and, where a pattern
    is clear, the likely cause: other weights, shifted rows, tempered or truncated rows.
    The audit block of CONFIG sets the tolerances. --engine asks something else than CONFIG captures with:
    a capture by vLLM is best audited by transformers, and one by transformers by vLLM.

    \b
    Example:
        logitcask audit configs/demo/capture.yaml
    """
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from pipeline.audit.asking import engine_assignments
    from pipeline.audit.run import run_audit
    from pipeline.config.capture_file import CaptureConfig
    from pipeline.teachers.tensor_parallel import run_together

    given = {"audit.shards": shards, "audit.seed": seed}
    assignments = tuple(f"{key}={value}" for key, value in given.items() if value is not None)
    asked = () if engine is None else engine_assignments(config, engine)
    settings = load_config(config, CaptureConfig, (*asked, *overrides, *assignments))
    disable_progress_bar()
    with open_reporter() as reporter:
        audit = run_together(settings.teachers, lambda _: run_audit(settings, teacher, reporter))
    if audit is None:  # another process of the group reports
        return
    if as_json:
        click.echo(json_text(audit))
    else:
        for report in audit.teachers:
            _print(report)
    if not audit.passed:
        raise SystemExit(1)


def _print(report: "TeacherAudit") -> None:
    from rich.console import Console

    console = Console()
    for table in filter(None, (_checks_table(report), _bins_table(report.measures.probability_bins))):
        console.print(table)
    lines = _measures(report.measures)
    if not report.passed:
        lines += map(_worst_line, report.worst)
        lines += [f"identity differs: {line}" for line in report.identity]
        lines += report.diagnosis
    if report.captured_by != report.asked_by or report.captured_by != "transformers":
        lines.append(_engines_line(report))
    lines.append(f"teacher {report.teacher}: {'passed' if report.passed else 'FAILED'}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _engines_line(report: "TeacherAudit") -> str:
    line = f"captured by {report.captured_by}, asked by {report.asked_by}"
    if report.rounding_nats is None:
        return line
    return f"{line}; rounding alone is expected to cost about {report.rounding_nats:.1g} nats of KL between them"


def _checks_table(report: "TeacherAudit") -> "Table":
    from rich.table import Table

    table = Table(
        title=f"teacher {report.teacher} · {counted(report.positions, 'position')} "
        f"of {counted(report.sequences, 'sequence')} in {counted(len(report.shards), 'shard')}"
    )
    for heading in ("check", "found", "limit", "worst shard", ""):
        table.add_column(heading, justify="right" if heading in ("found", "limit", "worst shard") else "left")
    for check in report.checks:
        shard = "" if check.shard is None else str(check.shard)
        table.add_row(check.name, f"{check.value:.2g}", f"{check.limit:.2g}", shard, "ok" if check.passed else "FAILED")
    return table


def _bins_table(bins: "tuple[ProbabilityBin, ...] | None") -> "Table | None":
    from rich.table import Table

    if bins is None:
        return None
    table = Table(title="stored minus live log-probability, nats")
    for heading in ("live probability", "entries", "mean", "mean absolute", "largest"):
        table.add_column(heading, justify="right")
    for part in bins:
        errors = (part.errors.mean, part.errors.mean_absolute, part.errors.largest)
        figures = (f"{error:.2g}" for error in errors)
        table.add_row(f"{part.above:g} to {part.up_to:g}", f"{part.errors.entries:,}", *figures)
    return table


def _measures(measures: "Measures") -> list[str]:
    """Return the measures that are reported and not judged, as lines."""
    lines = [f"rows with the tokens that the live teacher would keep: {measures.same_tokens:.1%}"]
    if measures.top1_agreement is not None:
        lines.append(f"same likeliest token: {measures.top1_agreement:.1%}")
    if kl := measures.kl:
        lines.append(f"KL of a row: mean {kl.mean:.2g}, 99 % below {kl.p99:.2g}, largest {kl.largest:.2g} nats")
    if left_out := measures.left_out:
        lines.append(f"mass left out: mean error {left_out.mean:.2g}, largest {left_out.largest:.2g}")
    if excess := measures.excess_surprisal:
        lines.append(f"surprisal of the draws beyond the entropy: {excess.mean:.2g} ± {excess.standard_error:.2g} nats")
    return lines


def _worst_line(worst: "WorstPosition") -> str:
    return (
        f"worst: {worst.document_id}, sequence {worst.sequence_id}, row {worst.row}: "
        f"{worst.context!r}, then {worst.token!r}: stored {worst.stored:.3g}, live {worst.live:.3g}"
    )
