"""Train the demo's toy teacher: the very run that made ``configs/demo/teacher``.

A 2.4 M-parameter Llama-shaped model, trained from scratch on the interpreter's
documentation and its standard library's source, held-out groups excluded. It is a toy:
it is clearly better on this text than a student that has trained for
a few hundred steps, and its bf16 weights stay below 5 MB.

About half an hour on two cores; ``logitcask demo --train-teacher`` runs it.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from pipeline.demo import corpus
from pipeline.encoding.held_out import is_held_out

VOCABULARY = 4096
END_OF_TEXT = "<|end|>"
WINDOW_TOKENS = 256
HELD_OUT_FRACTION = 0.05
PASSES = 2
"""Passes over the source; the documentation, which is what is measured, is read twice in each."""


class Steps(TrainerCallback):
    """Reports optimizer steps.

    Args:
        reporter: Shows the steps.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin."""
        self._reporter.stage("train the toy teacher", state.max_steps, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        self._reporter.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the last loss that was logged."""
        if "loss" in state.log_history[-1]:
            self._reporter.note(f"loss {float(state.log_history[-1]['loss']):.3f}")


def train_teacher(folder: Path, passes: float = PASSES, reporter: Reporter | None = None) -> None:
    """Train the toy teacher and write weights (bf16) and tokenizer to ``folder``.

    Args:
        folder: Where the model goes; created if absent.
        passes: Passes over the training text; a fraction makes a quick, worse teacher.
        reporter: Shows the progress.
    """
    reporter = reporter or Reporter()
    reporter.stage("reading the standard library and training a tokenizer", None)
    torch.manual_seed(0)
    root = corpus.standard_library()
    prose = _training_texts([*corpus.topic_documents(), *corpus.docstring_documents(root)])
    code = _training_texts(corpus.source_documents(root))
    tokenizer = train_tokenizer(prose)
    windows = _windows(tokenizer, prose + prose + code)
    model = LlamaForCausalLM(teacher_config())
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=passes,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        save_strategy="no",
        logging_steps=100,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=windows, callbacks=[Steps(reporter)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def teacher_config() -> LlamaConfig:
    """Return the toy teacher's shape: 4 layers of width 192, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 4,096 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def _training_texts(documents: Iterable[corpus.Document]) -> list[str]:
    return [d["text"] for d in documents if not is_held_out(d["group"], HELD_OUT_FRACTION)]


def _windows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[dict[str, list[int]]]:
    """Shuffle the documents, join them and cut windows of WINDOW_TOKENS tokens."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    pieces = [np.array([*ids, tokenizer.eos_token_id]) for ids in tokenizer(texts)["input_ids"]]
    tokens = np.concatenate([pieces[i] for i in order])
    whole = tokens[: len(tokens) // WINDOW_TOKENS * WINDOW_TOKENS].reshape(-1, WINDOW_TOKENS)
    return [{"input_ids": row.tolist(), "labels": row.tolist()} for row in whole]


if __name__ == "__main__":
    with open_reporter() as shown:
        train_teacher(Path(sys.argv[1]), reporter=shown)
