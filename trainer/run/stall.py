"""Measure how long training waits for data.

A step is: take the batches of a step from the loader, then compute. The first part is the stall: with
loader workers that keep up it is nearly zero, without workers it is the whole time of reading and decoding.
Only this process' wait for data is measured, not waits for other ranks, saving or logging.

On a GPU the Trainer reads the loss after each step, so the device has nothing to do while its process waits here.
"""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, TypeVar

from transformers import TrainerCallback

Batch = TypeVar("Batch")


class StallClock(TrainerCallback):
    """Adds up the seconds of steps, and of their waits for data, until they are asked for.

    Args:
        clock: Returns seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._step_began: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._waited_seconds, self._step_seconds, self._steps = 0.0, 0.0, 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count how long each took to come; the first one of a step begins the step."""
        while True:
            began = self._clock()
            self._step_began = began if self._step_began is None else self._step_began
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited_seconds += self._clock() - began
            yield batch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step; the Trainer calls it before it logs."""
        assert self._step_began is not None
        self._step_seconds += self._clock() - self._step_began
        self._steps += 1
        self._step_began = None

    def drain(self) -> dict[str, float]:
        """Return the means since the last call, and begin again.

        Returns:
            ``data_stall_seconds``, waited for data in a step, and ``data_stall_share``, the same as a share
            of the step, in [0, 1]; nothing if there was no step.
        """
        if not self._steps:
            return {}
        means = {
            "data_stall_seconds": self._waited_seconds / self._steps,
            "data_stall_share": self._waited_seconds / self._step_seconds if self._step_seconds else 0.0,
        }
        self._reset()
        return means
