"""What manifests and receipts are made of: records of objects, targets, layers, and the bounds of names and numbers.

Whatever can be checked of a value by itself is checked here, so no command meets a path for a name or a size that
cannot be.
"""

import builtins
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.limits import OBJECT_BYTES, TOTAL
from cache_tools.mappings import JsonObject
from cache_tools.storage import sha256


class Kind(StrEnum):
    """What a row keeps of a distribution. Each kind states its own properties, so that no other code compares names."""

    TOPK = "topk"
    TOPP = "topp"
    SAMPLED = "sampled"
    HYBRID = "hybrid"
    DENSE = "dense"

    @property
    def is_drawn(self) -> bool:
        """Whether rows hold draws: they are unbiased estimates, and their likeliest token need not be the teacher's."""
        return self in (Kind.SAMPLED, Kind.HYBRID)

    @property
    def has_head(self) -> bool:
        """Whether rows hold the k likeliest tokens with their exact probabilities, draws beside them or not."""
        return self in (Kind.TOPK, Kind.TOPP, Kind.HYBRID)

    @property
    def is_ranked(self) -> bool:
        """Whether rows hold the likeliest tokens and nothing else, so that fewer entries are such a row too."""
        return self.has_head and not self.is_drawn

    @property
    def has_mass(self) -> bool:
        """Whether the number of entries of a row follows from a probability mass p."""
        return self is Kind.TOPP

    @property
    def is_whole(self) -> bool:
        """Whether rows hold every token of the vocabulary."""
        return self is Kind.DENSE

    @property
    def has_exact_part(self) -> bool:
        """Whether rows hold probabilities that the teacher computed, not shares of draws alone."""
        return self.has_head or self.is_whole


Name = Annotated[str, Field(pattern=layout.NAME_PATTERN)]
"""Becomes a folder inside the cache, so an untrusted manifest must not be able to make it a path."""
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]
"""Path of an object relative to a folder of the cache; never leads out of it."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=TOTAL)]


class Document(BaseModel):
    """Part of a manifest; keys that it does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ObjectRecord(Document):
    """Size and hash of one stored object.

    Attributes:
        bytes: Its size.
        sha256: Hash of its content, as 64 hexadecimal digits.
    """

    bytes: int = Field(ge=0, le=OBJECT_BYTES)
    sha256: Sha256

    @classmethod
    def of(cls, content: "builtins.bytes") -> Self:
        """Describe an object's content."""
        return cls(bytes=len(content), sha256=sha256(content))


class TargetSpec(Document):
    """What is kept of a teacher's distribution, and in which codec (see ``codecs/registry.py``).

    Attributes:
        kind: ``topk``, ``topp``, ``sampled``, ``hybrid`` or ``dense``.
        k: Entries a row can hold.
        codec: Its name and parameters.
        settings: What else defines the kind, such as the mass of ``topp`` or the draws of ``sampled``.
    """

    kind: Kind = Kind.TOPK
    k: int = Field(gt=0, lt=2**32)
    codec: JsonObject
    settings: JsonObject = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _usable(cls, settings: JsonObject) -> JsonObject:
        for key, (low, high) in SETTINGS.items():
            value = settings.get(key, low)
            if isinstance(value, bool) or not isinstance(value, type(high) | int) or not low <= value <= high:
                raise ValueError(f"{key} must be a number from {low} to {high}")
        if not isinstance(settings.get("vocabulary", ""), str):
            raise ValueError("vocabulary must be a fingerprint")
        return settings


SETTINGS: dict[str, tuple[float, float]] = {
    "p": (0, 1.0),
    "draws": (0, 65_535),
    "seed": (-TOTAL, TOTAL),
    "head": (0, 2**32),
    "tokens": (1, 2**32),
}
"""Numbers among the settings of a kind, and their bounds."""


class HiddenSpec(Document):
    """One kept layer of hidden states.

    Attributes:
        width: Values per position.
        codec: ``bfloat16`` (bits in uint16), ``float32``, or ``transform`` (see ``hidden_codecs/transform.py``).
        budget: For ``transform``, the error that each shard may make on average: of the logits'
            distribution in nats (layer ``last``), or relative to each channel's rms (other layers).
    """

    width: int = Field(gt=0, lt=2**32)
    codec: Literal["bfloat16", "float32", "transform"]
    budget: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Sampling(Document):
    """How a model drew the tokens of its completions.

    Attributes:
        temperature: The logits were divided by it; 0 means that the likeliest token was taken each time.
        top_p: Mass of the likeliest tokens that were drawn from; 1 means all.
        top_k: Number of the likeliest tokens that were drawn from; 0 means all.
        max_new_tokens: Length at which a completion was cut.
        samples_per_prompt: Completions of each prompt.
        seed: Seed of the draws.
        stop_ids: Token ids that end a completion.
    """

    temperature: float = Field(ge=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    max_new_tokens: int = Field(gt=0)
    samples_per_prompt: int = Field(gt=0)
    seed: int
    stop_ids: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether tokens are draws from the model's own distribution: temperature 1, nothing truncated."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0


class StudentOrigin(Document):
    """Which training run a model is the student of.

    Attributes:
        run: Fingerprint of the run's identity.
        step: Optimizer steps that it had made; None if the run does not say.
        text_by: Weights of the models that wrote the text it learned from; empty unless all writers are recorded.
        scored_by: Weights of the teachers that it learned from; empty unless those of all are recorded.
    """

    run: Sha256
    step: Count | None = None
    text_by: tuple[str, ...] = ()
    scored_by: tuple[str, ...] = ()


class Policy(Document):
    """A model that wrote completions, and how.

    Attributes:
        weights: Hash of its weight files and configuration, as in a teacher's identity; None where nobody could read
            them. With an ``engine``, they are those of the folder that the user named as the one that is served.
        dtype: Type in which it computed; None if unknown.
        quantisation: How its weights are stored, if they are quantised.
        engine: The server that ran it: ``name``, ``version``, ``model`` as the server names it, and ``request``; None
            for transformers.
        tokenizer: Fingerprints of its tokenizer, ``behaviour`` and ``vocabulary``, as in an encoding's identity.
        sampling: How tokens were drawn.
        student: The training run that it comes from; None for a model that is no student of this program.
        model: For people: name, architecture, number of parameters.
        software: For people: what ran it.
    """

    weights: Sha256 | None
    dtype: str | None
    quantisation: str | None = None
    engine: JsonObject | None = Field(default=None, exclude_if=lambda engine: engine is None)
    tokenizer: dict[str, str]
    sampling: Sampling
    student: StudentOrigin | None = None
    model: JsonObject
    software: str

    @property
    def identity(self) -> JsonObject:
        """What determines the completions, rounding aside: everything but what is written for people."""
        return self.model_dump(mode="json", exclude={"model", "software"})

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)


class WrittenBy(Document):
    """Files of a corpus that one model completed; the kept positions of their documents are tokens that it drew.

    Attributes:
        policy: The model.
        files: Names of the files, as in the part's ``files.arrow``.
    """

    policy: Policy
    files: tuple[str, ...]


SHOWN_ERRORS = 5


def summary(error: Exception) -> str:
    """Return why a document could not be read, the first few problems of several."""
    if isinstance(error, OSError):
        return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    if isinstance(error, ValidationError):
        return "; ".join(
            ": ".join([*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")])
            for e in error.errors(include_input=False, include_url=False)[:SHOWN_ERRORS]
        )
    if isinstance(error, ValueError):
        return f"damaged ({error})"
    return f"no {error} entry"
