"""Choose the documents that are held out, by a hash of the group's name and nothing else.

A group (all senses of a word, all pieces about one module) is held out whole, so no
near-copy of a held-out text is trained on. Adding documents never moves an old one to
the other side, and any program that knows the group's name and the fraction agrees.
"""

import hashlib

NOTHING_HELD_OUT = (
    "No document is held out, because there are too few for corpus.held_out_fraction: %g. 'logitcask evaluate' needs a "
    "held-out split, and another fraction needs a new cache."
)


def is_held_out(group: str, fraction: float) -> bool:
    """Return whether ``group`` belongs to the held-out split.

    Args:
        group: Group name; documents without one use their own id.
        fraction: Expected share of groups that are held out, in [0, 1].
    """
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64
