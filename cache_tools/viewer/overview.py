"""The statistics of the first page: the report's data about a sample of positions, computed once in the background.

A report may read for minutes; a page may not. So the first request for an encoding starts one thread that reads a
sample of SAMPLE_POSITIONS positions, and every request returns at once with the share that has been read, or with the
finished statistics. They are kept until a teacher finishes another shard. The cost is bounded whatever the size of the
cache: SAMPLE_POSITIONS rows of each teacher, and the sequences of the shards that hold them. Rejected: a process of its
own, which would import the package again to save a second.
"""

from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Lock, Thread

from cache_tools.report.data import Passage, SampleData, TeacherMeasures, sample_data
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.viewer.pages import pictured

SAMPLE_POSITIONS = 65_536
"""Positions of the sample, as many as ``logitcask inspect`` draws by default."""

SEED = 0
"""Seed of the random draw of positions; it is always the same, so that the page is, too."""

GROUPS = 25
"""How many groups of documents are listed, the largest first."""

TOKEN_CHARACTERS = 200
"""Longest text of one token in a passage."""


@dataclass(frozen=True)
class OverviewSample:
    """A sample of an encoding, or how much of it has been read.

    Attributes:
        share: Share of the sample that has been read, in [0, 1].
        finished: Whether nothing more is to come.
        num_groups: Groups of documents in the sample, of which at most GROUPS are listed.
        sample: The statistics; None until ``finished``, and for an encoding of which no teacher has a finished shard.
    """

    share: float
    finished: bool
    num_groups: int
    sample: SampleData | None


class Samples:
    """The samples of the encodings of an open cache, each read once by a thread of its own.

    Args:
        positions: How many positions to sample.
    """

    def __init__(self, positions: int = SAMPLE_POSITIONS) -> None:
        self._positions, self._lock = positions, Lock()
        self._readings: dict[str, _Reading] = {}

    def of(self, encoding: Encoding, teachers: list[CachedTeacher]) -> OverviewSample:
        """Return the sample of an encoding, or how much of it has been read; the first request starts the reading.

        Raises:
            LogitcaskError: what the reading raised, see ``report.data.sample_data``; the next request reads again.
        """
        with self._lock:
            reading = self._readings.get(encoding.name)
            if reading is None or (reading.is_finished and reading.shards != _finished_shards(teachers)):
                reading = self._readings[encoding.name] = _Reading(encoding, teachers, self._positions)
            if reading.has_failed:
                del self._readings[encoding.name]
        return reading.state()


class _Reading:
    """The reading of one sample, on a thread that ends with the program."""

    def __init__(self, encoding: Encoding, teachers: list[CachedTeacher], positions: int) -> None:
        self.shards = _finished_shards(teachers)
        begun = [teacher for teacher in teachers if self.shards[teacher.name]]
        self._share, self._sample = 0.0, Future[SampleData | None]()
        if begun:
            Thread(target=self._read, args=(encoding, begun, positions), daemon=True).start()
        else:
            self._sample.set_result(None)

    def _read(self, encoding: Encoding, teachers: list[CachedTeacher], positions: int) -> None:
        try:
            self._sample.set_result(sample_data(encoding, teachers, positions, SEED, self._advance))
        except Exception as error:  # raised again by the request that asks for the result
            self._sample.set_exception(error)

    def _advance(self, _: int, share_done: float | None = None, /) -> None:
        self._share = share_done or 0.0

    @property
    def is_finished(self) -> bool:
        return self._sample.done()

    @property
    def has_failed(self) -> bool:
        return self.is_finished and self._sample.exception() is not None

    def state(self) -> OverviewSample:
        """Return the share that has been read, or the statistics; raises what the reading raised."""
        if not self.is_finished:
            return OverviewSample(self._share, finished=False, num_groups=0, sample=None)
        sample = self._sample.result()
        num_groups = 0 if sample is None else max(len(teacher.groups) for teacher in sample.teachers)
        return OverviewSample(1.0, True, num_groups, None if sample is None else _harmless(sample))


def _finished_shards(teachers: list[CachedTeacher]) -> dict[str, int]:
    """Return the number of finished shards of each teacher; one listing of a folder per teacher."""
    return {teacher.name: len(teacher.encoding.shards) - len(teacher.missing_shards()) for teacher in teachers}


def _harmless(sample: SampleData) -> SampleData:
    """Return a sample whose names are harmless (see ``pages.pictured``) and whose lists are short."""
    return replace(
        sample,
        teachers=tuple(map(_harmless_groups, sample.teachers)),
        passages=tuple(map(_harmless_passage, sample.passages)),
    )


def _harmless_groups(teacher: TeacherMeasures) -> TeacherMeasures:
    groups = (replace(group, group=pictured(group.group)) for group in teacher.groups[:GROUPS])
    return replace(teacher, groups=tuple(groups))


def _harmless_passage(passage: Passage) -> Passage:
    view = passage.view
    tokens = (replace(token, text=_cut(token.text), seen=_cut(token.seen)) for token in view.tokens)
    document_id, group_id = pictured(view.document_id), pictured(view.group_id)
    return replace(passage, view=replace(view, document_id=document_id, group_id=group_id, tokens=tuple(tokens)))


def _cut(text: str) -> str:
    return text if len(text) <= TOKEN_CHARACTERS else f"{text[:TOKEN_CHARACTERS]}…"
