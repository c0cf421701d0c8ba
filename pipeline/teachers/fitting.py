"""Check that a teacher fits a capture file before anything is loaded: weights, length, tokenizer, vocabulary."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from cache_tools.errors import IdentityError, ModelError
from cache_tools.models.files import weight_files
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.same_tokenizer import probes, require_same, sampled_texts
from pipeline.config import CaptureConfig, TeacherConfig
from pipeline.encoding.tokenizer import load_tokenizer, tokenizer_identity
from pipeline.teachers.loading import max_positions
from pipeline.teachers.restriction import read_restriction


def check_teacher(
    teacher: TeacherConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: CaptureConfig,
    weights: bool = True,
) -> None:
    """Refuse a teacher that could not be used, before anything is encoded or loaded.

    Args:
        teacher: Its block of the capture file.
        folder: Its model folder.
        tokenizer: The encoding's.
        config: The capture file.
        weights: Whether it needs any.

    Raises:
        ModelError: it has no safe weights, its device is not there, or sequences are longer than it can read.
        IdentityError: it, or its vocabulary, has another tokenizer than the encoding.
    """
    if weights:
        weight_files(folder)
    limit, wanted = max_positions(folder, teacher.trust_remote_code), config.encoding.max_length_tokens
    if limit is not None and wanted > limit:
        raise ModelError(
            f"sequences are longer than teacher {teacher.name!r} can read",
            where="encoding.max_length_tokens",
            expected=f"at most {limit}",
            found=wanted,
            fix=f"Set encoding.max_length_tokens to {limit} or less; longer documents are split",
        )
    own = tokenizer_identity(load_tokenizer(folder, trust_remote_code=teacher.trust_remote_code))
    shared = tokenizer_identity(tokenizer)
    if own["vocabulary"] != shared["vocabulary"]:
        raise IdentityError(
            f"teacher {teacher.name!r} has another tokenizer than the encoding",
            where=folder,
            expected=f"vocabulary {shared['vocabulary'][:12]}…",
            found=f"{own['vocabulary'][:12]}…",
            why="it would read ids that mean other tokens",
            fix="Give it an encoding of its own, in a capture file with another encoding.name",
        )
    check_behaviour(teacher, folder, tokenizer)
    restriction = read_restriction(teacher.target.vocabulary)
    if restriction is not None and restriction.tokenizer != shared["vocabulary"]:
        raise IdentityError(
            f"the vocabulary of teacher {teacher.name!r} is made of another tokenizer",
            where=teacher.target.vocabulary,
            expected=f"vocabulary {shared['vocabulary'][:12]}…",
            found=f"{restriction.tokenizer[:12]}…",
            why="its ids mean other tokens",
            fix="Make it with 'logitcask vocabulary --keep' of a cache with this tokenizer",
        )


def check_behaviour(
    teacher: TeacherConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding | None = None
) -> None:
    """Refuse a teacher whose tokenizer, with the same vocabulary, splits text unlike the encoding's.

    Args:
        teacher: Its block of the capture file.
        folder: Its model folder.
        tokenizer: The encoding's tokenizer.
        encoding: Try its texts, and not the probes that need none.

    Raises:
        IdentityError: it does.
    """
    loaded = load_tokenizer(folder, trust_remote_code=teacher.trust_remote_code)
    if tokenizer_identity(loaded) == tokenizer_identity(tokenizer):
        return
    own, shared = loaded.backend_tokenizer, tokenizer.backend_tokenizer
    require_same(
        shared,
        own,
        probes(shared) if encoding is None else sampled_texts(encoding),
        f"the tokenizer of teacher {teacher.name!r} splits text unlike that of the encoding",
        folder,
        "Give it an encoding of its own, in a capture file with another encoding.name",
    )
