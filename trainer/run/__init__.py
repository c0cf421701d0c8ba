"""The run: transformers' Trainer over a cache, its folder, and the command. This room may import every other.

In reading order:

- ``train``: the whole of it.
- ``distillation_trainer``, ``checkpointing_trainer``: the Trainer, and its part that writes and reads checkpoints.
- ``run_folder``, ``checkpoints``, ``curves``: what a run leaves behind.
- ``progress``, ``stall``: what a run prints, and how long it waits for data.
- ``sharding``: FSDP.
- ``explanation``, ``command``: ``logitcask train`` and its ``--explain``.
"""
