"""What a student's own tokenizer costs: speed of aligning, and time of a step: ``python -m benchmarks.alignment``.

A toy teacher reads a part of this interpreter's documentation. Three tokenizers are trained on it, and the cache is
aligned with each. ``MB/s`` is text per second of processor time, of one core: ``tokenising`` is the student's tokenizer
alone, ``matching`` all the rest of an alignment, without writing; ``aligning`` both.

A step is reading a batch from the cache (decoding, mapping, collating), forward, backward and AdamW of a student, in
processor time of one thread. With another tokenizer the student reads other tokens, and other tokens cost other steps;
what an alignment adds is in reading. So each round trains twice on one aligned batch, and adds once what reading these
sequences costs through the alignment, once what it costs without. The ratio is the median of the rounds' own ratios.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from cache_tools.alignments.making import Pairing, align_encoding, aligned_sequences
from cache_tools.alignments.stored import Alignment
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache, Encoding
from cache_tools.vocabularies.folder import open_tokenizer as open_cached
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from configs.papers.wordpiece import wordpiece
from pipeline.config.capture_file import CaptureConfig
from pipeline.demo.corpus import docstring_documents, standard_library, topic_documents
from pipeline.run import Worker, run_capture
from trainer.config.student_file import LossConfig
from trainer.data.aligned_sequences import AlignedSequences
from trainer.data.cached_sequences import Batch, CachedSequences, collate
from trainer.student.student import distilled

TEACHER = Path(__file__).resolve().parents[1] / "configs" / "demo" / "teacher"
STUDENT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 1024,
}
"""The demo's student."""

SAME = "the same tokenizer"
VOCABULARY = 4096
SEQUENCES = 8
"""Sequences of a step."""

WARM_UP = 2
"""Rounds that are not counted."""


def corpus(folder: Path, size_bytes: int) -> Path:
    """Write a part of the documentation as JSON lines of about so many bytes of text."""
    path = folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for document in (*topic_documents(), *docstring_documents(standard_library())):
            file.write(json.dumps(document) + "\n")
            size_bytes -= len(document["text"].encode())
            if size_bytes < 0:
                break
    return path


def captured(folder: Path, size_bytes: int) -> Encoding:
    """Capture the toy teacher over the corpus."""
    values = {
        "cache": str(folder / "cache"),
        "corpus": {"paths": [str(corpus(folder, size_bytes))], "held_out_fraction": 0},
        "encoding": {"max_length_tokens": 256, "positions_per_shard": 65536},
        "teachers": [{"name": "toy", "model": str(TEACHER), "dtype": "float32", "target": {"k": 64}}],
    }
    run_capture(CaptureConfig.model_validate(values), Worker(), Reporter())
    return Cache(folder / "cache").encoding()


def trained_tokenizers(folder: Path, texts: list[str]) -> dict[str, Path]:
    """Train a tokenizer of each family; return their folders."""
    bpe, unigram = Tokenizer(models.BPE()), Tokenizer(models.Unigram())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    quiet: dict[str, Any] = {"vocab_size": VOCABULARY, "show_progress": False}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(initial_alphabet=alphabet, **quiet))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(special_tokens=["<unk>"], unk_token="<unk>", **quiet)
    unigram.train_from_iterator(texts, trainer)
    made = {"byte-level BPE": bpe, "SentencePiece": unigram, "WordPiece": wordpiece(texts, VOCABULARY, lowercase=False)}
    folders = {name: folder / name.replace(" ", "-") for name in made} | {SAME: TEACHER}
    for name, tokenizer in made.items():
        folders[name].mkdir()
        tokenizer.save(str(folders[name] / "tokenizer.json"))
    return folders


