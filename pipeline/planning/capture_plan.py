"""Plan a whole capture file: the corpus, its encoding and every teacher, without writing anything."""

from typing import Any

from cache_tools.progress.reporter import Reporter
from pipeline.config import CaptureConfig
from pipeline.corpus.documents import corpus_sources
from pipeline.encoding.encode import is_encoded
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.planning.fit import plan_fit
from pipeline.planning.held import held_encoding
from pipeline.planning.measure import MEASURED_SECONDS, drawn_order, measure
from pipeline.planning.memory import plan_memory
from pipeline.planning.plan import known_totals, plan_encoding, plan_teacher, survey
from pipeline.teachers.fitting import check_teacher
from pipeline.teachers.loading import load_teacher, resolve_model


def plan_capture(
    config: CaptureConfig,
    sample_documents: int,
    measured_sequences: int,
    tokens_per_s: float | None,
    reporter: Reporter | None = None,
    tokens: float | None = None,
    measured_seconds: float = MEASURED_SECONDS,
    device_memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Return what a capture will cost one worker; nothing is written.

    Unless teachers are to be measured, their configurations and tokenizers are all that is read of them.

    Args:
        config: The capture file.
        sample_documents: Documents to tokenise.
        measured_sequences: Sequences that each teacher reads at most to be measured; 0 for none.
        tokens_per_s: Speed to plan with; the measured one by default.
        reporter: Shown what happens.
        tokens: Size of a corpus like this one to plan for instead of its own.
        measured_seconds: How long each teacher reads at most to be measured.
        device_memory_bytes: Of the GPU to plan for, if it is not the device here.

    Raises:
        LogitcaskError: something was refused.
    """
    reporter, measuring = reporter or Reporter(), measured_sequences > 0
    reporter.stage("checking the capture file and its teachers", None)
    folders = {teacher.name: resolve_model(teacher, weights=measuring) for teacher in config.teachers}
    tokenizer = load_tokenizer(config.encoding.tokenizer or folders[config.teachers[0].name])
    found, teachers = survey(config, tokenizer, sample_documents, reporter), []
    encoding = held_encoding(config, tokenizer)
    if encoding and is_encoded(config, corpus_sources(config.corpus)):
        found = known_totals(found, encoding)
    if tokens:
        found = found.of_size(tokens, config.encoding.positions_per_shard)
    for teacher in config.teachers:
        folder = folders[teacher.name]
        check_teacher(teacher, folder, tokenizer, config, weights=measuring)
        measured = None
        if measuring:
            reporter.stage(f"loading teacher {teacher.name}", None)
            loaded = load_teacher(teacher, folder, config.encoding.objective)
            sample = drawn_order(found.sequences)[:measured_sequences]
            measured = measure(loaded, teacher, config.encoding.objective, sample, measured_seconds, reporter)
        reporter.stage(f"planning teacher {teacher.name}", None)
        planned = plan_teacher(teacher, folder, found, measured, tokens_per_s, encoding)
        memory = plan_memory(teacher, config.encoding, folder, device_memory_bytes)
        fit = plan_fit(teacher, config.encoding.objective, folder, memory)
        teachers.append(planned | {"memory": memory, "fit": fit})
    sequences = plan_encoding(found, encoding)
    return {
        "documents": found.documents,
        "exact": found.exact,
        "splits": found.totals,
        "stored_bytes": sum(part["stored_bytes"] for part in (sequences, *teachers)),
        "remaining_bytes": sum(part["remaining"]["stored_bytes"] for part in (sequences, *teachers)),
        "encoding": sequences,
        "teachers": teachers,
    }
