"""The codecs of hidden states: pure maps between float32 states in memory and arrays of stored numbers.

This room imports the codecs' base, the errors and nothing else of the package.

In reading order:

- ``registry``: the codecs by name, the one way to reach them.
- ``bfloat16``: the upper half of float32.
- ``transform``: a basis in which rounding does equal harm everywhere, within a stated error.
- ``channel_scales``: the unit of that error for layers before the last.
"""
