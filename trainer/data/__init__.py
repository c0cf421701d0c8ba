"""Data: cached sequences as batches, in an order that depends on (seed, epoch) alone.

This room imports ``config`` and ``losses``.

In reading order:

- ``opening``: the teachers that a student file names.
- ``binding``: what ties predictions to their tokens.
- ``cached_sequences``: a dataset over a cache, and its batches.
- ``sampler``: the order of training.
- ``packing``: sequences one after another in rows.
- ``position_weights``: the weight of a label's position.
- ``several_teachers``, ``several_caches``: the same from more than one.
- ``aligned_sequences``, ``composed_tokens``: a cache as a student with its own tokenizer reads it.
- ``sources``: a dataset, an order and a loss of whatever a student file names.
- ``translation``: a cache whose tokenizer is not the student's.
"""
