"""The corpus: documents from files, datasets and chats, as one checked stream.

This room reads records and knows no teacher; it imports no other room of the pipeline.

In reading order:

- ``templates``: texts with names of fields in braces.
- ``config``: the ``corpus:`` block of a capture file.
- ``files``: text, JSON lines, Parquet, datasets saved to disk.
- ``datasets``: Hugging Face datasets.
- ``chat``: chat templates, and which characters an assistant wrote.
- ``context``: what a teacher reads of a document that a student does not.
- ``policies``: completions that a model wrote, and which model it was.
- ``documents``: the records of all sources.
"""
