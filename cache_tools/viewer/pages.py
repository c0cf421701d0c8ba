"""The data behind the viewer's pages: ``inspection/views.py``, with the values that tokens are coloured by.

Only what a page shows is read: the rows of one sequence, or a single row. Decoded rows are freed with the response;
between requests only manifests, the tokenizer, receipts and the sequences of the last few shards stay in memory (see
``store/reader.py``).

Text is harmless when it leaves here: control characters are replaced by their pictures (``␛``), and marks that reorder
or hide text by escapes (see ``escaping.printable``). A browser gets it as text and never as HTML.
"""

from dataclasses import dataclass, field, replace
from itertools import combinations
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import Targets
from cache_tools.errors import IncompleteError
from cache_tools.escaping import printable
from cache_tools.format.layout import ENTROPY
from cache_tools.format.manifest import Split
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.divergence import divergence
from cache_tools.inspection.summary import CacheSummary, summarise
from cache_tools.inspection.views import (
    PositionView,
    ShownSequence,
    TeacherSurprise,
    aligned,
    judged_tokens,
    position_view,
    sequence_of,
    sequence_view,
)
from cache_tools.json_output import FLAT
from cache_tools.storage import StorePath
from cache_tools.store.predictions import tokens_of_whole_row
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x0A: 0x21B5, 0x7F: 0x2421}
"""Unicode's pictures of control characters, ``␀`` to ``␟`` and ``␡``; for a line feed the arrow ``↵``."""


@dataclass(frozen=True)
class TeacherHeat:
    """What a teacher's tokens can be coloured by; a list has a number per token, None as in ``TeacherSurprise``.

    Attributes:
        surprise: The teacher and its surprise.
        kept_mass: Probability of the kept tokens together.
        mean_kept_mass: Its mean over the kept positions; None if there are none.
        entropy_nats: Entropy of the whole distribution; None if the teacher does not keep it.
        mean_entropy_nats: Its mean over the finite values.
    """

    surprise: TeacherSurprise = field(metadata=FLAT)
    kept_mass: list[float | None]
    mean_kept_mass: float | None
    entropy_nats: list[float | None] | None
    mean_entropy_nats: float | None


@dataclass(frozen=True)
class PairHeat:
    """The KL divergence of two teachers per token, the mean of both directions (see ``divergence``), and its mean."""

    a: str
    b: str
    kl_nats: list[float | None]
    mean_kl_nats: float | None


@dataclass(frozen=True)
class HeatView(ShownSequence):
    """A sequence with everything that its tokens can be coloured by.

    Attributes:
        teachers: The teachers that have captured the sequence.
        pairs: Each two of them whose targets are no draws.
        absent: Names of the teachers that have not captured the sequence yet.
        shard: The sequence's shard.
        split: The sequence's split.
    """

    teachers: tuple[TeacherHeat, ...]
    pairs: tuple[PairHeat, ...]
    absent: list[str]
    shard: int
    split: Split


def pictured(content: bytes | str, keep: str = "") -> str:
    """Return text that does nothing but be shown: control characters become pictures, except those in ``keep``."""
    text = content if isinstance(content, str) else content.decode("utf-8", "backslashreplace")
    return printable(text.translate({code: p for code, p in PICTURES.items() if chr(code) not in keep}), keep)


class PicturedTexts(TokenTexts):
    """Tokens as text for a browser."""

    @classmethod
    def of(cls, encoding: Encoding) -> "PicturedTexts":
        """Open an encoding's tokenizer; errors as for ``decoding.token_texts``."""
        return cls(token_texts(encoding).tokenizer)

    def shown(self, token_id: int) -> str:
        """Return a token as one line."""
        return pictured(self.token(token_id))


class OpenCache:
    """A cache that is being viewed: encodings and teachers stay open until the summary is requested again.

    Args:
        path: A folder or URL.

    Raises:
        FormatError: the path is not a cache.
    """

    def __init__(self, path: StorePath) -> None:
        self.path, self._lock = path, Lock()
        self._reopen()

    def _reopen(self) -> None:
        self._cache = Cache(self.path)
        self._encodings: dict[str, Encoding] = {}
        self._teachers: dict[tuple[str, str], CachedTeacher] = {}
        self._texts: dict[str, PicturedTexts] = {}

    def summary(self) -> CacheSummary:
        """Open the cache again, because a capture may have continued, and describe it."""
        with self._lock:
            self._reopen()
        return summarise(self._cache)

    def encoding(self, name: str) -> Encoding:
        """Return an encoding by name.

        Raises:
            FormatError: there is no such name.
        """
        with self._lock:
            if name not in self._encodings:
                self._encodings[name] = self._cache.encoding(name)
            return self._encodings[name]

    def teacher(self, encoding: Encoding, name: str) -> CachedTeacher:
        """Return a teacher of an encoding by name.

        Raises:
            FormatError: there is no such name.
        """
        key = (encoding.name, name)
        with self._lock:
            if key not in self._teachers:
                self._teachers[key] = encoding.teacher(name)
            return self._teachers[key]

    def texts(self, encoding: Encoding) -> PicturedTexts:
        """Return an encoding's tokens as text."""
        with self._lock:
            if encoding.name not in self._texts:
                self._texts[encoding.name] = PicturedTexts.of(encoding)
            return self._texts[encoding.name]

    def teachers_of(self, encoding: Encoding, number: int) -> tuple[list[CachedTeacher], list[str]]:
        """Return the teachers that have captured a sequence, and the names of those that have not yet.

        Raises:
            IncompleteError: none has.
        """
        teachers = [self.teacher(encoding, name) for name in encoding.teachers]
        shard = encoding.shard_of(number)
        ready = [teacher for teacher in teachers if teacher.receipt(shard) is not None]
        if not ready:
            raise IncompleteError(
                f"no teacher has captured sequence {number} yet",
                where=encoding.path,
                fix="Run the same 'logitcask capture' again; it continues where it stopped",
            )
        return ready, [teacher.name for teacher in teachers if teacher not in ready]


