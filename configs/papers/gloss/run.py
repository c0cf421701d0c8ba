"""LMGC and LMGC-M: a language model learns which gloss fits a word in a sentence, with and without its old task.

    python -m configs.papers.wordnet runs/wordnet
    python -m configs.papers.gloss.run runs/wordnet runs/cohesive/wordnet/teacher/final runs/gloss

START is a masked language model that has read nothing of the held-out synsets, such as the expert that
``configs/papers/cohesive`` trains. Every step continues where it was stopped. The tables cover the seeds that have
finished.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from configs.papers.cohesive.texts import shuffled_synsets, wordnet_documents
from configs.papers.gloss import probe
from configs.papers.gloss.baselines import baseline_scores
from configs.papers.gloss.corpora import LABELS, Pair, Sizes, write_corpora
from configs.papers.gloss.instances import sense_numbers
from configs.papers.gloss.measure import everything, once, shuffled_alone
from configs.papers.gloss.tables import print_baselines, print_models, print_scores
from configs.papers.recipes import Overrides, capture_file, make_once, overrides_option, train_file
from configs.papers.wordpiece import SMALLEST
from pipeline.encoding.held_out import is_held_out

HERE = Path(__file__).parent
HELD_OUT_FRACTION = 0.05
"""Of all synsets, as in the capture files here and of ``configs/papers/cohesive``."""
MASKED = {"encoding.masking.probability": 0.15}
CACHES: dict[str, tuple[str, Overrides]] = {
    "labels": ("pairs", {}),
    "masked": ("pairs", MASKED),
    "seen": ("seen", {}),
    "swapped": ("swapped", {}),
    "shuffled": ("shuffled", {}),
    "text": ("text", {**MASKED, "corpus.label_field": None}),
}
"""By cache: its corpus, and the overrides of the capture file."""
STUDENTS = {"LMGC": "labels", "LMGC-M": "masked"}
"""By student: the cache that it is trained on."""
CONTROL = "shuffled"
"""Trained like LMGC, on a cache of this name."""
ARMS = STUDENTS | {CONTROL: CONTROL}


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("start", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--instances", default=12_000, show_default=True, help="Sentences to train on, at most.")
@click.option("--most-senses", default=5, show_default=True, help="Words of more senses are passed over.")
@click.option("--probe-texts", default=4000, show_default=True, help="Definitions that the probe is fitted to.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Number of seeds of the students.")
@overrides_option("--set-student", "student.yaml")
def run(
    wordnet: Path,
    start: Path,
    work: Path,
    instances: int,
    most_senses: int,
    probe_texts: int,
    seeds: int,
    set_student: Overrides,
) -> None:
    """Train LMGC and LMGC-M students from START on pairs of WordNet, in WORK; print the tables."""
    disable_progress_bar()
    plain = make_once(work / "start", lambda folder: save_with_labels(start, folder))
    sizes = Sizes(instances, instances // 12, instances // 6, most_senses, 48, HELD_OUT_FRACTION)
    make_once(work / "corpora", lambda folder: write_corpora(wordnet, folder, token_counter(plain), sizes))
    make_caches(plain, work)
    caches, results_folder = work / "caches", work / "results"
    baselines = once(results_folder / "baselines.json", lambda: baselines_of(wordnet, work / "corpora"))
    print_baselines(baselines)
    texts = probe.definitions(shuffled_synsets(wordnet), HELD_OUT_FRACTION, probe_texts, probe_texts // 3)
    results = {"start": [once(results_folder / "start.json", lambda: everything(plain, caches, texts))]}
    for seed in range(seeds):
        for arm in ARMS:
            model = train(work, arm, seed, set_student)
            measure = partial(shuffled_alone, model, caches)
            if arm != CONTROL:
                measure = partial(everything, model, caches, texts)
            results.setdefault(arm, []).append(once(results_folder / f"{arm}-{seed}.json", measure))
        if seed:
            print_scores(results, baselines)
            print_models(results)
    click.echo(f"parameters: {parameters(start):,} before, {parameters(model):,} after")


def train(work: Path, arm: str, seed: int, set_student: Overrides) -> Path:
    """Train a student, and return its folder."""
    places = {"student.pretrained": work / "start", "cache": work / "caches" / ARMS[arm]}
    run = {"training.seed": seed, "training.output_dir": work / "students" / f"{arm}-{seed}"}
    return train_file(HERE / "student.yaml", {**set_student, **places, **run})


def save_with_labels(model: Path, folder: Path) -> None:
    """Write a model with the labels as two more special tokens, their embeddings like the mean of all others."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(LABELS)})
    network = AutoModelForMaskedLM.from_pretrained(model)
    network.resize_token_embeddings(len(tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def baselines_of(wordnet: Path, corpora: Path) -> dict[str, Any]:
    """Return the baselines' scores on the held-out pairs, with their own sentences and with others'."""
    texts = [
        document.text for document in wordnet_documents(wordnet) if not is_held_out(document.group, HELD_OUT_FRACTION)
    ]
    parts = {"labels": read_held_out(corpora / "pairs.jsonl"), "swapped": read_held_out(corpora / "swapped.jsonl")}
    return baseline_scores(texts, parts, sense_numbers(wordnet))


def read_held_out(corpus: Path) -> list[Pair]:
    """Return the held-out pairs of a corpus."""
    pairs = (Pair(**json.loads(line)) for line in corpus.read_text(encoding="utf-8").splitlines())
    return [pair for pair in pairs if is_held_out(pair.group, HELD_OUT_FRACTION)]


def token_counter(model: Path) -> Callable[[list[str]], list[int]]:
    """Return a function that counts the tokens of texts, special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]]


def make_caches(plain: Path, work: Path) -> None:
    """Encode all corpora for the tokenizer of a model.

    A capture needs a teacher; the smallest model with that tokenizer is one, and no student uses its predictions.
    """
    unused = make_once(work / "nobody", lambda folder: save_nobody(plain, folder))
    for name, (corpus, changes) in CACHES.items():
        places = {"corpus.paths": [work / "corpora" / f"{corpus}.jsonl"], "cache": work / "caches" / name}
        capture_file(HERE / "capture.yaml", {**changes, "teachers.0.model": unused, **places})


def save_nobody(model: Path, folder: Path) -> None:
    """Write the smallest model that has a model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SMALLEST)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parameters(model: Path) -> int:
    """Return the number of a model's parameters."""
    return int(AutoModelForMaskedLM.from_pretrained(model).num_parameters())


if __name__ == "__main__":
    run()
