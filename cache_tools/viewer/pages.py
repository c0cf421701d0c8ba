"""What the viewer's pages show, as dictionaries: ``inspection/views.py``, and what colours and a browser need besides.

A window is read, never the whole: of a sequence its own rows, of a position one row. What is decoded for a
sequence goes with its answer; between requests only manifests, the tokenizer, receipts and the last few shards'
sequences stay in memory (see ``store/reader.py``).

Text leaves here without a character that acts: control characters as their pictures (``␛``), marks that turn or
hide text as escapes (see ``escaping.printable``). A browser gets it as text and never as HTML.
"""

from itertools import combinations
from threading import Lock
from typing import Any

import numpy as np

from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.escaping import printable
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB
from cache_tools.format.manifest import DRAWN_KINDS
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.divergence import divergence
from cache_tools.inspection.summary import summarise
from cache_tools.inspection.views import (
    aligned,
    finite,
    judged_tokens,
    position_view,
    scalar,
    sequence_view,
)
from cache_tools.storage import StorePath
from cache_tools.store.predictions import tokens_of_whole_row
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x0A: 0x21B5, 0x7F: 0x2421}
"""The pictures that Unicode has of control characters, ``␀`` to ``␟`` and ``␡``; of a line feed the arrow ``↵``."""


def pictured(content: bytes | str, keep: str = "") -> str:
    """Return text in which control characters, but those to keep, are pictures, and nothing else acts."""
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
    """A cache while people look at it: what has been opened stays open until the summary is asked for again.

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

    def summary(self) -> dict[str, Any]:
        """Return what ``summarise`` does, of the cache as it is now: a capture may have gone on since."""
        with self._lock:
            self._reopen()
        return summarise(self._cache)

    def encoding(self, name: str) -> Encoding:
        """Return an encoding by name.

        Raises:
            FormatError: there is none of that name.
        """
        with self._lock:
            if name not in self._encodings:
                self._encodings[name] = self._cache.encoding(name)
            return self._encodings[name]

    def teacher(self, encoding: Encoding, name: str) -> CachedTeacher:
        """Return a teacher of an encoding by name.

        Raises:
            FormatError: there is none of that name.
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


def sequence_of(encoding: Encoding, number: int) -> Sequence:
    """Return a sequence by its number.

    Raises:
        ConfigError: there is none.
    """
    try:
        return encoding.sequence(number)
    except IndexError as error:
        count = sum(entry.sequences for entry in encoding.shards)
        raise ConfigError(
            f"there is no sequence {number}", where=encoding.path, expected=f"0 to {count - 1}"
        ) from error


def heat(opened: OpenCache, encoding: Encoding, number: int) -> dict[str, Any]:
    """Return a sequence with everything that its tokens can be coloured by.

    Returns:
        As ``views.sequence_view``. Each teacher has besides, aligned with the tokens: ``entropy_nats`` and
        ``kept_mass``, each with its mean. ``pairs``: for any two teachers ``a`` and ``b`` ``kl_nats``, the mean of
        both directions (see ``divergence``), with its mean over the finite ones. ``split``, ``shard``; ``absent``:
        teachers that have not captured this sequence.
    """
    sequence = sequence_of(encoding, number)
    teachers, absent = opened.teachers_of(encoding, number)
    view = sequence_view(encoding, sequence, teachers, opened.texts(encoding))
    for token, surface in zip(view["tokens"], opened.texts(encoding).surfaces(sequence), strict=True):
        token["text"] = pictured(surface, keep="\n")
    targets = {teacher.name: teacher.targets(*sequence.rows) for teacher in teachers}
    judged = judged_tokens(encoding, sequence)

    def measure(name: str, values: Any) -> dict[str, Any]:
        known = values[np.isfinite(values)]
        return {
            name: aligned(values, judged, len(sequence.input_ids)),
            f"mean_{name}": float(known.mean()) if len(known) else None,
        }

    for shown, teacher in zip(view["teachers"], teachers, strict=True):
        kept = np.exp(targets[teacher.name].log_probs, dtype=np.float64).sum(axis=1)
        shown |= measure("kept_mass", np.minimum(kept, 1.0))
        if ENTROPY in teacher.manifest.scalars:
            shown |= measure("entropy_nats", teacher.scalar(ENTROPY, *sequence.rows).astype(np.float64))
    comparable = [teacher.name for teacher in teachers if teacher.manifest.target.kind not in DRAWN_KINDS]
    tokens = {teacher.name: tokens_of_whole_row(teacher.manifest) for teacher in teachers}
    pairs = [
        {"a": a, "b": b} | measure("kl_nats", divergence(targets[a], targets[b], (tokens[a], tokens[b])).mean_kl_nats)
        for a, b in combinations(comparable, 2)
    ]
    shard = encoding.shard_of(number)
    place = {"document_id": pictured(sequence.document_id), "group_id": pictured(sequence.group_id)}
    return view | place | {"pairs": pairs, "absent": absent, "shard": shard, "split": encoding.shards[shard].split}


def alternatives(opened: OpenCache, encoding: Encoding, number: int, position: int, top: int) -> dict[str, Any]:
    """Return what every teacher that captured a sequence said at one of its positions.

    Returns:
        As ``views.position_view``; each teacher has ``surprise_nats`` besides, None if it is infinite.
    """
    sequence = sequence_of(encoding, number)
    teachers, _ = opened.teachers_of(encoding, number)
    view = position_view(encoding, sequence, position, teachers, opened.texts(encoding), top)
    row = sequence.first_position + int(np.searchsorted(sequence.positions(), position))
    for shown, teacher in zip(view["teachers"], teachers, strict=True):
        shown["surprise_nats"] = finite(-float(scalar(teacher, GOLD_LOGPROB, row, row + 1)[0]))
    return view
