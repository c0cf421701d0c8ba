"""``logitcask import`` and ``logitcask export``: rows of predictions from other tools, and for them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from cache_tools.cli_options import CacheType, FiniteRange

if TYPE_CHECKING:
    from cache_tools.exchange.draft_heads import DraftReport
    from cache_tools.exchange.exporting import ExportReport
    from cache_tools.exchange.summary import ImportReport
    from cache_tools.storage import StorePath


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("cache", type=CacheType())
@click.option(
    "--tokenizer",
    required=True,
    metavar="FOLDER_OR_ID",
    help="Tokenizer that the rows were made with: folder or hub id.",
)
@click.option("--revision", help="Revision of a tokenizer from the hub.")
@click.option("--teacher", default="imported", show_default=True, help="Name of the teacher in CACHE.")
@click.option("--encoding", default="imported", show_default=True, help="Name of the encoding in CACHE.")
@click.option(
    "--codec",
    "codec_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="DistillKit's YAML that describes compressed rows; by default the one beside the data.",
)
@click.option("--tokens-column", default="input_ids", show_default=True, help="Column of token ids.")
@click.option("--ids-column", default="token_ids", show_default=True, help="Column of predicted ids in plain rows.")
@click.option(
    "--logprobs-column", default="logprobs", show_default=True, help="Column of log-probabilities in plain rows."
)
@click.option(
    "--first-token",
    type=click.IntRange(0, 1),
    help="Token that a row's first prediction is about, counted from 0; by default the text decides.",
)
@click.option(
    "--vocabulary-size",
    type=click.IntRange(2, 2**32 - 1),
    help="Width of the teacher's logits; by default what the files state, or the tokenizer's size.",
)
@click.option(
    "--max-kl-nats",
    type=FiniteRange(1e-9, 0.1),
    default=5e-5,
    show_default=True,
    help="Error budget of storing: mean KL divergence of a shard, in nats.",
)
@click.option("--exact", is_flag=True, help="Store float32 log-probabilities without error instead.")
@click.option(
    "--held-out",
    type=FiniteRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the rows of files that becomes the held-out split.",
)
@click.option(
    "--mass-tolerance",
    type=FiniteRange(0, 1),
    help="How far a prediction's probabilities may exceed 1; by default 0.001, of compressed rows 0.01.",
)
@click.option(
    "--positions-per-shard",
    type=click.IntRange(1, 2**22),
    default=131_072,
    show_default=True,
    help="Positions of a shard, the unit of work and of repair.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def import_command(
    source: Path,
    cache: "StorePath",
    tokens_column: str,
    ids_column: str,
    logprobs_column: str,
    held_out: float,
    positions_per_shard: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Import the rows of predictions in SOURCE, a file or folder, into CACHE.

    Reads DistillKit's packed, legacy and raw rows, Axolotl's prepared rows, and Parquet or Arrow files with columns of
    token ids and log-probabilities. Reports what the rows look like: alignment, mass, order, temperature. If it was
    stopped, the same command continues.

    \b
    Example:
        logitcask import logits/ runs/qwen/cache --tokenizer Qwen/Qwen3-8B
    """
    from cache_tools.exchange.importing import import_rows
    from cache_tools.exchange.plan import ImportOptions
    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from cache_tools.row_files.formats import Columns

    columns = Columns(tokens_column, ids_column, logprobs_column)
    asked = ImportOptions(
        columns=columns,
        held_out_fraction=held_out,
        positions_per_shard=positions_per_shard,
        chunk_positions=chunk_of(positions_per_shard),
        **options,
    )
    with open_reporter() as reporter:
        report = import_rows(source, cache, asked, reporter)
    click.echo(json_text(report) if as_json else "\n".join(report_lines(report)))


def chunk_of(positions_per_shard: int) -> int:
    """Return how many positions an inner chunk has: the largest power of two up to 4,096 that divides a shard."""
    return min(4096, positions_per_shard & -positions_per_shard)


def report_lines(report: "ImportReport") -> list[str]:
    """Return a report as lines of text."""
    first = report.first_token
    alignment = "the files name positions" if first is None else f"a row begins with the prediction of token {first}"
    decided = {"text": f" (by the text, {report.gain_nats:.2f} nats per token)", "numbers": " (by the numbers of rows)"}
    temperature = "" if report.temperature is None else f", as if divided by {report.temperature:.2f}"
    lines = [
        f"format       {report.format}, {report.files} file{'s' if report.files > 1 else ''}",
        f"rows         {report.sequences:,} sequences, {report.tokens:,} tokens, {report.positions:,} predictions",
        f"alignment    {alignment}{decided.get(report.decided_by, '')}",
        f"tokenizer    {report.token_agreement:.1%} of the sampled tokens come back from their text",
        f"predictions  up to {report.k} tokens, mass {report.kept_mass:.4f}{temperature}",
        f"bytes        {report.source_bytes_per_position:.0f} per position in the files, "
        f"{report.bytes_per_position:.0f} in the cache",
        f"error        {report.codec_kl_nats:.2g} nats of KL made by storing",
    ]
    return lines + [f"note: {note}" for note in report.notes]


