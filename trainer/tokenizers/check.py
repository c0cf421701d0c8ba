"""A student's own tokenizer must split text as the cache's did, or it would meet other tokens than it learned.

``cached.check_tokenizer`` compares the vocabularies; two tokenizers with one vocabulary can still split text
differently.
"""

from itertools import chain

from transformers import PreTrainedTokenizerBase

from cache_tools.store.reader import Encoding
from cache_tools.torch_models.gguf import load_tokenizer
from cache_tools.vocabularies.same_tokenizer import Encode, probes, require_same, sampled_texts


def check_behaviour(
    source: str,
    reference: PreTrainedTokenizerBase,
    encoding: Encoding,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse a student whose tokenizer splits text differently from the one that it is trained with.

    Args:
        source: Folder or hub id of the student.
        reference: The tokenizer that the student is trained with; a fast one.
        encoding: An encoding whose texts are also compared.
        revision: Revision of a hub id.
        trust_remote_code: Whether its tokenizer may run code of its own.

    Raises:
        IdentityError: it does.
        OSError: there is no tokenizer at ``source``.
    """
    require_behaviour(
        load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code), reference, encoding, source
    )


def require_behaviour(
    own: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase, encoding: Encoding, source: str
) -> None:
    """Refuse a loaded tokenizer that splits text differently; arguments as of :func:`check_behaviour`.

    Raises:
        IdentityError: it does.
    """
    backend = reference.backend_tokenizer
    require_same(
        backend,
        getattr(own, "backend_tokenizer", None) or _encode(own),
        chain(sampled_texts(encoding), probes(backend)),
        "the student's tokenizer splits text unlike the one that it is trained with",
        source,
        "Take a student with this tokenizer, or capture an encoding with the student's",
    )


def _encode(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Return a function that encodes with a tokenizer that is not a fast one."""
    return lambda texts: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
