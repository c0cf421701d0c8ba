"""Audit a capture: compare a random sample of it with the live teacher, one shard at a time.

A receipt vouches for bytes, not for their meaning: rows of other weights, shifted rows or tempered ones
pass ``verify --deep``. Only the teacher can tell. The measures are in ``measures.py``, the limits in
``verdict.py``. An identity that differs fails the audit, but its effect is measured too.

Only the rows of the sampled sequences are read, never the whole cache. Memory: as for ``live.py``, and the rows of the
whole sample and the hidden states of one shard.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from cache_tools.comparison.rounding import ENGINE, TRANSFORMERS, Arithmetic, engine_words, rounding_nats
from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.format.fingerprint import differences
from cache_tools.format.sequences import Sequence
from cache_tools.hidden_codecs.transform import relative_error
from cache_tools.json_output import FLAT
from cache_tools.mappings import Identity
from cache_tools.models.files import weight_files
from cache_tools.progress.reporter import Advance, Reporter
from cache_tools.storage import StorePath
from cache_tools.store.predictions import hidden_array
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.tokenizers import open_tokenizer
from pipeline.audit.comparable import check_layers, check_restriction, check_shapes
from pipeline.audit.live import Compared, compare
from pipeline.audit.measures import Rows, joined
from pipeline.audit.reread import compare_rows
from pipeline.audit.summary import Measures, measures_of
from pipeline.audit.verdict import Check, Tolerance, checks_of_sample, checks_of_shard, diagnose, tolerance_of
from pipeline.audit.worst import WorstPosition, worst_positions
from pipeline.capture.hidden_budget import OutputHead, kl_nats
from pipeline.capture.shards import probe_head
from pipeline.capture.target import ResolvedTeacher, resolve_teacher
from pipeline.config.audit import AuditConfig
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.engines import ServerConfig
from pipeline.engines.opening import open_teacher, where_it_runs
from pipeline.teachers.fitting import check_teacher
from pipeline.teachers.probe import check_rows
from pipeline.teachers.teacher import AnyTeacher, RowTeacher

WEIGHTS = "weights"
"""Key of a teacher's identity that names its weights, where somebody could read them."""

Ask = Callable[[CachedTeacher, list[Sequence], list[str]], Compared]
"""Lets the teacher read some sequences, and compares what the cache holds of them."""


@dataclass(frozen=True)
class TeacherAudit:
    """The audit of one teacher.

    Attributes:
        teacher: Its name.
        passed: The verdict.
        shards: Shards that the sample is from.
        sequences: Number of sampled sequences.
        positions: Number of sampled positions.
        identity: In which keys the live teacher's identity differs, a line each.
        captured_by: What read the tokens for the cache: an engine and its version, or ``transformers``.
        asked_by: What read them for the audit.
        rounding_nats: Mean KL that is expected between these two because they round differently; None if unknown.
        checks: Every measure with its limit.
        diagnosis: What the differences look like, a sentence each; empty if the audit passed.
        measures: Measures that are not judged.
        worst: The positions that differ most.
    """

    teacher: str
    passed: bool
    shards: tuple[int, ...]
    sequences: int
    positions: int
    identity: tuple[str, ...]
    captured_by: str
    asked_by: str
    rounding_nats: float | None
    checks: tuple[Check, ...]
    diagnosis: tuple[str, ...]
    measures: Measures = field(metadata=FLAT)
    worst: tuple[WorstPosition, ...]


@dataclass(frozen=True)
class Audit:
    """The audit of a cache: the object that ``logitcask audit --json`` prints.

    Attributes:
        cache: The cache.
        passed: Whether every teacher passed.
        teachers: The audit of each teacher.
    """

    cache: StorePath
    passed: bool
    teachers: tuple[TeacherAudit, ...]


