"""Load a model that is to be evaluated, and say which model it is.

A model is a folder of transformers with its tokenizer, quantised or not, or a GGUF file. It must split text as the
cache does; where it comes from makes no difference to what is measured.
"""

from pathlib import Path
from textwrap import shorten

import torch
from transformers import PreTrainedModel

from cache_tools.alignments.stored import Alignment
from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.format import layout
from cache_tools.models.files import is_gguf, weight_files, weights_sha256
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.loading import ADAPTER_SETTINGS, LOADING_ERRORS, auto_class
from cache_tools.torch_models.quantised import quantisation_of
from cache_tools.torch_models.segments import read_segments
from cache_tools.vocabularies.union import UnionVocabulary
from trainer.data.translation import student_separator, student_vocabulary
from trainer.evaluation.results import EvaluatedModel
from trainer.student.cached_loss import vocabulary_size
from trainer.student.checkpoint import FINAL, load_student
from trainer.student.finite import check_student
from trainer.student.student import check_length, check_vocabulary_size
from trainer.tokenizers.cached import check_tokenizer, student_tokenizer
from trainer.tokenizers.check import check_behaviour


def load_evaluated(
    source: Path,
    teacher: CachedTeacher,
    device: str,
    union: UnionVocabulary | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    alignment: Alignment | None = None,
) -> PreTrainedModel:
    """Load a model on a device, if it splits text as the cache or its alignment does and its weights are numbers.

    Args:
        source: A model folder or a GGUF file.
        teacher: The cached teacher to compare with.
        device: Where to run.
        union: The student's vocabulary, if it is not the cache's own.
        dtype: Type in which it computes; ``auto`` is the type of the checkpoint.
        trust_remote_code: Run Python code that comes with the model.
        alignment: The alignment with the student's own tokenizer, if it has one.

    Raises:
        ModelError: There is no model that can be loaded, its weights are not finite, or it reads only shorter texts.
        IdentityError: Its tokenizer is not the cache's, the union's or the alignment's.
    """
    vocabulary = student_vocabulary(union, teacher.encoding) if alignment is None else alignment.manifest.vocabulary
    model = _loaded(source, teacher, union, dtype, trust_remote_code, alignment)
    if alignment is not None:
        check_length(model, alignment.longest_tokens, str(source))
    check_vocabulary_size(vocabulary_size(model), vocabulary, type(model).__name__)
    read_segments(model, student_separator(union, teacher.encoding))
    check_student(model, source, "Evaluate an earlier checkpoint, or train again with a lower learning rate")
    torch.nn.Module.to(model, device)
    return model


def describe(model: PreTrainedModel, source: Path | None) -> EvaluatedModel:
    """Say which model this is; hashes its weight files.

    Args:
        model: The loaded model.
        source: Its folder or GGUF file; None of a model that the caller made.
    """
    kind, dtype = type(model).__name__, str(model.dtype).removeprefix("torch.")
    if source is None or (source / ADAPTER_SETTINGS).is_file():  # an adapter's weights lie in two folders
        return EvaluatedModel(str(source or kind), kind, model.num_parameters(), dtype, None, None, None, None)
    size = sum(file.stat().st_size for file in weight_files(source))
    stored = quantisation_of(source, model)
    return EvaluatedModel(
        *(str(source), kind, model.num_parameters(), dtype, stored.weights, stored.output_head),
        weight_bytes=size,
        sha256=weights_sha256(source),
    )


def check_is_model(student: Path) -> None:
    """Refuse a cache in the place of the student.

    Raises:
        ConfigError: it is one.
    """
    if (student / layout.MANIFEST).exists():
        raise ConfigError(
            "the student's folder is a cache",
            where=student,
            expected="a model folder",
            fix="Give the student's folder first and the cache second",
        )


def device_of(device: str) -> str:
    """Return a torch device by name; ``auto`` is a GPU if there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_is_teacher(source: Path, teacher: CachedTeacher, union: UnionVocabulary | None) -> None:
    """Refuse a model as the original that is not the cached teacher.

    Raises:
        IdentityError: Its weights are others than those that the cache records, or the cache records none.
        ConfigError: The evaluated model has a vocabulary of its own, so the two are not compared on the same ids.
        ModelError: There are no weights at this place.
    """
    if union is not None:
        raise ConfigError(
            "the original is compared on its own ids, and the model on those of another vocabulary",
            where="--original",
            fix="Leave --original or --vocabulary out",
        )
    recorded, weights = teacher.manifest.identity.get("weights"), weights_sha256(source)
    if weights != recorded:
        raise IdentityError(
            "this is not the model whose predictions the cache holds",
            where=source,
            expected=f"weights {recorded[:12]}…" if isinstance(recorded, str) else "a cache that records weights",
            found=f"weights {weights[:12]}…",
            why="its figures would be taken for those of a perfect copy",
            fix="Give the model that was captured, or leave --original out",
        )


def _loaded(
    folder: Path,
    teacher: CachedTeacher,
    union: UnionVocabulary | None,
    dtype: str,
    trust_remote_code: bool,
    alignment: Alignment | None,
) -> PreTrainedModel:
    """Load a student, if it splits text as the cache or its alignment does."""
    encoding = teacher.encoding
    vocabulary = student_vocabulary(union, encoding) if alignment is None else alignment.manifest.vocabulary
    try:
        if not (folder.is_file() if is_gguf(folder) else folder.is_dir()):  # transformers would ask the hub for it
            raise FileNotFoundError("no such folder or GGUF file")
        check_tokenizer(str(folder), vocabulary, remote=trust_remote_code)
        if union is None or union.read:  # of a union of vocabularies, only longest matches are compared
            tokenizer = student_tokenizer(None, encoding, alignment)
            check_behaviour(str(folder), tokenizer, encoding, trust_remote_code=trust_remote_code)
        auto = auto_class(encoding.manifest.objective)
        return load_student(auto, folder, dtype=dtype, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(
            "the student cannot be loaded from this folder",
            where=folder,
            found=shorten(str(error), 300),
            fix=_advice(folder),
        ) from error


def _advice(folder: Path) -> str:
    """Return what to do about a folder that is no student; the folder of its run is easily taken for it."""
    if (folder / FINAL).is_dir():
        return f"This is the folder of a run: give its finished student, {folder / FINAL}"
    return "Give the folder of a finished student, such as <output_dir>/final"
