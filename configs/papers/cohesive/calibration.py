"""Weights that may know the domain without the answer: who is surer of a text than usual, who predicts it better.

An expert's entropy H tells mostly how hard a text is, for any expert, and some experts are surer than others of
everything. So what is compared is H less the expert's own mean m over the training text of the mixed corpus, and a
temperature t decides how much a difference counts::

    w proportional to exp(-(H - m) / t) = b exp(-H / t),  with b = exp(m / t)

H is the mean over a sequence. The rule is the trainer's own (``weights: entropy``, ``per: sequence``,
``temperature: t``), with b as the teachers' weights in the student file; a constant factor of all b changes nothing.

The second rule asks how well each expert predicts the *other* masked tokens of the sequence. It reads gold tokens, but
never the one that the student has to predict, so no answer is given away; its temperature is found in the same way::

    w proportional to exp(mean log p(gold) of the other positions / t)

m needs no label and no gold token. t is one number for the whole corpus, the one of ``TEMPERATURES`` with which the
mixture predicts the gold tokens of the *training* text best. Rejected: H divided by its spread as well, which a common
t already scales; m over the expert's own domain, which another capture would have to tell.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from configs.papers.cohesive.weights import CALIBRATED, OTHERS, Floats, Positions, nats, weights
from trainer.config.mixture import MixtureConfig

TEMPERATURES = (1.0, 0.5, 0.25, 0.125, 0.0625)

# N: positions, T: experts


class Calibration(NamedTuple):
    """What was found on training text.

    Attributes:
        means_T: Each expert's mean entropy, nats.
        temperature: The divisor of differences in entropy, nats.
        others_temperature: That of the likelihood of other positions.
    """

    means_T: tuple[float, ...]
    temperature: float = 1.0
    others_temperature: float = 1.0

    @property
    def given(self) -> tuple[float, ...]:
        """Each expert's weight in the student file, beside its entropy; their geometric mean is 1."""
        means_T = np.array(self.means_T)
        return tuple(np.exp((means_T - means_T.mean()) / self.temperature).tolist())

    @property
    def rules(self) -> dict[str, tuple[MixtureConfig, tuple[float, ...]]]:
        """The trainer's rule and the experts' weights in the student file, by the name in the tables."""
        entropy = MixtureConfig(weights="entropy", per="sequence", temperature=self.temperature)
        others = MixtureConfig(weights="gold_likelihood", per="others", temperature=self.others_temperature)
        return {CALIBRATED: (entropy, self.given), OTHERS: (others, (1.0,) * len(self.means_T))}

    def weights(self, name: str, sample: Positions) -> Floats:
        """Return the weights of some positions by a rule: (N, T)."""
        return weights(sample, *self.rules[name])

    def changes(self, name: str, experts: Sequence[str]) -> dict[str, Any]:
        """Return the overrides of the student file for a rule."""
        rule, given = self.rules[name]
        teachers = [{"name": expert, "weight": weight} for expert, weight in zip(experts, given, strict=True)]
        mixture = {f"mixture.{key}": getattr(rule, key) for key in ("weights", "per", "temperature")}
        return {"teachers": teachers, **mixture}


def calibrated(training: Positions) -> Calibration:
    """Return the calibration on training text."""
    means_T = tuple(training.scalars["entropy"].double().mean(dim=0).tolist())
    candidates = [Calibration(means_T, temperature, temperature) for temperature in TEMPERATURES]
    by_entropy, by_others = (
        min(candidates, key=lambda one: float(nats(training, one.weights(rule, training)).mean()))
        for rule in (CALIBRATED, OTHERS)
    )
    return Calibration(means_T, by_entropy.temperature, by_others.others_temperature)
