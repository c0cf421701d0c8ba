"""Evaluation: how good a student is, measured from the cache alone. This room imports ``student`` and below.

- ``measures``: what is measured at the kept positions.
- ``results``: what an evaluation returns.
- ``passes``: one pass over cached sequences, whose sums ranks share.
- ``spread``: how a divergence spreads over positions, with an interval of its mean.
- ``stored``: what the cache's storing costs: the floor of the figures, and the bytes.
- ``loading``: load the model that is evaluated, and say which it is.
- ``evaluate``: a model over a split.
- ``aligned``: the same for a student with its own tokenizer, per byte of text.
- ``figures``: the figures as words.
- ``card``: the card of an evaluation, to publish.
- ``diagram``: the reliability diagram.
- ``command``: ``logitcask evaluate``.
"""
