"""Exchange: rows of predictions of other tools into a cache, and a cache into theirs.

This room imports ``row_files``, ``models``, ``maintenance`` and everything below them.

In reading order:

- ``plan``: what an import is asked, and what a sample of its rows shows.
- ``tokenizer_folder``: whether rows were made with a tokenizer.
- ``encoding``: rows of files as the sequences of an encoding.
- ``importing``: their predictions as a teacher.
- ``summary``: what an import met and wrote.
- ``finished_files``: which files of an export are finished.
- ``exporting``: a teacher as files of another format.
- ``state_check``: whether hidden states give the stored log-probabilities.
- ``draft_states``: hidden states as a trainer of draft heads uses them, checked.
- ``draft_heads``: hidden states as files for the trainers of draft heads.
- ``hub_dataset``: a teacher as a Hugging Face dataset.
- ``command``: ``logitcask import`` and ``logitcask export``.
"""
