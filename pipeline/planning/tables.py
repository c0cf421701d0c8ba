"""A plan as tables for people; the same numbers as ``plan --json``."""

from rich.console import Console
from rich.table import Table

from cache_tools.escaping import printable
from cache_tools.quantities import counted, duration_words
from cache_tools.terminal.summary import context_words
from pipeline.planning.capture_plan import CapturePlan, TeacherPlan
from pipeline.planning.choices import FEWEST_SEQUENCES, KChoice
from pipeline.planning.fit import DeviceFit
from pipeline.planning.measure import Sample
from pipeline.planning.memory import SERVER, MemoryPlan
from pipeline.planning.plan import Stored
from pipeline.planning.scale import ShardSize, Simulation, StoreLoad

SAME_SIZE = 4
"""Factor within which the size of shards hardly matters."""


def print_plan(plan: CapturePlan) -> None:
    """Print the corpus, and the costs, the table of k and the simulation of each teacher, where there are any."""
    console = Console()
    splits = _table(counted(plan.documents, "document") + ("" if plan.exact else ", estimated"))
    _headings(splits, "split", "tokens", "positions", "shards")
    for split, extent in plan.splits.items():
        splits.add_row(split, f"{extent.tokens:,}", f"{extent.positions:,}", f"{extent.shards:,}")
    planned, recommended = plan.positions_per_shard, plan.recommended_positions_per_shard
    if not planned / SAME_SIZE < recommended < planned * SAME_SIZE:
        splits.caption = (
            f"Shards of {_positions(recommended)} positions would suit this corpus better than {_positions(planned)} "
            f"(encoding.positions_per_shard: {recommended}, or auto)."
        )
    console.print(splits)
    for sentence in context_words(plan.context):
        console.print(printable(sentence), highlight=False, markup=False, soft_wrap=True)
    for teacher in plan.teachers:
        how = "" if teacher.measured else " (rules of thumb; --measure measures)"
        costs = Table(title=f"teacher {teacher.name}{how}", show_header=False, title_justify="left")
        for row in _cost_rows(teacher):
            costs.add_row(*row)
        console.print(costs)
        if teacher.choices and teacher.measured_on:
            console.print(_choices(teacher.choices, teacher.measured_on))
        if teacher.simulation:
            for table in _simulation(teacher.simulation):
                console.print(table)


def _cost_rows(teacher: TeacherPlan) -> list[tuple[str, str]]:
    memory, whole, left = teacher.memory, teacher.whole.stored, teacher.remaining.cost.stored
    return [
        ("stored", _stored(whole)),
        *([("of which remain", _stored(left))] if left.objects != whole.objects else []),
        ("targets and scalars", f"{teacher.rates.target_bytes_per_position:.1f} bytes per position"),
        *([("engine", _engine(teacher.engine, memory))] if teacher.engine else []),
        ("hidden states", f"{teacher.rates.hidden_bytes_per_position:,.0f} bytes per position"),
        ("teacher", _hours(teacher)),
        *([("its weights", _quantised(teacher))] if teacher.quantisation else []),
        *(_of_device(teacher) if memory.device != SERVER else []),
        ("memory, host", _host_memory(memory)),
        ("a student reads", f"{_size(teacher.student_bytes_per_s)}/s"),
    ]


def _engine(name: str, memory: MemoryPlan) -> str:
    if name == SERVER:
        return "a server, which gives the likeliest tokens and the gold token only"
    line = f"{name}, in a process of its own"
    if memory.engine is None:
        return line
    engine, each = memory.engine, f" on each of {memory.engine.devices} devices" if memory.engine.devices > 1 else ""
    needs = f"the model needs {_size(engine.needed_bytes)}{each}"
    if engine.reserved_bytes is None:
        return f"{line}; reserves a share of a GPU ({engine.set_by}); {needs}"
    return f"{line}; reserves {_size(engine.reserved_bytes)}{each} ({engine.set_by}); {needs}"


