"""Teachers: loading a model, proving that it is what the capture assumes, and running it.

This room knows nothing of the store's arrays. It imports ``encoding``, the configuration and the errors.

In reading order:

- ``teacher``: what a capture needs of a teacher, whoever runs it: a body and a head, or rows.
- ``loading``: loads a teacher and states its identity.
- ``checkpoint``: loads weights so that every one comes from the files.
- ``fitting``: checks that a teacher fits a capture file before it is loaded.
- ``probe``: runs a teacher on real rows and refuses one that a cache does not fit.
- ``body_and_head``: any language model as a body and a head.
- ``model_body``: a model of transformers as a body.
- ``batches``: sequences as batches under a token budget.
- ``restriction``: a teacher that is asked about some tokens only.
- ``tensor_plan``, ``tensor_parallel``, ``process_group``: one teacher over several processes.
"""
