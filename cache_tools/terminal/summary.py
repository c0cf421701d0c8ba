"""What ``logitcask inspect`` prints: a table of splits, one for each teacher, one for each teacher's groups."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools.escaping import printable
from cache_tools.terminal.bidi import isolated
from cache_tools.terminal.sequence import shortened

FINGERPRINT_DIGITS = 12
AT_TEMPERATURE = "codec_kl_nats_t"
"""Beginning of the statistics that hold the codec's error at a declared temperature."""

GROUPS = 20
"""Groups of documents that are listed."""


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what ``summarise`` returned."""
    for encoding in summary["encodings"]:
        console.print(_splits_table(encoding))
        for teacher in encoding["teachers"]:
            console.print(_teacher_table(teacher))
            if (teacher["sample"] or {}).get("groups"):
                console.print(_groups_table(teacher))
    if not summary["encodings"]:
        console.print("This cache is empty: no encoding has been committed yet.")


def _splits_table(encoding: dict[str, Any]) -> Table:
    table = Table(
        title=f"encoding {encoding['name']} · {encoding['objective']} · vocabulary {encoding['vocabulary_size']:,}",
        caption=f"fingerprint {encoding['fingerprint'][:FINGERPRINT_DIGITS]}" + _without_beginning(encoding),
    )
    for column in ("split", "documents", "sequences", "tokens", "positions", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, totals in encoding["splits"].items():
        table.add_row(name, *(f"{value:,}" for value in totals.values()))
    return table


def _without_beginning(encoding: dict[str, Any]) -> str:
    cut = encoding["chat_sequences_without_beginning"]
    return f"\n{cut:,} sequences begin in the middle of a long chat, so their prompt was not read" if cut else ""


def _teacher_table(teacher: dict[str, Any]) -> Table:
    table = Table(title=f"teacher {teacher['name']}", show_header=False)
    for key, value in _teacher_rows(teacher):
        table.add_row(Text(key), Text(printable(value)))
    share = (teacher["sample"] or {}).get("contradicting")
    if share:
        table.add_row(Text("CONTRADICTION", style="bold red"), Text(_contradiction(share), style="bold red"))
    return table


def _groups_table(teacher: dict[str, Any]) -> Table:
    groups = teacher["sample"]["groups"]
    of = f", the largest {GROUPS} of {len(groups)}" if len(groups) > GROUPS else ""
    table = Table(title=Text(f"documents by {teacher['name']}, {sample_words(teacher['sample'])}{of}"))
    for column in ("group", "positions", "loss", "entropy", "ppl", "kept", "right", "ECE"):
        table.add_column(column, justify="left" if column == "group" else "right", overflow="fold")
    for row in groups[:GROUPS]:
        shares = ("" if row[key] is None else f"{row[key]:.1%}" for key in ("kept_mass", "accuracy", "ece"))
        perplexity = "infinite" if row["perplexity"] is None else f"{row['perplexity']:.1f}"
        numbers = (
            f"{row['positions']:,}",
            number_words(row["loss_nats"]),
            number_words(row["entropy_nats"]),
            perplexity,
        )
        cells = (isolated(shortened(printable(row["group"]))), *numbers, *shares)
        table.add_row(*map(Text, cells))
    return table


def _teacher_rows(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    model, target = teacher["model"], teacher["target"]
    rows = [
        ("model", model_words(model)),
        ("fingerprint", teacher["fingerprint"][:FINGERPRINT_DIGITS]),
        ("target", f"{target['kind']}, k = {target['k']}, {codec_words(target['codec'])}"),
        ("captured", progress_words(teacher)),
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
                means_words(means)
                + _error("codec error", means.get("codec_kl_nats"), "nats")
                + "".join(
                    _error(f"at T = {name.removeprefix(AT_TEMPERATURE)}", value, "nats")
                    for name, value in means.items()
                    if name.startswith(AT_TEMPERATURE) and value is not None
                )
                + (f" · {skipped:,.0f} skipped" if (skipped := means.get("skipped_positions")) is not None else ""),
            )
        )
    rows += [(f"  hidden {layer}", _hidden(layer, spec, teacher)) for layer, spec in teacher["hidden"].items()]
    rows += [("made by", maker_words(maker)) for maker in teacher["made_by"]]
    if teacher["sample"]:
        rows.append(("calibration", _calibration(teacher["sample"])))
    return rows


def model_words(model: dict[str, Any]) -> str:
    """Return what a manifest says of its model, for people, as one phrase; a stranger's may say anything."""
    name, architecture, dtype = (str(model.get(key, "?")) for key in ("name", "architecture", "dtype"))
    parameters = model.get("parameters")
    count = f"{parameters:,}" if isinstance(parameters, int) else "?"
    return f"{name} · {architecture} · {count} parameters · {dtype}"


