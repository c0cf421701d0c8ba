"""Check that a teacher fits a capture file before it is loaded: length, tokenizer, vocabulary."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from cache_tools.errors import IdentityError, ModelError
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.same_tokenizer import probes, require_same, sampled_texts
from pipeline.config.engines import ServerConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.encoding.tokenizer import load_tokenizer, tokenizer_identity
from pipeline.teachers.loading import max_positions
from pipeline.teachers.restriction import Restriction


def check_teacher(
    config: TeacherConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    max_length_tokens: int,
    restriction: Restriction | None,
) -> None:
    """Refuse a teacher that could not be used, before anything is encoded or loaded.

    Args:
        config: The teacher's block of the capture file.
        folder: The folder of its model; no weights are needed.
        tokenizer: The encoding's tokenizer.
        max_length_tokens: Length of the longest sequence.
        restriction: The tokens that the target is over, if not all.

    Raises:
        ModelError: sequences are longer than the teacher can read.
        IdentityError: the teacher, or its vocabulary, has another tokenizer than the encoding.
    """
    if not isinstance(config.engine, ServerConfig):  # a server states its own limit when it is opened
        _check_length(config, folder, max_length_tokens)
    own = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    vocabulary = _vocabulary(tokenizer)
    if _vocabulary(own) != vocabulary:
        raise IdentityError(
            f"teacher {config.name!r} has another tokenizer than the encoding",
            where=folder,
            expected=f"vocabulary {vocabulary[:12]}…",
            found=f"{_vocabulary(own)[:12]}…",
            why="it would read ids that mean other tokens",
            fix="Give it an encoding of its own, in a capture file with another encoding.name",
        )
    _check_splitting(config, folder, own, tokenizer, None)
    if restriction is not None:
        _check_restriction(config, restriction, vocabulary)


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the fingerprint of a tokenizer's vocabulary."""
    return str(tokenizer_identity(tokenizer)["vocabulary"])


def _check_restriction(config: TeacherConfig, restriction: Restriction, vocabulary: str) -> None:
    """Refuse a smaller vocabulary that was made from another tokenizer than the one with this fingerprint."""
    if restriction.tokenizer != vocabulary:
        raise IdentityError(
            f"the vocabulary of teacher {config.name!r} was made from another tokenizer",
            where=config.target.vocabulary,
            expected=f"vocabulary {vocabulary[:12]}…",
            found=f"{restriction.tokenizer[:12]}…",
            why="its ids mean other tokens",
            fix="Make it with 'logitcask vocabulary --keep' from a cache with this tokenizer",
        )


def _check_length(config: TeacherConfig, folder: Path, max_length_tokens: int) -> None:
    limit = max_positions(folder, config.trust_remote_code)
    if limit is not None and max_length_tokens > limit:
        raise ModelError(
            f"sequences are longer than teacher {config.name!r} can read",
            where="encoding.max_length_tokens",
            expected=f"at most {limit}",
            found=max_length_tokens,
            fix=f"Set encoding.max_length_tokens to {limit} or less; longer documents are split",
        )


def check_behaviour(
    config: TeacherConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding
) -> None:
    """Refuse a teacher whose tokenizer, with the same vocabulary, splits texts of the encoding differently.

    Args:
        config: The teacher's block of the capture file.
        folder: The folder of its model.
        tokenizer: The encoding's tokenizer.
        encoding: Brings the texts.

    Raises:
        IdentityError: it does.
    """
    own = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    _check_splitting(config, folder, own, tokenizer, encoding)


def _check_splitting(
    config: TeacherConfig,
    folder: Path,
    own: PreTrainedTokenizerFast,
    shared: PreTrainedTokenizerFast,
    encoding: Encoding | None,
) -> None:
    """Compare two tokenizers on texts of an encoding, or on probes that need none."""
    if tokenizer_identity(own) == tokenizer_identity(shared):
        return
    require_same(
        shared.backend_tokenizer,
        own.backend_tokenizer,
        probes(shared.backend_tokenizer) if encoding is None else sampled_texts(encoding),
        f"the tokenizer of teacher {config.name!r} splits text unlike that of the encoding",
        folder,
        "Give it an encoding of its own, in a capture file with another encoding.name",
    )
