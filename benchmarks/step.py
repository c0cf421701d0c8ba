"""Time and peak memory of one training step by loss: ``python -m benchmarks.step``.

A step is forward, backward and AdamW on the same kept positions for every row. ``fused`` rows
never hold the logits of a whole batch; the reference is the fused cross-entropy, the fastest
implementation that we have, and not a slow one. ``online`` rows run a live teacher of 1, 4
and 10 times the student's parameters and take the KL over the whole vocabulary, in the same chunks.

Times are medians of interleaved rounds, ratios medians of the rounds' own ratios; on the CPU, one
thread's processor time, so that other programs do not matter. Peak memory is
measured in a process of its own for each row, above what the process needed before the model
was made: on the CPU its resident memory, on a GPU torch's own count. Weights, gradients and Adam's
state are in it. ``loader`` is what one step's batch costs to read from the cache and decode.

``--student`` takes a model folder in place of random weights, and ``--teacher`` another one, which is then the only
live teacher. ``--bfloat16`` trains under autocast, as ``bf16: true`` does; ``--compile`` compiles the models.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from benchmarks.made_cache import SEQUENCES_PER_SHARD, make_cache
from benchmarks.peak import peak_bytes, resident_bytes
from benchmarks.step_models import LIVE, ONLINE, Sizes, made_student, made_teacher
from cache_tools.store.teacher import CachedTeacher
from trainer.config.student_file import LossConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.student.fused_loss import chunked_loss
from trainer.student.head import StudentHead
from trainer.student.student import distilled

Batch = dict[str, Tensor]
LossOfBatch = Callable[[Batch], Tensor]

BASELINE, PLAIN, LOADER = "fused cross-entropy", "plain cross-entropy", "loader"
CACHED = {
    "cached topk k={k}": (1.0, True),
    "cached topk k={k}, whole logits": (1.0, False),
    "cached topk k={k} + cross-entropy": (0.5, True),
}
"""Rows from the cache: weight of the KL, and whether fused."""


def names(sizes: Sizes) -> list[str]:
    """Return the rows in which a student is trained."""
    online_rows = [LIVE] if sizes.teacher else ONLINE
    return [BASELINE, PLAIN, *(name.format(k=sizes.k) for name in CACHED), *online_rows]


def loss_of(name: str, student: PreTrainedModel, sizes: Sizes, device: str) -> LossOfBatch:
    """Return the loss that a row minimises."""
    if name == PLAIN:
        return lambda batch: student(batch["input_ids"], batch["attention_mask"], labels=batch["input_ids"]).loss
    if name in (LIVE, *ONLINE):
        teacher = made_teacher(name, sizes, device)
        if sizes.compiled:
            teacher.compile()
        return online(student, teacher)
    weight, fused = {BASELINE: (0.0, True)}.get(name) or CACHED[name.replace(f"k={sizes.k}", "k={k}")]
    module = distilled(student, LossConfig(kd_weight=weight))
    module.head = module.head if fused else None
    if sizes.compiled:
        module.compile()
    return lambda batch: module(**batch)["loss"]


def online(student: PreTrainedModel, teacher: PreTrainedModel) -> LossOfBatch:
    """Return the mean KL(teacher || student) over the whole vocabulary, from a live teacher, chunk by chunk."""
    heads = [StudentHead.of(model) for model in (student, teacher)]
    assert heads[0] is not None
    assert heads[1] is not None
    head, teacher_head = heads[0], heads[1]

    def loss(batch: Batch) -> Tensor:
        kept = batch["gold_ids"] != IGNORED
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            seen_PD = teacher_head.run(teacher, inputs)[0][kept]

        def divergence(logits_NV: Tensor, rows: slice) -> dict[str, Tensor]:
            with torch.no_grad():
                log_p_NV = teacher_head.logits(teacher_head.matrix(seen_PD[rows])).float().log_softmax(dim=1)
            return {
                "loss": nn.functional.kl_div(logits_NV.log_softmax(dim=1), log_p_NV, reduction="sum", log_target=True)
            }

        total: Tensor = chunked_loss(head.run(student, inputs)[0][kept], head, divergence)["loss"]
        return total / len(seen_PD)

    return loss


def step_of(name: str, sizes: Sizes, device: str) -> Callable[[Batch], None]:
    """Make a row's student, optimizer and loss, and return what makes one step."""
    student = made_student(sizes, device)
    if sizes.compiled and name in (PLAIN, LIVE, *ONLINE):
        student.compile()
    loss = loss_of(name, student, sizes, device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=sizes.bfloat16):
            value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def batches(teacher: CachedTeacher, sizes: Sizes) -> list[Batch]:
    """Read the whole cache through a new reader, as one pass of training does."""
    dataset = CachedSequences(teacher, "train", sizes.vocabulary)
    starts = range(0, len(dataset), sizes.batch)
    return [collate([dataset[i] for i in range(start, start + sizes.batch)]) for start in starts]


def clock_of(device: str) -> Callable[[], float]:
    """Return the clock for steps on a device, in seconds."""
    return time.process_time if device == "cpu" else time.perf_counter


