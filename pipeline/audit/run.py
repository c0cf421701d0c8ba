"""Audit a capture: a random sample of it asked again of the live teacher, one shard at a time.

A receipt vouches for bytes, not for what they say: rows of other weights, shifted rows or tempered ones
pass ``verify --deep``. Only the teacher can tell. The measures are in ``measures.py``, the limits in
``verdict.py``. An identity that differs fails the audit, but what it changes is measured too.

Read are the rows of the sampled sequences, never the whole cache. Memory: as for ``live.py``, with
the rows of the whole sample and the hidden states of one shard's.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import ConfigError, IdentityError, IncompleteError
from cache_tools.format.fingerprint import differences
from cache_tools.format.sequences import Sequence
from cache_tools.hidden_codecs.transform import relative_error
from cache_tools.progress.reporter import Reporter
from cache_tools.store.predictions import hidden_array
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.tokenizers import open_tokenizer
from pipeline.audit import measures as audit
from pipeline.audit.live import Compared, compare
from pipeline.audit.verdict import Check, Tolerance, checks_of_sample, checks_of_shard, diagnose, tolerance_of
from pipeline.audit.worst import worst_positions
from pipeline.capture.hidden_budget import OutputHead, kl_nats
from pipeline.capture.shards import probe_head
from pipeline.config import AuditConfig, CaptureConfig, TeacherConfig
from pipeline.teachers.fitting import check_teacher
from pipeline.teachers.loading import Teacher, load_teacher, resolve_model
from pipeline.teachers.probe import check_rows
from pipeline.teachers.restriction import Restriction, read_restriction

Report = dict[str, Any]


def run_audit(config: CaptureConfig, only: str | None, reporter: Reporter) -> list[Report]:
    """Compare a capture with its live teachers.

    Args:
        config: The capture file.
        only: Name of the one teacher to audit; all by default.
        reporter: Shown what happens.

    Returns:
        One report per teacher, plain JSON; ``passed`` is the verdict.

    Raises:
        ConfigError: the file has no teacher of that name.
        IncompleteError: a teacher has not been captured.
        LogitcaskError: a teacher or the cache cannot be used.
    """
    chosen = [teacher for teacher in config.teachers if only in (None, teacher.name)]
    if not chosen:
        known = ", ".join(teacher.name for teacher in config.teachers)
        raise ConfigError(f"there is no teacher {only!r} in the capture file", where="--teacher", expected=known)
    encoding = Cache(config.cache).encoding(config.encoding.name)
    cached = [_captured(encoding, teacher.name) for teacher in chosen]
    folders = [resolve_model(teacher) for teacher in chosen]
    tokenizer = _tokenizer(encoding)
    for teacher, folder in zip(chosen, folders, strict=True):
        check_teacher(teacher, folder, tokenizer, config)
    reports = []
    for teacher, folder, stored in zip(chosen, folders, cached, strict=True):
        report, worst = _audit_teacher(stored, teacher, folder, config.audit, reporter)
        words = [item | {"token": tokenizer.decode([item["token_id"]])} for item in worst]
        reports.append(report | {"worst": words})
    return reports


def sample(cached: CachedTeacher, config: AuditConfig) -> dict[int, list[Sequence]]:
    """Draw sequences of committed shards; each shard's draw depends on the seed and its number alone."""
    encoding = cached.encoding
    missing = set(cached.missing_shards())
    committed = [shard for shard in range(len(encoding.shards)) if shard not in missing]
    shards = np.random.default_rng(config.seed).choice(committed, min(config.shards, len(committed)), replace=False)
    chosen = {}
    for shard in sorted(shards.tolist()):
        sequences = [sequence for sequence in encoding.sequences(shard) if sequence.num_positions]
        generator = np.random.default_rng([config.seed, shard])
        picked = generator.choice(len(sequences), min(config.sequences_per_shard, len(sequences)), replace=False)
        chosen[shard] = [sequences[i] for i in sorted(picked.tolist())]
    return chosen


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
    cached: CachedTeacher, config: TeacherConfig, folder: Path, settings: AuditConfig, reporter: Reporter
) -> tuple[Report, list[Report]]:
    """Return a teacher's report and its worst positions."""
    reporter.stage(f"loading teacher {config.name}")
    teacher = load_teacher(config, folder, cached.encoding.manifest.objective)
    _check_shapes(cached, teacher)
    check_rows(cached.encoding, teacher, config)
    stored_identity = {key: cached.manifest.identity.get(key) for key in teacher.identity}
    restriction = _same_restriction(cached, config)
    identity = differences(stored_identity, teacher.identity)
    tolerance = tolerance_of(settings, str(stored_identity["dtype"]))
    chosen = sample(cached, settings)
    sequences = [sequence for part in chosen.values() for sequence in part]
    reporter.stage(
        f"running teacher {config.name} on the sample", sum(len(sequence.input_ids) for sequence in sequences)
    )
    ask = partial(compare, batch_tokens=config.batch_tokens, progress=reporter.advance, restriction=restriction)
    rows, checks = _compare_shards(cached, chosen, teacher, ask, tolerance)
    checks += checks_of_sample(rows, cached.manifest, tolerance)
    passed = not identity and all(check.passed for check in checks)
    report = {
        "teacher": config.name,
        "passed": passed,
        "shards": list(chosen),
        "sequences": len(sequences),
        "positions": len(rows.top_log_prob),
        "identity": identity,
        "checks": [asdict(check) | {"passed": check.passed} for check in checks],
        "diagnosis": [] if passed else diagnose(rows, cached.manifest, identity),
    }
    return report | audit.summary(rows, cached.manifest.target.kind), worst_positions(rows, sequences, cached)


