"""MergeDistill from texts to a table, by the public commands.

    python configs/mergedistill/run.py runs/mergedistill/texts runs/mergedistill

TEXTS holds one ``<language>.jsonl`` for each language. Every step is a command of ``logitcask`` that continues where it
was stopped, so this file may be stopped and started again, too. Steps that are not a command: a WordPiece
tokenizer is trained for each language, and a model of random weights stands where a capture must name one
before there is a teacher; what it says is not used.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from cache_tools.errors import LogitcaskError
from logitcask import cli

HERE = Path(__file__).parent
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ARMS = {"text only": ["loss.kd_weight=0"], "distilled": [], "control": ["control=other_positions"]}
"""What a student file is changed by. In the control, each position is given what was said about another."""
TEXT_MASKS = ["encoding.masking.seed=0", "teachers.0.name=none", "teachers.0.target.k=1"]
"""Masks that teachers are trained with: others than those they are asked about."""


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tokens", default=8000, show_default=True, help="Size of each teacher's vocabulary.")
@click.option("--seed", default=0, show_default=True, help="Of the students.")
@click.option("--set-capture", multiple=True, metavar="KEY=VALUE", help="Override capture.yaml.")
@click.option("--set-teacher", multiple=True, metavar="KEY=VALUE", help="Override teacher.yaml.")
@click.option("--set-student", multiple=True, metavar="KEY=VALUE", help="Override student.yaml.")
def run(
    texts: Path,
    work: Path,
    tokens: int,
    seed: int,
    set_capture: tuple[str, ...],
    set_teacher: tuple[str, ...],
    set_student: tuple[str, ...],
) -> None:
    """Train a teacher for each <language>.jsonl in TEXTS, and one student of all of them, in WORK."""
    languages = sorted(path.stem for path in texts.glob("*.jsonl"))
    for language in languages:
        make_cache(texts / f"{language}.jsonl", work / language, tokens, set_capture, set_teacher)
    caches = [work / language / "cache" for language in languages]
    command("vocabulary", *caches, "-o", work / "vocabulary")
    listed = ", ".join(f"{{cache: {cache}}}" for cache in caches)
    for arm, changes in ARMS.items():
        output = f"training.output_dir={student_folder(work, arm, seed)}"
        places = [f"caches=[{listed}]", f"vocabulary={work / 'vocabulary'}", output, f"training.seed={seed}"]
        step("student.yaml", *set_student, *changes, *places)
    results = {language: measured(work, language, seed) for language in languages}
    for language in languages:
        results[language]["union"] = {"split_otherwise": split_otherwise(work, language, texts / f"{language}.jsonl")}
    (work / f"results-{seed}.json").write_text(json.dumps(results, indent=1) + "\n")
    print_results(results)


def make_cache(
    corpus: Path, folder: Path, tokens: int, set_capture: tuple[str, ...], set_teacher: tuple[str, ...]
) -> None:
    """Train the teacher of a language and keep what it says in ``folder / "cache"``."""
    if not (folder / "untrained").exists():
        save_untrained(corpus, tokens, folder / "untrained")
    paths = f"corpus.paths=[{corpus}]"
    none, own = (f"teachers.0.model={folder / name}" for name in ("untrained", "teacher/final"))
    step("capture.yaml", *set_capture, *TEXT_MASKS, f"cache={folder / 'text'}", paths, none)
    step("teacher.yaml", *set_teacher, f"cache={folder / 'text'}", f"training.output_dir={folder / 'teacher'}")
    step("capture.yaml", *set_capture, f"cache={folder / 'cache'}", paths, own)


def step(file: str, *changes: str) -> None:
    """Run the command that a file is for, some of its keys changed."""
    click.echo(f"{file}: {changes[-1]}", err=True)
    overrides = [word for change in changes for word in ("--set", change)]
    command("capture" if file == "capture.yaml" else "train", HERE / file, *overrides)


def command(*words: Any) -> str:
    """Run a command of logitcask in this process and return what it printed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            cli.main([str(word) for word in words], prog_name="logitcask", standalone_mode=False)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    return printed.getvalue()


