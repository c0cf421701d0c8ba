"""The audit: a sample of a cache, asked again of the live teacher.

This room imports ``capture`` and below.

In reading order:

- ``run``: draws the sample and reads it shard by shard.
- ``live``: one pass of the teacher over some sequences.
- ``measures``: stored rows beside live ones, in float64.
- ``verdict``: what may differ by how much, and what a pattern means.
- ``worst``: the positions that differ most.
- ``command``: ``logitcask audit``.
"""
