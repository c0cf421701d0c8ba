"""Inspection: the numbers and texts that people look at, computed from a cache and returned as data.

Nothing here prints or draws: ``terminal``, ``viewer`` and ``report`` do. This room imports ``store`` and below.

In reading order:

- ``decoding``: token ids as text that is safe to print.
- ``views``: one sequence with every teacher's predictions.
- ``search``: sequences by text, loss or disagreement.
- ``sampling``: which shards to look at.
- ``sample``: a sample of positions, as columns.
- ``measures``: calibration, groups and agreement of a sample.
- ``gold_check``: whether rows fit the scalars that were stored beside them.
- ``row_check``: the same for a shard, a sample, or the first look of a training.
- ``divergence``: the smallest divergence that two truncated rows allow.
- ``comparison``: two teachers over the same sequences.
- ``summary``: what a cache holds, for the command that shows it.
- ``dataframe``: positions as a table for notebooks.
"""
