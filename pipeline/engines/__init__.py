"""Engines: teachers whose tokens are read by a serving engine in a process and a Python of its own.

An engine and this program need other versions of the same packages, so they never share an environment. The engine's
Python runs one file, which knows nothing of this program; token ids go in, hidden states come out. Everything behind
the states (the head, targets, codecs, the store, identities, audits) is that of any other teacher.

This room imports ``teachers``, the configuration and the errors. In reading order:

- ``process``: a child process, and the messages to and from it.
- ``vllm_child``: what the child runs, with numpy and vLLM only; nothing of this program imports it.
- ``own_rows``: an engine's own log-probabilities of a few tokens, with which its states are compared.
- ``engine_body``: such a process as a teacher's body.
- ``output_head``: the head of a model folder without its body.
- ``opening``: loads any teacher, in this process or by an engine.
"""
