"""Comparing teachers that read the same sequences, and what of the difference storing and rounding explain.

This room imports ``inspection`` and below. In reading order:

- ``rounding``: how far two runs of the same weights are apart because they round differently.
- ``floor``: the noise floor of two cached teachers: storing and rounding.
- ``sums``: sums over positions, and the means that follow.
- ``pair``: two teachers, in detail.
- ``reference``: all teachers of an encoding against one of them.
"""