def means_words(means: dict[str, float | None]) -> str:
    """Return a split's means as one phrase; a name that the receipts lack is left out."""
    loss, perplexity, kept_mass = (means.get(key) for key in ("cross_entropy_nats", "perplexity", "kept_mass"))
    words = f"cross-entropy {_nats(loss)}" + ("" if perplexity is None else f" (perplexity {perplexity:.1f})")
    words += f" · entropy {_nats(means.get('entropy_nats'))}"
    return words + ("" if kept_mass is None else f" · kept mass {kept_mass:.1%}")


def codec_words(codec: dict[str, Any]) -> str:
    """Return a codec as one phrase."""
    settings = ", ".join(f"{key} {_setting(value)}" for key, value in codec.items() if key != "name")
    return f"{codec['name']} ({settings})" if settings else str(codec["name"])


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
        errors = [m.get(f"hidden_{layer}_{name}") for m in teacher["statistics"].values()]
        errors = [error for error in errors if error is not None]
        if errors:
            text += f", {max(errors):.1e} {unit}"
    return text


def _calibration(sample: dict[str, Any]) -> str:
    found = sample["calibration"]
    if found is None:
        return "not known from draws"
    return (
        f"right {found['accuracy']:.1%} of the time at a mean confidence of {found['confidence']:.1%}, "
        f"ECE {found['ece']:.1%} over {len(found['bins'])} bins; {sample_words(sample)}"
    )


def _contradiction(share: float) -> str:
    return (
        f"{share:.1%} of the sampled rows cannot be this teacher's: they contradict the gold log-probability or the "
        "entropy beside them. Run 'logitcask verify --deep'; do not train on this cache"
    )


def _error(name: str, value: float | None, unit: str) -> str:
    return "" if value is None else f" · {name} {value:.1e} {unit}"


def _nats(value: float | None) -> str:
    return f"{number_words(value)}{'' if value is None else ' nats'}"


def number_words(value: float | None) -> str:
    """Return a mean in nats; None is an infinite one."""
    return "infinite" if value is None else f"{value:.3f}"


def progress_words(teacher: dict[str, Any]) -> str:
    """Return how far a capture is; of an unfinished one also how much is left."""
    done, expected = teacher["positions"], teacher["positions_expected"]
    words = f"{teacher['shards_done']} of {teacher['shards']} shards, {done:,} positions"
    if done == expected or not expected:
        return words
    words += f" ({done / expected:.1%})"
    seconds = sum(maker["seconds"] for maker in teacher["made_by"])
    if seconds and done:
        words += f"; the rest takes one such worker about {duration_words(seconds * (expected / done - 1))}"
    return words


def duration_words(seconds: float) -> str:
    """Return a time span in its two largest units: ``3 h 20 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def maker_words(maker: dict[str, Any]) -> str:
    """Return who wrote a group of arrays."""
    who = " · ".join(
        str(value) if key in ("software", "device") else f"{key} {value}"
        for key, value in maker.items()
        if key not in ("group", "shards", "positions", "seconds")
    )
    speed = f" · {maker['positions'] / maker['seconds']:,.0f} positions/s" if maker["seconds"] else ""
    return f"{maker['group']}: {who} · {maker['shards']} shards{speed}"


def sample_words(sample: dict[str, Any]) -> str:
    """Return what a sample is a sample of."""
    if sample["positions"] == sample["of_positions"]:
        return f"all {sample['positions']:,} positions"
    return f"a sample of {sample['positions']:,} of {sample['of_positions']:,} positions, seed {sample['seed']}"
