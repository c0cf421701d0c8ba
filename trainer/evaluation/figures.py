"""The figures of an evaluation as words: one table for the terminal and for the card.

Each figure stands beside its floor, what it would be if the model were the cached teacher, and beside what the teacher
itself scored where it was run again. Small divergences are written with an exponent, so that none is rounded to 0.
"""

from dataclasses import dataclass

from trainer.evaluation.results import AlignedEvaluateResult, EvaluateResult, Floor, OriginalFigures, Spread

BOUND = {"upper bound": "at most ", "lower bound": "at least "}

PERCENTILES = {
    "median": "median_nats",
    "90th percentile": "p90_nats",
    "95th percentile": "p95_nats",
    "99th percentile": "p99_nats",
    "99.9th percentile": "p99_9_nats",
    "largest": "max_nats",
}


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        measure: What is measured.
        value: What the model has.
        floor: What a perfect copy would have, because of the cache; empty where that has no meaning.
        original: What the teacher itself had; empty unless it was run.
    """

    measure: str
    value: str
    floor: str = ""
    original: str = ""


def figures_of(result: EvaluateResult) -> list[Figure]:
    """Return the rows of an evaluation, in reading order."""
    original, floor = result.original, result.floor
    acceptance_bound = BOUND.get(result.acceptance_is or "", "")
    rows = [
        Figure(
            "cross-entropy",
            f"{result.cross_entropy_nats:.4f} nats",
            "",
            f"{original.cross_entropy_nats:.4f} nats" if original else "",
        ),
        Figure("perplexity", _number(result.perplexity), "", _number(original.perplexity) if original else ""),
        Figure("gold token most likely", f"{result.accuracy:.1%}"),
        *_divergences(result),
        Figure(
            "same most likely token as the teacher",
            _share(result.top1_agreement),
            _share(floor.top1_agreement),
            _share(original.top1_agreement) if original else "",
        ),
        Figure("expected calibration error", f"{result.calibration_error:.1%}"),
    ]
    if result.acceptance is not None:
        accepted = f"{acceptance_bound}{result.acceptance:.1%}"
        rows.append(Figure("its tokens accepted in speculative decoding", accepted))
    if result.teacher_cross_entropy_nats is None or result.teacher_perplexity is None:
        return rows
    rounded = f"± {floor.gold_nats:.4f} nats" if floor.gold_nats else "exact"
    rows.append(Figure("the teacher's own cross-entropy", f"{result.teacher_cross_entropy_nats:.4f} nats", rounded))
    rows.append(Figure("the teacher's own perplexity", _number(result.teacher_perplexity)))
    return rows


def aligned_figures(result: AlignedEvaluateResult) -> list[Figure]:
    """Return the rows of an evaluation of a student with its own tokenizer, in reading order."""
    rows = [Figure("code length of the text", f"{result.bits_per_byte:.4f} bits per byte")]
    if result.low_bits_per_byte is not None:
        ends = f"{result.low_bits_per_byte:.4f} to {result.high_bits_per_byte:.4f}"
        rows.append(Figure(f"  95 % interval over {result.groups} documents", ends))
    if result.teacher_bits_per_byte is not None:
        rows.append(Figure("the teacher's own code length", f"{result.teacher_bits_per_byte:.4f} bits per byte"))
    rows.append(Figure("cross-entropy per token of its own", f"{result.cross_entropy_nats:.4f} nats"))
    if result.kl_to_teacher_nats_per_byte is not None:
        value = f"{_nats(result.kl_to_teacher_nats_per_byte)} per byte"
        rows.append(Figure(f"KL to the teacher, {result.kl_to_teacher_is}", value))
    rows.append(Figure("same most likely token as the teacher", _share(result.top1_agreement)))
    covered = result.coverage
    counts = {
        "exact": covered.exact,
        "composed": covered.composed,
        "same prefix": covered.prefix,
        "no row": covered.none,
    }
    shares = (f"{name} {count / max(covered.positions, 1):.1%}" for name, count in counts.items())
    return [*rows, Figure("positions", ", ".join(shares))]


def floor_words(floor: Floor) -> str:
    """Say where the floor comes from."""
    return {
        "exact": "exact: the cache keeps what is compared bit for bit",
        "measured": "mean and largest error were measured by the capture; no percentile exceeds the largest",
        "estimated": f"estimated at {floor.positions:,} positions by adding the error of storing a second time",
        "unknown": "not known: the targets are random draws, or came from another tool",
    }[floor.origin]


def _divergences(result: EvaluateResult) -> list[Figure]:
    """Return the rows of the KL: its mean, the interval of the mean, and percentiles."""
    bound, floor, original, spread = BOUND.get(result.kl_to_teacher_is, ""), result.floor, result.original, result.kl
    own = original.kl if original else None
    mean = f"{bound}{result.kl_to_teacher_nats:.4f} nats" if result.kl_to_teacher_nats >= 0.01 else None
    rows = [
        Figure(
            "KL to the teacher",
            mean or f"{bound}{_nats(result.kl_to_teacher_nats)}",
            _nats(floor.mean_nats),
            _nats(own.mean_nats) if own else "",
        )
    ]
    if spread is None:
        return rows
    if spread.low_nats is not None:
        rows.append(Figure(f"  95 % interval over {spread.groups} documents", _interval(spread), "", _interval(own)))
    rows += [
        Figure(f"  {name}", _nats(getattr(spread, key)), _nats(getattr(floor, key)), _own(original, key))
        for name, key in PERCENTILES.items()
    ]
    return rows


def _own(original: OriginalFigures | None, key: str) -> str:
    return _nats(getattr(original.kl, key)) if original and original.kl else ""


def _interval(spread: Spread | None) -> str:
    if spread is None or spread.low_nats is None or spread.high_nats is None:
        return ""
    low, high = (_nats(end).removesuffix(" nats") for end in (spread.low_nats, spread.high_nats))
    return f"{low} to {high} nats"


def _nats(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.4f} nats" if abs(value) >= 0.01 or value == 0 else f"{value:.1e} nats"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.1%}" if value <= 0.999 or value == 1 else f"{value:.3%}"
