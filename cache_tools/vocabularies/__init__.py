"""Vocabularies: students that read other token ids than their teachers wrote.

This room unites the vocabularies of several caches, or keeps a part of one. It imports ``store`` and below.

In reading order:

- ``same_tokenizer``: whether two tokenizers turn the same text into the same ids.
- ``tokens``: what a token of any tokenizer is, stated in one way.
- ``union``: the union of several vocabularies, and the map of each one's ids.
- ``union_tokenizer``: a tokenizer for a union.
- ``compression``: which tokens a smaller vocabulary keeps, and what stands for the others.
- ``word_embeddings``: the word embeddings of a model folder.
- ``token_map``: the map that a student's ids pass through.
- ``folder``, ``compressed_folder``: vocabularies on disk.
- ``command``: ``logitcask vocabulary``.
"""
