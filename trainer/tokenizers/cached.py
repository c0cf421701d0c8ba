"""The tokenizer of a student: that of its vocabulary or of its cache; a student's own must have the same vocabulary."""

from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from cache_tools.alignments.stored import Alignment
from cache_tools.errors import IdentityError
from cache_tools.format.vocabulary import Vocabulary, vocabulary_fingerprint
from cache_tools.storage import StorePath, write_objects
from cache_tools.store.reader import Encoding
from cache_tools.torch_models.gguf import load_tokenizer
from cache_tools.torch_models.tokenizers import open_tokenizer
from cache_tools.vocabularies.folder import read_vocabulary, save_tokenizer
from cache_tools.vocabularies.token_map import mapped


def check_tokenizer(source: str, vocabulary: Vocabulary, revision: str | None = None, remote: bool = False) -> None:
    """Refuse a student whose tokenizer gives ids another meaning than its vocabulary does.

    Raises:
        IdentityError: it does, or it reads that tokenizer's ids through another map.
        FormatError: its map cannot be read.
        OSError: there is no tokenizer at ``source``.
    """
    require_vocabulary(load_tokenizer(source, revision=revision, trust_remote_code=remote), vocabulary, source)


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, source: str) -> None:
    """Refuse a loaded tokenizer that gives ids another meaning than a vocabulary does.

    Args:
        tokenizer: The student's.
        vocabulary: The vocabulary that the student must have.
        source: Where it was loaded from; a map of ids may lie there.

    Raises:
        IdentityError: it does, or it reads that tokenizer's ids through another map.
        FormatError: its map cannot be read.
    """
    actual = mapped(vocabulary_fingerprint(tokenizer.get_vocab()), Path(source))
    if actual != vocabulary.fingerprint:
        raise IdentityError(
            "the student has another tokenizer than the cache",
            where=source,
            expected=f"vocabulary {vocabulary.fingerprint[:12]}… ({vocabulary.size} ids)",
            found=f"{actual[:12]}… ({len(tokenizer)} ids)",
            why="it would be compared on ids that mean other tokens",
            fix="If it was trained with a vocabulary or an alignment, name that; otherwise align the cache with its "
            "tokenizer, or capture an encoding with it",
        )


def student_tokenizer(
    vocabulary: StorePath | None, encoding: Encoding, alignment: Alignment | None = None
) -> PreTrainedTokenizerBase:
    """Load the student's tokenizer: that of an alignment, of the folder of a vocabulary, or else the encoding's.

    Raises:
        FormatError: its files are no tokenizer.
        IdentityError: they are not those of the recorded tokenizer.
    """
    with TemporaryDirectory() as folder:  # either may lie in a bucket
        if alignment is not None:
            write_objects(Path(folder), alignment.tokenizer_files())
            return open_tokenizer(Path(folder), alignment.manifest.vocabulary, alignment.path)
        if vocabulary is None:
            encoding.save_tokenizer(Path(folder))
            return open_tokenizer(Path(folder), encoding.manifest.vocabulary, encoding.path)
        save_tokenizer(vocabulary, Path(folder))
        union = read_vocabulary(vocabulary)
        recorded = union.vocabulary  # of a part of a tokenizer's tokens, the tokenizer itself is kept
        for tokenizer, ids in union.read.items():
            recorded = Vocabulary(len(ids), tokenizer)
        return open_tokenizer(Path(folder), recorded, vocabulary)
