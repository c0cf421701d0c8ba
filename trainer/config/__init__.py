"""The student file: typed blocks, checked before a model is made. This room imports no other room.

- ``student_file``: the whole file.
- ``mixture``: several teachers and caches.
- ``lora``: low-rank adapters.
- ``model_keys``: refuses keys of ``student.config`` that no model reads.
- ``argument_rules``, ``best``, ``training_arguments``: which arguments of transformers are honoured or refused.
"""
