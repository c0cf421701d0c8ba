"""Run the stages of a demo one after another, each in a process of its own.

A stage is a command started exactly as a user would type it, so the process that trains a student never holds a
teacher. Every command continues where it was stopped, and a stage that is finished ends at once; so a demo that was
killed goes on when the same command is run again.

Before each stage the time left is shown. It follows from the seconds that the stages took on two free cores, scaled
by how much longer the stages so far took here.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.errors import LogitcaskError
from cache_tools.mappings import JsonObject

ROOT = Path(__file__).resolve().parents[2]
"""The clone of the repository, where every stage runs."""

Say = Callable[[str], None]
"""Called with a sentence about each stage."""


@dataclass(frozen=True)
class Stage:
    """A stage of a demo.

    Attributes:
        name: Under which its result and its seconds are returned.
        sentence: What it does, for the reader.
        seconds: How long it takes on two free cores.
        work: Does it and returns its result.
    """

    name: str
    sentence: str
    seconds: float
    work: Callable[[], Any]


PACE_SECONDS = 10.0
"""Stages that take less together do not scale the rest: a first import would make minutes of two seconds."""


def run_stages(
    stages: Sequence[Stage], say: Say, clock: Callable[[], float] = time.monotonic
) -> tuple[JsonObject, dict[str, float]]:
    """Run stages in order and return their results and their seconds, by name.

    Raises:
        LogitcaskError: a stage failed.
    """
    results: JsonObject = {}
    seconds: dict[str, float] = {}
    for number, stage in enumerate(stages, 1):
        left = time_left(stages, seconds)
        say(f"Stage {number} of {len(stages)}: {stage.sentence} About {left} left in all.")
        started = clock()
        results[stage.name] = stage.work()
        seconds[stage.name] = round(clock() - started, 1)
    return results, seconds


def time_left(stages: Sequence[Stage], seconds: dict[str, float]) -> str:
    """Return in words how long the stages that have no entry in ``seconds`` will take.

    Stages that were already finished when the demo was continued took no time and say nothing about this machine.
    """
    timed = [stage for stage in stages if seconds.get(stage.name, 0) > stage.seconds / 4]
    expected = sum(stage.seconds for stage in timed)
    pace = sum(seconds[stage.name] for stage in timed) / expected if expected >= PACE_SECONDS else 1.0
    left = pace * sum(stage.seconds for stage in stages if stage.name not in seconds)
    return f"{left:.0f} seconds" if left < 90 else f"{left / 60:.0f} minutes"


def run_command(*arguments: object) -> str:
    """Run a command of logitcask and return what it printed."""
    return run_python("-m", "logitcask", *arguments)


def run_json(*arguments: object) -> Any:
    """Run a command of logitcask with ``--json`` and return its result."""
    return json.loads(run_command(*arguments, "--json"))


def run_python(*arguments: object) -> str:
    """Run Python in a process whose progress goes to stderr, and return what it printed.

    Raises:
        LogitcaskError: it failed.
    """
    words = [str(argument) for argument in arguments]
    process = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if process.returncode:
        raise LogitcaskError("a stage of the demo failed; its message stands above", where=" ".join(words[:3]))
    return process.stdout
