"""The format: what the files of a cache are called, what they say, and how their bytes are written and checked.

This room describes and checks documents; it decides nothing about when they are written. It imports the storage
functions and the errors. FORMAT.md states the same for readers in other languages.

In reading order:

- ``layout``: the names and paths of everything in a cache, and the names of the scalars.
- ``fingerprint``: the sha256 of whatever must match.
- ``sealed``: JSON that detects its own damage.
- ``specs``: what manifests and receipts are made of, with the bounds of names and numbers.
- ``manifest``: the attributes of the root, of an encoding and of a teacher.
- ``receipts``: the proof that one shard of one teacher is complete.
- ``vocabulary``: which id stands for which token.
- ``tokenizer_files``: which files a tokenizer may have in a cache.
- ``arrow_files``: Arrow files whose size is known before they are unpacked.
- ``sequences``: the tokens of a shard, as Arrow.
- ``shards``: the tables of an encoding's parts.
- ``zarr_arrays``: the arrays of a teacher, as sharded Zarr v3.
"""
