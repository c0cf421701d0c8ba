"""A plan as tables for people; the same numbers as ``plan --json``."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_plan(plan: dict[str, Any]) -> None:
    """Print the corpus, and of each teacher its costs, the table of k and the simulation, if there are."""
    console = Console()
    splits = _table(f"{plan['documents']:,} documents" + ("" if plan["exact"] else ", estimated"))
    _headings(splits, "split", "tokens", "positions", "shards")
    for split, totals in plan["splits"].items():
        splits.add_row(split, *(f"{value:,}" for value in totals.values()))
    console.print(splits)
    for teacher in plan["teachers"]:
        how = "" if teacher["measured"] else " (rules of thumb; --measure measures)"
        costs = Table(title=f"teacher {teacher['name']}{how}", show_header=False, title_justify="left")
        for row in _cost_rows(teacher):
            costs.add_row(*row)
        console.print(costs)
        if teacher["choices"]:
            console.print(_choices(teacher["choices"], teacher["measured_on"]))
        if "simulation" in teacher:
            for table in _simulation(teacher["simulation"]):
                console.print(table)


def _cost_rows(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    memory, left = teacher["memory"], teacher["remaining"]
    return [
        ("stored", _stored(teacher)),
        *([("of which remain", _stored(left))] if left["objects"] != teacher["objects"] else []),
        ("targets and scalars", f"{teacher['target_bytes_per_position']:.1f} bytes per position"),
        ("hidden states", f"{teacher['hidden_bytes_per_position']:,.0f} bytes per position"),
        ("teacher", _hours(teacher)),
        ("memory, " + ("this CPU" if memory["device"] == "cpu" else "device"), _device_memory(memory)),
        ("devices needed", _devices(teacher["fit"])),
        ("memory, host", _host_memory(memory)),
        ("a student reads", f"{_size(teacher['student_bytes_per_s'])}/s"),
    ]


def _stored(part: dict[str, Any]) -> str:
    return f"{_size(part['stored_bytes'])} in {part['objects']:,} objects"


def _hours(teacher: dict[str, Any]) -> str:
    if teacher["hours"] is None:
        return "unknown: give --tokens-per-s, or --measure"
    left = teacher["remaining"]["hours"]
    rest = "" if left == teacher["hours"] else f", {left:,.2f} remain"
    return f"{teacher['hours']:,.2f} hours at {teacher['tokens_per_s']:,.0f} tokens/s a worker{rest}"


def _host_memory(memory: dict[str, Any]) -> str:
    kept, writing = (_size(memory[f"{name}_bytes"]) for name in ("kept", "writing"))
    return f"{_size(memory['host_bytes'])}, of which {kept} kept predictions and {writing} to write them"


def _device_memory(memory: dict[str, Any]) -> str:
    parts = ", ".join(f"{_size(memory[f'{name}_bytes'])} {name}" for name in ("weights", "body", "head"))
    there = memory["device_total_bytes"]
    fits = "" if there is None or there >= memory["device_bytes"] else f"; DOES NOT FIT into the {_size(there)} here"
    return f"{_size(memory['device_bytes'])} ({parts}){fits}"


def _devices(fit: dict[str, Any]) -> str:
    """Return whether the teacher fits, and what to set if one device is too small."""
    if fit["fits"] is None:
        return "unknown: give --device-memory"
    size, needed = _size(fit["device_memory_bytes"]), fit["devices_needed"]
    if fit["device"] == "cpu":
        return (
            f"fits this machine's {size}"
            if fit["fits"]
            else f"DOES NOT FIT this machine's {size}; for GPUs give --device-memory"
        )
    if needed is None:
        return f"DOES NOT FIT on any number of devices of {size}: a batch or a layer is too large; lower batch_tokens"
    if needed == 1:
        return f"one of {size}"
    ways = [f"tensor_parallel: {fit['tensor_parallel']}"] * (fit["tensor_parallel"] is not None)
    ways += [f"device_map: auto with gpus: {fit['device_map_gpus']}"] * (fit["device_map_gpus"] is not None)
    return f"at least {needed} of {size}: set {', or '.join(ways)}"


def _choices(choices: list[dict[str, Any]], measured_on: dict[str, Any]) -> Table:
    table = _table("what k keeps and costs")
    few = choices[0]["kept_mass_standard_error"] is None
    error = "too few for a standard error, see --measure-seconds" if few else "± is the standard error over sequences"
    table.caption = (
        f"Measured on {measured_on['positions']:,} positions of {measured_on['sequences']:,} sequences in "
        f"{measured_on['seconds']:,.0f} s; {error}."
    )
    _headings(table, "k", "kept mass", "KL floor (nats)", "bytes per position")
    for row in choices:
        table.add_row(
            str(row["k"]),
            _with_error(row["kept_mass"], row["kept_mass_standard_error"], ".1%"),
            _with_error(row["kl_floor_nats"], row["kl_floor_standard_error_nats"], ".3g"),
            f"{row['bytes_per_position']:.1f}",
        )
    return table


def _with_error(value: float, standard_error: float | None, form: str) -> str:
    error = "" if standard_error is None else f" ± {standard_error:{'.1%' if '%' in form else '.1g'}}"
    return f"{value:{form}}{error}"


def _simulation(found: dict[str, Any]) -> list[Table]:
    runs = _table(f"{found['workers']:,} workers, simulated")
    _headings(runs, "shards are", "fixed by --rank", "handed out")
    for title, key, show in (
        ("hours (without failures " + f"{found['ideal_hours']:,.2f})", "hours", "{:,.2f}"),
        ("failures, shards redone", "failures", "{:,}"),
        ("tokens read again", "redone_tokens", "{:,}"),
        ("teacher time lost so", "lost_share", "{:.4%}"),
        ("hours from the first idle worker to the end", "tail_hours", "{:,.2f}"),
        ("worker-hours idle", "idle_worker_hours", "{:,.1f}"),
    ):
        runs.add_row(title, *(show.format(found[run][key]) for run in ("fixed", "handed_out")))
    return [runs, _store(found["store"]), _shard_sizes(found["shard_sizes"])]


def _store(found: dict[str, Any]) -> Table:
    table = _table(f"the store takes {found['receipts']:,} receipts and")
    _headings(table, "", "bytes", "PUTs")
    for title, key in (("mean", "mean"), ("busiest minute", "peak_minute")):
        table.add_row(title, f"{_size(found[f'{key}_bytes_per_s'])}/s", f"{found[f'{key}_puts_per_s']:,.1f}/s")
    return table


def _shard_sizes(sizes: list[dict[str, Any]]) -> Table:
    table = _table("sizes of shards (expected)")
    _headings(table, "shard", "objects", "of", "memory", "takes", "redone", "hours", "")
    for row in sizes:
        table.add_row(
            _positions(row["positions_per_shard"]),
            _count(row["objects"]),
            _size(row["bytes_per_object"]),
            _size(row["kept_bytes"]),
            f"{row['shard_seconds']:,.1f} s",
            f"{row['redone_share']:.3%}",
            f"{row['hours']:,.2f}",
            " ".join(["planned"] * row["planned"] + ["widest"] * row["best"]),
        )
    table.caption = "widest: the fewest objects that cost at most 1% more hours. A student holds a window of shards."
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")


def _headings(table: Table, first: str, *others: str) -> None:
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")


def _size(number_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number_bytes >= size:
            return f"{_short(number_bytes / size)} {unit}"
    return f"{_short(number_bytes / 1e3)} kB"


def _short(number: float) -> str:
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f}"


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _positions(number: int) -> str:
    return f"{number:,}" if number % 1024 else f"{number // 1024:,} Ki"
