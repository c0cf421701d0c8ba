"""Evaluation: how good a student is, measured from the cache alone. This room imports ``student`` and below.

- ``measures``: what is measured at the kept positions.
- ``results``: what an evaluation returns.
- ``passes``: one pass over cached sequences, whose sums ranks share.
- ``evaluate``: a student over a split.
- ``diagram``: the reliability diagram.
- ``command``: ``logitcask evaluate``.
"""
