"""What a student file names, opened and checked: cached teachers, and the vocabulary that the student has to know."""

from dataclasses import dataclass

from cache_tools.alignments.stored import Alignment
from cache_tools.format.vocabulary import Vocabulary
from cache_tools.inspection.row_check import require_consistent
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import UnionVocabulary
from trainer.config.student_file import DistillationConfig
from trainer.data.opening import check_teachers, open_alignment, open_teachers
from trainer.data.translation import open_union, student_separator, student_vocabulary


@dataclass(frozen=True)
class Inputs:
    """What a student learns from.

    Attributes:
        teachers: The cached teachers, in the order of the file.
        union: The student's vocabulary, if it is not the caches' own.
        vocabulary: The vocabulary that the student must have.
        alignment: The alignment with the student's own tokenizer, if it has one.
        separator: The student's id of the token behind which a sequence's second segment begins; None if sequences have
            one segment.
    """

    teachers: tuple[CachedTeacher, ...]
    union: UnionVocabulary | None
    vocabulary: Vocabulary
    alignment: Alignment | None = None
    separator: int | None = None

    @property
    def encoding(self) -> Encoding:
        """The encoding of the first teacher; the others agree with it in all that a student depends on."""
        return self.teachers[0].encoding


def open_inputs(config: DistillationConfig) -> Inputs:
    """Open the caches of a student file and check that the loss fits them.

    Raises:
        LogitcaskError: A cache cannot be read, or does not fit the file.
    """
    teachers = open_teachers(config)
    check_teachers(config, teachers)
    if config.loss.kd_weight > 0:
        require_consistent(teachers)
    if config.alignment is not None:
        alignment = open_alignment(config.alignment, teachers[0], config.loss)
        return Inputs(tuple(teachers), None, alignment.manifest.vocabulary, alignment)
    union = open_union(config.vocabulary, teachers, config.loss)
    encoding = teachers[0].encoding
    separator = student_separator(union, encoding)
    return Inputs(tuple(teachers), union, student_vocabulary(union, encoding), separator=separator)
