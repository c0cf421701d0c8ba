"""Cost of several teachers and of other tokenizers: ``python -m benchmarks.mixing``.

Rows of ``loss`` take forward KL with the tail as one more outcome, forward and backward, from given logits:

- one teacher,
- two and three teachers mixed in one pass over the student's vocabulary, as losses and as distributions,
- a pass for each teacher, which is the obvious implementation.

``ratio`` is relative to one teacher in the same round. Rows of ``reading`` are the microseconds that one position takes
to be decoded from a cache, and to be given a student's ids by a table.

Targets are made up (``made_cache.py``): cost depends on shapes alone. Processor seconds of one thread; medians of
interleaved rounds.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.made_cache import make_cache
from cache_tools.codecs.registry import Targets
from cache_tools.vocabularies.union import IdMaps
from trainer.config.student_file import LossConfig
from trainer.data.translation import translated_targets
from trainer.losses.mixture import mixed_loss_terms, mixed_targets
from trainer.losses.sparse import loss_terms
from trainer.losses.tails import SparseTargets

LossOfLogits = Callable[[Tensor], Tensor]

READING_VOCABULARY = 152_000
LENGTH_TOKENS = 1025
SHARD_SEQUENCES = 8
LOSS = LossConfig()

# N: positions, V: vocabulary, T: teachers, k: slots of one


def random_targets(positions: int, vocabulary: int, k: int, seed: int) -> SparseTargets:
    """Return k different ids for each position, with probabilities that fall and a twentieth left out."""
    rng = np.random.default_rng(seed)
    ids_Nk = (rng.integers(vocabulary, size=(positions, 1)) + np.arange(k) * (vocabulary // k)) % vocabulary
    p_k = (np.arange(k) + 1.0) ** -1.2
    log_p_Nk = np.tile(np.log(0.95 * p_k / p_k.sum()), (positions, 1)).astype(np.float32)
    left_out_N = torch.full((positions,), float(np.log(0.05)))
    return SparseTargets(torch.from_numpy(ids_Nk), torch.from_numpy(log_p_Nk), left_out_N)


def one_by_one(logits_NV: Tensor, targets: list[SparseTargets], gold_N: Tensor) -> Tensor:
    """Return the loss of each teacher by itself, summed."""
    return torch.stack(
        [loss_terms(logits_NV, teacher_targets, gold_N, LOSS)[0].mean() for teacher_targets in targets]
    ).sum()


def mixed(logits_NV: Tensor, targets: list[SparseTargets], gold_N: Tensor, of: str) -> Tensor:
    """Return the loss of several teachers, equally weighted."""
    weights_NT = torch.full((len(gold_N), len(targets)), 1 / len(targets))
    if of == "losses":
        return mixed_loss_terms(logits_NV, targets, weights_NT, gold_N, LOSS)[0].mean()
    return loss_terms(logits_NV, mixed_targets(targets, weights_NT), gold_N, LOSS)[0].mean()


def losses(positions: int, vocabulary: int, k: int) -> dict[str, LossOfLogits]:
    """Return, by row, what turns the student's logits (N, V) into a loss."""
    gold_N = torch.arange(positions) % vocabulary
    teachers = [random_targets(positions, vocabulary, k, seed) for seed in range(3)]
    rows: dict[str, LossOfLogits] = {"one teacher": partial(one_by_one, targets=teachers[:1], gold_N=gold_N)}
    for t in (2, 3):
        given: dict[str, Any] = {"targets": teachers[:t], "gold_N": gold_N}
        rows |= {f"{t} teachers, {of}": partial(mixed, of=of, **given) for of in ("losses", "distributions")}
        rows[f"{t} teachers, a pass for each"] = partial(one_by_one, **given)
    return rows


def measure_losses(positions: int, vocabulary: int, k: int, rounds: int) -> list[dict[str, Any]]:
    """Return seconds by row, and their ratio to one teacher's."""
    rows, logits_NV = losses(positions, vocabulary, k), torch.randn(positions, vocabulary)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, loss in rows.items():
            own_NV = logits_NV.clone().requires_grad_()
            began = time.process_time()
            loss(own_NV).backward()  # type: ignore[no-untyped-call]
            seconds[name].append(time.process_time() - began)
    kept = {name: values[1:] for name, values in seconds.items()}
    return [
        {
            "name": name,
            "seconds": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, kept["one teacher"], strict=True)),
        }
        for name, values in kept.items()
    ]


def measure_reading(folder: Path, k: int, rounds: int) -> list[dict[str, Any]]:
    """Return microseconds per position of decoding a shard, and of giving it other ids."""
    teacher = make_cache(folder / "cache", 1, LENGTH_TOKENS, READING_VOCABULARY, k)
    rows = SHARD_SEQUENCES * (LENGTH_TOKENS - 1)
    stored = teacher.stored_targets(0, 0, rows)
    moved = np.random.default_rng(0).permutation(READING_VOCABULARY).astype(np.uint32)
    to = IdMaps(moved, moved)
    decoded: Targets = stored.decode(0, rows)
    work: dict[str, Callable[[], Any]] = {
        "decode": lambda: stored.decode(0, rows),
        "look ids up": lambda: translated_targets(decoded, to),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, act in work.items():
            began = time.process_time()
            act()
            seconds[name].append(time.process_time() - began)
    return [
        {"name": name, "microseconds_per_position": 1e6 * statistics.median(values[1:]) / rows}
        for name, values in seconds.items()
    ]


@click.command()
@click.option("--positions", default=2048, show_default=True)
@click.option("--vocabulary", default=32_000, show_default=True, help="Tokens of the student's vocabulary.")
@click.option("--k", default=64, show_default=True, help="Kept tokens of each teacher.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def main(positions: int, vocabulary: int, k: int, rounds: int, as_json: bool) -> None:
    """Measure the cost of several teachers and of other ids."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reading = measure_reading(Path(folder), k, rounds)
    result = {"loss": measure_losses(positions, vocabulary, k, rounds), "reading": reading}
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for row in result["loss"]:
        click.echo(f"{row['name']:<32} {row['seconds']:8.3f} s {row['ratio']:6.2f}")
    for row in result["reading"]:
        click.echo(f"{row['name']:<32} {row['microseconds_per_position']:8.2f} µs for each position")


if __name__ == "__main__":
    main()
