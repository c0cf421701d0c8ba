"""Verdicts: which loss is exact, unbiased, a bound or biased on which targets.

This room imports ``config`` only, and no torch: a verdict needs a manifest and a student file, no tensor.

- ``compatibility``: the table, and the function that reads it.
- ``mixture``: the same for several teachers.
"""
