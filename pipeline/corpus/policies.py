"""Completions that a model wrote, as files of a corpus: ``policy.json`` beside them names the model.

``logitcask generate`` writes such a folder::

    policy.json                who wrote the completions: weights, tokenizer, sampling; the hash of each file
    completions-00000.jsonl    one completion in each line: ``ids`` and ``mask``, and the same as text

A file belongs to the folder once ``policy.json`` lists its hash, so one that was stopped halfway, edited or exchanged
is refused. Whoever reads the files by ``ids`` and ``mask`` reads the very tokens that the model drew, and an encoding
then records the model. Read in another way (as text or as chats), they are an ordinary corpus: a tokenizer may split
the text into other tokens than the model drew, so no model is recorded, and a warning says so.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from cache_tools.errors import FormatError, IdentityError, IncompleteError
from cache_tools.format.manifest import Count, Policy, WrittenBy
from cache_tools.format.sealed import parse_json
from cache_tools.format.specs import Document, Sha256, summary
from cache_tools.storage import read_object
from pipeline.corpus.config import CorpusConfig
from pipeline.corpus.documents import CorpusSource
from pipeline.corpus.files import FileSource

logger = logging.getLogger(__name__)

RECORD = "policy.json"
IDS, MASK = "ids", "mask"
"""Fields of a completion that hold the tokens that were read and drawn, and which of them were drawn."""

READ_OTHERWISE = (
    "%s holds completions that a model wrote, and they are not read as the tokens that it drew: the cache will not "
    "record who wrote them. %s"
)
AS_DRAWN = "To read these tokens, set corpus.ids_field: ids and corpus.mask_field: mask"
WITH_CONTEXT = (
    "This is right with corpus.context: the tokens as drawn hold the context, which the student is not to read"
)


class CompletionFile(Document):
    """A finished file of completions.

    Attributes:
        sha256: Its hash.
        completions: Its lines.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens that were drawn.
        stopped: Completions that ended with a stop token; the others were cut at ``max_new_tokens``.
    """

    sha256: Sha256
    completions: Count
    prompt_tokens: Count
    completion_tokens: Count
    stopped: Count


class PromptsRecord(Document):
    """What a model completed.

    Attributes:
        count: Number of prompts.
        tokens: Their tokens.
        sha256: Hash of ids, groups and tokens of all prompts, in order.
    """

    count: Count
    tokens: Count
    sha256: Sha256


class GenerationRecord(Document):
    """Content of ``policy.json``.

    Attributes:
        format: Version of this file.
        policy: The model that writes the completions.
        prompts: What it completes.
        part_completions: Completions in each file; the last one may have fewer.
        parts: Number of files.
        files: Finished files by name.
    """

    format: Literal[1] = 1
    policy: Policy
    prompts: PromptsRecord
    part_completions: int = Field(gt=0)
    parts: int = Field(gt=0)
    files: dict[str, CompletionFile] = Field(default_factory=dict)


def read_record(folder: Path) -> GenerationRecord | None:
    """Return what the ``policy.json`` of a folder says; None if there is none.

    Raises:
        FormatError: it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return GenerationRecord.model_validate(parse_json(read_object(path)))
    except (OSError, ValueError, TypeError, RecursionError, ValidationError) as error:
        raise FormatError(
            "this file does not say who wrote the completions",
            where=path,
            expected="what 'logitcask generate' wrote",
            found=summary(error),
            fix="Generate the completions again, or move the file away to read them as an ordinary corpus",
        ) from error


def written_by(
    sources: Mapping[str, CorpusSource], hashes: Mapping[str, str], config: CorpusConfig, vocabulary: str
) -> tuple[WrittenBy, ...]:
    """Return which models wrote which sources, from the files beside them.

    Args:
        sources: Files and datasets, by the name under which an encoding records each.
        hashes: The sha256 of each.
        config: Which fields of a record are read.
        vocabulary: Fingerprint of the vocabulary of the encoding's tokenizer.

    Raises:
        FormatError: a ``policy.json`` cannot be read.
        IncompleteError: completions are not finished.
        IdentityError: a file is not the one that the model wrote, or its tokens are those of another tokenizer.
    """
    folders: dict[Path, dict[str, FileSource]] = {}
    for name, source in sources.items():
        if isinstance(source, FileSource) and source.path.is_file():
            folders.setdefault(source.path.parent, {})[name] = source
    entries = []
    for folder, files in folders.items():
        record = read_record(folder)
        if record is None:
            continue
        if (config.ids_field, config.mask_field) != (IDS, MASK):
            logger.warning(READ_OTHERWISE, folder, WITH_CONTEXT if config.context else AS_DRAWN)
            continue
        _check_whole(folder, record)
        _check_tokenizer(folder, record, vocabulary)
        for name, file in files.items():
            _check_file(file, record, hashes[name])
        entries.append(WrittenBy(policy=record.policy, files=tuple(files)))
    return tuple(entries)


def _check_whole(folder: Path, record: GenerationRecord) -> None:
    if len(record.files) < record.parts:
        raise IncompleteError(
            "these completions are not finished",
            where=folder,
            expected=f"{record.parts} files",
            found=len(record.files),
            fix="Run 'logitcask generate' with the same file again; it continues",
        )


def _check_tokenizer(folder: Path, record: GenerationRecord, vocabulary: str) -> None:
    own = str(record.policy.tokenizer.get("vocabulary"))
    if own != vocabulary:
        raise IdentityError(
            "the model that wrote these completions has another tokenizer than the encoding",
            where=folder,
            expected=f"vocabulary {vocabulary[:12]}…",
            found=f"{own[:12]}…",
            why="its token ids mean other tokens",
            fix="Use a teacher with the tokenizer of that model, or read the text: set corpus.text_field or "
            "corpus.messages_field instead of corpus.ids_field",
        )


def _check_file(file: FileSource, record: GenerationRecord, sha256: str) -> None:
    recorded = record.files.get(file.path.name)
    if recorded is None or recorded.sha256 != sha256:
        raise IdentityError(
            "this file does not hold what the model wrote",
            where=file.path,
            expected="a file that policy.json lists" if recorded is None else f"sha256 {recorded.sha256[:12]}…",
            found="another" if recorded is None else f"{sha256[:12]}…",
            why="tokens that the model did not draw would be taken for its own",
            fix="Delete the file and run 'logitcask generate' again, or move policy.json away to read the folder as an "
            "ordinary corpus",
        )
