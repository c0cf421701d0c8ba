"""Inspection: the numbers and texts that people look at, computed from a cache and returned as frozen dataclasses.

Nothing here prints or draws: ``terminal``, ``viewer`` and ``report`` do. Field names are the keys of ``--json`` outputs
(see ``json_output``). This room imports ``store`` and below.

In reading order:

- ``decoding``: token ids as text that is safe to print.
- ``views``: one sequence with every teacher's predictions.
- ``search``: sequences by text, loss or disagreement.
- ``sampling``: a random choice of shards or of chunks of rows.
- ``sample``: a sample of positions, as columns.
- ``measures``: calibration, groups and agreement of a sample.
- ``gold_check``: rules by which rows must agree with the scalars stored beside them.
- ``row_check``: these rules applied to a shard, to a sample, or before a training starts.
- ``divergence``: the smallest KL divergence that two truncated rows allow, and that no reader of one can avoid.
- ``summary``: what a cache holds, for the command that shows it.
- ``dataframe``: positions as a table for notebooks.
"""
