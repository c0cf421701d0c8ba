"""Several teachers and several caches in a student file; a file with one of each needs none of this.

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

Caches of other tokenizers, for a student with the union of their vocabularies (``logitcask vocabulary``)::

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
"""What each rule reads of every teacher's cache."""


class MixedTeacher(Config):
    """One of several teachers over the same encoding.

    Attributes:
        name: Its name in the cache.
        weight: Its weight beside the others'.
        groups: Its weight on documents whose group fits a pattern of shell wildcards, instead of ``weight``; the
            first that fits counts. 0 leaves it out there; some teacher must be left.
    """

    name: str
    weight: float = Field(default=1.0, gt=0, le=1e6)
    groups: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _weights(self) -> "MixedTeacher":
        wrong = [pattern for pattern, weight in self.groups.items() if not 0 <= weight <= 1e6]
        if wrong:
            raise ValueError(f"a group's weight lies between 0 and 1e6; see {', '.join(wrong)}")
        return self

    def weight_on(self, group: str) -> float:
        """Return the weight on documents of a group."""
        return next((w for pattern, w in self.groups.items() if fnmatchcase(group, pattern)), self.weight)


class MixtureConfig(Config):
    """How several teachers are mixed; ``losses/mixture_weights.py`` and ``losses/mixture.py`` have the formulas.

    Attributes:
        weights: ``fixed``: those of the list. The others multiply them, position by position, with what the cache says:
            ``inverse_loss``, 1 / the teacher's cross-entropy on the gold token; ``gold_likelihood``, its
            probability of that token; ``entropy``, e to the minus entropy; all of these then sum to 1.
            ``discounted``, 1 / (1 + cross-entropy), does not sum to anything: bad teachers count less, and are not
            replaced by others.
        of: ``losses``: the weighted sum of each teacher's own divergence. ``distributions``: one divergence from the
            weighted mean of what they said, on all tokens that any of them kept.
    """

    weights: Weighting = "fixed"
    of: Literal["losses", "distributions"] = "losses"

    @model_validator(mode="after")
    def _distribution(self) -> "MixtureConfig":
        if self.weights == "discounted" and self.of == "distributions":
            raise ValueError("discounted weights do not sum to 1, so they make no distribution; mix losses")
        return self


class MixedCache(Config):
    """One of several caches.

    Attributes:
        cache: Its folder.
        encoding: Name of the encoding; may be left out if there is one.
        teacher: Name of the teacher; may be left out if there is one.
        share: Its share of the sequences of an epoch, beside the others'. Given for all caches or for none; without,
            a cache's share is its number of sequences, so that an epoch is one pass over everything.
    """

    cache: CachePath
    encoding: str | None = None
    teacher: str | None = None
    share: float | None = Field(default=None, gt=0, le=1e6)
