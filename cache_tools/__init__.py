"""The store: the format, and everything that reads, writes, verifies or inspects it.

Never imports torch or transformers, so that a laptop can open a cache.
"""

DISTRIBUTION = "logitcask"