def measure_times(rows: list[str], sizes: Sizes, device: str, rounds: int, read: list[Batch]) -> dict[str, list[float]]:
    """Return the seconds of each round by row; rounds take every row in turn, after one that is not counted."""
    clock = clock_of(device)
    steps = {name: step_of(name, sizes, device) for name in rows}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        batch = {name: tensor.to(device) for name, tensor in read[number % len(read)].items()}
        for name, step in steps.items():
            started = clock()
            step(batch)
            seconds[name].append(clock() - started)
            print(f"round {number}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr)
    return {name: values[1:] for name, values in seconds.items()}


def measure_peak(name: str, sizes: Sizes, device: str, batch: Batch) -> int:
    """Return the peak bytes of two steps of one row, above what this process holds now."""
    where, before = torch.device(device), resident_bytes()
    step = step_of(name, sizes, device)
    on_device = {key: tensor.to(device) for key, tensor in batch.items()}
    for _ in range(2):
        step(on_device)
    return peak_bytes(where, before)


def _peak_in_own_process(name: str, sizes: Sizes, device: str, cache: Path) -> int:
    values = json.dumps([name, asdict(sizes), device, str(cache)])
    script = "import sys; from benchmarks.step import print_peak; print_peak(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", script, values], capture_output=True, text=True)
    if result.returncode:
        raise click.ClickException(f"{name}: {result.stderr}")
    return int(result.stdout)


def print_peak(values: str) -> None:
    """Measure one row's peak here and print it; ``values`` is what the parent process asks for, as JSON."""
    from cache_tools.store.reader import Cache

    torch.set_num_threads(1)
    name, sizes, device, cache = json.loads(values)
    teacher = Cache(Path(cache)).encoding().teacher()
    print(measure_peak(name, Sizes(**sizes), device, batches(teacher, Sizes(**sizes))[0]))


def measure(rows: list[str], sizes: Sizes, device: str, rounds: int) -> list[dict[str, Any]]:
    """Measure some rows, the fused cross-entropy among them."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        shards = -(-max(2, rounds) * sizes.batch // SEQUENCES_PER_SHARD)
        teacher = make_cache(cache, shards, sizes.length, sizes.vocabulary, sizes.k)
        peaks = {}
        for name in rows:
            print(f"peak memory: {name}", file=sys.stderr)
            peaks[name] = _peak_in_own_process(name, sizes, device, cache)
        clock = clock_of(device)
        started = clock()
        read = batches(teacher, sizes)
        loader_seconds = (clock() - started) / len(read)
        seconds = measure_times(rows, sizes, device, rounds, read) | {LOADER: [loader_seconds] * rounds}
    return [
        {
            "name": name,
            "device": device,
            "step_seconds": statistics.median(values),
            "peak_bytes": peaks.get(name, 0),
            "ratio_to_ce": statistics.median(a / b for a, b in zip(values, seconds[BASELINE], strict=True)),
            "peak_ratio_to_ce": peaks.get(name, 0) / peaks[BASELINE],
        }
        for name, values in seconds.items()
    ]


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Rounds that are counted.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--vocabulary", default=Sizes.vocabulary, show_default=True, help="Tokens of the vocabulary.")
@click.option("--hidden", default=Sizes.hidden, show_default=True, help="Width of the student.")
@click.option("--layers", default=Sizes.layers, show_default=True, help="Layers of the student.")
@click.option("--batch", default=Sizes.batch, show_default=True, help="Sequences per step.")
@click.option("--length", default=Sizes.length, show_default=True, help="Tokens per sequence.")
@click.option("--k", default=Sizes.k, show_default=True, help="Kept tokens of a position.")
@click.option("--student", type=click.Path(exists=True), help="Model folder of the student.")
@click.option("--teacher", type=click.Path(exists=True), help="Model folder of the live teacher.")
@click.option("--bfloat16", is_flag=True, help="Train under autocast.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the models.")
@click.option("--only", default="", help="Rows whose name begins so, and the fused cross-entropy.")
@click.option("--json", "as_json", is_flag=True, help="Print one list of objects.")
def main(rounds: int, device: str, only: str, as_json: bool, **options: Any) -> None:
    """Measure one training step by loss."""
    torch.set_num_threads(1)
    sizes = Sizes(**options)
    if sizes.student:
        sizes = replace(sizes, vocabulary=int(AutoConfig.from_pretrained(sizes.student).vocab_size))
    selected_rows = [name for name in names(sizes) if name == BASELINE or name.startswith(only)]
    results = measure(selected_rows, sizes, device, rounds)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        _print_table(results)


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("loss", "device", "step s", "by fused CE", "peak MB", "by fused CE"):
        table.add_column(heading, justify="left" if heading in ("loss", "device") else "right", no_wrap=True)
    for r in results:
        memory = (f"{r['peak_bytes'] / 1e6:,.0f}", f"{r['peak_ratio_to_ce']:.3f}") if r["peak_bytes"] else ("", "")
        table.add_row(r["name"], r["device"], f"{r['step_seconds']:.3f}", f"{r['ratio_to_ce']:.3f}", *memory)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
