"""Maintenance: the life of a cache after its capture.

This room imports ``alignments`` and everything below it.

In reading order:

- ``verify``: checks hashes, and with ``--deep`` the rules of every value.
- ``verify_encoding``: compares tables, sequences and tokenizer of an encoding with its manifest.
- ``alignments``: checks, copies and removes alignments with students' tokenizers.
- ``object_sizes``: the sizes of a teacher's objects, with few requests.
- ``repair``: forgets what is damaged, so that the next capture makes it again.
- ``copying``: copies a cache between any two stores.
- ``subset``: writes a smaller cache without asking a teacher.
- ``drop``: removes a teacher or a layer.
- ``verify_command``, ``commands``: the commands.
"""
