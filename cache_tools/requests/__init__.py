"""Requests to a store: how many are in flight, what happens to those that fail, and listings one object after another.

This room knows disks and drivers, and nothing of caches. ``storage.py`` stands on it.

In reading order:

- ``in_flight``: the gate that every request to a bucket passes, and work on many objects in parallel.
- ``listing``: names, sizes and times, page by page.
"""
