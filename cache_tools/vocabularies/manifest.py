"""``vocabulary.json``: what the folder of a vocabulary states of itself, read and compared.

It is written last, so a folder without it was never finished.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format.manifest import SOFTWARE, Count, Key, ObjectRecord, Split
from cache_tools.format.sealed import read_sealed
from cache_tools.format.tokenizer_files import check_keys
from cache_tools.regular_files import enclose
from cache_tools.storage import StorePath, read_object
from cache_tools.vocabularies.token_map import TOKEN_MAP

DOCUMENT, TOKENIZER = "vocabulary.json", "tokenizer"

TOKEN_MAP_KEY = f"{TOKENIZER}/{TOKEN_MAP}"
"""Key of the map with the stand-ins of dropped tokens."""


class Part(BaseModel):
    """One tokenizer of a union.

    Attributes:
        vocabulary: Fingerprint of its vocabulary.
        ids: How many ids it has.
        shared: How many of them are tokens that another tokenizer of the union has, too.
        same_rules: Whether the union's tokenizer cleans and splits text into words as this one does.
    """

    model_config = ConfigDict(frozen=True)
    vocabulary: str
    ids: Count
    shared: Count
    same_rules: bool


class VocabularyManifest(BaseModel):
    """What ``vocabulary.json`` holds.

    Attributes:
        format: Version of the folder's format; 2 if tokens were dropped, because readers of version 1 ignore the map.
        software: The software that wrote it.
        size: Number of tokens of the vocabulary.
        fingerprint: Fingerprint of the vocabulary, see ``UnionVocabulary``.
        tokenizers: The tokenizers that it was made from, in order.
        files: All other files of the folder.
        coverage: If tokens were dropped, the share of each split's ordinary tokens that are kept.
    """

    model_config = ConfigDict(frozen=True)
    format: int = 1
    software: str = SOFTWARE
    size: Count
    fingerprint: str
    tokenizers: tuple[Part, ...] = Field(min_length=1)
    files: dict[Key, ObjectRecord]
    coverage: dict[Split, float] | None = None

    @field_validator("files")
    @classmethod
    def _data_only(cls, files: dict[str, ObjectRecord]) -> dict[str, ObjectRecord]:
        check_keys(files, also=frozenset({TOKEN_MAP_KEY}))
        return files


def read_manifest(folder: StorePath) -> VocabularyManifest:
    """Read ``vocabulary.json``.

    Raises:
        FormatError: there is none, it is damaged, or of another format.
    """
    path = folder / DOCUMENT
    enclose(folder)
    try:
        manifest = VocabularyManifest.model_validate(read_sealed(read_object(path)))
        if manifest.format not in (1, 2):
            raise ValueError(f"format {manifest.format}")
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise FormatError(
            "there is no readable vocabulary here",
            where=path,
            expected="a folder that 'logitcask vocabulary' has written",
            found="no such file" if isinstance(error, OSError) else reason,
            fix="Check the path, or run 'logitcask vocabulary' again",
        ) from error
    return manifest


def require_same(folder: StorePath, new: VocabularyManifest) -> None:
    """Refuse to write a vocabulary into the folder of another one.

    Raises:
        IdentityError: the folder holds another vocabulary.
        FormatError: see ``read_manifest``.
    """
    stored = read_manifest(folder)
    if stored.fingerprint != new.fingerprint:
        raise IdentityError(
            "this folder holds another vocabulary",
            where=folder,
            expected=f"{new.fingerprint[:12]}…, {new.size} tokens of {len(new.tokenizers)} tokenizers",
            found=f"{stored.fingerprint[:12]}…, {stored.size} tokens of {len(stored.tokenizers)} tokenizers",
            why="replacing it would change the ids of students that were trained with it",
            fix="Choose another folder",
        )
