"""Verdicts: which loss is exact, unbiased, a bound or biased on which targets, and what follows from a text's writer.

This room imports ``config`` only, and no torch: a verdict needs a manifest and a student file, no tensor.

- ``compatibility``: the table, and the function that reads it.
- ``mixture``: the same for several teachers.
- ``alignment``: the same for a student with its own tokenizer.
- ``policy``: who wrote the text, and what follows.
"""
