"""Generation: a model completes prompts, and its completions become a corpus that says who wrote it.

A completion is stored as the tokens that the model read and drew, so that a capture scores these very tokens, on the
completion alone. The model runs in this process or in a server. This room stands on ``teachers`` (loading and
identity), ``engines`` (servers), ``encoding`` (the tokenizer) and ``corpus`` (the prompts, and ``policies``, which
describes the folder that is written here).

In reading order:

- ``prompts``: the documents of a corpus as tokens to continue.
- ``drawing``: which token is drawn, from numbers that depend on the prompt alone.
- ``completing``: whoever completes prompts, and a batch of prompts through the generation of transformers.
- ``completion_requests``: how each kind of server is asked for a completion, and where its answer has it.
- ``completion_checks``: refuses an answer that is no completion as it was asked for, with what the server did.
- ``trial``: tries before it writes whether a server draws as it is asked to.
- ``server_writer``: a server that completes prompts, several requests at a time.
- ``identity``: who the model is, at which tokens it stops, and whose student it is.
- ``opening``: opens the model or the server that writes.
- ``folder``: the files of completions, and where a stopped generation continues.
- ``run``: all of it.
- ``command``: the command line.
"""
