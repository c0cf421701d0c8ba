"""The terminal: what ``inspect``, ``show`` and ``diff`` print.

This room turns the results of ``inspection`` into text and computes nothing.

In reading order:

- ``inspect_command``, ``summary``: a cache as tables.
- ``show_command``, ``sequence``: one sequence, coloured by surprise.
- ``diff_command``, ``comparison``: how far apart two teachers are.
- ``bidi``: right-to-left text that does not reorder the text beside it.
"""
