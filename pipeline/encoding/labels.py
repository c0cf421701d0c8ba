"""Labels: a document's class is a token, predicted at one position of its sequence.

Where the text begins with the mask token it is that token's place, and predicting it is a cloze: ``[MASK] : a kind of
fish`` with the label ``animal``. Elsewhere it is the first token, ``[CLS]``, with a label such as ``[animal]``, added
to the tokenizer as a special token. What the teacher reads there stays as it is. A pair of texts is one text with the
separator written between them.

So a teacher that classifies is a masked language model like any other, and everything that is there for masked tokens
serves for labels: targets of every kind, losses, several teachers, evaluation. The price is a softmax over the whole
vocabulary where a classifier has one over its classes; after a few steps of training next to nothing is left outside
of these. Rejected: an objective of its own with class logits, which would be a second path through every
command, and could not be combined with masked tokens in one pass.

The label is always the first kept position of its sequence, so a reader needs no mark to find it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CorpusError
from pipeline.corpus.documents import Document
from pipeline.encoding.pieces import Frame


def label_position(input_ids: NDArray[np.uint32], frame: Frame, mask_id: int) -> int:
    """Return where the label of a sequence is predicted."""
    first = len(frame.prefix)
    return first if input_ids[first] == mask_id else 0


def label_id(document: Document, vocabulary: Mapping[str, int], frame: Frame, piece: int) -> int:
    """Return the id of a document's label.

    Args:
        document: It has one.
        vocabulary: Ids by token, the tokenizer's.
        frame: What the tokenizer puts around a text.
        piece: Number of the piece that asks.

    Raises:
        CorpusError: the label is no token, or the document is longer than a sequence, or there is no first token.
    """
    where, label = f"{document.place} (id {document.id!r})", document.label or ""
    if label not in vocabulary:
        raise CorpusError(
            "this label is not a token",
            where=where,
            expected="a token as the tokenizer's vocabulary spells it",
            found=repr(label),
            fix="Use a label that is a token, or add it to the tokenizer as a special token and resize the teachers' "
            "embeddings",
        )
    if piece:
        raise CorpusError(
            "a labelled document is longer than one sequence",
            where=where,
            why="its class would be predicted from a part of it",
            fix="Raise encoding.max_length_tokens, or shorten the text",
        )
    if not frame.prefix:
        raise CorpusError(
            "the tokenizer puts nothing in front of a text",
            where="corpus.label_field",
            expected="a first token, such as [CLS], at which the label is predicted",
        )
    return vocabulary[label]
