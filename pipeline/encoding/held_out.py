"""Choose the documents that are held out, by a hash of the group's name and nothing else.

A group (all senses of a word, all pieces about one module) is held out whole, so no
near-copy of a held-out text is trained on. Adding documents never moves an old one to
the other side, and any program that knows the group's name and the fraction agrees.
"""

from cache_tools.format.shards import is_held_out as is_held_out

NOTHING_HELD_OUT = (
    "No document is held out: corpus.held_out_fraction %g selects none of so few groups of documents (a .txt file is "
    "one document; all records with the same corpus.group_field are one group). 'logitcask evaluate' needs a held-out "
    "split. Split the text into more documents, such as records of a .jsonl file, give them more groups or none, or "
    "raise the fraction. A captured cache keeps its split, so capture into another one."
)
