"""What a cache says about itself: the attributes of its Zarr groups.

Three kinds of group, three models. Each manifest lies beside what it describes instead of
in one central file, so two machines that add two teachers never write the same object.
A manifest is written once and never changed; unknown keys are ignored, so that later
versions of format 1 may say more.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache_tools import layout
from cache_tools.errors import FormatError
from cache_tools.files import write_atomically
from cache_tools.fingerprint import fingerprint

FORMAT = 1
SOFTWARE = "logitcask 0.1.0"
_KEY = "logitcask"

Objective = Literal["causal", "masked"]
Split = Literal["train", "held_out"]
Name = Annotated[str, Field(pattern=layout.NAME_PATTERN)]
"""Becomes a folder inside the cache, so a stranger's manifest must not make it a path."""


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CacheManifest(_Manifest):
    """The root group: nothing but the format version, which every reader checks first."""

    format: int = FORMAT
    software: str = SOFTWARE


class SplitTotals(_Manifest):
    """How much one split of an encoding holds."""

    documents: int
    sequences: int
    tokens: int
    positions: int
    shards: int


class EncodingManifest(_Manifest):
    """One way in which the corpus became sequences.

    Attributes:
        identity: Everything that determines the sequences: corpus hashes, tokenizer
            fingerprint, template, objective, lengths, masking, split.
        objective: ``causal``: position t predicts token t + 1. ``masked``: it predicts token t.
        vocabulary_size: Number of ids of the tokenizer, added tokens included.
        positions_per_shard: Rows of every array that one shard owns.
        splits: Totals per split.
        shards_sha256: Hash of ``shards.arrow``, which holds the hashes of the sequence files.
    """

    identity: dict[str, Any]
    objective: Objective
    vocabulary_size: int
    positions_per_shard: int
    splits: dict[Split, SplitTotals]
    shards_sha256: str

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)


class TargetSpec(_Manifest):
    """What is kept of a teacher's distribution, and in which codec (see ``codec.py``)."""

    kind: Literal["topk"] = "topk"
    k: int
    codec: dict[str, Any]


class HiddenSpec(_Manifest):
    """One kept layer of hidden states.

    Attributes:
        width: Values per position.
        codec: ``bfloat16`` (bits in uint16) or ``float32``.
    """

    width: int
    codec: Literal["bfloat16", "float32"]


class TeacherManifest(_Manifest):
    """One teacher's predictions.

    Attributes:
        identity: Everything that determines the predictions: weights, dtype, encoding
            fingerprint, target and hidden layers.
        model: For people: id or path, revision, architecture, parameter count.
        vocabulary_size: Width of the teacher's logits; may exceed the tokenizer's.
        target: The sparse target.
        scalar_step_nats: Resolution of the per-position scalars.
        scalars: Names of the per-position scalar arrays.
        hidden: Kept layers by name (``last`` or the index in transformers' ``hidden_states``).
        chunk_positions: Rows per inner chunk, the smallest piece a reader decodes.
    """

    identity: dict[str, Any]
    model: dict[str, Any]
    vocabulary_size: int
    target: TargetSpec
    scalar_step_nats: float
    scalars: tuple[Name, ...]
    hidden: dict[Name, HiddenSpec] = Field(default_factory=dict)
    chunk_positions: int

    @classmethod
    def describe(cls, identity: dict[str, Any], model: dict[str, Any], chunk_positions: int, **decoding: Any) -> Self:
        """Build a manifest whose identity includes the keys that govern decoding.

        Args:
            identity: Weights, dtype and encoding fingerprint.
            model: For people.
            chunk_positions: Rows per inner chunk.
            decoding: A value for each of DECODING_KEYS, as plain JSON.
        """
        return cls(identity=identity | decoding, model=model, chunk_positions=chunk_positions, **decoding)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse a manifest edited by hand: what governs decoding must be what was fingerprinted."""
        stated = self.model_dump(mode="json", include=set(DECODING_KEYS))
        if any(self.identity.get(key) != value for key, value in stated.items()):
            raise ValueError(f"{', '.join(DECODING_KEYS)} must equal those of the identity")
        return self

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)


DECODING_KEYS = ("vocabulary_size", "target", "scalar_step_nats", "scalars", "hidden")
"""Keys of a teacher's manifest without which its arrays cannot be decoded; repeated in its
identity, so that every receipt vouches for them."""

M = TypeVar("M", bound=_Manifest)


def write_manifest(folder: Path, manifest: _Manifest) -> None:
    """Write ``manifest`` as the attributes of a Zarr v3 group in ``folder``."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {_KEY: manifest.model_dump(mode="json")}}
    write_atomically(folder / layout.MANIFEST, (json.dumps(group, indent=2) + "\n").encode())


def write_group(folder: Path) -> None:
    """Write a bare Zarr v3 group, so that ``zarr.open_group`` can walk down to the arrays."""
    path = folder / layout.MANIFEST
    if not path.exists():
        write_atomically(path, b'{"zarr_format": 3, "node_type": "group", "attributes": {}}\n')


def read_manifest(folder: Path, model: type[M]) -> M:
    """Read the manifest of the group in ``folder``.

    Raises:
        FormatError: there is none, or it is not one of this version.
    """
    path = folder / layout.MANIFEST
    try:
        attributes = json.loads(path.read_bytes())["attributes"][_KEY]
        if model is CacheManifest:
            _check_format(path, attributes)
        return model.model_validate(attributes)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise FormatError(
            f"there is no readable {model.__name__.removesuffix('Manifest').lower()} manifest here",
            where=path,
            expected="a folder that 'logitcask capture' has written",
            found=_summary(error),
            fix="Check the path, or look one level up or down",
        ) from error


def _check_format(path: Path, attributes: dict[str, Any]) -> None:
    found = attributes["format"]
    if found != FORMAT:
        raise FormatError(
            "this cache has another format version",
            where=path,
            expected=f"format {FORMAT}",
            found=f"format {found}, written by {attributes.get('software', 'unknown software')}",
            why="reading it by the wrong rules would give wrong numbers",
            fix="Install the logitcask version that wrote it, or a newer one",
        )


def _summary(error: Exception) -> str:
    if isinstance(error, OSError):
        return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    if isinstance(error, ValidationError):
        return "; ".join(
            ": ".join([*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")]) for e in error.errors()
        )
    return f"malformed JSON ({error})" if isinstance(error, json.JSONDecodeError) else f"no {error} entry"
