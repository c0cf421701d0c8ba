"""Choose the documents that are held out, by a hash of the group's name and nothing else.

A group (all senses of a word, all pieces about one module) is held out whole, so no
near-copy of a held-out text is trained on. Adding documents never moves an old one to
the other side, and any program that knows the group's name and the fraction agrees.
"""

from cache_tools.format.shards import is_held_out as is_held_out

NOTHING_HELD_OUT = (
    "No document is held out, because there are too few for corpus.held_out_fraction: %g. 'logitcask evaluate' needs a "
    "held-out split, and another fraction needs a new cache."
)
