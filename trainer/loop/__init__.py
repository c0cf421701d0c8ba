"""The loop's parts: a dataset, a collator and a loss for any training loop. ``logitcask train`` stands on the same.

This room imports ``student`` and what lies below; ``run`` and the Python interface import it.

In reading order:

- ``inputs``: what a student file names, opened and checked.
- ``collator``: from sequences, or rows that number them, to batches.
- ``projection_start``: the best linear maps between hidden states before the first step.
- ``distillation``: dataset, collator and loss, made for one student.
"""
