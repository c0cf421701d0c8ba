"""Bytes, error and speed of stored hidden states, scheme by scheme: ``python -m benchmarks.hidden``.

Transforms are calibrated on some documents and measured on others. Bytes per value are those of the chain in
``arrays.py`` (blosc with zstd and shuffle, crc32c and index entry of 20 bytes a chunk), at
chunks of 4,096 rows over the whole width and over 32 columns. Printed: layer,
scheme, the two sizes, the entropy of the columns (a bound of the size), two errors, speed. KL,
mean and 99.9 %, compares the full distributions; of a middle layer the errors are those of the
worst and of the median channel, relative to its spread. Decoding, on one core, starts at
stored numbers in memory and ends at float32 states; decompression is not in it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numcodecs import blosc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.hidden_states import States, load_states
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.hidden_codecs.transform import (
    Transform,
    calibrate_last,
    calibrate_relative,
    choose_step,
    decode,
    encode,
    relative_error,
)
from pipeline.capture.hidden_budget import fisher_metric, kl_error, kl_nats

Floats = NDArray[np.float32]
CHUNK_ROWS, NARROW, CHUNK_OVERHEAD = 4096, 32, 20
OUTLIERS, LOUDNESS = (3, 40, 77, 150), 1000


@dataclass(frozen=True)
class Stored:
    """States in one scheme: what is stored, and how it is read."""

    name: str
    numbers: NDArray[Any]
    read: Callable[[], Floats]


def bytes_per_value(numbers: NDArray[Any], width: int) -> float:
    """Compress chunks of CHUNK_ROWS by ``width`` columns, each as one block of blosc."""
    total = 0
    for row in range(0, len(numbers), CHUNK_ROWS):
        for column in range(0, numbers.shape[1], width):
            chunk = np.ascontiguousarray(numbers[row : row + CHUNK_ROWS, column : column + width])
            level = 6 if width > NARROW and numbers.itemsize > 1 else 1
            whole = 0 if width > NARROW else chunk.nbytes
            total += len(blosc.compress(chunk, b"zstd", level, blosc.SHUFFLE, whole)) + CHUNK_OVERHEAD
    return total / numbers.size


def entropy_bytes(numbers: NDArray[Any]) -> float:
    """Return the mean over columns of the entropy of their values."""
    counts = [np.unique(column, return_counts=True)[1] / len(numbers) for column in numbers.T]
    return -float(np.mean([(share * np.log2(share)).sum() for share in counts])) / 8


def plain_schemes(states: Floats) -> list[Stored]:
    """Return the schemes that choose a data type."""
    bits = to_bfloat16(states)
    per_channel = np.abs(states).max(axis=0) / np.float32(127)
    single_scale = np.full_like(per_channel, np.abs(states).max() / np.float32(127))
    return [
        Stored("float32", states, states.copy),
        Stored("bfloat16", bits, partial(from_bfloat16, bits)),
        _float8(states),
        _int8("int8, one scale", states, single_scale),
        _int8("int8, scale per channel", states, per_channel),
    ]


def _int8(name: str, states: Floats, scale: Floats) -> Stored:
    q = np.rint(states / np.where(scale > 0, scale, 1)).astype(np.int8)
    return Stored(name, q, lambda: q * scale)


def _float8(states: Floats) -> Stored:
    scale = float(np.abs(states).max()) / 448  # the largest number of e4m3
    numbers = torch.from_numpy(states / np.float32(scale)).to(torch.float8_e4m3fn)
    return Stored(
        "float8 e4m3, one scale", numbers.view(torch.uint8).numpy(), lambda: numbers.float().numpy() * np.float32(scale)
    )


def stepped(name: str, transform: Transform, states: Floats, error_of: Callable[..., float], budget: float) -> Stored:
    """Return a transform's scheme at a budget."""
    step, _ = choose_step(transform, states, error_of, budget)
    numbers = encode(transform, states, step)
    return Stored(f"{name} at {budget:g}", numbers, partial(decode, transform, numbers, step))


def identity(states: Floats) -> Transform:
    """Return the transform that does nothing: one step for all channels."""
    return Transform(states.mean(axis=0), np.eye(states.shape[1], dtype=np.float32))


def principal_axes(states: Floats) -> Transform:
    """Return the rotation onto the principal axes."""
    return calibrate_last(states, np.eye(states.shape[1]))


