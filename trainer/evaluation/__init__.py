"""Evaluation: how good a student is, measured from the cache alone. This room imports ``student`` and below.

- ``measures``: what is measured at the kept positions.
- ``evaluate``: a student over a split.
- ``command``: ``logitcask evaluate``.
"""
