"""Largest sizes of the parts of a cache, so that an untrusted cache cannot fill the memory.

A cache states its own sizes, and compressed bytes can unpack to a million times as many. So every size is compared with
a limit before anything of that size is read, allocated or unpacked. The limits are many times what the default settings
need. Writers keep the same limits and name the setting to lower, so that everything that is written can be read.
``FORMAT.md`` states them for other readers.
"""

DOCUMENT_BYTES = 16 * 2**20
"""A manifest, a receipt, an array's ``zarr.json``: parsed JSON needs up to 24 times its bytes."""

DOCUMENT_DEPTH = 64
"""Objects and lists inside one another in a JSON document; Python's own parser and writer stop near 1,000."""

TABLE_BYTES = 64 * 2**20
"""A part's table of shards or of corpus files, unpacked: half a million shards."""

SEQUENCES_BYTES = 128 * 2**20
"""The sequences of a shard, unpacked: ten million tokens with their text."""

SEQUENCES_FLOOR_BYTES, SEQUENCES_TOKEN_BYTES = 16 * 2**20, 256
"""Largest unpacked size of a sequence file: the first number, plus the second for each token in the shard table."""

SHARD_SEQUENCES = 2**19
"""Sequences of a shard; each is a few hundred bytes of Python objects."""

SHARD_POSITIONS = 2**22
"""Rows that a shard owns, ``positions_per_shard``."""

CHUNK_BYTES = 2**28
"""An inner chunk of an array, unpacked; blosc itself ends at 2**31."""

CHUNK_ENTRIES = 2**24
"""Targets of an inner chunk, rows times entries; decoding one needs some 30 bytes for each."""

RANKS = 2**27
"""Ids in all rank tables of a teacher, tables times vocabulary: 32 tables of four million ids, 4 bytes each."""

OBJECT_BYTES = 2**40
"""A stored object or file; no more of it is read than its record states."""

TOTAL = 2**62
"""Any count: documents, tokens, positions."""
