"""Several teachers and several caches in a student file.

Several teachers of one encoding::

    cache: runs/two/cache
    teachers:
      - {name: wordnet}
      - {name: debian, groups: {"wn:*": 0.2}}
    mixture: {weights: entropy, of: losses}

Several caches, of other corpora or other teachers, for the same student vocabulary::

    caches:
      - {cache: runs/prose/cache, share: 3}
      - {cache: runs/code/cache, share: 1, teacher: large}

Caches with different tokenizers, for a student with the union of their vocabularies (``logitcask vocabulary``)::

    caches:
      - {cache: runs/en/cache}
      - {cache: runs/de/cache}
    vocabulary: runs/vocabulary
"""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, model_validator

from cache_tools.configuration import Config
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB
from cache_tools.storage import CachePath

Weighting = Literal["fixed", "inverse_loss", "gold_likelihood", "entropy", "discounted"]
SCALAR: dict[Weighting, str | None] = {
    "fixed": None,
    "inverse_loss": GOLD_LOGPROB,
    "gold_likelihood": GOLD_LOGPROB,
    "entropy": ENTROPY,
    "discounted": GOLD_LOGPROB,
}
"""The scalar that each rule reads from every teacher's cache."""


Per = Literal["position", "sequence", "others"]
PREFIX: dict[Per, str] = {"position": "", "sequence": "mean_", "others": "others_"}
"""By what a weight is for: how the number that it is made from is named, before the name of the scalar."""


class MixedTeacher(Config):
    """One of several teachers over the same encoding.

    Attributes:
        name: Its name in the cache.
        weight: Its weight, relative to the other teachers'.
        groups: Weights that replace ``weight`` on documents whose group matches a pattern of shell wildcards; the first
            matching pattern is used. 0 leaves the teacher out; at least one teacher must have a weight above 0.
    """

    name: str
    weight: float = Field(default=1.0, gt=0, le=1e6)
    groups: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _weights(self) -> "MixedTeacher":
        wrong = [pattern for pattern, weight in self.groups.items() if not 0 <= weight <= 1e6]
        if wrong:
            raise ValueError(f"a group's weight must be between 0 and 1e6; wrong: {', '.join(wrong)}")
        return self

    def weight_on(self, group: str) -> float:
        """Return the weight on documents of a group."""
        return next((w for pattern, w in self.groups.items() if fnmatchcase(group, pattern)), self.weight)


class MixtureConfig(Config):
    """How several teachers are mixed; formulas: ``trainer/losses/mixture_weights.py``, ``trainer/losses/mixture.py``.

    Attributes:
        weights: ``fixed``: the weights in ``teachers``. The other rules multiply these, position by position, with a
            factor from the cache: ``inverse_loss``, 1 / the teacher's cross-entropy on the gold token;
            ``gold_likelihood``, its probability of that token; ``entropy``, exp(-entropy); the products are then scaled
            to sum to 1. ``discounted``, 1 / (1 + cross-entropy), is not scaled: a teacher with a high cross-entropy
            has less weight, and the others do not make up for it.
        per: ``position``: each position has weights by its own scalars. ``sequence``: all positions of a sequence have
            the same weights, by the mean of each teacher's scalar over the sequence's kept positions. The entropy at
            one position depends on how hard the position is; its mean over a sequence depends more on the text.
            ``others``: each position has weights by the mean over the *other* kept positions of its sequence, so that
            no rule sees the gold token that is to be predicted there; the only kept position of a sequence has the
            weights in ``teachers``.
        temperature: Factors of ``entropy``, ``inverse_loss`` and ``gold_likelihood`` are raised to 1 / temperature:
            below 1 the better teacher gets nearly all weight, far above 1 the weights are those in ``teachers``.
        of: ``losses``: the weighted sum of each teacher's own divergence. ``distributions``: one divergence from the
            weighted mean of the teachers' distributions, on all tokens that any of them kept.
    """

    weights: Weighting = "fixed"
    # left out of run.json at its default, so that runs which began before this key existed continue
    per: Per = Field(default="position", exclude_if=lambda per: per == "position")
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3, exclude_if=lambda temperature: temperature == 1)
    of: Literal["losses", "distributions"] = "losses"

    @model_validator(mode="after")
    def _temperature(self) -> "MixtureConfig":
        if self.temperature != 1 and self.weights in ("fixed", "discounted"):
            raise ValueError(f"{self.weights} weights have no temperature; use another rule, or leave temperature out")
        return self

    @model_validator(mode="after")
    def _distribution(self) -> "MixtureConfig":
        if self.weights == "discounted" and self.of == "distributions":
            raise ValueError("discounted weights do not sum to 1 and cannot mix distributions; set of: losses")
        return self

    @model_validator(mode="after")
    def _per_sequence(self) -> "MixtureConfig":
        if self.per != "position" and self.weights == "fixed":
            raise ValueError(
                f"fixed weights are the same at every position of a sequence; per: {self.per} needs a rule"
            )
        return self

    @property
    def column(self) -> str | None:
        """Name of the number that the rule reads of each teacher at each position; None if it reads none."""
        scalar = SCALAR[self.weights]
        return scalar if scalar is None else f"{PREFIX[self.per]}{scalar}"


class MixedCache(Config):
    """One of several caches.

    Attributes:
        cache: Its folder.
        encoding: Name of the encoding; may be left out if there is one.
        teacher: Name of the teacher; may be left out if there is one.
        share: Its share of the sequences of an epoch, relative to the other caches'. Set it for all caches or for none;
            by default a cache's share is its number of sequences, so that an epoch is one pass over everything.
    """

    cache: CachePath
    encoding: str | None = None
    teacher: str | None = None
    share: float | None = Field(default=None, gt=0, le=1e6)
