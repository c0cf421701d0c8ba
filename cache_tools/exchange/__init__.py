"""Exchange: rows of predictions of other tools into a cache, and a cache into theirs.

This room imports ``row_files``, ``maintenance`` and everything below them.

In reading order:

- ``plan``: what an import is asked, and what a sample of its rows shows.
- ``tokenizer_folder``: the tokenizer that rows were made with, and whether it is.
- ``encoding``: rows of files as the sequences of an encoding.
- ``importing``: their predictions as a teacher.
- ``summary``: what an import met and wrote.
- ``exporting``: a teacher as files of another format.
- ``hub_dataset``: a teacher as a Hugging Face dataset.
- ``command``: ``logitcask import`` and ``logitcask export``.
"""