def run_audit(config: CaptureConfig, only: str | None, reporter: Reporter) -> Audit:
    """Compare a capture with its live teachers.

    Args:
        config: The capture file.
        only: Name of the only teacher to audit; default: all teachers.
        reporter: Shows the progress.

    Raises:
        ConfigError: the file has no teacher of that name.
        IncompleteError: a teacher has not been captured.
        LogitcaskError: a teacher or the cache cannot be used.
    """
    configs = [teacher for teacher in config.teachers if only in (None, teacher.name)]
    if not configs:
        names = ", ".join(teacher.name for teacher in config.teachers)
        raise ConfigError(f"there is no teacher {only!r} in the capture file", where="--teacher", expected=names)
    encoding = Cache(config.cache).encoding(config.encoding.name)
    cached = [_captured(encoding, teacher.name) for teacher in configs]
    teachers = [resolve_teacher(teacher) for teacher in configs]
    tokenizer = _tokenizer(encoding)
    for teacher in teachers:
        if not isinstance(teacher.config.engine, ServerConfig):  # whose weights are elsewhere
            weight_files(teacher.folder)
        restriction = teacher.target.keep.restriction
        check_teacher(teacher.config, teacher.folder, tokenizer, config.encoding.max_length_tokens, restriction)
    audits = tuple(
        _audit_teacher(stored, teacher, config, lambda token_id: str(tokenizer.decode([token_id])), reporter)
        for stored, teacher in zip(cached, teachers, strict=True)
    )
    return Audit(config.cache, all(audit.passed for audit in audits), audits)


def sample(cached: CachedTeacher, config: AuditConfig) -> dict[int, list[Sequence]]:
    """Draw sequences of committed shards; each shard's draw depends on the seed and its number alone."""
    encoding = cached.encoding
    missing = set(cached.missing_shards())
    committed = [shard for shard in range(len(encoding.shards)) if shard not in missing]
    shards = np.random.default_rng(config.seed).choice(committed, min(config.shards, len(committed)), replace=False)
    sampled = {}
    for shard in sorted(shards.tolist()):
        sequences = [sequence for sequence in encoding.sequences(shard) if sequence.num_positions]
        generator = np.random.default_rng([config.seed, shard])
        picked = generator.choice(len(sequences), min(config.sequences_per_shard, len(sequences)), replace=False)
        sampled[shard] = [sequences[i] for i in sorted(picked.tolist())]
    return sampled


def _captured(encoding: Encoding, name: str) -> CachedTeacher:
    """Open a teacher; refuse one of which no shard is committed."""
    if name not in encoding.teachers or len(encoding.teacher(name).missing_shards()) == len(encoding.shards):
        raise IncompleteError(
            f"teacher {name!r} has not been captured",
            where=encoding.path,
            expected="at least one committed shard",
            fix="Run 'logitcask capture' with this file first",
        )
    return encoding.teacher(name)


def _tokenizer(encoding: Encoding) -> PreTrainedTokenizerFast:
    """Load the tokenizer that the cache holds."""
    with tempfile.TemporaryDirectory() as folder:
        encoding.save_tokenizer(Path(folder))
        return open_tokenizer(Path(folder), encoding.manifest.vocabulary, encoding.path)


