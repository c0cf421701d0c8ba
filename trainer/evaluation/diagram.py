"""The reliability diagram (Guo et al., arXiv 1706.04599): the bins behind the calibration error of an evaluation."""

from pathlib import Path

from trainer.evaluation.results import EvaluateResult
from trainer.plots import BLUE, GREY, ORANGE, figure


def draw_reliability(result: EvaluateResult, path: Path) -> None:
    """Write the reliability diagram of an evaluation.

    Args:
        result: From ``evaluate.evaluate_folder``.
        path: The picture; its ending is one of FORMATS.
    """
    confidence = [100 * each_bin.confidence for each_bin in result.reliability]
    accuracy = [100 * each_bin.accuracy for each_bin in result.reliability]
    shares = [100 * each_bin.positions / result.positions for each_bin in result.reliability]
    with figure(path, (5, 5.8)) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
        upper.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=2, label="gap")
        upper.plot(confidence, accuracy, "o-", color=BLUE, markersize=4, clip_on=False, label="student")
        upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="how often it is right, %")
        split = result.split.replace("_", "-")
        error = f"expected calibration error {result.calibration_error:.1%}"
        upper.set_title(f"{error} on {result.positions:,} {split} positions", loc="left")
        upper.legend(loc="upper left")
        lower.bar(confidence, shares, width=4.5, color=BLUE)
        lower.set(xlabel="probability of the student's most likely token, %", ylabel="positions, %")