def measure_last(states: States) -> list[dict[str, Any]]:
    """Return the table of the last layer."""
    kl = kl_error(states.head)
    ours = calibrate_last(states.calibration, fisher_metric(states.head, states.calibration))
    transforms = {"uniform step": identity, "principal axes + step": principal_axes}
    schemes = plain_schemes(states.held_out)
    for budget in (1e-4, 3.5e-4):
        schemes += [
            stepped(name, make(states.calibration), states.held_out, kl, budget) for name, make in transforms.items()
        ]
        schemes.append(stepped("logitcask", ours, states.held_out, kl, budget))
    results = []
    for scheme in schemes:
        error = kl_nats(states.head, states.held_out[::4], scheme.read()[::4])
        kinds = {"kl_mean_nats": float(error.mean()), "kl_p999_nats": float(np.quantile(error, 0.999))}
        results.append(_result(f"{states.name}, last", scheme, kinds))
    return results


def measure_middle(states: States, outliers: bool) -> list[dict[str, Any]]:
    """Return the table of a middle layer, as it is, or with a few channels scaled up."""
    calibration, held_out = states.middle_calibration.copy(), states.middle_held_out.copy()
    if outliers:
        for rows in (calibration, held_out):
            rows[:, OUTLIERS] *= LOUDNESS
    schemes = plain_schemes(held_out)
    schemes.append(stepped("uniform step", identity(calibration), held_out, _overall_error, 0.01))
    for budget in (0.01, 0.003):
        schemes.append(stepped("logitcask", calibrate_relative(calibration), held_out, relative_error, budget))
    name = f"{states.name}, middle{' with outliers' if outliers else ''}"
    return [_result(name, scheme, _relative_errors(held_out, scheme.read())) for scheme in schemes]


def _relative_errors(true: Floats, decoded: Floats) -> dict[str, float]:
    return {"worst_channel": relative_error(true, decoded), "median_channel": _median_error(true, decoded)}


def _overall_error(true: Floats, decoded: Floats) -> float:
    return float(np.linalg.norm(true - decoded) / np.linalg.norm(true))


def _median_error(true: Floats, decoded: Floats) -> float:
    return float(np.median(np.sqrt(np.square(true - decoded).mean(axis=0)) / true.std(axis=0)))


def _result(layer: str, scheme: Stored, errors: dict[str, float]) -> dict[str, Any]:
    return {
        "layer": layer,
        "name": scheme.name,
        "bytes_whole_width": bytes_per_value(scheme.numbers, scheme.numbers.shape[1]),
        "bytes_narrow": bytes_per_value(scheme.numbers, NARROW),
        "bytes_entropy_bound": None if scheme.name == "float32" else entropy_bytes(scheme.numbers),
        **errors,
        "decode_positions_per_s": len(scheme.numbers) / min(_seconds(scheme.read) for _ in range(5)),
    }


def decode_speed(width: int, rows: int = 8192) -> float:
    """Return the positions per second of decoding random states of a width."""
    rng = np.random.default_rng(0)
    transform = Transform(np.zeros(width, np.float32), rng.normal(size=(width, width)).astype(np.float32))
    stored = rng.integers(0, 200, (rows, width), dtype=np.uint16)
    out = np.empty(stored.shape, np.float32)
    return rows / min(_seconds(lambda: decode(transform, stored, 0.1, out)) for _ in range(3))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Folder with a teacher and documents; default: demo.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(data: Path | None, as_json: bool) -> None:
    """Measure every scheme on a last and a middle layer."""
    blosc.set_nthreads(1)
    torch.set_num_threads(1)
    states = load_states(data)
    results = [*measure_last(states), *measure_middle(states, outliers=False), *measure_middle(states, outliers=True)]
    speeds = [{"name": f"logitcask, width {w}", "decode_positions_per_s": decode_speed(w)} for w in (256, 1024)]
    if as_json:
        for result in [*results, *speeds]:
            click.echo(json.dumps(result))
        return
    for layer in dict.fromkeys(result["layer"] for result in results):
        _print_table([result for result in results if result["layer"] == layer])
    for speed in speeds:
        click.echo(f"{speed['name']}: {speed['decode_positions_per_s']:,.0f} positions/s decoded")


def _print_table(results: list[dict[str, Any]]) -> None:
    """Print the schemes of one layer; bytes are per value."""
    table = Table(title=results[0]["layer"])
    for heading in list(results[0])[1:]:
        table.add_column(heading.replace("_", " ").replace("bytes ", "bytes, "), justify="right")
    for result in results:
        table.add_row(*(_cell(name, value) for name, value in result.items() if name != "layer"))
    Console(width=120).print(table)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if name.endswith("per_s") else f"{value:.3g}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