def _of_device(teacher: TeacherPlan) -> list[tuple[str, str]]:
    memory = teacher.memory
    place = "this CPU" if memory.device == "cpu" else "device"
    devices = _devices(teacher.fit) if memory.engine is None else _engine_devices(teacher.fit, memory)
    return [(f"memory, {place}", _device_memory(memory)), ("devices needed", devices)]


def _quantised(teacher: TeacherPlan) -> str:
    head = "an ordinary matrix" if teacher.output_head is None else teacher.output_head
    return f"{teacher.quantisation}; output head: {head}"


def _stored(part: Stored) -> str:
    return f"{_size(part.stored_bytes)} in {counted(part.objects, 'object')}"


def _hours(teacher: TeacherPlan) -> str:
    hours, left, speed = teacher.whole.hours, teacher.remaining.cost.hours, teacher.rates.tokens_per_s
    if hours is None or speed is None:
        return "unknown: give --tokens-per-s, or --measure"
    rest = "" if left is None or left == hours else f", of which {duration_words(left * 3600)} remain"
    return f"{duration_words(hours * 3600)} at {speed:,.0f} tokens/s a worker{rest}"


WEIGHTS = {
    "ordinary": "weights",
    "quantised": "quantised weights",
    "dequantised": "dequantised weights",
    "unknown": "weights at most (quantised; their files are not here)",
}


def _host_memory(memory: MemoryPlan) -> str:
    kept, writing = _size(memory.kept_bytes), _size(memory.writing_bytes)
    return f"{_size(memory.host_bytes)}, of which {kept} kept predictions and {writing} to write them"


def _device_memory(memory: MemoryPlan) -> str:
    weights = f"{_size(memory.weights_bytes)} {WEIGHTS[memory.weights_are]}"
    if memory.engine is not None:
        matrix = f"{_size(memory.engine.output_matrix_bytes)} output matrix, {_size(memory.head_bytes)} head"
        return f"{_size(memory.device_bytes)} (the engine, and here {matrix})"
    parts = f"{weights}, {_size(memory.body_bytes)} body, {_size(memory.head_bytes)} head"
    total = memory.device_total_bytes
    fits = "" if total is None or total >= memory.device_bytes else f"; DOES NOT FIT into the {_size(total)} here"
    return f"{_size(memory.device_bytes)} ({parts}){fits}"


def _devices(fit: DeviceFit) -> str:
    """Return whether the teacher fits, and what to set if one device is too small."""
    if fit.fits is None or fit.device_memory_bytes is None:
        return "unknown: give --device-memory"
    size, needed = _size(fit.device_memory_bytes), fit.devices_needed
    if fit.device == "cpu":
        too_large = f"DOES NOT FIT this machine's {size}; for GPUs give --device-memory"
        return f"fits this machine's {size}" if fit.fits else too_large
    if needed is None:
        return f"DOES NOT FIT on any number of devices of {size}: a batch or a layer is too large; lower batch_tokens"
    if needed == 1:
        return f"one of {size}"
    ways = [f"tensor_parallel: {fit.tensor_parallel}"] * (fit.tensor_parallel is not None)
    ways += [f"device_map: auto with gpus: {fit.device_map_gpus}"] * (fit.device_map_gpus is not None)
    return f"at least {needed} of {size}: set {', or '.join(ways)}"


def _engine_devices(fit: DeviceFit, memory: MemoryPlan) -> str:
    """Return whether an engine and what stands beside it fit, and what to set if they do not."""
    engine = memory.engine
    if fit.fits is None or fit.device_memory_bytes is None or engine is None:
        return "unknown: give --device-memory"
    size, needed = _size(fit.device_memory_bytes), fit.devices_needed
    where = f"this machine's {size}" if fit.device == "cpu" else f"a device of {size}"
    if fit.fits:
        return f"fits {where}" if engine.devices == 1 else f"fits {engine.devices} of {size}"
    if needed is None:
        return f"DOES NOT FIT {where}: the engine reserves too little for the model; raise gpu_memory_utilization"
    if needed > engine.devices:
        return f"at least {needed} of {size}: set engine.options.tensor_parallel_size: {needed}"
    return f"DOES NOT FIT {where} beside the engine: lower gpu_memory_utilization in engine.options"


