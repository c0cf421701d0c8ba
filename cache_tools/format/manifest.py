"""The manifests of a cache: the attributes of its Zarr groups.

Three kinds of group, three models. Each manifest lies beside what it describes instead of
in one central file, so two machines that add two teachers never write the same object.

A manifest changes in two ways only, each by one atomic write: an encoding gains a part
when documents are appended, a teacher gains or loses a layer of hidden states. Identities
never change. Unknown keys are ignored, so that later versions of format 1 may say more.

Numbers and names are checked when a manifest is read, here and in ``specs.py``.
"""

from typing import Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from cache_tools.errors import FormatError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.sealed import UNSEALED, parse_json, read_sealed, sealed_bytes
from cache_tools.format.specs import Count as Count
from cache_tools.format.specs import Document as Document
from cache_tools.format.specs import HiddenSpec as HiddenSpec
from cache_tools.format.specs import Key as Key
from cache_tools.format.specs import Kind as Kind
from cache_tools.format.specs import Name as Name
from cache_tools.format.specs import ObjectRecord as ObjectRecord
from cache_tools.format.specs import Policy as Policy
from cache_tools.format.specs import Sampling as Sampling
from cache_tools.format.specs import Sha256 as Sha256
from cache_tools.format.specs import StudentOrigin as StudentOrigin
from cache_tools.format.specs import TargetSpec as TargetSpec
from cache_tools.format.specs import WrittenBy as WrittenBy
from cache_tools.format.specs import summary
from cache_tools.format.tokenizer_files import check_keys
from cache_tools.format.vocabulary import Vocabulary
from cache_tools.limits import SHARD_POSITIONS
from cache_tools.mappings import Identity, JsonObject
from cache_tools.storage import StorePath, object_exists, read_object, write_object

FORMAT = 1
SOFTWARE = "logitcask 0.1.0"
KEY = "logitcask"
"""Attribute of a Zarr group or array that is ours."""

IMPORTED = "imported"
"""Key of the identity of a teacher whose predictions were read from files of another tool: what and which they were."""

Objective = Literal["causal", "masked"]
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class CacheManifest(Document):
    """The root group: nothing but the format version, which every reader checks first.

    A manifest without the version is never read as one, or any group of a cache would pass as its root.
    """

    format: int = FORMAT
    software: str = SOFTWARE


class SplitTotals(Document):
    """How much one split of an encoding holds.

    Attributes:
        documents: Documents.
        sequences: Sequences that they were divided into.
        tokens: Tokens of these sequences.
        positions: Positions at which predictions are kept.
        shards: Shards that hold them.
    """

    documents: Count = 0
    sequences: Count = 0
    tokens: Count = 0
    positions: Count = 0
    shards: Count = 0

    def __add__(self, other: "SplitTotals") -> "SplitTotals":
        mine, its = self.model_dump(), other.model_dump()
        return SplitTotals(**{name: mine[name] + its[name] for name in mine})


class Part(Document):
    """What one run added to an encoding: some files of the corpus, as some further shards.

    Attributes:
        splits: Totals per split.
        files_sha256: Hash of the part's ``files.arrow``: names and hashes of the corpus files.
        shards_sha256: Hash of the part's ``shards.arrow``, which holds the hashes of the sequence files.
        chat_sequences_without_beginning: Sequences that begin in the middle of a chat longer than a sequence, so that
            the teacher read an answer without (all of) its prompt; not stored if there are none.
        written_by: Models that wrote completions in the part's files; not stored if there are none.
    """

    splits: dict[Split, SplitTotals]
    files_sha256: Sha256
    shards_sha256: Sha256
    chat_sequences_without_beginning: int = Field(default=0, ge=0, exclude_if=lambda count: count == 0)
    written_by: tuple[WrittenBy, ...] = Field(default=(), exclude_if=lambda policies: not policies)


