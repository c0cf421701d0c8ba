"""Vocabularies: for students whose token ids differ from those of their teachers.

This room unites the vocabularies of several caches, or selects a part of one. It imports ``inspection`` and below.

In reading order:

- ``tokenizer_folder``: a tokenizer from a local folder or a hub id.
- ``same_tokenizer``: whether two tokenizers turn the same text into the same ids.
- ``tokens``: the tokens of any tokenizer in one notation.
- ``union``: the union of several vocabularies, and the map of each one's ids.
- ``union_tokenizer``: a tokenizer for a union.
- ``compression``: which tokens a smaller vocabulary keeps, and the stand-ins of the others.
- ``word_embeddings``: the word embeddings of a model folder.
- ``token_map``: the map from a tokenizer's ids to a student's.
- ``manifest``: what the folder of a vocabulary states of itself.
- ``folder``, ``compressed_folder``: vocabularies on disk.
- ``command``: ``logitcask vocabulary``.
"""
