"""Generation: a model completes prompts, and its completions become a corpus that says who wrote it.

A completion is stored as the tokens that the model read and drew, so that a capture scores these very tokens, on the
completion alone. This room stands on ``teachers`` (loading and identity), ``encoding`` (the tokenizer) and ``corpus``
(the prompts, and ``policies``, which describes the folder that is written here).

In reading order:

- ``prompts``: the documents of a corpus as tokens to continue.
- ``drawing``: which token is drawn, from numbers that depend on the prompt alone.
- ``completing``: a batch of prompts through the generation of transformers.
- ``identity``: who the model is: a teacher, or a student with its run and step.
- ``folder``: the files of completions, and where a stopped generation continues.
- ``run``: all of it.
- ``command``: the command line.
"""