class EncodingManifest(Document):
    """One way in which documents became sequences, and the parts of the corpus that have.

    Attributes:
        identity: Everything that determines how a document becomes sequences: tokenizer
            fingerprint, template, objective, lengths, masking, split.
        objective: ``causal``: position t predicts token t + 1. ``masked``: it predicts token t.
        vocabulary_size: Number of ids of the tokenizer, added tokens included.
        positions_per_shard: Rows of every array that one shard owns.
        parts: In the order in which they were added.
        files: The tokenizer's files, by key relative to the encoding.
    """

    identity: Identity
    objective: Objective
    vocabulary_size: int = Field(gt=0, lt=2**32)
    positions_per_shard: int = Field(gt=0, le=SHARD_POSITIONS)
    parts: tuple[Part, ...]
    files: dict[Key, ObjectRecord]

    @field_validator("files")
    @classmethod
    def _data_only(cls, files: dict[str, ObjectRecord]) -> dict[str, ObjectRecord]:
        check_keys(files)
        return files

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity; the same before and after documents are appended."""
        return fingerprint(self.identity)

    @property
    def vocabulary(self) -> Vocabulary:
        """What a student must know of the tokenizer.

        Raises:
            FormatError: the identity does not name it.
        """
        tokenizer = self.identity.get("tokenizer")
        vocabulary = tokenizer.get("vocabulary") if isinstance(tokenizer, dict) else None
        if not isinstance(vocabulary, str):
            raise FormatError(
                "the manifest of this encoding does not record the vocabulary of its tokenizer",
                expected="a fingerprint under tokenizer.vocabulary",
                found=repr(vocabulary),
                why="ids could be taken for other tokens",
                fix="Capture the corpus again",
            )
        return Vocabulary(self.vocabulary_size, vocabulary)

    @property
    def separator(self) -> int | None:
        """Id of the token behind which the second segment of a sequence begins; None if sequences have one segment."""
        settings = self.identity.get("encoding")
        segments = settings.get("segments") if isinstance(settings, dict) else None
        separator = segments.get("separator") if isinstance(segments, dict) else None
        return separator if isinstance(separator, int) else None

    @property
    def labelled(self) -> bool:
        """Whether documents have a class; the first kept position of each sequence then predicts it."""
        corpus = self.identity.get("corpus")
        return isinstance(corpus, dict) and bool(corpus.get("label_field"))

    @property
    def context(self) -> dict[str, str]:
        """Templates of what only teachers read, by key of ``corpus.context``; empty if students read the same."""
        corpus = self.identity.get("corpus")
        stated = corpus.get("context") if isinstance(corpus, dict) else None
        return {str(key): str(value) for key, value in stated.items()} if isinstance(stated, dict) else {}

    @property
    def contents_fingerprint(self) -> str:
        """sha256 of the identity and of every sequence."""
        return fingerprint({"identity": self.identity, "parts": [part.shards_sha256 for part in self.parts]})

    @property
    def splits(self) -> dict[Split, SplitTotals]:
        """Totals per split over all parts."""
        zero = SplitTotals()
        return {split: sum((part.splits.get(split, zero) for part in self.parts), zero) for split in SPLITS}


class TeacherManifest(Document):
    """One teacher's predictions.

    Attributes:
        identity: Everything that determines the predictions: weights, dtype, encoding
            fingerprint, target and scalars.
        model: For people: id or path, revision, architecture, parameter count.
        vocabulary_size: Width of the teacher's logits; may exceed the tokenizer's.
        target: The sparse target.
        scalar_step_nats: Resolution of the per-position scalars; 0 for float32.
        scalars: Names of the per-position scalar arrays.
        hidden: Kept layers by name (``last`` or the index in transformers' ``hidden_states``).
        files: ``head.safetensors``, ``ranks.safetensors`` and the layers' transforms, by key relative to the teacher.
        chunk_positions: Rows per inner chunk, the smallest piece a reader decodes.
    """

    identity: Identity
    model: JsonObject
    vocabulary_size: int = Field(gt=0, lt=2**32)
    target: TargetSpec
    scalar_step_nats: float = Field(ge=0, le=1, allow_inf_nan=False)
    scalars: tuple[Name, ...]
    hidden: dict[Name, HiddenSpec] = Field(default_factory=dict)
    files: dict[Key, ObjectRecord] = Field(default_factory=dict)
    chunk_positions: int = Field(gt=0, le=SHARD_POSITIONS)

    @classmethod
    def describe(cls, identity: Identity, model: JsonObject, chunk_positions: int, **decoding: Any) -> Self:
        """Build a manifest whose identity includes the keys that govern decoding.

        Args:
            identity: Weights, dtype and encoding fingerprint.
            model: For people.
            chunk_positions: Rows per inner chunk.
            decoding: A value for each of DECODING_KEYS, and ``hidden`` and ``files`` if any, as plain JSON.
        """
        kept = {key: decoding[key] for key in DECODING_KEYS}
        kept["target"] = TargetSpec.model_validate(kept["target"]).model_dump(mode="json")
        return cls(identity=identity | kept, model=model, chunk_positions=chunk_positions, **decoding)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse a manifest edited by hand: what governs decoding must be what was fingerprinted."""
        stated = self.model_dump(mode="json", include=set(DECODING_KEYS))
        if any(self.identity.get(key) != value for key, value in stated.items()):
            raise ValueError(f"{', '.join(DECODING_KEYS)} must equal those of the identity")
        if self.target.k > self.vocabulary_size:
            raise ValueError(f"rows of k = {self.target.k} entries need more than {self.vocabulary_size} ids")
        if len(set(self.scalars)) < len(self.scalars) or not RESERVED.isdisjoint(self.scalars):
            raise ValueError("two scalars have the same name, or one has a name that the format uses itself")
        if layout.MANIFEST in self.hidden:
            raise ValueError(f"{layout.MANIFEST} cannot be the name of a layer")
        return self

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)


