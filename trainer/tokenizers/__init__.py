"""Tokenizers of students: loaded as data, compared by what they do, and saved with the student.

This room imports ``config`` only.

- ``cached``: the tokenizer of a cache or of a vocabulary.
- ``check``: a student's own tokenizer must split text as the cache's did.
- ``student_tokens``: which tokenizer, chat template and special tokens a student is saved with.
"""