def student_folder(work: Path, arm: str, seed: int) -> Path:
    """Return the run folder of a student."""
    return work / "students" / f"{arm.replace(' ', '-')}-{seed}"


def save_untrained(corpus: Path, tokens: int, folder: Path) -> None:
    """Write a WordPiece tokenizer of a corpus, and the smallest model that it fits."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.decoder = normalizers.BertNormalizer(lowercase=False), decoders.WordPiece()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=tokens, special_tokens=SPECIALS, show_progress=False)
    made.train_from_iterator(documents(corpus), trainer)
    frame = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    roles = {f"{name.strip('[]').lower()}_token": name for name in SPECIALS}
    shape = dict.fromkeys(("hidden_size", "intermediate_size"), 8) | {"num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model("bert", vocab_size=made.get_vocab_size(), pad_token_id=0, **shape)
    torch.manual_seed(0)
    partial = folder.with_name(f"{folder.name}.partial")
    AutoModelForMaskedLM.from_config(config).save_pretrained(partial)
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(partial)
    partial.rename(folder)


def documents(corpus: Path) -> Iterator[str]:
    """Yield the texts of a corpus."""
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def measured(work: Path, language: str, seed: int) -> dict[str, dict[str, float]]:
    """Return top-1 accuracy and cross-entropy of teacher and students on a language's held-out positions."""
    cache, vocabulary = work / language / "cache", ("--vocabulary", work / "vocabulary")
    found = {"teacher": evaluated(work / language / "teacher" / "final", cache)}
    for arm in ARMS:
        found[arm] = evaluated(student_folder(work, arm, seed) / "final", cache, *vocabulary)
    return found


def evaluated(model: Path, cache: Path, *options: Any) -> dict[str, float]:
    """Return what ``logitcask evaluate`` found, top-1 accuracy among it."""
    result = json.loads(command("evaluate", model, cache, "--json", *options))
    right = sum(each["accuracy"] * each["positions"] for each in result["reliability"])
    kept = ("positions", "cross_entropy_nats", "kl_to_teacher_nats", "top1_agreement")
    return {"top1": right / result["positions"]} | {name: result[name] for name in kept}


def split_otherwise(work: Path, language: str, corpus: Path) -> float:
    """Return the share of a corpus' words that the union's tokenizer splits unlike the teacher's own."""
    own, union = (work / place / "tokenizer.json" for place in (f"{language}/untrained", "vocabulary/tokenizer"))
    tokenizers = [Tokenizer.from_file(str(path)) for path in (own, union)]
    words = Counter(word for text in documents(corpus) for word in text.split())
    different = [word for word in words if len({tuple(each.encode(word).tokens) for each in tokenizers}) > 1]
    return sum(words[word] for word in different) / words.total()


def gap_closed(found: dict[str, dict[str, float]], measure: str) -> float:
    """Return which part of the way from the student of text alone to the teacher the distilled one has come."""
    alone, distilled, teacher = (found[name][measure] for name in ("text only", "distilled", "teacher"))
    return (distilled - alone) / (teacher - alone)


def print_results(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a table: top-1 and nats by language and model, and the gap closed."""
    columns = ("language", "positions", "teacher", *ARMS, "gap closed", "words split otherwise")
    table = Table(*columns, title="held-out top-1 / cross-entropy, nats")
    for language, found in results.items():
        models = [found[name] for name in ("teacher", *ARMS)]
        cells = [f"{each['top1']:.3f} / {each['cross_entropy_nats']:.3f}" for each in models]
        gaps = " / ".join(f"{gap_closed(found, measure):.0%}" for measure in ("top1", "cross_entropy_nats"))
        table.add_row(
            language, f"{found['teacher']['positions']:,}", *cells, gaps, f"{found['union']['split_otherwise']:.1%}"
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    run()