DECODING_KEYS = ("vocabulary_size", "target", "scalar_step_nats", "scalars")
"""Keys of a teacher's manifest without which its targets and scalars cannot be decoded; repeated in
its identity, so that every receipt vouches for them. Layers of hidden states come and go; a receipt
vouches for those that its shard has."""

RESERVED = frozenset({"hidden", "receipts", "transforms", layout.HEAD, layout.RANKS, layout.MANIFEST})
"""Names in a teacher's folder that no array of one number a position can have."""

M = TypeVar("M", bound=Document)


def group_bytes(manifest: Document | None = None) -> bytes:
    """Return the ``zarr.json`` of a Zarr v3 group, with a manifest as its attributes if given."""
    attributes = {"seal": UNSEALED} | (manifest.model_dump(mode="json") if manifest else {})
    return sealed_bytes({"zarr_format": 3, "node_type": "group", "attributes": {KEY: attributes}})


def write_manifest(folder: StorePath, manifest: Document) -> None:
    """Write ``manifest`` as the attributes of a Zarr v3 group in ``folder``."""
    write_object(folder / layout.MANIFEST, group_bytes(manifest))


def write_group(folder: StorePath) -> None:
    """Write a bare Zarr v3 group, so that ``zarr.open_group`` can walk down to the arrays."""
    if not object_exists(folder / layout.MANIFEST):
        write_object(folder / layout.MANIFEST, group_bytes())


def read_manifest(folder: StorePath, model: type[M]) -> M:
    """Read the manifest of the group in ``folder``.

    Raises:
        FormatError: there is none, it is damaged, or it is not one of this version; or another group's manifest lies
            there.
        DamageError: it is not a regular file, or too large.
    """
    path = folder / layout.MANIFEST
    kind = model.__name__.removesuffix("Manifest").lower()
    try:
        content = read_object(path)
        if model is CacheManifest:  # first of all: another format may have other seals
            _check_format(path, content)
        attributes = read_sealed(content)["attributes"][KEY]
        if model is CacheManifest and isinstance(attributes, dict) and not _is_root(attributes):
            raise ValueError("it belongs to a group inside a cache, not to its root")
        return model.model_validate(attributes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        root = _root_above(folder) if model is CacheManifest else None
        raise FormatError(
            f"there is no readable {kind} manifest here",
            where=path,
            expected="a folder that 'logitcask capture' has written",
            found=summary(error),
            fix=f"The cache's root seems to be {root}" if root else "Check the path, or look one level up or down",
        ) from error


def _root_above(folder: StorePath) -> StorePath | None:
    """Return the folder above that holds a cache's own manifest; None if the nearest levels have none."""
    parent = folder
    for _ in range(LEVELS):
        parent = parent.parent
        try:
            if _is_root(read_sealed(read_object(parent / layout.MANIFEST))["attributes"][KEY]):
                return parent
        except (OSError, LogitcaskError, ValueError, KeyError, TypeError):
            continue
    return None


def _is_root(attributes: JsonObject) -> bool:
    return "format" in attributes and "identity" not in attributes


LEVELS = 6
"""Folders from the deepest array, a layer of hidden states, up to the root."""


def stated_format(content: bytes) -> Any:
    """Return the format version that a cache's manifest states, sealed or not; None if it states none."""
    try:
        return parse_json(content)["attributes"][KEY]["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_format(path: StorePath, content: bytes) -> None:
    """Refuse another format version; content that states none is refused later, by its seal."""
    try:
        attributes = parse_json(content)["attributes"][KEY]
        version, software = attributes["format"], attributes.get("software", "unknown software")
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    if version != FORMAT or isinstance(version, bool):
        raise FormatError(
            "this cache has another format version",
            where=path,
            expected=f"format {FORMAT}",
            found=f"format {version}, written by {software}",
            why="reading it by the wrong rules would give wrong numbers",
            fix="Install the logitcask version that wrote it, or a newer one",
        )
