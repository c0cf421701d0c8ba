"""The ``corpus:`` block of the capture file: which documents to read, and where in a record they stand."""

from pathlib import Path

from pydantic import Field, PositiveInt, field_validator, model_validator

from cache_tools.configuration import Config
from cache_tools.mappings import Identity
from pipeline.corpus.templates import template_fields


class DatasetConfig(Config):
    """One split of a Hugging Face dataset, read by the ``datasets`` library, which runs no code of the dataset.

    Attributes:
        path: Hub id, local folder, or the library's reader (``json``, ``csv``, ``parquet``, …) for ``data_files``.
        name: Configuration of a dataset that has several.
        data_dir: Folder inside the dataset.
        data_files: Files, patterns or URLs to read as split ``train``, instead of the dataset's own files.
        split: Split to read.
        revision: Commit, tag or branch of a hub dataset. The encoding records the commit behind it and cannot be
            continued with another commit, so name a commit for a dataset that changes.
        streaming: Read rows as they arrive instead of downloading and converting the dataset first.
        max_documents: Number of rows to read from the start; default: all.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: tuple[str, ...] = ()
    split: str = Field(default="train", pattern=r"^\w[\w.-]*$")
    revision: str | None = None
    streaming: bool = False
    max_documents: PositiveInt | None = None


class ContextConfig(Config):
    """A context that only teachers read: students learn to predict, without it, what teachers predict with it.

    Predictions are kept where they are kept without a context. A template is a text in which ``{name}`` stands for a
    text field of the record; ``{{`` and ``}}`` are braces. A record without such a field is an error.

    Attributes:
        before: Template of a text that stands before a plain text, and before each piece of a long one.
        system: Template of a system message at the beginning of a chat; a system message of the chat itself follows in
            the same message, after an empty line.
        messages_field: Field with messages that stand before a chat, behind its system message: a list, or that list
            as JSON text. Answers among them are not kept.
        last_user: Template of a text that is appended to the last user message of a chat.
    """

    before: str | None = None
    system: str | None = None
    messages_field: str | None = None
    last_user: str | None = None

    @field_validator("before", "system", "last_user")
    @classmethod
    def _readable(cls, template: str | None) -> str | None:
        template_fields(template or "")
        return template

    @model_validator(mode="after")
    def _something_to_read(self) -> "ContextConfig":
        if all(value is None for value in (self.before, self.system, self.messages_field, self.last_user)):
            raise ValueError("needs before, system, messages_field or last_user")
        return self

    def identity(self) -> dict[str, str]:
        """Return what determines the context of a record: the keys that are set."""
        stated: dict[str, str] = self.model_dump(mode="json", exclude_none=True)
        return stated

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Names of the record's fields that the templates name."""
        templates = (self.before, self.system, self.last_user)
        return tuple(dict.fromkeys(name for text in templates for name in template_fields(text or "")))


class CorpusConfig(Config):
    """Which documents to read, from files, datasets or both, and in which fields of a record they are.

    Attributes:
        paths: Files (.txt, .jsonl, also .gz or .zst, .parquet), folders of such files, or datasets saved
            with ``save_to_disk``; read in this order, the files of a folder in the order of their names.
        datasets: Hugging Face datasets, read in this order after the files.
        text_field: Field that holds plain text.
        messages_field: Field that holds a list of chat messages, or that list as JSON text; if given, it is read
            instead of text. The chat template decides how system messages, tool calls and replies of tools are
            rendered.
        tools_field: Field with the JSON schemas of the tools that a chat may call, as a list or as JSON
            text; null or empty where there are none.
        ids_field: Field that holds token ids; if given, it is read instead of text. The ids are read without further
            special tokens, and split like text when there are too many.
        mask_field: Field with a 0 or 1 for each token id: 1 where predictions are kept; default: everywhere.
        label_field: Field with the class of a document, which is a token as the tokenizer's vocabulary spells it; for
            plain text and the masked objective. ``pipeline/encoding/labels.py`` says where it is predicted.
        context: What teachers read in addition to a document, and students do not.
        id_field: Field with a unique document id; a record without an id is named after its file and line.
        group_field: Field that keeps documents together when some are held out; default: the document's id.
        held_out_fraction: Expected share of groups that are encoded as the held-out split, in [0, 1).
    """

    paths: tuple[Path, ...] = ()
    datasets: tuple[DatasetConfig, ...] = ()
    text_field: str = "text"
    messages_field: str | None = None
    tools_field: str | None = None
    ids_field: str | None = None
    mask_field: str | None = None
    label_field: str | None = None
    context: ContextConfig | None = None
    id_field: str = "id"
    group_field: str = "group"
    held_out_fraction: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_to_read(self) -> "CorpusConfig":
        if not self.paths and not self.datasets:
            raise ValueError("needs paths or datasets")
        if self.messages_field and self.ids_field:
            raise ValueError("messages_field and ids_field exclude each other")
        for field, needed in (("tools_field", "messages_field"), ("mask_field", "ids_field")):
            if getattr(self, field) and not getattr(self, needed):
                raise ValueError(f"{field} needs {needed}")
        if self.label_field and (self.messages_field or self.ids_field):
            raise ValueError("label_field is for documents of plain text")
        return self

    @model_validator(mode="after")
    def _context_of_its_kind(self) -> "CorpusConfig":
        context = self.context
        if context is None:
            return self
        if self.ids_field:
            raise ValueError("context needs plain text or chats; with ids_field there is neither")
        if self.messages_field and context.before is not None:
            raise ValueError("context.before is for plain text; for chats set context.system or context.last_user")
        of_chats = (context.system, context.messages_field, context.last_user)
        if not self.messages_field and any(value is not None for value in of_chats):
            raise ValueError("context.system, messages_field and last_user need corpus.messages_field")
        return self

    def identity(self) -> Identity:
        """Return what determines how a record is read, as plain JSON; keys of later versions only where used."""
        later = {"tools_field", "ids_field", "mask_field", "label_field"}
        unused = {name for name in later if getattr(self, name) is None}
        identity = self.model_dump(mode="json", exclude={"paths", "datasets", "context", *unused})
        context = {} if self.context is None else {"context": self.context.identity()}
        return identity | context