def _compare_shards(
    cached: CachedTeacher,
    chosen: dict[int, list[Sequence]],
    teacher: Teacher,
    ask: Callable[..., Compared],
    tolerance: Tolerance,
) -> tuple[audit.Rows, list[Check]]:
    """Return the rows of the whole sample, and of each check that a shard has the largest; ``ask`` is ``compare``."""
    with torch.inference_mode():
        last = "last" in cached.manifest.hidden
        head = OutputHead.of(teacher.model, probe_head(cached.encoding, teacher)) if last else None
    rows, checks = [], []
    for shard, sequences in chosen.items():
        missing = cached.missing_groups(shard)
        layers = [layer for layer in cached.manifest.hidden if hidden_array(layer) not in missing]
        found = ask(cached, sequences, layers, teacher)
        checks += checks_of_shard(shard, found.rows, hidden_errors(found, head), cached.manifest, tolerance)
        rows.append(found.rows)
    return audit.joined(rows), _largest(checks)


def hidden_errors(found: Compared, head: OutputHead | None) -> dict[str, float]:
    """Return the error of each stored layer: mean KL in nats of what ``last`` leads to, relative for the others."""
    errors = {}
    for layer, (stored, live) in found.hidden.items():
        if layer == "last":
            assert head is not None
            errors[layer] = float(kl_nats(head, live, stored).mean())
        else:
            errors[layer] = relative_error(live, stored)
    return errors


def _same_restriction(cached: CachedTeacher, config: TeacherConfig) -> Restriction | None:
    """Return the tokens that a captured teacher was asked about; refuse a capture file that asks about others."""
    restriction = read_restriction(config.target.vocabulary)
    asked, named = cached.manifest.target.settings.get("vocabulary"), restriction.vocabulary if restriction else None
    if asked != named:
        raise IdentityError(
            f"teacher {cached.name!r} was asked about other tokens",
            where="target.vocabulary",
            expected=f"vocabulary {asked[:12]}…" if asked else "none",
            found=f"{named[:12]}…" if named else "none",
            fix="Audit with the capture file that the cache was made with",
        )
    return restriction


def _largest(checks: list[Check]) -> list[Check]:
    """Return, of each measure, the check of the shard where it is largest; NaN is larger than any number."""
    by_name: dict[str, list[Check]] = {}
    for check in checks:
        by_name.setdefault(check.name, []).append(check)
    return [max(same, key=lambda check: (np.isnan(check.value), check.value)) for same in by_name.values()]


def _check_shapes(cached: CachedTeacher, teacher: Teacher) -> None:
    """Refuse a teacher with other numbers of logits or layers: there is nothing to compare."""
    config, manifest = teacher.model.config.get_text_config(), cached.manifest
    expected = {"vocabulary": manifest.vocabulary_size}
    found = {"vocabulary": int(teacher.model.get_output_embeddings().weight.shape[0])}
    for layer, spec in manifest.hidden.items():
        there = layer == "last" or int(layer) <= config.num_hidden_layers
        expected[f"hidden {layer}"], found[f"hidden {layer}"] = spec.width, config.hidden_size if there else 0
    if found != expected:
        raise IdentityError(
            f"the live teacher {cached.name!r} is another model than the cached one",
            where=cached.path,
            found="; ".join(differences(expected, found)),
            why="its predictions have other shapes, so nothing can be compared",
            fix="Point 'model' in the capture file to the model that was captured",
        )
