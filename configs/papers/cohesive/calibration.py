"""Weights of experts that know the domain and see no gold token: who is surer of a text than it usually is.

An expert's entropy H tells mostly how hard a text is, for any expert, and some experts are surer than others of
everything. So what is compared is H less the expert's own mean m over the training text of the mixed corpus, and a
temperature t decides how much a difference counts::

    w proportional to exp(-(H - m) / t) = b exp(-H / t),  with b = exp(m / t)

H is the mean over a sequence. The rule is the trainer's own (``weights: entropy``, ``per: sequence``,
``temperature: t``), with b as the teachers' weights in the student file; a constant factor of all b changes nothing.

m needs no label and no gold token. t is one number for the whole corpus, the one of ``TEMPERATURES`` with which the
mixture predicts the gold tokens of the *training* text best. Rejected: H divided by its spread as well, which a common
t already scales; m over the expert's own domain, which another capture would have to tell.
"""

from typing import Any, NamedTuple

import numpy as np

from configs.papers.cohesive.weights import Floats, Positions, nats, weights
from trainer.config.mixture import MixtureConfig

TEMPERATURES = (1.0, 0.5, 0.25, 0.125, 0.0625)

# N: positions, T: experts


class Calibration(NamedTuple):
    """How experts are weighted by their calibrated entropy.

    Attributes:
        means_T: Each expert's mean entropy over training text, nats.
        temperature: The divisor of differences, nats.
    """

    means_T: tuple[float, ...]
    temperature: float

    @property
    def rule(self) -> MixtureConfig:
        """The trainer's rule."""
        return MixtureConfig(weights="entropy", per="sequence", temperature=self.temperature)

    @property
    def given(self) -> tuple[float, ...]:
        """Each expert's weight in the student file; their geometric mean is 1."""
        means_T = np.array(self.means_T)
        return tuple(np.exp((means_T - means_T.mean()) / self.temperature).tolist())

    def weights(self, sample: Positions) -> Floats:
        """Return the weights of some positions: (N, T)."""
        return weights(sample, self.rule, self.given)

    def changes(self, experts: list[str]) -> dict[str, Any]:
        """Return the overrides of the student file."""
        teachers = [{"name": name, "weight": weight} for name, weight in zip(experts, self.given, strict=True)]
        mixture = {f"mixture.{key}": getattr(self.rule, key) for key in ("weights", "per", "temperature")}
        return {"teachers": teachers, **mixture}


def calibrated(training: Positions) -> Calibration:
    """Return the calibration on training text."""
    means_T = tuple(training.scalars["entropy"].double().mean(dim=0).tolist())
    candidates = [Calibration(means_T, temperature) for temperature in TEMPERATURES]
    return min(candidates, key=lambda one: float(nats(training, one.weights(training)).mean()))
