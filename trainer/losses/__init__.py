"""Losses: pure functions of logits and targets, each tested against a naive float64 reference.

This room imports ``config``. It knows no cache, no batch and no model.

In reading order:

- ``divergences``: the four divergences, one number for each outcome.
- ``masses``: log-probabilities of a few tokens, and the mass of all others.
- ``tails``: sparse targets as tensors, and the mass that they leave out.
- ``tempering``: the teacher at another temperature.
- ``sparse``: the loss on sparse targets.
- ``full``: the loss on the whole distribution, rebuilt from the last hidden state.
- ``hidden``: losses between hidden states.
- ``ranks``: the distance between sorted probabilities, for tokens that no map connects.
- ``distillation_loss``: everything a student minimises on some rows.
- ``mixture``, ``mixture_weights``, ``mixed_loss``: the same with several teachers.
"""
