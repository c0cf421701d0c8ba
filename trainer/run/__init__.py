"""The run: transformers' Trainer over a cache, its folder, and the command. This room may import every other.

In reading order:

- ``train``: the whole of it.
- ``training_arguments``: which arguments of transformers are honoured, and which are refused.
- ``sources``: what is trained on.
- ``distillation_trainer``: the Trainer.
- ``run_folder``, ``checkpoints``, ``best``: what a run leaves behind.
- ``progress``, ``stall``: what a run prints, and how long it waits for data.
- ``sharding``: FSDP.
- ``explanation``, ``command``: ``logitcask train`` and its ``--explain``.
"""
