"""The student: made or loaded, checked, and wrapped with its loss.

This room imports ``data``, ``losses`` and ``tokenizers``.

In reading order:

- ``student``: makes or loads the student and wraps it.
- ``head``: the output matrix, and what the model makes of its products.
- ``fused_loss``: a loss over logits that never exist all at once.
- ``cached_loss``: the loss of a batch, for any training loop.
- ``checkpoint``: loads weights so that every one comes from the files.
- ``probe``, ``packing_check``: run a student on rows and refuse one that sees what it must not.
- ``finite``: stops a student that holds NaN or infinity.
- ``neftune``: noise on the embeddings.
- ``lora``: low-rank adapters.
- ``initial_weights``: the identity of the weights it started from.
- ``signal_check``: proves that the targets reach the gradient.
"""
