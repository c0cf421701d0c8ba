"""Tiny real models, tokenizers and corpora for the tests of both stages.

The models are transformers' own classes with random weights and a few thousand parameters.
Random weights suffice wherever a test compares two computations of the same thing: nothing
here depends on a model being any good.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cache_tools.progress.reporter import Reporter
from cache_tools.storage import StorePath
from cache_tools.store.reader import Cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.encode import encode as encode_corpus
from pipeline.encoding.recipe import Recipe
from pipeline.run import Worker, run_capture

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
"""On a busy machine two threads wait for each other a hundred times longer than a tiny model runs. Two are asked for
by ``python -m benchmarks.processors``."""

TEXTS = [
    f"Document {i}: the {word} of a shard is kept in order, {word} after {word}, until position {i * 7} ends it. "
    * (1 + i % 4)
    for i, word in enumerate(
        ["id", "value", "mass", "token", "row", "chunk", "level", "step", "head", "tail", "bit", "map"] * 3
    )
]
"""36 short documents of different lengths."""

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "gpt2": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
    "bert": {},
    "modernbert": {},
}
"""Model types whose heads differ, each with what makes its head peculiar."""


TEACHER_KEYS = {"name", "target", "hidden", "batch_tokens", "dtype", "attention", "packing", "compile", "nan_rows"} | {
    "tensor_parallel"
}
"""Keys that ``capture_values`` puts into the teacher's block."""


SilentReporter = Reporter
"""A reporter for captures whose progress nobody watches."""


def tokenizer(vocabulary_size: int = 300, masked: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on TEXTS; with ``masked``, one that frames a text as [CLS] … [SEP]."""
    specials = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"] if masked else ["<|end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if not masked:
        return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def model(model_type: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Make a random model; BERT-like types get a masked-LM head. Weights are spread out so that logits differ."""
    torch.manual_seed(seed)
    masked = model_type in ("bert", "modernbert")
    config = AutoConfig.for_model(model_type, **{**SHAPE, "vocab_size": 300, "pad_token_id": 0, **changes})
    made = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return made.eval()


def save_teacher(folder: Path, made: PreTrainedModel | None = None, masked: bool = False) -> Path:
    """Write a model and its tokenizer as an ordinary model folder."""
    (made or model("bert" if masked else "llama")).save_pretrained(folder)
    tokenizer(masked=masked).save_pretrained(folder)
    return folder


def recipe(config: CaptureConfig, tokenizer: PreTrainedTokenizerFast) -> Recipe:
    """Return how a capture file's documents become sequences."""
    return Recipe(config.corpus, config.encoding, tokenizer)


def encode(config: CaptureConfig, tokenizer: PreTrainedTokenizerFast, append: bool = False, **named: Any) -> StorePath:
    """Encode a capture file's corpus into its cache; return the encoding's folder."""
    return encode_corpus(config.cache, recipe(config, tokenizer), append, **named)


def write_corpus(path: Path, texts: list[str] | None = None) -> Path:
    """Write texts as JSON lines with ids."""
    lines = [json.dumps({"id": f"doc{i}", "text": text}) for i, text in enumerate(TEXTS if texts is None else texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def capture_values(folder: Path, teacher: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Return the capture file, as a dictionary, of a small cache below ``folder``.

    Args:
        folder: Receives ``corpus.jsonl`` and ``cache``.
        teacher: Model folder; default: a new tiny Llama in ``folder/teacher``.
        changes: Keys of the encoding block, or ``target``, ``hidden``, ``batch_tokens``
            and other keys of the teacher's block, or ``held_out_fraction``.
    """
    if not (folder / "corpus.jsonl").exists():
        write_corpus(folder / "corpus.jsonl")
    encoding = {"max_length_tokens": 48, "positions_per_shard": 512, "chunk_positions": 128}
    one = {"name": "toy", "model": str(teacher or save_teacher(folder / "teacher")), "dtype": "float32"}
    one |= {"target": {"k": 16}, "batch_tokens": 512}
    corpus = {"paths": [str(folder / "corpus.jsonl")], "held_out_fraction": 0.2}
    for key, value in changes.items():
        known = one if key in TEACHER_KEYS else encoding
        (corpus if key in ("held_out_fraction", "messages_field", "label_field", "paths") else known)[key] = value
    return {"cache": str(folder / "cache"), "corpus": corpus, "encoding": encoding, "teachers": [one]}


def capture(folder: Path, teacher: Path | None = None, **changes: Any) -> Cache:
    """Run a whole capture in this process and open the cache; arguments as for ``capture_values``."""
    values = capture_values(folder, teacher, **changes)
    run(values)
    return Cache(values["cache"])


def run(values: dict[str, Any], append: bool = False) -> dict[str, int]:
    """Run the capture that a dictionary describes; return the shards captured by teacher."""
    return run_capture(CaptureConfig.model_validate(values), Worker(), SilentReporter(), append)
