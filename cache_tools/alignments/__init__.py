"""Alignments: one text read by the tokenizer of a cache and by that of a student, position by position.

This room imports ``vocabularies`` and below; ``maintenance`` imports it.

In reading order:

- ``spans``: the bytes of a text that each token covers.
- ``matching``: which teacher rows belong to which student positions, and in what way.
- ``student_tokenizer``: a student's tokenizer: its identity, its frame, the sequences that it makes of a text.
- ``stored``: an alignment's files: manifest, receipts, tables.
- ``making``: aligning a whole encoding, shard by shard.
- ``token_ids``: the student's id of each of a teacher's tokens.
- ``coverage``: how much of a student's text is aligned, and the worst sequences.
- ``command``: ``logitcask align``.
"""
