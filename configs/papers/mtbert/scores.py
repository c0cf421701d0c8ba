"""What is measured of teachers and students on the held-out texts, and of the teachers' weights and agreement.

Every measure is kept in the folder of its model or its set of teachers (``configs/papers/measures.py``). ``read`` takes
all students that have finished, of any arm and seed, so an arm that this command does not train keeps its row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.store.reader import Cache
from configs.papers.bag_of_words import answers_on
from configs.papers.measures import once, predictions_of, sequences
from configs.papers.mtbert.spaces import Agreement, agreement
from configs.papers.recipes import label_log_probs, labelled_sequences, token_ids


class Answers(NamedTuple):
    """What a model answered to the N held-out texts, in the cache's order, among the labels alone."""

    right: NDArray[np.float64]
    """1 where the likeliest label is right, else 0."""
    nats: NDArray[np.float64]
    """Cross-entropy."""


class Results(NamedTuple):
    """Everything that was measured; by name, then by the number of a seed or of a set of teachers."""

    students: dict[str, dict[int, Answers]]
    teachers: dict[str, dict[int, Answers]]
    ensembles: dict[str, dict[int, Answers]]
    """By how their teachers were tuned: the mean of the teachers' probabilities of the labels."""
    weights: dict[str, dict[int, float]]
    """By teacher, see ``mean_weight``."""
    agreements: dict[str, dict[int, Agreement]]
    bag_of_words: dict[int, Answers]
    """By seed, always the same: TF-IDF and logistic regression."""


def answers(models: Sequence[Path], cache: Path, labels: Sequence[str]) -> Answers:
    """Return a model's answers, or those of the mean of several models' probabilities; kept in the first one's folder.

    Args:
        models: Folders of models with the cache's tokenizer.
        cache: Its only encoding has labels.
        labels: Tokens.
    """

    def measure() -> dict[str, Any]:
        columns, held_out = token_ids(models[0], labels), labelled_sequences(cache)
        gold_N = [columns.index(int(sequence.gold_ids("masked")[0])) for sequence in held_out]
        p_NC = np.mean([np.exp(label_log_probs(model, cache, labels).astype(np.float64)) for model in models], axis=0)
        right = (p_NC.argmax(axis=1) == gold_N).astype(int).tolist()
        return {"right": right, "nats": (-np.log(p_NC[np.arange(len(gold_N)), gold_N])).tolist()}

    on = [sequences(cache), list(labels), [model.name for model in models[1:]]]
    return _answers(once(models[0], "classes", on, measure))


def bag_of_words(corpus: Path, cache: Path, folder: Path) -> Answers:
    """Return the answers of TF-IDF and logistic regression to a cache's held-out texts; kept below a folder."""

    def measure() -> dict[str, Any]:
        of_words = answers_on(corpus, cache)
        return {"right": of_words.right_N.astype(int).tolist(), "nats": of_words.nats_N.tolist()}

    return _answers(once(folder, "bag-of-words", sequences(cache), measure))


def mean_weight(teacher: str, cache: Path) -> float:
    """Return the mean of 1 / (1 + cross-entropy) of a teacher over the labels that students are trained on."""

    def measure() -> float:
        labels = np.array([sequence.first_position for sequence in labelled_sequences(cache, "train")])
        log_gold_N = Cache(cache).encoding().teacher(teacher).scalar("gold_logprob", 0, int(labels.max()) + 1)[labels]
        return float((1 / (1 - log_gold_N)).mean())

    return float(once(cache.parent, f"weight-{teacher}", predictions_of(cache, teacher), measure))


def agreement_of(teachers: Sequence[Path], cache: Path, labels: Sequence[str]) -> Agreement:
    """Return how much teachers agree, see ``spaces.py``."""

    def measure() -> dict[str, float]:
        return agreement(teachers, cache, labels)._asdict()

    on = [sequences(cache), [teacher.name for teacher in teachers]]
    return Agreement(**once(cache.parent, "agreement", on, measure))


def finished(students: Path, arms: Iterable[str], folder_of: Callable[[Path, str], Path]) -> dict[str, dict[int, Path]]:
    """Return the models of all finished students, by arm and seed.

    Args:
        students: Folder with a folder for each seed.
        arms: Names of arms.
        folder_of: Returns the run folder of an arm, from the folder of its seed.
    """
    seeds = {int(folder.name): folder for folder in students.glob("*") if folder.name.isdigit()}
    models = {arm: {seed: folder_of(seeds[seed], arm) / "final" for seed in sorted(seeds)} for arm in arms}
    return {arm: {seed: model for seed, model in by_seed.items() if model.exists()} for arm, by_seed in models.items()}


def _answers(stored: Mapping[str, Any]) -> Answers:
    return Answers(np.array(stored["right"], np.float64), np.array(stored["nats"], np.float64))
