"""What ``logitcask inspect`` prints: a table of splits, one for each teacher, one for each teacher's groups."""

from collections.abc import Mapping
from textwrap import shorten

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools.escaping import printable
from cache_tools.format.manifest import HiddenSpec, Policy, Split, SplitTotals
from cache_tools.inspection.summary import (
    CacheSummary,
    EncodingFacts,
    Maker,
    SampleSize,
    SampleSummary,
    TeacherFacts,
    TeacherSummary,
)
from cache_tools.quantities import counted, duration_words
from cache_tools.terminal.bidi import isolated
from cache_tools.terminal.sequence import shortened

FINGERPRINT_DIGITS = 12
AT_TEMPERATURE = "codec_kl_nats_t"
"""What the names of statistics begin with that hold the codec's error at a declared temperature."""

TEMPLATE_CHARACTERS = 80

GROUPS = 20
"""How many groups of documents are listed."""


def print_summary(console: Console, summary: CacheSummary) -> None:
    """Print what a cache holds."""
    for encoding in summary.encodings:
        console.print(_splits_table(encoding.facts))
        for sentence in (*writer_words(encoding.facts), *context_words(encoding.facts.context)):
            console.print(printable(sentence), highlight=False, markup=False, soft_wrap=True)
        for teacher in encoding.teachers:
            console.print(_teacher_table(teacher, encoding.facts.splits))
            if teacher.sample and teacher.sample.groups:
                console.print(_groups_table(teacher.facts.name, teacher.sample))
        if encoding.facts.alignments:
            names = ", ".join(map(printable, encoding.facts.alignments))
            console.print(f"aligned with other tokenizers: {names}", highlight=False, markup=False, soft_wrap=True)
        if not encoding.teachers:
            console.print("No teacher's predictions yet: 'logitcask capture' with the capture file adds them.")
    if not summary.encodings:
        console.print("This cache is empty: no encoding has been committed yet.")


