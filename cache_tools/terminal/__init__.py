"""The terminal: what ``inspect``, ``show`` and ``diff`` print.

This room turns the data of ``inspection`` into text and imports nothing that computes.

In reading order:

- ``inspect_command``, ``summary``: a cache as tables.
- ``show_command``, ``sequence``: one sequence, coloured by surprise.
- ``diff_command``, ``comparison``: how far apart two teachers are.
- ``bidi``: right-to-left text that does not reorder its neighbours.
"""
