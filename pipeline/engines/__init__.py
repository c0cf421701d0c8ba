"""Engines: teachers whose tokens are read by a serving engine in its own process, or by a server that already runs.

An engine and this program need other versions of the same packages, so they never share an environment. The engine's
Python runs one file, which knows nothing of this program; token ids go in, hidden states come out. Everything behind
the states (the head, targets, codecs, the store, identities, audits) is that of any other teacher.

A server is asked over HTTP and answers with the likeliest tokens. What it does besides is unknown, so each answer is
compared with what was asked.

This room imports ``teachers``, the configuration and the errors. In reading order:

- ``process``: a child process, and the messages to and from it.
- ``vllm_child``: what the child runs, with numpy and vLLM only; nothing of this program imports it.
- ``own_rows``: an engine's own log-probabilities of a few tokens, with which its states are compared.
- ``engine_body``: such a process as a teacher's body.
- ``output_head``: the head of a model folder without its body.
- ``server_client``: questions over HTTP, repeated while a server is busy.
- ``server_requests``: how each kind of server is asked for a prompt's rows, and where its answer has them.
- ``row_checks``: refuses an answer that is not what was asked for, with what the server did.
- ``server_rows``: a server as a teacher's rows, several requests at a time.
- ``server_opening``: asks a server who it is.
- ``reservation``: the memory that an engine reserves, from its options.
- ``opening``: opens any teacher, whoever reads its tokens.
"""