def heat(opened: OpenCache, encoding: Encoding, number: int) -> HeatView:
    """Return a sequence with everything that its tokens can be coloured by.

    Raises:
        ConfigError: there is no such sequence, or it is too long to show.
        IncompleteError: no teacher has captured it yet.
    """
    sequence = sequence_of(encoding, number)
    teachers, absent = opened.teachers_of(encoding, number)
    texts = opened.texts(encoding)
    view = sequence_view(encoding, sequence, teachers, texts)
    targets = {teacher.name: teacher.targets(*sequence.rows) for teacher in teachers}
    shard = encoding.shard_of(number)
    return HeatView(
        sequence_id=view.sequence_id,
        document_id=pictured(sequence.document_id),
        turn=view.turn,
        group_id=pictured(sequence.group_id),
        objective=view.objective,
        tokens=tuple(
            replace(token, text=pictured(surface, keep="\n") or token.text)  # a class has a text but no surface
            for token, surface in zip(view.tokens, texts.surfaces(sequence), strict=True)
        ),
        teachers=tuple(
            _teacher_heat(teacher, surprise, targets[teacher.name], sequence)
            for teacher, surprise in zip(teachers, view.teachers, strict=True)
        ),
        pairs=_pairs(teachers, targets, sequence),
        absent=absent,
        shard=shard,
        split=encoding.shards[shard].split,
    )


def alternatives(opened: OpenCache, encoding: Encoding, number: int, position: int, top: int) -> PositionView:
    """Return the predictions of all teachers that have captured a sequence at one of its positions.

    Raises:
        ConfigError: there is no such sequence, or no prediction is kept at this position.
        IncompleteError: no teacher has captured the sequence yet.
    """
    sequence = sequence_of(encoding, number)
    teachers, _ = opened.teachers_of(encoding, number)
    return position_view(encoding, sequence, position, teachers, opened.texts(encoding), top)


def _teacher_heat(
    teacher: CachedTeacher, surprise: TeacherSurprise, targets: Targets, sequence: Sequence
) -> TeacherHeat:
    judged, num_tokens = judged_tokens(teacher.encoding, sequence), len(sequence.input_ids)
    kept_mass = np.minimum(np.exp(targets.log_probs, dtype=np.float64).sum(axis=1), 1.0)
    entropy_nats = None
    if ENTROPY in teacher.manifest.scalars:
        entropy_nats = teacher.scalar(ENTROPY, *sequence.rows).astype(np.float64)
    return TeacherHeat(
        surprise=surprise,
        kept_mass=aligned(kept_mass, judged, num_tokens),
        mean_kept_mass=_finite_mean(kept_mass),
        entropy_nats=None if entropy_nats is None else aligned(entropy_nats, judged, num_tokens),
        mean_entropy_nats=None if entropy_nats is None else _finite_mean(entropy_nats),
    )


def _pairs(teachers: list[CachedTeacher], targets: dict[str, Targets], sequence: Sequence) -> tuple[PairHeat, ...]:
    """Compare each two teachers whose targets are no draws."""
    comparable = [teacher for teacher in teachers if not teacher.manifest.target.kind.is_drawn]
    pairs = []
    for a, b in combinations(comparable, 2):
        whole_row_tokens = (tokens_of_whole_row(a.manifest), tokens_of_whole_row(b.manifest))
        kl_nats = divergence(targets[a.name], targets[b.name], whole_row_tokens).mean_kl_nats
        at_tokens = aligned(kl_nats, judged_tokens(a.encoding, sequence), len(sequence.input_ids))
        pairs.append(PairHeat(a.name, b.name, at_tokens, _finite_mean(kl_nats)))
    return tuple(pairs)


def _finite_mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the finite values; None if there are none."""
    finite_values = values[np.isfinite(values)]
    return float(finite_values.mean()) if len(finite_values) else None
