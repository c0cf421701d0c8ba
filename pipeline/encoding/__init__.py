"""Encoding: documents become sequences of token ids, and sequences fill shards.

The result depends on the corpus, the tokenizer and the capture file alone. This room imports ``corpus``.

In reading order:

- ``tokenizer``: loads a tokenizer and states its identity.
- ``pieces``: one document as pieces of bounded length.
- ``masking``: masks for masked language models.
- ``labels``: a document's class, as a token.
- ``held_out``: which documents are held out.
- ``sequences``: documents become sequences, a batch at a time.
- ``recipe``: everything that decides how a document becomes sequences.
- ``shard_writer``: sequences fill shards.
- ``parts``: adds a part to an encoding.
- ``checks``: what is refused before an encoding is written or continued.
- ``restore``: writes lost files of an encoding again.
- ``encode``: encodes a corpus, or checks that it already is.
"""