def _splits_table(encoding: EncodingFacts) -> Table:
    table = Table(
        title=f"encoding {encoding.name} · {encoding.objective} · vocabulary {encoding.vocabulary_size:,}",
        caption=f"fingerprint {encoding.fingerprint[:FINGERPRINT_DIGITS]}" + _without_beginning(encoding),
    )
    for column in ("split", "documents", "sequences", "tokens", "positions", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, totals in encoding.splits.items():
        counts = (totals.documents, totals.sequences, totals.tokens, totals.positions, totals.shards)
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _without_beginning(encoding: EncodingFacts) -> str:
    count = encoding.chat_sequences_without_beginning
    if not count:
        return ""
    begin = f"{counted(count, 'sequence')} {'begins' if count == 1 else 'begin'}"
    return f"\n{begin} in the middle of a long chat, so the prompt was not read"


def context_words(context: Mapping[str, str]) -> list[str]:
    """Return a sentence on what only teachers read; none if students read the same.

    Args:
        context: Templates by key of ``corpus.context``.
    """
    if not context:
        return []
    named = ", ".join(
        f"{key} {shorten(value, TEMPLATE_CHARACTERS, placeholder=' …')!r}" for key, value in context.items()
    )
    return [f"Teachers read a context that students do not: {named}"]


def writer_words(encoding: EncodingFacts) -> list[str]:
    """Return a sentence on each model that wrote text of an encoding; none for text of which no writer is recorded."""
    sentences = [f"written by {model_words(policy.model)} · {policy_words(policy)}" for policy in encoding.written_by]
    return sentences if encoding.wholly_written or not sentences else [*sentences, "and text without a recorded writer"]


def policy_words(policy: Policy) -> str:
    """Return how a model drew the tokens of its text, and whose student it is, as one phrase."""
    sampling = policy.sampling
    words = [f"temperature {sampling.temperature:g}"]
    words += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    words += [f"top_k {sampling.top_k}"] if sampling.top_k else []
    words += [f"at most {counted(sampling.max_new_tokens, 'token')}", f"seed {sampling.seed}"]
    if policy.student is not None:
        step = "" if policy.student.step is None else f" at step {policy.student.step:,}"
        words.append(f"student of run {policy.student.run[:FINGERPRINT_DIGITS]}{step}")
    weights = "unknown" if policy.weights is None else policy.weights[:FINGERPRINT_DIGITS]
    stated = "" if policy.engine is None or policy.weights is None else " (of the folder that was named as served)"
    return ", ".join(words) + f" · weights {weights}{stated}"


def _teacher_table(teacher: TeacherSummary, splits: Mapping[Split, SplitTotals]) -> Table:
    table = Table(title=f"teacher {teacher.facts.name}", show_header=False)
    for key, value in _teacher_rows(teacher, splits):
        table.add_row(Text(key), Text(printable(value)))
    share = teacher.sample and teacher.sample.contradicting
    if share:
        table.add_row(Text("CONTRADICTION", style="bold red"), Text(_contradiction(share), style="bold red"))
    return table


def _groups_table(teacher: str, sample: SampleSummary) -> Table:
    groups = sample.groups or ()
    of = f", the largest {GROUPS} of {len(groups)}" if len(groups) > GROUPS else ""
    table = Table(title=Text(f"documents by {teacher}, {sample_words(sample.size)}{of}"))
    for column in ("group", "positions", "loss", "entropy", "ppl", "kept", "right", "ECE"):
        table.add_column(column, justify="left" if column == "group" else "right", overflow="fold")
    for row in groups[:GROUPS]:
        shares = ("" if share is None else f"{share:.1%}" for share in (row.kept_mass, row.accuracy, row.ece))
        perplexity = "infinite" if row.perplexity is None else f"{row.perplexity:.1f}"
        numbers = (f"{row.positions:,}", number_words(row.loss_nats), number_words(row.entropy_nats), perplexity)
        table.add_row(*map(Text, (isolated(shortened(printable(row.group))), *numbers, *shares)))
    return table


def _teacher_rows(teacher: TeacherSummary, splits: Mapping[Split, SplitTotals]) -> list[tuple[str, str]]:
    """Return the table of a teacher: (name, value) for each line."""
    facts = teacher.facts
    codec = codec_words(facts.target.codec)
    rows = [
        ("model", model_words(facts.model)),
        ("fingerprint", facts.fingerprint[:FINGERPRINT_DIGITS]),
        ("target", f"{facts.target.kind}, k = {facts.target.k}, {codec}"),
        ("captured", progress_words(facts)),
    ]
    if not facts.positions:
        return rows
    rows.append(("stored", f"{facts.stored_bytes:,} bytes · {facts.bytes_per_position:.1f} per position"))
    for name, size in facts.bytes_by_array.items():
        rows.append((f"  {name}", f"{size / facts.positions:.1f} bytes per position"))
    for split, totals in splits.items():
        if means := facts.statistics.get(split):
            captured = positions_words(facts.positions_by_split[split], totals.positions)
            rows.append((split, f"{_statistics_words(means)} · {captured}"))
    rows += [(f"  hidden {layer}", _hidden(layer, spec, facts)) for layer, spec in facts.hidden.items()]
    rows += [("made by", maker_words(maker)) for maker in facts.made_by]
    if teacher.sample:
        rows.append(("calibration", _calibration(teacher.sample)))
    return rows


def _statistics_words(means: Mapping[str, float | None]) -> str:
    """Return a split's means and the codec's errors as one phrase."""
    errors = [_error("codec error", means.get("codec_kl_nats"), "nats")]
    errors += [
        _error(f"at T = {name.removeprefix(AT_TEMPERATURE)}", value, "nats")
        for name, value in means.items()
        if name.startswith(AT_TEMPERATURE)
    ]
    skipped, off_grid = means.get("skipped_positions"), means.get("off_grid_positions")
    counts = ["" if skipped is None else f" · {skipped:,.0f} skipped"]
    counts += ["" if off_grid is None else f" · {off_grid:,.0f} off the grid of their logits"]
    return means_words(means) + "".join(errors + counts)


def model_words(model: Mapping[str, object]) -> str:
    """Return a manifest's description of its model as one phrase; a stranger's manifest may hold any values."""
    name, architecture, dtype = (str(model.get(key, "?")) for key in ("name", "architecture", "dtype"))
    parameters = model.get("parameters")
    count = f"{parameters:,}" if isinstance(parameters, int) else "?"
    stored = f" · from {model['quantisation']}" if "quantisation" in model else ""
    reader = f" · read by {model['engine']}" if "engine" in model else ""
    return f"{name} · {architecture} · {count} parameters · {dtype}{stored}{reader}"


def means_words(means: Mapping[str, float | None]) -> str:
    """Return a split's means as one phrase; a mean that the receipts lack is left out."""
    perplexity, kept_mass = means.get("perplexity"), means.get("kept_mass")
    words = []
    if "cross_entropy_nats" in means:
        loss = f"cross-entropy {_nats(means['cross_entropy_nats'])}"
        words.append(loss + ("" if perplexity is None else f" (perplexity {perplexity:.1f})"))
    if "entropy_nats" in means:
        words.append(f"entropy {_nats(means['entropy_nats'])}")
    return " · ".join(words + ([] if kept_mass is None else [f"kept mass {kept_mass:.1%}"]))


def codec_words(codec: Mapping[str, object]) -> str:
    """Return a codec as one phrase."""
    settings = ", ".join(f"{key} {_setting(value)}" for key, value in codec.items() if key != "name")
    return f"{codec['name']} ({settings})" if settings else str(codec["name"])


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hidden(layer: str, spec: HiddenSpec, teacher: TeacherFacts) -> str:
    words = f"{spec.width} values, {spec.codec}"
    positions = teacher.positions_by_group.get(f"hidden/{layer}", 0)
    if positions:
        size = teacher.bytes_by_array.get(f"hidden/{layer}", 0)
        words += f", {size / positions / spec.width:.2f} bytes per value"
    if positions < teacher.positions:
        words += f", {positions:,} of {teacher.positions:,} positions"
    for name, unit in (("kl_nats", "nats of KL"), ("relative_error", "relative error")):
        means = [split.get(f"hidden_{layer}_{name}") for split in teacher.statistics.values()]
        errors = [error for error in means if error is not None]
        if errors:
            words += f", {max(errors):.1e} {unit}"
    return words


def _calibration(sample: SampleSummary) -> str:
    calibration = sample.calibration
    if calibration is None:
        return "unknown, because the targets are draws"
    return (
        f"right {calibration.accuracy:.1%} of the time at a mean confidence of {calibration.confidence:.1%}, "
        f"ECE {calibration.ece:.1%} over {len(calibration.bins)} bins; {sample_words(sample.size)}"
    )


def _contradiction(share: float) -> str:
    return (
        f"{share:.1%} of the sampled rows contradict the gold log-probability or the entropy stored beside them, so "
        "they are not this teacher's predictions. Run 'logitcask verify --deep', and do not train on this cache"
    )


def _error(name: str, value: float | None, unit: str) -> str:
    return "" if value is None else f" · {name} {value:.1e} {unit}"


def _nats(value: float | None) -> str:
    return f"{number_words(value)}{'' if value is None else ' nats'}"


def number_words(value: float | None) -> str:
    """Return a mean in nats; None is an infinite mean."""
    return "infinite" if value is None else f"{value:.3f}"


def progress_words(teacher: TeacherFacts) -> str:
    """Return how much of a capture is done; of an unfinished one also how long the rest takes."""
    done, expected = teacher.positions, teacher.positions_expected
    words = f"{teacher.shards_done:,} of {counted(teacher.shards, 'shard')}, {positions_words(done, expected)}"
    if done == expected or not expected:
        return words
    seconds = sum(maker.seconds for maker in teacher.made_by)
    if seconds and done:
        words += f"; the rest takes one such worker about {duration_words(seconds * (expected / done - 1))}"
    return words


def positions_words(done: int, expected: int) -> str:
    """Return how many positions are captured; of an unfinished capture also of how many."""
    if done == expected or not expected:
        return counted(done, "position")
    return f"{done:,} of {counted(expected, 'position')} ({done / expected:.1%})"


def maker_words(maker: Maker) -> str:
    """Return who wrote a group of arrays, and how fast."""
    made_with = " · ".join(
        str(value) if key in ("software", "device") else f"{key} {value}" for key, value in maker.made_with.items()
    )
    speed = f" · {maker.positions / maker.seconds:,.0f} positions/s" if maker.seconds else ""
    return f"{maker.group}: {made_with} · {counted(maker.shards, 'shard')}{speed}"


def sample_words(sample: SampleSize) -> str:
    """Return how large a sample is."""
    if sample.positions == sample.of_positions:
        return f"all {counted(sample.positions, 'position')}"
    return f"a sample of {sample.positions:,} of {counted(sample.of_positions, 'position')}, seed {sample.seed}"
