"""The cached teachers of a student file: one, several of one encoding, or those of several caches.

That they fit together is checked here, from manifests alone, without torch. ``sources.py`` makes the training data.
"""

from collections.abc import Callable, Sequence
from typing import Any

from cache_tools.alignments.stored import Alignment
from cache_tools.errors import ConfigError, IdentityError
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.same_tokenizer import require_same_encodings
from trainer.config.student_file import DistillationConfig, LossConfig
from trainer.verdicts.alignment import check_aligned
from trainer.verdicts.compatibility import Verdict, check_loss
from trainer.verdicts.mixture import check_mixture, worst
from trainer.verdicts.policy import check_writer

ONE_VOCABULARY = "Make one with 'logitcask vocabulary' of these caches, and name it as vocabulary"


def open_teachers(config: DistillationConfig) -> list[CachedTeacher]:
    """Open the teachers of a student file, in its order.

    Raises:
        FormatError: there is no such cache, encoding or teacher.
        IdentityError: caches have other tokenizers, or other objectives.
    """
    if config.cache is not None:
        encoding = Cache(config.cache).encoding(config.encoding)
        if not config.teachers:
            return [encoding.teacher(config.teacher)]
        return [encoding.teacher(teacher.name) for teacher in config.teachers]
    teachers = [Cache(entry.cache).encoding(entry.encoding).teacher(entry.teacher) for entry in config.caches]
    for number, teacher in enumerate(teachers[1:], start=1):
        if config.vocabulary is None:
            _require_same("tokenizer's vocabulary", teachers[0], teacher, number, _vocabulary, ONE_VOCABULARY)
            problem = f"caches.{number} has a tokenizer that splits text unlike that of the first cache"
            require_same_encodings(
                teachers[0].encoding, teacher.encoding, problem, "Remove this cache, or capture it again"
            )
        _require_same("use of segments", teachers[0], teacher, number, _has_segments)
        _require_same("objective", teachers[0], teacher, number, lambda cached: cached.encoding.manifest.objective)
    return teachers


def open_alignment(name: str, teacher: CachedTeacher, loss: LossConfig) -> Alignment:
    """Open an alignment of a teacher's encoding, and check that a loss can be used with it.

    Raises:
        FormatError: there is no such alignment.
        IdentityError: it belongs to another encoding.
        ConfigError: see ``verdicts/alignment.py``; or the teacher predicts the tokens of a smaller vocabulary.
    """
    alignment = Alignment(teacher.encoding, name)
    if teacher.manifest.target.settings.get("vocabulary") is not None:
        raise ConfigError(
            "a teacher that was captured over a smaller vocabulary cannot be aligned",
            where=teacher.path,
            why="its rows are distributions over chosen tokens, and not over all that a text may go on with",
            fix="Capture it without target.vocabulary",
        )
    if _has_segments(teacher):
        raise ConfigError(
            "pairs that are read by their segments cannot be aligned",
            where="alignment",
            why="where a student's own tokenizer divides the two sides is not recorded",
            fix="Leave alignment out, or capture with encoding.segments: false",
        )
    check_aligned(loss, alignment, teacher.manifest.target.kind.is_drawn)
    return alignment


def check_teachers(config: DistillationConfig, teachers: Sequence[CachedTeacher]) -> Verdict | None:
    """Refuse a loss that these teachers' predictions cannot serve.

    Returns:
        How exact the loss is, with several caches on the worst of them; None if it uses no predictions.

    Raises:
        ConfigError: see ``compatibility.check_loss`` and ``mixture_verdict.check_mixture``.
        IdentityError: hidden states are those of other teachers, or ``require_policy`` demands another writer.
    """
    for number, teacher in enumerate(teachers):
        if config.require_policy == "teacher":
            check_writer(teacher, f"require_policy, caches.{number}" if config.caches else "require_policy")
    if config.teachers:
        return check_mixture(teachers, config.loss, config.mixture)
    places = [f"loss, on caches.{number}" for number in range(len(config.caches))] or ["loss"]
    verdicts = [
        check_loss(teacher.manifest, config.loss, place) for teacher, place in zip(teachers, places, strict=True)
    ]
    if config.loss.source == "hidden" or config.loss.hidden:
        for number, teacher in enumerate(teachers[1:], start=1):
            _require_same("teacher, for its hidden states,", teachers[0], teacher, number, _hidden_identity)
    return worst([verdict for verdict in verdicts if verdict is not None]) if config.loss.kd_weight > 0 else None


def _require_same(
    what: str,
    first: CachedTeacher,
    other: CachedTeacher,
    number: int,
    value_of: Callable[[CachedTeacher], Any],
    fix: str = "Remove this cache, or capture it again",
) -> None:
    if value_of(first) != value_of(other):
        raise IdentityError(
            f"a cache has another {what} than the first one",
            where=f"caches.{number}",
            expected=str(value_of(first))[:12],
            found=f"{str(value_of(other))[:12]} in {other.encoding.path}",
            why="a student cannot learn from both",
            fix=fix,
        )


def _has_segments(teacher: CachedTeacher) -> bool:
    return teacher.encoding.manifest.separator is not None


def _vocabulary(teacher: CachedTeacher) -> Any:
    return teacher.encoding.manifest.vocabulary.fingerprint


def _hidden_identity(teacher: CachedTeacher) -> Any:
    return teacher.manifest.identity.get("weights")
