"""Capture: from a loaded teacher to committed shards.

This room imports ``teachers``, and writes through the store.

In reading order:

- ``topk``: the k largest values of long rows.
- ``draws``: random draws that depend on (seed, sequence, position) alone.
- ``keep``: from logits to targets and scalars.
- ``target``: a teacher's block of the capture file, resolved once.
- ``host_memory``: memory of a position, and the size of shards that follows.
- ``declare``: the manifest of a teacher before its first shard.
- ``hidden_budget``: the error budget of the last hidden state.
- ``row_predictions``: predictions of a teacher that gives rows and no logits.
- ``predict``: runs the teacher and brings what is kept to the host.
- ``shards``: captures and commits one shard after another.
"""
