"""Planning: what a capture will cost, before anyone pays for it.

This room imports ``capture`` and below, and writes nothing.

In reading order:

- ``capture_plan``: plans a whole capture file.
- ``plan``: sequences, bytes, objects, hours and bandwidth.
- ``held``: what a cache holds already.
- ``memory``: device and host memory.
- ``fit``: whether a teacher fits its device, and how many devices it takes.
- ``measure``, ``rows``: a teacher measured on a sample.
- ``scale``, ``simulate``: many workers, and their failures.
- ``tables``, ``command``: ``logitcask plan``.
"""
