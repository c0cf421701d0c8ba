"""The capture file and the generation file: which documents to read, which models to run, what to keep.

YAML files, checked here before anything is loaded; unknown keys are errors. The ``corpus:`` block is in the room
``pipeline.corpus``. This room needs neither torch nor transformers.

In reading order:

- ``capture_file``: the whole file.
- ``encoding``: how documents become sequences, and which slots masked language modelling chooses.
- ``teacher``: one teacher: its model, its devices, its batches.
- ``engines``: who reads the tokens in place of transformers.
- ``targets``: what is kept of a teacher's predictions and hidden states.
- ``audit``: how much of a capture is compared with the live teacher.
- ``generation``: the generation file: which model completes which prompts.
- ``names``: names that become folders of the cache.
"""
