"""What a student with its own tokenizer keeps of distillation's gain: ``python -m benchmarks.own_tokenizer MODEL``.

A teacher (SmolLM2-135M-Instruct, by ``python -m configs.smollm2.fetch``) reads a part of the interpreter's
documentation once. A byte-level BPE is trained on the rest of it, and students of one body learn the same text, in the
same order and number of steps, in these ways:

======================= ============ ==================================================================================
arm                     tokenizer    learns from
======================= ============ ==================================================================================
own, text               its own      the text alone
own, ranks              its own      sorted probabilities of all tokens (Universal Logit Distillation)
own, map                its own      tokens of equal bytes, composed ones by the product rule (``alignment``)
own, hybrid             its own      these, and sorted probabilities of the tokens without a counterpart (GOLD)
teacher's, text         the teacher's the text alone
teacher's, cache        the teacher's the cached predictions: the bound
======================= ============ ==================================================================================

``--wordpiece`` adds the four own arms with a WordPiece tokenizer. Students are measured on held-out documents in bits
per byte (``logitcask evaluate --alignment``). A gain is the text's bits per byte less an arm's, in each seed, and its
share is that of the gain which the teacher's own tokenizer makes. Intervals are Student's t over seeds; they cover
first weights and order, not the choice of documents. Arms of a tokenizer begin a seed with the same weights, and all
arms read the same sequences at each step.

Stopped and started again, it continues; a larger ``--seeds`` adds to a finished table.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import t_interval
from benchmarks.work_folder import check_work_folder
from cache_tools.alignments.making import align_encoding
from cache_tools.errors import LogitcaskError
from cache_tools.json_output import json_object
from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import store_path, write_object
from cache_tools.store.reader import Cache, Encoding
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from configs.papers.wordpiece import wordpiece
from pipeline.config.capture_file import CaptureConfig
from pipeline.demo.corpus import write_corpus
from pipeline.run import Worker, run_capture
from trainer.config.student_file import StudentConfig
from trainer.evaluation.aligned import evaluate_aligned_student
from trainer.run.train import run_training

BODY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""A student's body; its embeddings have the size of its vocabulary."""

BPE, WORDPIECE, TEACHERS = "bpe", "wordpiece", "teacher"
"""Alignments of the cache, by the tokenizer that they are with."""

OTHERS = "others.jsonl"
"""Documents that are not read by the teacher: what the students' tokenizers are trained on."""

TEXT, CACHE = "teacher's, text", "teacher's, cache"


@dataclass(frozen=True)
class Scale:
    """The settings of a table; two tables share a work folder only if all settings are equal.

    Attributes:
        teacher: Model folder.
        percent: Share of the documentation that is read; which part depends on names alone.
        steps: Optimizer steps of a student.
        batch_sequences: Sequences of a step.
        length_tokens: Largest length of a sequence, in the teacher's tokens.
        learning_rate: Highest learning rate; it falls as a cosine.
        vocabulary: Tokens of the students' own tokenizers.
        kd_weight: Weight of what is learned from the teacher, in all arms that do; the rest is cross-entropy.
        rank_weight: Factor of rank distances. At a ``kd_weight`` of 0.7, 0.64 makes them 1.5 times cross-entropy, as
            published.
        held_out_fraction: Share of the documents that students are measured on.
    """

    teacher: Path
    percent: int
    steps: int
    batch_sequences: int
    length_tokens: int
    learning_rate: float
    vocabulary: int
    kd_weight: float
    rank_weight: float
    held_out_fraction: float = 0.2


@dataclass(frozen=True)
class Arm:
    """One way to learn.

    Attributes:
        name: For the table; folders have it too.
        alignment: The tokenizer: BPE, WORDPIECE or TEACHERS.
        loss: The loss block of the student file.
        text: Name of the arm that learns from the text alone with this tokenizer.
    """

    name: str
    alignment: str
    loss: dict[str, Any]
    text: str


def arms_of(scale: Scale, with_wordpiece: bool) -> tuple[Arm, ...]:
    """Return all arms; those of a tokenizer differ in nothing but the loss."""
    taught = {"kd_weight": scale.kd_weight, "allow_biased": True}
    hybrid = {"of": "unmapped", "weight": scale.rank_weight, "mapped_weight": 1.0}
    losses: dict[str, dict[str, Any]] = {
        "text": {"kd_weight": 0.0},
        "ranks": taught | {"ranks": {"of": "all", "weight": scale.rank_weight}},
        "map": taught,
        "hybrid": taught | {"ranks": hybrid},
    }
    families = {"own": BPE} | ({"wordpiece": WORDPIECE} if with_wordpiece else {})
    own = [
        Arm(f"{prefix}, {name}", alignment, loss, f"{prefix}, text")
        for prefix, alignment in families.items()
        for name, loss in losses.items()
    ]
    bound = [Arm(TEXT, TEACHERS, losses["text"], TEXT), Arm(CACHE, TEACHERS, taught, TEXT)]
    return (*bound, *own)


