"""Planning: what a capture will cost, before anyone pays for it.

This room imports ``capture`` and below, and writes nothing.

In reading order:

- ``capture_plan``: plans a whole capture file.
- ``survey``: how many tokens, positions and shards a corpus becomes.
- ``held``: what a cache holds already.
- ``plan``: bytes, objects and hours.
- ``memory``: device and host memory.
- ``fit``: whether a teacher fits its device, and how many devices it takes.
- ``measure``, ``choices``: a teacher measured on a sample, and what each k would keep and cost.
- ``scale``, ``simulate``: many workers, and their failures.
- ``tables``, ``command``: ``logitcask plan``.
"""