@click.command("export")
@click.argument("cache", type=CacheType())
@click.argument("target", type=CacheType())
@click.option(
    "--format",
    "name",
    type=click.Choice(
        ["rows", "distillkit", "distillkit-raw", "distillkit-legacy", "axolotl", "speculators", "specforge"]
    ),
    default="rows",
    show_default=True,
    help="Format of the files; 'rows' is Parquet with everything that the teacher keeps but hidden states, the last "
    "two are hidden states for training draft heads.",
)
@click.option("--teacher", help="Teacher to export, if there are several.")
@click.option("--encoding", help="Encoding that the teacher reads, if there are several.")
@click.option("--split", type=click.Choice(["train", "held_out"]), help="Export this split only.")
@click.option(
    "--codec",
    "codec_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="DistillKit's YAML that describes compressed rows; by default they are stored as float32.",
)
@click.option(
    "--layers",
    callback=lambda _, __, text: None if text is None else tuple(layer.strip() for layer in text.split(",")),
    metavar="NUMBERS",
    help="The three auxiliary layers of a draft head, as '2,16,29'; by default those that the teacher keeps.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Folder of the teacher, which holds its final norm; speculators needs it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def export_command(
    cache: "StorePath",
    target: "StorePath",
    name: Any,
    teacher: str | None,
    encoding: str | None,
    split: Any,
    codec_file: Path | None,
    layers: tuple[str, ...] | None,
    model: Path | None,
    as_json: bool,
) -> None:
    """Export a teacher of CACHE as files in the folder TARGET.

    Writes one Parquet file for each shard, for DistillKit, for Axolotl, or with plain columns that any tool and
    'logitcask import' read; or hidden states, one file for each sequence, for the trainers of draft heads speculators
    and SpecForge. If it was stopped, the same command continues.

    \b
    Example:
        logitcask export runs/demo/cache runs/demo/rows --teacher toy
    """
    from cache_tools.configuration import load_config
    from cache_tools.exchange.draft_heads import export_states
    from cache_tools.exchange.draft_states import DraftOptions
    from cache_tools.exchange.exporting import export_rows
    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
    from cache_tools.row_files.draft_files import Trainer
    from cache_tools.store.reader import Cache

    codec: PackedCodec | LegacyCodec | None = None
    if codec_file is not None:
        if not name.startswith("distillkit") or name == "distillkit-raw":
            raise click.UsageError(f"--codec describes compressed rows of DistillKit, not the format {name}")
        codec = load_config(codec_file, PackedCodec) if name == "distillkit" else load_config(codec_file, LegacyCodec)
    if name not in get_args(Trainer) and (layers is not None or model is not None):
        raise click.UsageError(f"--layers and --model belong to hidden states, not to the format {name}")
    opened = Cache(cache).encoding(encoding).teacher(teacher)
    if name in get_args(Trainer):
        with open_reporter() as reporter:
            states = export_states(opened, target, DraftOptions(name, layers, model, split), reporter)
        click.echo(json_text(states) if as_json else "\n".join(states_lines(states)))
        return
    with open_reporter() as reporter:
        report = export_rows(opened, target, name, reporter, split, codec)
    click.echo(json_text(report) if as_json else "\n".join(rows_lines(report)))


def rows_lines(report: "ExportReport") -> list[str]:
    """Return a report on exported rows as lines of text."""
    from cache_tools.quantities import counted

    counts = (
        counted(report.files, "file"),
        counted(report.sequences, "sequence"),
        counted(report.positions, "prediction"),
    )
    sizes = report.bytes_per_position, report.cache_bytes_per_position
    return [
        f"{report.target}: {', '.join(counts)}",
        f"{sizes[0]:.0f} bytes per position in the files, {sizes[1]:.0f} in the cache",
    ]


def states_lines(report: "DraftReport") -> list[str]:
    """Return a report on exported hidden states as lines of text."""
    numbers = " ".join(map(str, report.layer_ids))
    if report.format == "speculators":
        use = f"--target-layer-ids {numbers} --train-data-ratio {report.training_share:.6g} --on-missing raise"
    else:
        use = f"model.aux_hidden_state_layer_ids=[{numbers.replace(' ', ',')}]"
    sizes = report.bytes_per_value, report.cache_bytes_per_value
    checked = f"nearest row {report.error_nats:.2g} nats, tolerance {report.tolerance_nats:.2g}"
    return [
        f"{report.target}: {report.sequences:,} sequences, {report.tokens:,} tokens",
        f"checked  the last states give the stored log-probabilities ({checked})",
        f"bytes    {sizes[0]:.2f} per value in the files, {sizes[1]:.2f} in the cache",
        f"train    with {use}",
    ]
