"""The store: reading and writing a cache.

This room puts the format and the codecs together. It imports ``format``, ``codecs`` and the storage functions.

In reading order:

- ``reader``: a cache and its encodings, by shard, window or sequence.
- ``gathered``: many receipts in one file, so that a cache of any size opens quickly.
- ``teacher``: the predictions of one teacher, decoded.
- ``predictions``: targets, scalars and hidden states as arrays, and back.
- ``stored_rows``: rows in memory as they are stored, decoded when they are used.
- ``chunk_reader``: the fast path from a shard's object to the caller's arrays.
- ``other_layouts``: arrays that the fast path does not know, read through zarr.
- ``creation``: creates an object only if there is none of its name.
- ``claims``: which of several processes may begin a part of a cache.
- ``root``: creates a cache, and removes it if nothing was written into it.
- ``encoding_files``: the files of an encoding that its corpus determines to the byte.
- ``writer``: declares a teacher, then commits its shards in any order.
"""
