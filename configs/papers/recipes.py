"""What the recipes share: commands called from a script, overrides of configuration files, and models' labels.

A recipe is a chain of calls of the public interface (``from logitcask import capture, train, evaluate``), and of the
commands that have no function there. Each of them continues where it was stopped, and so does the recipe. Run one from
the repository's root, as ``python -m configs.papers.<method>.run``.

Every arm of a seed sees the same data from the same weights, and is measured on the same items.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from cache_tools.configuration import assignments
from cache_tools.errors import LogitcaskError
from cache_tools.format.manifest import Split
from cache_tools.format.sequences import Sequence as CachedSequence
from cache_tools.store.reader import Cache
from cache_tools.torch_models.segments import read_segments
from cache_tools.vocabularies.union import UnionVocabulary
from configs.papers.heads import outputs_at
from logitcask import capture, cli, train
from trainer.data.translation import student_ids, student_separator, translated_ids

Overrides = Mapping[str, Any]
"""New values for keys of a configuration file, by dotted key: ``{"loss.kd_weight": 0}``."""


def command(*words: Any) -> str:
    """Run a command of logitcask in this process and return what it printed."""
    printed = io.StringIO()
    with reported(), contextlib.redirect_stdout(printed):
        cli.main([str(word) for word in words], prog_name="logitcask", standalone_mode=False)
    return printed.getvalue()


def overrides_option(flag: str, files: str) -> Callable[[Any], Any]:
    """Return an option of a recipe by which its user overrides keys of files; the recipe receives a mapping."""

    def parsed(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Overrides:
        with reported():
            return assignments(texts)

    return click.option(flag, multiple=True, metavar="KEY=VALUE", callback=parsed, help=f"Override keys of {files}.")


def capture_file(file: Path, overrides: Overrides) -> Path:
    """Capture what a file describes, with some of its keys overridden; return the folder of the cache."""
    click.echo(f"capture {file.name}: {overrides.get('cache', '')}", err=True)
    with reported():
        return Path(str(capture(file, overrides=overrides).cache))


def train_file(file: Path, overrides: Overrides) -> Path:
    """Train the student that a file describes, with some of its keys overridden; return its folder."""
    click.echo(f"train {file.name}: {overrides.get('training.output_dir', '')}", err=True)
    disable_progress_bar()  # transformers' own bars would break up ours
    with reported():
        return train(file, overrides=overrides).student


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """End a recipe with the message of an error of ours, as a command ends."""
    try:
        yield
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder, which ``make`` fills under a temporary name if it is not there yet."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        make(partial)
        partial.rename(folder)
    return folder


def truncated(model: Path, layers: int, output: Path) -> Path:
    """Write a masked language model of a model's first layers, with its tokenizer; the usual start of a student."""

    def make(folder: Path) -> None:
        AutoModelForMaskedLM.from_pretrained(model, num_hidden_layers=layers).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)

    return make_once(output, make)


def label_log_probs(
    model: Path, cache: Path, labels: Sequence[str], split: Split = "held_out", union: UnionVocabulary | None = None
) -> NDArray[np.float32]:
    """Return a model's log-probability of each label, among the labels alone, for each labelled sequence.

    Args:
        model: Folder of a masked language model with the cache's tokenizer.
        cache: Its only encoding has labels (``corpus.label_field``).
        labels: C tokens.
        split: ``held_out`` or ``train``.
        union: The student's vocabulary, if it is not the cache's own; a tokenizer is then read through its map.

    Returns:
        (N, C) float32 log-probabilities, in the order of :func:`labelled_sequences`.
    """
    columns = token_ids(model, labels)
    to = student_ids(union, Cache(cache).encoding())
    if to is not None:
        columns = to.predicted[columns].astype(np.int64).tolist()
    network = AutoModelForMaskedLM.from_pretrained(model).eval()
    read_segments(network, student_separator(union, Cache(cache).encoding()))
    rows = []
    sequences = labelled_sequences(cache, split)
    for start in range(0, len(sequences), 128):
        batch = sequences[start : start + 128]
        length = max(len(sequence.input_ids) for sequence in batch)
        ids_BL = torch.zeros(len(batch), length, dtype=torch.long)
        attention_BL = torch.zeros_like(ids_BL)
        for row, sequence in enumerate(batch):
            input_ids = sequence.input_ids if to is None else translated_ids(sequence.input_ids, to)
            ids_BL[row, : len(input_ids)] = torch.from_numpy(input_ids.astype(np.int64))
            attention_BL[row, : len(sequence.input_ids)] = 1
        first_B = torch.tensor([int(sequence.positions()[0]) for sequence in batch])
        with torch.no_grad():
            inputs = {"input_ids": ids_BL, "attention_mask": attention_BL}
            logits_BV = outputs_at(network, inputs, partial(rows_at, first_B)).logits_NV
        rows.append(torch.log_softmax(logits_BV[:, columns].float(), dim=1).numpy())
    return np.concatenate(rows)


def rows_at(positions_B: Tensor, states_BLD: Tensor) -> Tensor:
    """Return the states of one position of each sequence: (B, D)."""
    return states_BLD[torch.arange(len(positions_B)), positions_B]


def token_ids(model: Path, tokens: Sequence[str]) -> list[int]:
    """Return the ids of some tokens in the tokenizer of a folder."""
    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(model).get_vocab()
    return [vocabulary[token] for token in tokens]


def labelled_sequences(cache: Path, split: Split = "held_out") -> list[CachedSequence]:
    """Return the sequences of a split, in the cache's order."""
    encoding = Cache(cache).encoding()
    return [sequence for shard in encoding.split_shards(split) for sequence in encoding.sequences(shard)]
