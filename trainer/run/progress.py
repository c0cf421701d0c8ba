"""Progress of training: steps, tokens per second, loss and remaining time, shown by the reporter."""

from typing import Any

from transformers import TrainerCallback

from cache_tools.progress.reporter import Reporter


class StepProgress(TrainerCallback):
    """Reports optimizer steps; the Trainer's own printing and bars are removed.

    Args:
        reporter: Shown the steps.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start at the step at which a continued run starts."""
        counted = args.include_num_input_tokens_seen not in ("no", False)
        self._step, self._tokens = state.global_step, state.num_input_tokens_seen
        self._reporter.stage(
            "train", state.max_steps, "steps", speed_unit="tokens" if counted else "steps", done=state.global_step
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step and its tokens."""
        steps, tokens = state.global_step - self._step, state.num_input_tokens_seen - self._tokens
        counted = args.include_num_input_tokens_seen not in ("no", False)
        self._reporter.advance(steps, work=tokens if counted else steps)
        self._step, self._tokens = state.global_step, state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the last loss that was logged; an evaluation's log has none."""
        logged = state.log_history[-1]
        if "loss" in logged:
            self._reporter.note(f"loss {float(logged['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report that the student is being saved."""
        self._reporter.stage("saving the student", None)