def _audit_teacher(
    cached: CachedTeacher,
    resolved: ResolvedTeacher,
    file: CaptureConfig,
    text_of: Callable[[int], str],
    reporter: Reporter,
) -> TeacherAudit:
    config, restriction, settings = resolved.config, resolved.target.keep.restriction, file.audit
    check_layers(cached, config)
    reporter.stage(f"loading teacher {config.name}{where_it_runs(config)}")
    objective, longest = cached.encoding.manifest.objective, file.encoding.max_length_tokens
    separator = cached.encoding.manifest.separator
    teacher = open_teacher(config, resolved.folder, objective, longest, separator=separator)
    check_shapes(cached, teacher)
    if isinstance(teacher, RowTeacher):
        teacher.rows.check(cached.encoding.sequences(0), cached.manifest.target.k)
    else:
        check_rows(cached.encoding, teacher, config)
    check_restriction(cached, restriction)
    stored_identity = stated_identity(cached, teacher)
    captured_by, asked_by = engine_words(cached.manifest.identity), engine_words(teacher.computed.identity())
    by_engine = {captured_by, asked_by} != {TRANSFORMERS}
    tolerance = tolerance_of(settings, str(stored_identity.get("dtype")), by_engine)
    shards = sample(cached, settings)
    sequences = [sequence for part in shards.values() for sequence in part]
    tokens = sum(len(sequence.input_ids) for sequence in sequences)
    reporter.stage(f"running teacher {config.name} on the sample", tokens)
    ask: Ask
    if isinstance(teacher, RowTeacher):
        ask = partial(_reread, teacher=teacher, progress=reporter.advance)
    else:
        ask = partial(
            compare,
            teacher=teacher,
            batch_tokens=config.batch_tokens,
            progress=reporter.advance,
            restriction=restriction,
        )
    rows, checks = _compare_shards(cached, shards, _head_of(cached, teacher), ask, tolerance)
    checks += checks_of_sample(rows, cached.manifest, tolerance)
    live_identity = teacher.computed.identity()
    identity = differences(stored_identity, {key: live_identity[key] for key in stored_identity})
    passed = not identity and all(check.passed for check in checks)
    return TeacherAudit(
        teacher=config.name,
        passed=passed,
        shards=tuple(shards),
        sequences=len(sequences),
        positions=len(rows.top_log_prob),
        identity=tuple(identity),
        captured_by=captured_by,
        asked_by=asked_by,
        rounding_nats=rounding_nats(Arithmetic.of(cached.manifest.identity), Arithmetic.of(live_identity)),
        checks=tuple(checks),
        diagnosis=() if passed else tuple(diagnose(rows, cached.manifest, identity)),
        measures=measures_of(rows, cached.manifest.target.kind),
        worst=worst_positions(rows, sequences, cached, text_of),
    )


def stated_identity(cached: CachedTeacher, teacher: AnyTeacher) -> Identity:
    """Return what the cache says of the keys of a live teacher's identity.

    Imported predictions and those of servers do not say which weights they came from, so only what they do say is
    compared. Engines are not compared: the same weights are the same teacher, whoever multiplies them, and how far two
    engines may differ is a matter of the tolerance.
    """
    stored = cached.manifest.identity
    keys = [key for key in teacher.computed.identity() if key in stored or WEIGHTS in stored]
    return {key: stored.get(key) for key in keys if key != ENGINE}


def _compare_shards(
    cached: CachedTeacher, sample: dict[int, list[Sequence]], head: OutputHead | None, ask: Ask, tolerance: Tolerance
) -> tuple[Rows, list[Check]]:
    """Return the rows of the whole sample, and of each check that a shard has the largest."""
    rows, checks = [], []
    for shard, sequences in sample.items():
        missing = cached.missing_groups(shard)
        layers = [layer for layer in cached.manifest.hidden if hidden_array(layer) not in missing]
        compared = ask(cached, sequences, layers)
        checks += checks_of_shard(shard, compared.rows, hidden_errors(compared, head), cached.manifest, tolerance)
        rows.append(compared.rows)
    return joined(rows), _largest(checks)


def _reread(
    cached: CachedTeacher, sequences: list[Sequence], layers: list[str], teacher: RowTeacher, progress: Advance
) -> Compared:
    assert not layers  # refused by ``check_layers``
    return compare_rows(cached, sequences, teacher, progress)


@torch.inference_mode()
def _head_of(cached: CachedTeacher, teacher: AnyTeacher) -> OutputHead | None:
    """Return the head that turns last states into logits, if the cache holds such states."""
    if isinstance(teacher, RowTeacher) or "last" not in cached.manifest.hidden:
        return None
    return OutputHead.of(teacher.head.model, probe_head(cached.encoding, teacher))


def hidden_errors(compared: Compared, head: OutputHead | None) -> dict[str, float]:
    """Return the error of each stored layer: mean KL in nats of what ``last`` leads to, relative for the others."""
    errors = {}
    for layer, (stored, live) in compared.hidden.items():
        if layer == "last":
            assert head is not None
            errors[layer] = float(kl_nats(head, live, stored).mean())
        else:
            errors[layer] = relative_error(live, stored)
    return errors


def _largest(checks: list[Check]) -> list[Check]:
    """Return, of each measure, the check of the shard where it is largest; NaN is larger than any number."""
    by_name: dict[str, list[Check]] = {}
    for check in checks:
        by_name.setdefault(check.name, []).append(check)
    return [max(same, key=lambda check: (np.isnan(check.value), check.value)) for same in by_name.values()]
