"""Publishing: a cache as a data set on the Hugging Face hub, with a card that says what it holds.

This room imports ``inspection``, ``maintenance`` and everything below them. Reading from the Hub is not here: it is
what ``storage`` does with any ``hf://`` place. huggingface_hub is imported inside the functions that send.

In reading order:

- ``files``: the files that belong to a cache, in the order in which they are sent.
- ``facts``: what the card states, measured on the cache.
- ``card``: the card, and how a new one meets the one that is there.
- ``sending``: what the Hub lacks, uploaded and committed.
- ``publish``: the whole, with its refusals.
- ``command``: ``logitcask publish`` and ``logitcask card``.
"""
