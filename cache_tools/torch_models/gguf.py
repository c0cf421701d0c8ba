"""Read a model from a GGUF file: weights, configuration and tokenizer, by transformers' reader.

Wherever a model is named by a folder or hub id, a GGUF file is named by its path or by ``<hub id>/<file>.gguf``;
:func:`named` turns either into arguments of ``from_pretrained``, so nothing else has to know the difference.

Weights are always dequantised. transformers would keep them packed where a package with kernels is installed, and
then the same file would give other numbers on another machine. So a GGUF model needs the memory of its architecture
in the dtype that is asked for, not that of the file.

A GGUF file names its rule for splitting text (``tokenizer.ggml.pre``) and does not spell it out. transformers rebuilds
the rules it has a table of, and takes GPT-2's for every other name without a word: SmolLM2's digits and the spaces
before them then become other tokens than the model was trained on. :func:`load_tokenizer` puts the rules in
``SPLITS`` right and refuses names that neither knows.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.dequant import GGML_NAME
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata
from transformers.utils.hub import cached_file
from transformers.utils.quantization_config import GgufConfig

from cache_tools.errors import ModelError
from cache_tools.mappings import Arguments
from cache_tools.models.files import is_gguf

GPT2_NAMES = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"})
"""Names of the split that GPT-2's tokenizer makes, which is what transformers builds unless it knows better."""


def _single_digits() -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


SPLITS = dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _single_digits)
"""Rules that transformers does not rebuild, by name: each digit by itself, and the text between as GPT-2 does."""

PLAIN_TYPES = {0: "F32", 1: "F16", 30: "BF16"}
"""Names of the types that hold numbers and no blocks."""


def named(source: str | Path, **arguments: Any) -> Arguments:
    """Return arguments of ``from_pretrained`` for a model folder, hub id or GGUF file.

    Args:
        source: Folder, hub id, or either followed by the name of a GGUF file.
        arguments: Further arguments, returned with the others.
    """
    if not is_gguf(source):
        return {"pretrained_model_name_or_path": str(source), **arguments}
    folder, name = os.path.split(str(source))
    return {"pretrained_model_name_or_path": folder or ".", "gguf_file": name, **arguments}


def dequantising() -> Arguments:
    """Return the arguments of ``from_pretrained`` by which the weights of a GGUF file become ordinary ones."""
    return {"quantization_config": GgufConfig(dequantize=True)}


def as_ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """Take from a dequantised model what marks it as quantised, so that it can be trained and saved."""
    marks = ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config"))
    for holder, name in marks:
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False  # type: ignore[assignment]
    return model


def load_tokenizer(source: str | Path, **arguments: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, hub id or GGUF file.

    Args:
        source: As for :func:`named`.
        arguments: Further arguments of ``from_pretrained``.

    Raises:
        ModelError: The GGUF file splits text by a rule that is not known.
        Exception: Whatever transformers raises for a tokenizer that it cannot load.
    """
    where = named(source, **arguments)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**where)
    if is_gguf(source):
        folder, name = where["pretrained_model_name_or_path"], where["gguf_file"]
        _split_as_named(tokenizer, Path(str(cached_file(folder, name, revision=arguments.get("revision")))))
    return tokenizer


def _split_as_named(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Give a byte-level tokenizer the rule for splitting text that its file names, in place."""
    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.model") != "gpt2":  # sentencepiece has no such rule
        return
    rule = metadata.get("tokenizer.ggml.pre", "default")
    if rule in SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[rule]()
    elif rule not in GPT2_NAMES and rule not in GGUF_PRE_TOKENIZER_SPLITS:
        raise ModelError(
            "the tokenizer of this GGUF file cannot be rebuilt",
            where=file,
            expected="a tokenizer.ggml.pre that is known",
            found=rule,
            why="text would be split into other tokens than the model was trained on",
            fix="Use the model as a folder with its own tokenizer.json",
        )


def quantisation(file: Path) -> str:
    """Name the types of a GGUF file's tensors, those with the most bytes first, such as ``Q4_1 with Q8_0, F32``.

    Raises:
        ValueError: The file is no GGUF file, or holds a type that transformers cannot read.
    """
    sizes: Counter[int] = Counter()
    for tensor in GgufHeader.from_file(str(file)).tensors:
        sizes[tensor.ggml_type] += tensor.nbytes
    first, *others = [PLAIN_TYPES.get(kind) or GGML_NAME[kind] for kind, _ in sizes.most_common()]
    return f"{first} with {', '.join(others)}" if others else first


def output_head_type(file: Path) -> str | None:
    """Name the type of a GGUF file's output matrix, or of the embeddings where it has none; None for a plain type.

    Raises:
        ValueError: The file is no GGUF file, or holds a type that transformers cannot read.
    """
    types = {tensor.name: tensor.ggml_type for tensor in GgufHeader.from_file(str(file)).tensors}
    kind = types.get("output.weight", types.get("token_embd.weight"))
    return None if kind is None or kind in PLAIN_TYPES else GGML_NAME[kind]
