"""LMGC and LMGC-M: a language model learns which gloss fits a word in a sentence, with and without its old task.

    python -m configs.papers.wordnet runs/wordnet
    python -m configs.papers.gloss.run runs/wordnet runs/cohesive/wordnet/teacher/final runs/gloss

Two controls are trained beside them. ``masked words`` learns the masked words of the same pairs and no label: what
LMGC-M loses or gains more than it is due to the labels, and not to the pairs' form of text or the learning rate.
``shuffled`` learns labels of pairs in which nothing can be learned.

START is a masked language model that has read nothing of the held-out synsets, such as the expert that
``configs/papers/cohesive`` trains. Every step continues where it was stopped. The tables cover all students that have
finished. Balanced pairs (``corpora.py``) are trained on unless ``--all-pairs`` asks for all, which have a shortcut; the
two have folders of their own in WORK. ``--strangers`` adds pairs with glosses of other words, which are easier to tell
from right ones. With ``--heal-steps`` the start first learns the masked words of both forms of text. Before training,
both labels are made likely at the first token (``heal.py``).
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from configs.papers.cohesive.texts import shuffled_synsets, wordnet_documents
from configs.papers.gloss import probe
from configs.papers.gloss.baselines import baseline_scores
from configs.papers.gloss.corpora import LABELS, Pair, Sizes, all_with_examples, write_corpora
from configs.papers.gloss.heal import healed, set_label_rows
from configs.papers.gloss.instances import sense_numbers
from configs.papers.gloss.measure import cosines, everything, shuffled_alone
from configs.papers.gloss.tables import COSINE, MASKED_WORDS, Results, print_baselines, print_models, print_scores
from configs.papers.measures import finished_seeds, folder_name, once, sequences
from configs.papers.recipes import Overrides, capture_file, make_once, overrides_option, train_file
from configs.papers.wordnet import synsets
from configs.papers.wordpiece import with_tokenizer_of
from pipeline.encoding.held_out import is_held_out

HERE = Path(__file__).parent
HELD_OUT_FRACTION = 0.05
"""Of all synsets, as in the capture files here and of ``configs/papers/cohesive``."""
SOME_PAIRS = 256
"""Number of pairs whose states at the first token decide the rows of the labels."""
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
PARTS = {"labels": "pairs", "swapped": "swapped"}
"""Corpora that baselines are scored on, by the names of their caches."""
CONTROL = "shuffled"
"""Trained like LMGC, on a cache of this name, and measured on its own kind of pairs alone."""
ARMS: dict[str, tuple[str, Overrides]] = {
    "LMGC": ("labels", {}),
    "LMGC-M": ("masked", {}),
    MASKED_WORDS: ("masked", {"loss.label_weight": 0}),
    CONTROL: (CONTROL, {}),
}
"""By student: the cache that it is trained on, and the overrides of the student file."""


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("start", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--instances", default=12_000, show_default=True, help="Sentences to train on, at most.")
@click.option("--most-senses", default=5, show_default=True, help="Words of more senses are passed over.")
@click.option("--probe-texts", default=4000, show_default=True, help="Definitions that the probe is fitted to.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds of the students.")
@click.option(
    "--balanced/--all-pairs", default=True, show_default=True, help="Pairs to train on: as corpora.py balances them."
)
@click.option("--strangers", is_flag=True, help="Train on each sentence with the gloss of another word's sense, too.")
@click.option("--segments", is_flag=True, help="Read sentence and gloss as two segments, as BERT was pre-trained.")
@click.option(
    "--heal-steps",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Steps on masked words of glosses and pairs that START is trained for first, without labels.",
)
@click.option(
    "--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Train only these students; default: all."
)
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of an encoder whose states of sentence and gloss are compared, without training; may be repeated.",
)
@overrides_option("--set-heal", "student.yaml, for --heal-steps")
@overrides_option("--set-student", "student.yaml")
def run(
    wordnet: Path,
    start: Path,
    work: Path,
    instances: int,
    most_senses: int,
    probe_texts: int,
    seeds: int,
    balanced: bool,
    strangers: bool,
    segments: bool,
    heal_steps: int,
    arms: tuple[str, ...],
    beside: tuple[Path, ...],
    set_heal: Overrides,
    set_student: Overrides,
) -> None:
    """Train LMGC and LMGC-M students from START on pairs of WordNet, in WORK; print the tables."""
    disable_progress_bar()
    plain = make_once(work / "start", lambda folder: save_with_labels(start, folder))
    place = work / place_name(balanced, strangers, segments, heal_steps)
    sizes = Sizes(instances, instances // 12, instances // 6, most_senses, 48, HELD_OUT_FRACTION)
    count = token_counter(plain)
    make_once(place / "corpora", lambda folder: write_corpora(wordnet, folder, count, sizes, balanced, strangers))
    make_caches(plain, place, segments)
    if heal_steps:
        pairs = place / "corpora" / "pairs.jsonl"
        plain = healed(wordnet, plain, count, pairs, place / "healing", heal_steps, segments, set_heal)
    begin = make_once(
        place / "begin", lambda folder: set_label_rows(plain, some_training_pairs(place), segments, folder)
    )
    baselines = once(place, "baselines", sequences(place / "caches" / "labels"), lambda: baselines_of(wordnet, place))
    encoders = {COSINE: plain, **{f"cosine of states of {model.name}": model for model in beside}}
    for name, model in encoders.items():
        baselines["scores"][name] = cosines_once(name, model, place)
    print_baselines(baselines)
    texts = probe.definitions(shuffled_synsets(wordnet), HELD_OUT_FRACTION, probe_texts, probe_texts // 3)
    for seed in range(seeds):
        for arm in arms or ARMS:
            train(begin, place, arm, seed, set_student)
        if seed or seeds == 1:
            results = measured(begin, place, texts)
            print_scores(results, baselines)
            print_models(results)
    model = place / "students" / f"{folder_name((arms or tuple(ARMS))[0])}-0" / "final"
    click.echo(f"parameters: {parameters(start):,} before, {parameters(model):,} after")


def place_name(balanced: bool, strangers: bool, segments: bool, heal_steps: int) -> str:
    """Return the name of the folder in WORK of what these options determine."""
    further = {"strangers": strangers, "segments": segments, f"healed-{heal_steps}": heal_steps > 0}
    return "-".join(["balanced" if balanced else "all", *(name for name, is_given in further.items() if is_given)])


def train(start: Path, place: Path, arm: str, seed: int, set_student: Overrides) -> None:
    """Train a student."""
    cache, changes = ARMS[arm]
    places = {"student.pretrained": start, "cache": place / "caches" / cache}
    run = {"training.seed": seed, "training.output_dir": place / "students" / f"{folder_name(arm)}-{seed}"}
    train_file(HERE / "student.yaml", {**changes, **set_student, **places, **run})


def measured(start: Path, place: Path, texts: probe.Definitions) -> Results:
    """Measure the start and all students that have finished; by arm and seed. The start has one measure, of seed 0."""
    caches, students = place / "caches", place / "students"
    runs = {
        arm: {seed: students / f"{folder_name(arm)}-{seed}" for seed in finished_seeds(students, folder_name(arm))}
        for arm in ARMS
    }
    on = [*(sequences(caches / name) for name in CACHES), [len(side) for side in texts]]
    results: dict[str, dict[int, Any]] = {
        "start": {0: once(place / "start", "everything", on, lambda: everything(start, caches, texts))}
    }
    for arm, by_seed in runs.items():
        for seed, run in by_seed.items():
            measure = partial(everything, run / "final", caches, texts)
            if arm == CONTROL:
                measure = partial(shuffled_alone, run / "final", caches)
            results.setdefault(arm, {})[seed] = once(run, "everything", on, measure)
    return results


def save_with_labels(model: Path, folder: Path) -> None:
    """Write a model with the labels as two more special tokens, their embeddings like the mean of all others."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(LABELS)})
    network = AutoModelForMaskedLM.from_pretrained(model)
    network.resize_token_embeddings(len(tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def baselines_of(wordnet: Path, place: Path) -> dict[str, Any]:
    """Return the baselines' scores on the held-out pairs, with their own sentences and with others'.

    ``all_with_examples`` says of each instance whether all of its candidates have an example.
    """
    texts = [
        document.text for document in wordnet_documents(wordnet) if not is_held_out(document.group, HELD_OUT_FRACTION)
    ]
    parts = {name: read_held_out(place / "corpora" / f"{part}.jsonl") for name, part in PARTS.items()}
    with_examples = {synset.id for synset in synsets(wordnet) if synset.examples}
    return {
        "scores": baseline_scores(texts, parts, sense_numbers(wordnet)),
        "all_with_examples": all_with_examples(parts["labels"], with_examples),
    }


def cosines_once(name: str, model: Path, place: Path) -> dict[str, Any]:
    """Return the scores of an encoder's states, as of one more baseline."""

    def measure() -> dict[str, Any]:
        return {"pairs": {name: cosines(model, read_held_out(corpus)) for name, corpus in corpora.items()}}

    corpora = {name: place / "corpora" / f"{part}.jsonl" for name, part in PARTS.items()}
    scores: dict[str, Any] = once(place / "start", folder_name(name), sequences(place / "caches" / "swapped"), measure)
    return scores


def read_held_out(corpus: Path) -> list[Pair]:
    """Return the held-out pairs of a corpus."""
    return [pair for pair in read_pairs(corpus) if is_held_out(pair.group, HELD_OUT_FRACTION)]


def some_training_pairs(place: Path) -> list[str]:
    """Return the texts of the first pairs that are trained on."""
    pairs = read_pairs(place / "corpora" / "pairs.jsonl")
    return [pair.text for pair in islice(pairs, SOME_PAIRS) if not is_held_out(pair.group, HELD_OUT_FRACTION)]


def read_pairs(corpus: Path) -> Iterator[Pair]:
    """Yield the pairs of a corpus."""
    return (Pair(**json.loads(line)) for line in corpus.read_text(encoding="utf-8").splitlines())


def token_counter(model: Path) -> Callable[[list[str]], list[int]]:
    """Return a function that counts the tokens of texts, special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]]


def make_caches(plain: Path, work: Path, segments: bool) -> None:
    """Encode all corpora for the tokenizer of a model, pairs with their segments if so.

    A capture needs a teacher; the smallest model with that tokenizer is one, and no student uses its predictions.
    """
    unused = with_tokenizer_of(plain, work / "nobody")
    for name, (corpus, changes) in CACHES.items():
        places = {"corpus.paths": [work / "corpora" / f"{corpus}.jsonl"], "cache": work / "caches" / name}
        sides = {"encoding.segments": segments and name != "text"}
        capture_file(HERE / "capture.yaml", {**changes, **sides, "teachers.0.model": unused, **places})


def parameters(model: Path) -> int:
    """Return the number of a model's parameters."""
    return int(AutoModelForMaskedLM.from_pretrained(model).num_parameters())


if __name__ == "__main__":
    run()