def is_read(group: str, scale: Scale) -> bool:
    """Say whether the teacher reads a group of documents: it depends on the group's name alone."""
    return int(sha256(group.encode()).hexdigest(), 16) % 100 < scale.percent


def capture(scale: Scale, work: Path) -> Encoding:
    """Write the corpus and run the capture, or the rest of it; return the encoding."""
    corpus = work / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(work / OTHERS, lambda group: not is_read(group, scale))
        write_corpus(corpus, lambda group: is_read(group, scale))
    values = {
        "cache": str(work / "cache"),
        "corpus": {"paths": [str(corpus)], "held_out_fraction": scale.held_out_fraction},
        "encoding": {"max_length_tokens": scale.length_tokens, "positions_per_shard": 16_384},
        "teachers": [
            {
                "name": "teacher",
                "model": str(scale.teacher),
                "dtype": "bfloat16",
                "target": {"k": 64},
                "batch_tokens": 2048,
            }
        ],
    }
    with open_reporter() as reporter:
        run_capture(CaptureConfig.model_validate(values), Worker(), reporter)
    return Cache(work / "cache").encoding()


def byte_level_bpe(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of so many tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def cased_wordpiece(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer of so many tokens."""
    made = wordpiece(texts, size, lowercase=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")


MAKERS: dict[str, Callable[[Sequence[str], int], PreTrainedTokenizerFast]] = {
    BPE: byte_level_bpe,
    WORDPIECE: cased_wordpiece,
}


def align(encoding: Encoding, scale: Scale, work: Path, alignments: Sequence[str]) -> None:
    """Train the tokenizers that are not there yet on the documents that nobody reads, and align the cache with each."""
    for name in alignments:
        folder = scale.teacher if name == TEACHERS else work / "tokenizers" / name
        if not (folder / "tokenizer.json").exists():
            texts = [json.loads(line)["text"] for line in (work / OTHERS).read_text(encoding="utf-8").splitlines()]
            MAKERS[name](texts, scale.vocabulary).save_pretrained(folder)
        align_encoding(encoding, name, open_tokenizer(str(folder)))


def student_config(arm: Arm, seed: int, scale: Scale, work: Path) -> StudentConfig:
    """Return the student file of one run."""
    training = {
        "output_dir": str(work / "runs" / _slug(arm, seed)),
        "max_steps": scale.steps,
        "per_device_train_batch_size": scale.batch_sequences,
        "learning_rate": scale.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(20, scale.steps // 10),
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "save_steps": max(1, scale.steps // 2),
        "logging_steps": max(1, scale.steps // 10),
        "seed": seed,
        "use_cpu": True,
    }
    blocks = {"cache": str(work / "cache"), "alignment": arm.alignment, "loss": arm.loss, "window_shards": 64}
    return StudentConfig.model_validate(blocks | {"student": {"config": BODY}, "training": training})


def run(arm: Arm, seed: int, scale: Scale, work: Path) -> dict[str, Any]:
    """Return the measures of one student, made now if they are not there already.

    Returns:
        The fields of ``trainer.evaluation.results.AlignedEvaluateResult``, and ``cpu_seconds`` of training.
    """
    path = work / "results" / f"{_slug(arm, seed)}.json"
    if not path.exists():
        started = time.process_time()
        final = run_training(student_config(arm, seed, scale, work)).student
        seconds = round(time.process_time() - started, 1)
        measured = evaluate_aligned_student(
            final, store_path(str(work / "cache")), arm.alignment, Reporter(), batch_size=32, device="cpu"
        )
        write_object(path, json.dumps(json_object(measured) | {"cpu_seconds": seconds}).encode())
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _slug(arm: Arm, seed: int) -> str:
    return f"{arm.name.replace(', ', '-').replace(chr(39), '')}-{seed}"


Results = dict[str, list[dict[str, Any]]]
"""By arm, the measures of each seed."""


def gains(results: Results, arm: Arm) -> list[float]:
    """Return by how many bits per byte an arm is better than the text alone with its tokenizer, in each seed."""
    pairs = zip(results[arm.text], results[arm.name], strict=True)
    return [text["bits_per_byte"] - own["bits_per_byte"] for text, own in pairs]


def rows(results: Results, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return one row per arm: means over seeds, with half the width of their 95 % intervals where there are two."""
    bound = gains(results, next(arm for arm in arms if arm.name == CACHE))
    table = []
    for arm in arms:
        own = gains(results, arm)
        shares = [100 * gain / whole for gain, whole in zip(own, bound, strict=True)]
        table.append(
            {"name": arm.name, "seeds": len(own)}
            | _with_interval("bits_per_byte", [result["bits_per_byte"] for result in results[arm.name]])
            | _with_interval("gain_bits_per_byte", own)
            | _with_interval("share_percent", shares)
            | {key: _mean(results[arm.name], key) for key in MEANS}
        )
    return table


MEANS = ("top1_agreement", "kl_to_teacher_nats_per_byte", "aligned_share", "cpu_seconds", "teacher_bits_per_byte")


def _mean(measured: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(result[key] for result in measured)


def _with_interval(name: str, values: Sequence[float]) -> dict[str, float | None]:
    mean, half = t_interval(values) if len(values) > 1 else (values[0], None)
    return {name: mean, f"{name}_interval": half}


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    teacher = table[0]["teacher_bits_per_byte"]
    title = f"{table[0]['seeds']} seeds; the teacher itself {teacher:.4f} bits per byte"
    shown = Table(title=title)
    for heading in ("arm", "bits per byte", "gain over its text", "% of the bound", "same top", "with a row", "CPU s"):
        shown.add_column(heading, justify="left" if heading == "arm" else "right")
    for row in table:
        shown.add_row(
            row["name"],
            _ranged(row, "bits_per_byte", 4),
            _ranged(row, "gain_bits_per_byte", 4),
            _ranged(row, "share_percent", 1),
            f"{row['top1_agreement']:.1%}",
            f"{row['aligned_share']:.1%}",
            f"{row['cpu_seconds']:.0f}",
        )
    Console(width=110).print(shown)


def _ranged(row: dict[str, Any], name: str, digits: int) -> str:
    half = row[f"{name}_interval"]
    return f"{row[name]:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


@click.command()
@click.argument("teacher", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/own-tokenizer"), show_default=True)
@click.option("--seeds", type=click.IntRange(1, 10), default=5, show_default=True, help="Number of students per arm.")
@click.option("--steps", type=click.IntRange(1), default=160, show_default=True, help="Steps per student.")
@click.option("--percent", type=click.IntRange(1, 100), default=10, show_default=True, help="Share of the documents.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Sequences per step.")
@click.option("--length", type=click.IntRange(2), default=128, show_default=True, help="Teacher tokens of a sequence.")
@click.option("--learning-rate", type=float, default=4e-3, show_default=True, help="Highest learning rate.")
@click.option("--vocabulary", type=click.IntRange(300), default=8192, show_default=True, help="Tokens of a student's.")
@click.option("--kd-weight", type=float, default=0.7, show_default=True, help="Weight of what the teacher predicts.")
@click.option("--rank-weight", type=float, default=0.64, show_default=True, help="Factor of rank distances.")
@click.option("--wordpiece", is_flag=True, help="Also students with a WordPiece tokenizer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(teacher: Path, work: Path, seeds: int, wordpiece: bool, as_json: bool, **sizes: Any) -> None:
    """Measure how much of the gain of a cached TEACHER students with their own tokenizer keep."""
    disable_progress_bar()
    names = {"batch": "batch_sequences", "length": "length_tokens"}
    scale = Scale(teacher=teacher, **{names.get(name, name): value for name, value in sizes.items()})
    arms = arms_of(scale, wordpiece)
    try:
        check_work_folder(asdict(scale), work)
        align(capture(scale, work), scale, work, list(dict.fromkeys(arm.alignment for arm in arms)))
        results: Results = {arm.name: [] for arm in arms}
        for seed in range(seeds):
            for arm in arms:
                results[arm.name].append(run(arm, seed, scale, work))
                bits = results[arm.name][-1]["bits_per_byte"]
                click.echo(f"seed {seed}, {arm.name}: {bits:.4f} bits per byte", err=True)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    table = rows(results, arms)
    if as_json:
        for row in table:
            click.echo(json.dumps(row))
    else:
        show(table)


if __name__ == "__main__":
    main()
