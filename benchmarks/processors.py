"""Run the numerical tests as on other processors: ``python -m benchmarks.processors`` imitates them on this one.

ATen, oneDNN and MKL choose their code by the processor's instruction set, and each reads an environment variable
that forbids the newer instructions. Other code adds in another order, so a result differs in its last bits;
tests with a tolerance that merely happened to pass fail here. ``tests/support/tolerances.py`` says how a tolerance is
derived, and ``benchmarks/numerical_tests.py`` which tests use one: these are run, and no other test of their files.

A library that ignores its variable changes nothing: MKL does so on processors that are not Intel's, which obey
``MKL_CBWR=COMPATIBLE`` alone. The column ``changed`` names the libraries whose results differ from those of the
first row, on a few products and functions.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.numerical_tests import numerical_tests

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = {
    "native": {},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "mkl-sse42": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "mkl-avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl-avx512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn-avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "all-avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "all-oldest": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
"""Names, and the variables they stand for. The last two are whole processors: one of 2013, and one of 2008."""

PROBE = """
import hashlib, torch
digest = lambda *results: hashlib.sha256(b"".join(x.float().numpy().tobytes() for x in results)).hexdigest()
torch.manual_seed(0)
a, b = torch.randn(96, 300), torch.randn(300, 200)
print("ATen", digest(a.exp(), a.softmax(1), a.sum(1), torch.nn.functional.layer_norm(a, (300,))))
print("MKL", digest(a @ b, a[:5] @ b))
print("oneDNN", digest(a.bfloat16() @ b.bfloat16(), a[:5].bfloat16() @ b.bfloat16()))
"""
"""Prints a digest of what each library computes."""


@dataclass(frozen=True)
class Outcome:
    """The result of the tests under one setting.

    Attributes:
        setting: Its name in ``SETTINGS``.
        threads: Number of threads of every library.
        changed: Libraries whose results are other than those of the first run.
        passed: Tests that passed.
        failed: Tests that failed or could not be run.
        seconds: Wall-clock time.
    """

    setting: str
    threads: int
    changed: tuple[str, ...]
    passed: int
    failed: int
    seconds: float


def selected_tests() -> list[str]:
    """Return pytest's names of the functions that compare numbers within a tolerance."""
    folder = ROOT / "tests"
    return [
        f"tests/{path.name}::{name}"
        for path in sorted(folder.glob("test_*.py"))
        for name in numerical_tests(path, folder / "support")
    ]


def environment(setting: str, threads: int) -> dict[str, str]:
    """Return the variables of a process under a setting, without those of any other."""
    ours = {name for variables in SETTINGS.values() for name in variables}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return inherited | SETTINGS[setting] | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def digests(variables: dict[str, str]) -> dict[str, str]:
    """Return a digest of each library's results under these variables."""
    lines = subprocess.run(
        [sys.executable, "-c", PROBE], env=variables, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return dict(line.split() for line in lines)


def run(setting: str, threads: int, tests: list[str], options: list[str], native: dict[str, str]) -> Outcome:
    """Run the tests under one setting; what fails is printed as it is."""
    variables, start = environment(setting, threads), time.monotonic()
    changed = tuple(name for name, digest in digests(variables).items() if digest != native[name])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "--no-header", *options]
    result = subprocess.run([*command, *tests], env=variables, cwd=ROOT, capture_output=True, text=True)
    last_line = result.stdout.rstrip().rpartition("\n")[2]
    count = {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", last_line)}
    failed = count.get("failed", 0) + count.get("error", 0)
    if result.returncode not in (0, 1):
        raise click.ClickException(f"pytest could not run under {setting}:\n{result.stdout[-3000:]}{result.stderr}")
    if failed:
        click.echo(result.stdout[result.stdout.find("= FAILURES") :], err=True)
    return Outcome(setting, threads, changed, count.get("passed", 0), failed, time.monotonic() - start)


@click.command(epilog="Example: python -m benchmarks.processors --setting all-avx2 --threads 1 --threads 2")
@click.option("--setting", "names", type=click.Choice(list(SETTINGS)), multiple=True, help="Settings; default: all.")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Number of pytest processes at a time."
)
@click.option("--file", "files", multiple=True, help="Test files; default: the numerical tests of all.")
@click.option("--slow/--no-slow", default=False, show_default=True, help="Also the tests that are marked slow.")
@click.option("--json", "as_json", is_flag=True, help="Print one object per line instead of a table.")
def main(
    names: tuple[str, ...], threads: tuple[int, ...], processes: int, files: tuple[str, ...], slow: bool, as_json: bool
) -> None:
    """Run the numerical tests under other instruction sets and numbers of threads.

    Exit with 1 if a test fails.
    """
    options, selected = [] if slow else ["-m", "not slow"], list(files) or selected_tests()
    if processes > 1:
        options += ["--numprocesses", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]
    native, failed = digests(environment("native", 1)), 0
    if not as_json:
        click.echo(f"{'setting':<16}{'threads':>8}{'passed':>8}{'failed':>8}{'seconds':>9}  changed")
    for name in names or SETTINGS:
        for number in threads:
            row = run(name, number, selected, options, native)
            failed += row.failed
            changed = ", ".join(row.changed) or "nothing"
            table = f"{name:<16}{number:>8}{row.passed:>8,}{row.failed:>8,}{row.seconds:>9.1f}  {changed}"
            click.echo(json.dumps(asdict(row)) if as_json else table)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