def _choices(choices: tuple[KChoice, ...], sample: Sample) -> Table:
    table = _table("what k keeps and costs")
    few = choices[0].kept_mass_standard_error is None
    too_few = f"too few for a standard error, which takes {FEWEST_SEQUENCES} sequences"
    error = too_few if few else "± is the standard error over sequences"
    table.caption = (
        f"Measured on {counted(sample.positions, 'position')} of {counted(sample.sequences, 'sequence')} "
        f"in {duration_words(sample.seconds)}; "
        f"{error}."
    )
    _headings(table, "k", "kept mass", "KL floor (nats)", "bytes per position")
    for row in choices:
        table.add_row(
            str(row.k),
            _with_error(row.kept_mass, row.kept_mass_standard_error, ".1%"),
            _with_error(row.kl_floor_nats, row.kl_floor_standard_error_nats, "#.3g"),
            f"{row.bytes_per_position:.1f}",
        )
    return table


def _with_error(value: float, standard_error: float | None, form: str) -> str:
    error = "" if standard_error is None else f" ± {standard_error:{'.1%' if '%' in form else '.1g'}}"
    return f"{value:{form}}{error}"


def _simulation(simulated: Simulation) -> list[Table]:
    runs, sides = _table(f"{counted(simulated.workers, 'worker')}, simulated"), (simulated.fixed, simulated.handed_out)
    _headings(runs, "shards are", "fixed by --rank", "handed out")
    hours = f"hours (without failures {simulated.ideal_hours or 0:,.2f})"
    runs.add_row(hours, *(f"{side.hours:,.2f}" for side in sides))
    runs.add_row("failures, shards redone", *(f"{side.failures:,}" for side in sides))
    runs.add_row("tokens read again", *(f"{side.redone_tokens:,}" for side in sides))
    runs.add_row("share of teacher time lost", *(f"{side.lost_share:.4%}" for side in sides))
    runs.add_row("hours from the first idle worker to the end", *(f"{side.tail_hours:,.2f}" for side in sides))
    runs.add_row("worker-hours idle", *(f"{side.idle_worker_hours:,.1f}" for side in sides))
    return [runs, _store(simulated.store), _shard_sizes(simulated.shard_sizes)]


def _store(load: StoreLoad) -> Table:
    table = _table(f"the store takes {counted(load.receipts, 'receipt')} and")
    _headings(table, "", "bytes", "PUTs")
    table.add_row("mean", f"{_size(load.mean_bytes_per_s)}/s", f"{load.mean_puts_per_s:,.1f}/s")
    busiest = _size(load.peak_minute_bytes_per_s)
    table.add_row("busiest minute", f"{busiest}/s", f"{load.peak_minute_puts_per_s:,.1f}/s")
    return table


def _shard_sizes(sizes: tuple[ShardSize, ...]) -> Table:
    table = _table("sizes of shards (expected)")
    _headings(table, "shard", "objects", "memory", "takes", "redone", "hours", "opened in", "")
    for row in sizes:
        table.add_row(
            _positions(row.positions_per_shard),
            _count(row.objects),
            _size(row.kept_bytes),
            f"{row.shard_seconds:,.1f} s",
            f"{row.redone_share:.3%}",
            f"{row.hours:,.2f}",
            f"{row.opening_seconds:,.0f} s",
            " ".join(["planned"] * row.planned + ["widest"] * row.best),
        )
    table.caption = (
        "widest: the fewest objects that cost at most 1% more hours. A student holds a window of shards. "
        "opened in: by each rank of a training, from a bucket that answers in 30 ms."
    )
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