def speeds(encoding: Encoding, folder: Path, rounds: int) -> dict[str, float]:
    """Return megabytes of text per second of processor time."""
    pairing = Pairing.between(open_cached(encoding), open_tokenizer(str(folder)))
    shards = [encoding.sequences(shard) for shard in range(len(encoding.shards))]
    texts = [[sequence.text for sequence in sequences] for sequences in shards]
    megabytes = sum(len(text.encode()) for part in texts for text in part) / 1e6

    def ids_alone() -> None:
        for part in texts:
            pairing.student.tokenizer.encode_batch(part, add_special_tokens=False)

    def align() -> None:
        for sequences in shards:
            list(aligned_sequences(sequences, pairing))

    aligning = statistics.median(_seconds(align) for _ in range(rounds))
    tokenising = 0.0 if pairing.same else statistics.median(_seconds(ids_alone) for _ in range(rounds))
    result = {"aligning_mb_per_second": megabytes / aligning}
    if tokenising:
        result |= {"tokenising_mb_per_second": megabytes / tokenising}
        result |= {"matching_mb_per_second": megabytes / (aligning - tokenising)}
    return result


class Steps:
    """A student, and what its steps cost.

    Args:
        vocabulary_size: Width of its logits.
    """

    def __init__(self, vocabulary_size: int) -> None:
        torch.manual_seed(0)
        student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**STUDENT, vocab_size=vocabulary_size))
        self.module = distilled(student, LossConfig(kd_weight=0.5))
        self.optimizer = torch.optim.AdamW(self.module.parameters())

    def step(self, batch: Batch) -> None:
        """Train on a batch."""
        self.module(**batch)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_ratio(encoding: Encoding, alignment: Alignment, rounds: int) -> dict[str, float]:
    """Return the median ratio of a step with an alignment to one without, and what reading a batch costs in both."""
    size = max(alignment.manifest.vocabulary_size, encoding.manifest.vocabulary_size)
    plain = CachedSequences(encoding.teacher(), "train", size)
    aligned = AlignedSequences(encoding.teacher(), alignment, "train", size)
    steps, rounds_seconds = Steps(size), list[Round]()
    for numbers in islice(_batches(len(plain)), rounds + WARM_UP):
        made = collate([aligned[i] for i in numbers])
        rounds_seconds.append(
            Round(
                _seconds(partial(steps.step, made)),
                _seconds(partial(_read, plain, numbers)),
                _seconds(partial(_read, aligned, numbers)),
                _seconds(partial(steps.step, made)),
            )
        )
    measured = rounds_seconds[WARM_UP:]
    return {
        "step_ratio": statistics.median((r.step_again + r.aligned) / (r.step + r.plain) for r in measured),
        "reading_ms_without": 1e3 * statistics.median(r.plain for r in measured),
        "reading_ms_aligned": 1e3 * statistics.median(r.aligned for r in measured),
        "step_ms": 1e3 * statistics.median(r.step for r in measured),
    }


class Round(NamedTuple):
    """Seconds of a round: a step, reading its sequences without an alignment and with one, and the step again."""

    step: float
    plain: float
    aligned: float
    step_again: float


def _read(data: CachedSequences, numbers: list[int]) -> Batch:
    return collate([data[i] for i in numbers])


def _batches(sequences: int) -> Iterator[list[int]]:
    while True:
        for start in range(0, sequences - SEQUENCES, SEQUENCES):
            yield list(range(start, start + SEQUENCES))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


@click.command()
@click.option("--kilobytes", default=600, help="Size of the text.")
@click.option("--rounds", default=3, help="Rounds of aligning.")
@click.option("--steps", default=40, help="Rounds of steps.")
def main(kilobytes: int, rounds: int, steps: int) -> None:
    """Print one JSON object for each tokenizer."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoding = captured(folder, 1000 * kilobytes)
        texts = [sequence.text for shard in range(len(encoding.shards)) for sequence in encoding.sequences(shard)]
        for name, tokenizer in trained_tokenizers(folder, texts).items():
            alignment = align_encoding(encoding, name.replace(" ", "-"), open_tokenizer(str(tokenizer)))
            counts = [receipt.kinds for receipt in alignment.receipts.values()]
            positions = sum(count for kinds in counts for kind, count in kinds.items() if kind != "outside")
            rows = sum(receipt.with_row for receipt in alignment.receipts.values())
            numbers = speeds(encoding, tokenizer, rounds) | step_ratio(encoding, alignment, steps)
            shown = {key: round(value, 3) for key, value in numbers.items()}
            click.echo(json.dumps({"tokenizer": name, **shown, "share_with_row": round(rows / positions, 3)}))


if __name__ == "__main__":
    main()
