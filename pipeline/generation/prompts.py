"""Prompts: the documents of a corpus, as the tokens that a model will continue.

A text gets the special tokens that a tokenizer puts before a text; a chat is rendered up to where the assistant's next
words begin; token ids are read as they are. Prompts are held in memory, 4 bytes a token and their text beside it: a
million prompts of 200 tokens take about 2 GB.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CorpusError
from cache_tools.mappings import JsonObject
from cache_tools.progress.reporter import Advance, ignore
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.chat import render_prompt
from pipeline.corpus.config import CorpusConfig
from pipeline.corpus.context import with_context
from pipeline.corpus.documents import Document, corpus_sources, read_documents
from pipeline.corpus.policies import PromptsRecord
from pipeline.encoding.pieces import frame_of, known_ids
from pipeline.encoding.sequences import batches_of


@dataclass(frozen=True)
class Prompt:
    """What a model continues.

    Attributes:
        id: Id of the document.
        group: Its group, which is held out as a whole.
        ids: (n,) uint32, what the model reads first.
        text: The plain text that they are; None for chats and token ids.
        messages: The chat that they are; None for others.
        tools: JSON schemas of the tools that the chat may call.
        context_fields: Fields of the record from which a context was made that ``ids`` hold and the others do not.
    """

    id: str
    group: str
    ids: NDArray[np.uint32]
    text: str | None = None
    messages: list[JsonObject] | None = None
    tools: list[JsonObject] | None = None
    context_fields: JsonObject = field(default_factory=dict)


def read_prompts(
    config: CorpusConfig, tokenizer: PreTrainedTokenizerFast, longest_tokens: int | None, progress: Advance = ignore
) -> list[Prompt]:
    """Read all prompts.

    Args:
        config: Which documents to read.
        tokenizer: The model's tokenizer.
        longest_tokens: Most tokens that a prompt may have; None for any number.
        progress: Called with the tokens of each prompt, and about which share of the corpus that completes.

    Raises:
        CorpusError: a document cannot be read, has no token, or is too long to be continued.
    """
    prefix = frame_of(tokenizer, EncodingConfig()).prefix
    has_token = known_ids(tokenizer)
    documents = read_documents(corpus_sources(config).values(), config, set())
    prompts = []
    for document, ids in _tokenised(documents, tokenizer, prefix):
        _check(document, ids, has_token, longest_tokens)
        messages = None if document.messages is None else asked(document)
        fields = {} if document.context is None else document.context.fields
        prompts.append(Prompt(document.id, document.group, ids, document.text, messages, document.tools, fields))
        progress(len(ids), document.share_before)
    return prompts


def describe_prompts(prompts: Iterable[Prompt]) -> PromptsRecord:
    """Return what identifies prompts: whether a stopped generation continues with the same ones."""
    digest, count, tokens = hashlib.sha256(), 0, 0
    for prompt in prompts:
        digest.update(f"{prompt.id}\0{prompt.group}\0{len(prompt.ids)}\0".encode())
        digest.update(prompt.ids.astype("<u4").tobytes())
        count, tokens = count + 1, tokens + len(prompt.ids)
    return PromptsRecord(count=count, tokens=tokens, sha256=digest.hexdigest())


def asked(document: Document) -> list[JsonObject]:
    """Return a chat without the assistant's turns at its end.

    Raises:
        CorpusError: nothing is left.
    """
    messages = list(document.messages or ())
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise CorpusError(
            "this chat asks nothing",
            where=document.place,
            expected="a message that is not the assistant's",
            fix="Remove the chat",
        )
    return messages


def _tokenised(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, prefix: list[int]
) -> Iterator[tuple[Document, NDArray[np.uint32]]]:
    """Yield each document with its tokens; texts are tokenised together."""

    def rendered(document: Document) -> str | None:
        if document.messages is None:
            return document.text
        messages = with_context(asked(document), document.context, document.place)
        return render_prompt(messages, tokenizer, document.place, document.tools)

    def before(document: Document) -> list[int]:
        context = document.context.before if document.context else ""
        read: list[int] = tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"] if context else []
        return [*prefix, *read]

    texts = ((document, rendered(document)) for document in documents)
    for batch in batches_of(texts, lambda item: len(item[1] or item[0].ids or "")):
        inputs = [text for _, text in batch if text is not None]
        encoded = tokenizer(inputs, add_special_tokens=False, verbose=False)["input_ids"] if inputs else []
        tokens = iter(encoded)
        for document, text in batch:
            ids = document.ids if text is None else next(tokens)
            own_prefix = before(document) if document.text is not None else []
            yield document, np.array([*own_prefix, *(ids or ())], dtype=np.int64).astype(np.uint32)


def _check(document: Document, ids: NDArray[np.uint32], has_token: NDArray[np.bool_], longest: int | None) -> None:
    where = f"{document.place} (id {document.id!r})"
    if not len(ids):
        raise CorpusError("this prompt has no token to continue", where=where, fix="Remove it, or give it text")
    if int(ids.max()) >= len(has_token) or not has_token[ids].all():
        raise CorpusError(
            "a token id is not in the tokenizer's vocabulary",
            where=where,
            expected=f"ids of tokens, below {len(has_token)}",
            fix="Use the ids of the model's own tokenizer",
        )
    if longest is not None and len(ids) > longest:
        raise CorpusError(
            "this prompt and its completion are longer than the model can read",
            where=where,
            expected=f"at most {longest} tokens, which leaves room for sampling.max_new_tokens",
            found=len(ids),
            fix="Shorten the prompt, or lower sampling.max_new_tokens",
        )
