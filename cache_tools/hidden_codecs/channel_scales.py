"""The spread of each channel of hidden states: the unit in which an error of a layer is stated.

A channel that sits at 1000 and moves by 100 carries its information in the movement, so the unit is the standard
deviation. Channels that hardly move get a floor, or their error would be judged by rounding noise.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

OWN_FLOOR = 1e-3
"""A channel's scale is at least this share of its own rms."""

TYPICAL_FLOOR = 1e-2
"""A channel's scale is at least this share of the median channel's rms."""


def channel_scales(states: Floats) -> NDArray[np.float64]:
    """Return the spread of each channel of states (n, d), (d,) above zero: what its error is relative to.

    The standard deviation, which is at most the rms: a channel that sits at 1000 and moves by 100
    says what it has to say by moving. Channels that hardly move get the floors above.
    """
    means = states.mean(axis=0, dtype=np.float64)
    squares = np.zeros(states.shape[1])
    for start in range(0, len(states), 2048):  # a shard in float64 would be large
        squares += np.square(states[start : start + 2048] - means).sum(axis=0)
    spread = np.sqrt(squares / len(states))
    rms = np.hypot(spread, means)
    typical = float(np.median(rms)) or float(np.sqrt(np.square(rms).mean())) or 1.0
    scales: NDArray[np.float64] = np.maximum(spread, np.maximum(OWN_FLOOR * rms, TYPICAL_FLOOR * typical))
    return scales
