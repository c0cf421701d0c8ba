"""The audit: a sample of a cache compared with the live teacher.

This room imports ``capture`` and below.

In reading order:

- ``run``: draws the sample and reads it shard by shard.
- ``comparable``: refuses what cannot be compared.
- ``live``: one pass of the teacher over some sequences.
- ``reread``: the same by a teacher that gives rows and no logits.
- ``measures``: stored rows compared with live ones, in float64.
- ``verdict``: how much may differ, and what a pattern means.
- ``summary``: measures that are reported and not judged.
- ``asking``: which engine is asked, where it is not the one of the capture file.
- ``worst``: the positions that differ most.
- ``command``: ``logitcask audit``.
"""
