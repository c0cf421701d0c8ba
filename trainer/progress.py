"""One line that moves while a student trains: steps, tokens per second, loss, time left."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class StepProgress(TrainerCallback):
    """Shows optimizer steps on stderr; a terminal gets a bar, a log file gets the last state."""

    def __init__(self) -> None:
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar at the step a continued run begins with."""
        self._first_tokens = state.num_input_tokens_seen
        self._task = self._progress.add_task("train", total=state.max_steps, completed=state.global_step, note="")
        if state.is_world_process_zero:
            self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        elapsed = self._progress.tasks[self._task].elapsed or 0
        tokens = state.num_input_tokens_seen - self._first_tokens
        speed = f"{tokens / elapsed:,.0f} tokens/s" if elapsed else ""
        self._progress.update(self._task, completed=state.global_step, note=f"{speed}{self._loss}")

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the last loss that was logged."""
        logged = state.log_history[-1]
        if "loss" in logged:
            self._loss = f" · loss {float(logged['loss']):.3f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the bar."""
        self._progress.stop()
