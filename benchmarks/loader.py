"""Compare the data path with the training step, padded and packed: ``python -m benchmarks.loader CONFIG``.

CONFIG is a student file, such as the demo's after ``logitcask demo``. For each way to lay out a batch:

- padding: share of a batch's tokens that are padding,
- loader: positions per second from the cache to finished batches, read, decoded and laid out,
  without workers and with two; in wall-clock time without the start of the workers,
- step: what a step takes (forward, backward, AdamW; processor seconds of one thread on a CPU), in positions per second,
  and its time relative to the padded step's.

A loader without workers takes its time from the step: the share of the two that waits is in the last column. With
workers the wait is next to nothing while they are faster than the step; training logs it as ``data_stall_share``.

Batches come in the order of training. Medians of rounds; every layout takes a step with a batch before the next batch.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cache_tools.codecs.registry import Targets
from cache_tools.configuration import load_config
from trainer.config.student_file import StudentConfig
from trainer.data.cached_sequences import CachedSequences, Example, collate
from trainer.data.opening import open_teachers
from trainer.data.packing import pack
from trainer.data.sampler import ShardWindowSampler
from trainer.student.cached_loss import vocabulary_size
from trainer.student.packing_check import check_packing
from trainer.student.student import DistilledStudent, build_student, distilled

Batch = dict[str, Tensor]
Collate = Callable[[list[Example]], Batch]


def layouts(row_tokens: tuple[int, ...]) -> dict[str, Collate]:
    """Return the ways to lay out a batch by name."""
    rows: dict[str, Collate] = {f"rows of {n:,}": partial(pack, row_tokens=n) for n in row_tokens}
    return {"padded": collate} | rows | {"one row": partial(pack, row_tokens=None)}


class CutSequences(CachedSequences):
    """Sequences cut to log-normal lengths, the same at each reading, as in a corpus of short and long documents."""

    median_tokens = 0

    def __getitem__(self, index: int) -> Example:
        whole = super().__getitem__(index)
        if not self.median_tokens:
            return whole
        drawn_tokens = self.median_tokens * np.exp(np.random.default_rng(index).normal(0, 0.8))
        tokens = int(np.clip(drawn_tokens, 4, len(whole.input_ids)))
        kept = int((whole.positions < tokens - 1).sum())
        ids, log_probs, left_out = whole.targets.ids, whole.targets.log_probs, whole.targets.log_left_out
        targets = Targets(ids[:kept], log_probs[:kept], left_out[:kept])
        return Example(whole.input_ids[:tokens], whole.positions[:kept], whole.gold_ids[:kept], targets)


def loader(dataset: CachedSequences, config: StudentConfig, collator: Collate, workers: int) -> DataLoader[Example]:
    """Return the loader of a run's first epoch."""
    sampler = ShardWindowSampler(dataset.shard_sizes, config.window_shards, seed=config.training.get("seed", 42))
    size = config.training.get("per_device_train_batch_size", 8)
    return DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=collator, num_workers=workers)


def positions_per_second(made: DataLoader[Example], batches: int) -> float:
    """Return positions per second of the clock over some batches, after one that is not counted."""
    waiting = iter(made)
    next(waiting)
    began = time.perf_counter()
    positions = sum(len(batch["target_ids"]) for batch in islice(waiting, batches))
    return positions / (time.perf_counter() - began)


def padding_share(batches: list[Batch]) -> float:
    """Return the share of the batches' tokens that are padding."""
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return 1 - real / sum(batch["attention_mask"].numel() for batch in batches)


def step_seconds(student: DistilledStudent, by_layout: dict[str, list[Batch]], device: str) -> dict[str, list[float]]:
    """Return the seconds of each step by layout, after one batch of each that is not counted."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in by_layout}
    for batches in zip(*by_layout.values(), strict=True):
        for name, batch in zip(by_layout, batches, strict=True):
            on_device = {key: tensor.to(device) for key, tensor in batch.items()}
            began = clock()
            optimizer.zero_grad()
            student(**on_device)["loss"].backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - began)
    return {name: values[1:] for name, values in seconds.items()}


def measure(
    config: StudentConfig, row_tokens: tuple[int, ...], batches: int, rounds: int, median_tokens: int
) -> list[dict[str, Any]]:
    """Measure every layout."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = open_teachers(config)[0]
    student = distilled(build_student(config.student, teacher.encoding), config.loss)
    nn.Module.to(student, device).train()
    dataset = CutSequences(teacher, "train", vocabulary_size(student.student), config.window_shards)
    dataset.median_tokens = median_tokens
    rates: dict[str, dict[int, list[float]]] = {name: {0: [], 2: []} for name in layouts(row_tokens)}
    by_layout: dict[str, list[Batch]] = {}
    for name, collator in layouts(row_tokens).items():
        by_layout[name] = list(islice(loader(dataset, config, collator, 0), batches + 1))
    check_packing(student.student, student.head, row_tokens[0] if row_tokens else None)
    seconds = step_seconds(student, by_layout, device)
    for _ in range(rounds):
        for name, collator in layouts(row_tokens).items():
            for workers, measured in rates[name].items():
                measured.append(positions_per_second(loader(dataset, config, collator, workers), batches))
    positions = sum(len(batch["target_ids"]) for batch in by_layout["padded"][1:])
    return [
        {
            "layout": name,
            "device": device,
            "padding_share": padding_share(by_layout[name]),
            "loader_positions_per_second": statistics.median(rates[name][0]),
            "loader_2_workers_positions_per_second": statistics.median(rates[name][2]),
            "step_positions_per_second": positions / sum(values),
            "step_ratio_to_padded": statistics.median(a / b for a, b in zip(values, seconds["padded"], strict=True)),
            "stall_share_without_workers": 1 / (1 + statistics.median(rates[name][0]) * sum(values) / positions),
        }
        for name, values in seconds.items()
    ]


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the student file.")
@click.option("--row-tokens", type=int, multiple=True, default=(256, 512, 1024), show_default=True)
@click.option("--batches", default=30, show_default=True, help="Batches of a round.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of the loader.")
@click.option("--median-tokens", default=0, help="Cut sequences to log-normal lengths of this median.")
@click.option("--json", "as_json", is_flag=True, help="Print one list of objects.")
def main(config: Path, overrides: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Measure loader and step of the student file CONFIG, padded and packed."""
    torch.set_num_threads(1)
    results = measure(load_config(config, StudentConfig, overrides), **how)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        _print_table(results)


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("layout", "padding", "loader pos/s", "2 workers", "step pos/s", "by padded", "stall, 0 workers"):
        table.add_column(heading, justify="left" if heading == "layout" else "right", no_wrap=True)
    for r in results:
        layout, _, padding, alone, workers, step, ratio, stall = r.values()
        rates = (f"{rate:,.0f}" for rate in (alone, workers, step))
        table.add_row(layout, f"{padding:.1%}", *rates, f"{ratio:.3f}", f"{stall:.1%}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
