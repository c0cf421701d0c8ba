"""Row files: files of predictions and hidden states that other tools read and write, as arrays.

This room knows formats and nothing of caches. It imports ``codecs``, ``hidden_codecs``, ``format`` and the errors.

In reading order:

- ``formats``: the formats, their columns, and how a file shows which one it is.
- ``bit_packing``: integers of any number of bits.
- ``distillkit``: DistillKit's compressed rows.
- ``arrow_lists``: columns of nested lists as flat arrays.
- ``source``: Parquet and Arrow files in batches of bounded size.
- ``source_rows``: rows of ids and log-probabilities, checked.
- ``alignment``: which token each row predicts.
- ``writing``: rows of a cache as tables of each format.
- ``torch_files``: what ``torch.load`` reads, written without torch.
- ``draft_files``: hidden states as the trainers of draft heads read them.
"""
