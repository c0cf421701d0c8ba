"""The card of an evaluation: Markdown to publish beside a quantised model or a student.

It states what a reader needs to believe the figures or to repeat them: both models with the hashes of their weights,
the text, the floor beside each figure, and what was read. Names come from files, so they are shown as code, without
anything that Markdown would act on.
"""

from cache_tools.escaping import printable
from cache_tools.quantities import counted
from cache_tools.store.teacher import CachedTeacher
from cache_tools.terminal.summary import model_words
from trainer.evaluation.figures import Figure, figures_of, floor_words
from trainer.evaluation.results import EvaluatedModel, EvaluateResult

HEADER = Figure("measure", "this model", "floor of the cache", "the original, run again")


def card_text(result: EvaluateResult, teacher: CachedTeacher) -> str:
    """Return the card of an evaluation.

    Args:
        result: What was measured.
        teacher: The cached teacher that the model was compared with.
    """
    stored, encoding = result.stored, teacher.encoding
    documents = counted(result.kl.groups, "document") if result.kl else "documents"
    lines = [
        f"# How close {_code(result.model.name)} is to {_code(str(teacher.manifest.model.get('name', teacher.name)))}",
        "",
        f"- Model: {_model(result.model)}",
        f"- Original: {_code(model_words(teacher.manifest.model))}, weights "
        f"{_code(str(teacher.manifest.identity.get('weights', 'not recorded')))}",
        f"- Text: {result.positions:,} {result.split} positions of {documents}, encoding "
        f"{_code(encoding.manifest.fingerprint[:12])}, teacher {_code(teacher.manifest.fingerprint[:12])}",
        f"- KL is KL(original ‖ this model), {result.kl_to_teacher_is}, in nats: by how much the log-probability of a "
        "token that the original draws is lower under this model, on average.",
        "",
        *_table(result),
        "",
        "The floor is what the same figures would be if this model were the original, because of how the cache stores "
        f"it; {floor_words(result.floor)}.",
        "",
        f"The comparison read {stored.bytes_per_position:,.0f} bytes per position and {stored.once_bytes:,} bytes "
        f"once. Rows of whole logits take {stored.two_byte_logits_bytes_per_position:,} bytes in 16 bits and "
        f"{stored.float32_logits_bytes_per_position:,} in float32. It took {result.seconds:,.0f} seconds.",
    ]
    return "\n".join(lines) + "\n"


def _table(result: EvaluateResult) -> list[str]:
    columns = 4 if result.original else 3
    rows = [HEADER, Figure(*["---"] * 4), *figures_of(result)]
    return ["| " + " | ".join((row.measure, row.value, row.floor, row.original)[:columns]) + " |" for row in rows]


def _model(model: EvaluatedModel) -> str:
    parts = [f"{_code(model.architecture)}, {model.parameters:,} parameters, computed in {model.dtype}"]
    if model.quantisation:
        parts.append(f"stored as {_code(model.quantisation)}")
    if model.output_head:
        parts.append(f"output head stored as {_code(model.output_head)}")
    if model.weight_bytes is not None:
        bits = 8 * model.weight_bytes / max(model.parameters, 1)
        parts.append(f"{model.weight_bytes:,} bytes ({bits:.2f} bits per parameter)")
    if model.sha256:
        parts.append(f"weights {_code(model.sha256)}")
    return ", ".join(parts)


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', chr(39)).replace('|', '¦')}`"
