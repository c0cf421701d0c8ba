"""The tokenizer, chat template and special tokens that a student is saved with.

A student that starts from pretrained weights keeps its own. Its tokenizer has the cache's vocabulary (which
``cached.check_tokenizer`` checks) but may end a turn with another token and render a chat by another template than
the teacher's, and its generation settings list every token that ends its answers. So the finished folder, and every
checkpoint, gets the student's own tokenizer; its own special ids stay, and those of the tokenizer are added where
it has none, or, of the tokens that end an answer, to the list. A student from random weights, or one with
the vocabulary of a union, has the tokenizer of the cache or of the union and takes its special tokens from there.

The ids are set after the model is made: a padding id in its first configuration would freeze that token's embedding.
The Trainer replaces those of the configuration once more when it starts; :class:`KeptTokens` undoes that.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from cache_tools.alignments.stored import Alignment
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from cache_tools.torch_models.gguf import load_tokenizer
from trainer.config.student_file import StudentModelConfig
from trainer.tokenizers.cached import student_tokenizer

Ids = int | list[int] | None

SETTINGS = "generation_config.json"
NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


def tokenizer_of(
    config: StudentModelConfig, vocabulary: StorePath | None, encoding: Encoding, alignment: Alignment | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a student is saved with.

    Args:
        config: The student.
        vocabulary: Folder of the student's vocabulary, if it is not the cache's own.
        encoding: Of the cache.
        alignment: The alignment with the student's own tokenizer, if it has one.
    """
    if config.source is None or vocabulary is not None:
        return student_tokenizer(vocabulary, encoding, alignment)
    return load_tokenizer(config.source, revision=config.revision, trust_remote_code=config.trust_remote_code)


def share_special_tokens(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep_own: bool) -> None:
    """Give a student's configurations the tokenizer's special ids, in place.

    Args:
        student: Its ``config`` and, where there is one, its ``generation_config`` are changed.
        tokenizer: The tokenizer that it is saved with.
        keep_own: Whether ids stay that the student has already; those that end an answer are then joined.
    """
    for config in (student.config, getattr(student, "generation_config", None)):
        if config is None:
            continue
        for name in ("bos_token_id", "pad_token_id"):
            own = getattr(config, name, None)
            setattr(config, name, own if keep_own and own is not None else getattr(tokenizer, name))
        ends: Any = getattr(config, "eos_token_id", None) if keep_own else None
        config.eos_token_id = joined(ends, tokenizer.eos_token_id)


def joined(own: Ids, more: int | None) -> Ids:
    """Return the ids that end an answer: the own ones, in their order, and one more; a list only where it has to be."""
    ids = own if isinstance(own, list) else [] if own is None else [own]
    if more is None or more in ids:
        return own
    return [*ids, more] if ids else more


def save_student(student: PreTrainedModel, folder: str | Path, state_dict: Any = None) -> None:
    """Write a student with its generation settings as they are.

    transformers loads settings such as a temperature without sampling, which many models have, and refuses to save
    them; so they are written here.

    Args:
        student: The student.
        folder: Where to.
        state_dict: Its weights, if they are not where the student has them.
    """
    settings = getattr(student, "generation_config", None)
    if settings is None:
        student.save_pretrained(folder, state_dict=state_dict)
        return
    student.generation_config = GenerationConfig()
    try:
        student.save_pretrained(folder, state_dict=state_dict)
    finally:
        student.generation_config = settings
    if (Path(folder) / SETTINGS).exists():
        settings.to_json_file(Path(folder) / SETTINGS)


class KeptTokens(TrainerCallback):
    """Gives a configuration the special ids back that it has now, after the Trainer has aligned it to its tokenizer.

    Args:
        student: Whose configuration is kept.
    """

    def __init__(self, student: PreTrainedModel) -> None:
        self._config = student.config
        self._ids = {name: getattr(student.config, name, None) for name in NAMES}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the ids again."""
        for name, ids in self._ids.items():
            setattr(self._config, name, ids)
