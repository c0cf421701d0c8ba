"""The codecs: pure maps between predictions in memory and arrays of small integers.

A codec reads no file and knows no cache. This room imports the errors and nothing else of the package.

In reading order:

- ``rows``: sparse targets in memory, and the rules that they keep.
- ``base``: the interface of a codec.
- ``registry``: the codecs by name, the one way to reach them.
- ``ids``: sorted token ids as differences.
- ``levels``: probabilities as levels and back, with each row as fine as its error at other temperatures asks.
- ``delta_power``: sparse targets within a stated error.
- ``delta_count``: the counts of draws, without error.
- ``float32``: log-probabilities without error.
- ``rank_tables``: orders of a vocabulary in which predicted tokens come early.
- ``ranked_ids``: token ids as gaps between their ranks.
- ``ranked_grid``: the rows of a half-precision teacher, bit for bit.
- ``ranked_power``: quantised probabilities with ranked ids.
"""
