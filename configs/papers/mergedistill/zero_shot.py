"""Zero-shot classification: a classifier learns Debian's sections from English texts and is tested on other languages.

A model's features are the mean of its last hidden states over a text's first tokens; the model itself is not
trained further. Names and loan words are common to English and its translations. TF-IDF over words uses them without
any model, so a student has to beat TF-IDF and not chance.

The classifier learns from English texts that students may have trained on. It is tested on
held-out source packages only, which neither the classifier nor a student has read in any language.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools.store.reader import Cache
from configs.papers.mergedistill import stage_one

KINDS_OF_FILE = {"", "libs", "libdevel", "oldlibs", "doc", "debug", "metapackages", "tasks", "localization", "misc"}
"""Sections that describe the form of a package and not its subject."""
BATCH = 64

# N: texts, C: sections, D: features

Features = Callable[[Sequence[str]], NDArray[np.float32]]


class Labelled(NamedTuple):
    """Texts and their sections; (N,) each, sections as indices."""

    texts: list[str]
    sections: NDArray[np.int64]


class Task(NamedTuple):
    """The texts to train and test on.

    Attributes:
        sections: The C names.
        train: English texts.
        test: Held-out texts by language.
    """

    sections: list[str]
    train: Labelled
    test: dict[str, Labelled]


def read_task(texts: Path, caches: dict[str, Path], num_sections: int = 12, source: str = "en") -> Task:
    """Return the task of a folder of texts.

    Args:
        texts: Holds ``<language>.jsonl`` with ``group``, ``section`` and ``text``.
        caches: By language, the cache whose held-out groups are the test texts.
        num_sections: How many to tell apart: those that are commonest in the training texts.
        source: Language to learn from.
    """
    records = {language: list(stage_one.records(texts / f"{language}.jsonl")) for language in caches}
    held_out = {language: held_out_groups(cache) for language, cache in caches.items()}
    train = [record for record in records[source] if record["group"] not in held_out[source]]
    counts = Counter(record["section"] for record in train if record["section"] not in KINDS_OF_FILE)
    sections = [name for name, _ in counts.most_common(num_sections)]
    test = {
        language: [record for record in language_records if record["group"] in held_out[language]]
        for language, language_records in records.items()
    }
    return Task(
        sections, labelled(train, sections), {name: labelled(texts_of, sections) for name, texts_of in test.items()}
    )


def held_out_groups(cache: Path) -> set[str]:
    """Return the groups that a cache holds out."""
    encoding = Cache(cache).encoding()
    return {sequence.group_id for shard in encoding.split_shards("held_out") for sequence in encoding.sequences(shard)}


def labelled(records: Sequence[dict[str, str]], sections: Sequence[str]) -> Labelled:
    """Return the texts of some sections."""
    of_sections = [record for record in records if record["section"] in sections]
    return Labelled(
        [record["text"] for record in of_sections],
        np.array([sections.index(record["section"]) for record in of_sections]),
    )


def right_answers(task: Task, features: Features) -> dict[str, list[int]]:
    """Return for each language which held-out texts are classified rightly, 1 or 0."""
    weight_CD, bias_C = linear_classifier(features(task.train.texts), task.train.sections, len(task.sections))
    right = {}
    for language, (texts, sections) in task.test.items():
        guessed = (features(texts) @ weight_CD.T + bias_C).argmax(axis=1)
        right[language] = (guessed == sections).astype(int).tolist()
    return right


def commonest_section(task: Task) -> dict[str, float]:
    """Return the accuracy by language of always guessing the section that is commonest in training."""
    guess = np.bincount(task.train.sections).argmax()
    return {language: float((texts.sections == guess).mean()) for language, texts in task.test.items()}


def linear_classifier(
    features_ND: NDArray[np.float32], sections_N: NDArray[np.int64], num_sections: int, decay: float = 1e-3
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit multinomial logistic regression: minimise mean cross-entropy + decay / 2 * |weight|^2.

    Returns:
        Weight (C, D) and bias (C,), for features as they came; inside, their mean is 0 and their mean deviation 1.
    """
    mean_D, scale = features_ND.mean(axis=0), float(features_ND.std(axis=0).mean()) + 1e-9
    inputs_ND = torch.from_numpy((features_ND - mean_D) / scale)
    weight_CD = torch.zeros(num_sections, inputs_ND.shape[1], requires_grad=True)
    bias_C = torch.zeros(num_sections, requires_grad=True)
    gold_N = torch.from_numpy(sections_N)
    optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs_ND @ weight_CD.T + bias_C, gold_N)
        value = value + decay / 2 * weight_CD.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found_CD = (weight_CD.detach() / scale).numpy()
    return found_CD, bias_C.detach().numpy() - found_CD @ mean_D


def model_features(folder: Path) -> Features:
    """Return the features of a masked language model: (N, D) means of last hidden states over the tokens of a text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    longest = model.config.max_position_embeddings

    def features(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                truncation=True,
                max_length=longest,
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            with torch.no_grad():
                hidden_NLD = model.base_model(**batch).last_hidden_state
            mask_NL1 = batch["attention_mask"][:, :, None]
            rows.append(((hidden_NLD * mask_NL1).sum(1) / mask_NL1.sum(1)).float().numpy())
        return np.concatenate(rows)

    return features


def tfidf_features(train: Sequence[str], least_texts: int = 2) -> Features:
    """Return TF-IDF over the words of some texts: (1 + ln count) * ln(N / texts with the word), rows of length 1."""
    counted = Counter(word for text in train for word in set(words(text)))
    columns = {word: i for i, word in enumerate(sorted(word for word, n in counted.items() if n >= least_texts))}
    idf_D = np.log(len(train) / np.array([counted[word] for word in columns], np.float32))

    def features(texts: Sequence[str]) -> NDArray[np.float32]:
        found_ND = np.zeros((len(texts), len(columns)), np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(words(text)).items():
                if word in columns:
                    found_ND[row, columns[word]] = 1 + np.log(count)
        found_ND *= idf_D
        found_ND /= np.linalg.norm(found_ND, axis=1, keepdims=True) + 1e-9
        return found_ND

    return features


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())
