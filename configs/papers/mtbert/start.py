"""Models before stage zero: a tokenizer with the classes, three pre-trained teachers, and the students' weights.

All teachers and students have one tokenizer, so their hidden states stand at the same tokens. Pre-trained teachers of
your own, of one tokenizer and one width, are taken as they are, with the classes added to their tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from transformers import AutoModelForMaskedLM, AutoTokenizer

from configs.papers.mtbert.arms import NAMES, STUDENT_LAYERS
from configs.papers.recipes import Overrides, capture_file, make_once, train_file, truncated
from configs.papers.wordpiece import untrained

HERE = Path(__file__).parent
PLAIN = {"wordnet": ("wordnet",), "debian": ("debian",), "both": ("wordnet", "debian")}
"""The plain text that each teacher is pre-trained on."""


def pretrain(texts: Path, work: Path, tokens: int, changes: Overrides) -> None:
    """Train a masked language model for each teacher, and cut the students' start from the first of them.

    Args:
        texts: Folder that ``data.py`` wrote.
        work: Where everything is made; what is there already stays.
        tokens: Size of the vocabulary without the classes.
        changes: Overrides of pretrain.yaml.
    """
    small = untrained((record["text"] for record in records(sorted(texts.rglob("*.jsonl")))), tokens, work / "words")
    tasks = sorted(texts.glob("*.jsonl"))
    model = make_once(work / "untrained", lambda folder: add_classes(small, classes(tasks), folder))
    for number, name in enumerate(NAMES):
        cache, output = work / "plain" / name, work / "pretrained" / name
        if not (output / "final").exists():
            paths = [texts / "plain" / f"{part}.jsonl" for part in PLAIN[name]]
            capture_file(HERE / "plain.yaml", {"teachers.0.model": model, "corpus.paths": paths, "cache": cache})
            run = {"cache": cache, "training.seed": number, "training.output_dir": output}
            train_file(HERE / "pretrain.yaml", {**changes, **run})
    truncated(work / "pretrained" / NAMES[0] / "final", STUDENT_LAYERS, work / "start")


def take_pretrained(models: Mapping[str, Path], texts: Path, work: Path, student_layers: int) -> None:
    """Give pre-trained models the classes as tokens, and cut the students' start from the first of them.

    Args:
        models: Folders of masked language models of one tokenizer and one width, by the teachers' names.
        texts: Folder with the tasks.
        work: Where everything is made; what is there already stays.
        student_layers: Number of layers of the student.
    """
    labels = classes(sorted(texts.glob("*.jsonl")))
    for name, model in models.items():
        output = work / "pretrained" / name / "final"
        output.parent.mkdir(parents=True, exist_ok=True)
        make_once(output, partial(add_classes, model, labels))
    truncated(work / "pretrained" / next(iter(models)) / "final", student_layers, work / "start")


def add_classes(model: Path, tokens: Sequence[str], output: Path) -> None:
    """Write a model whose tokenizer has some more special tokens."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForMaskedLM.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.save_pretrained(output)
    tokenizer.save_pretrained(output)


def classes(files: Sequence[Path]) -> list[str]:
    """Return the labels of some files, in order."""
    return sorted({record["label"] for record in records(files)})


def records(files: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Yield the records of files of JSON lines."""
    for file in files:
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
