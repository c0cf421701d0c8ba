"""Zero-shot classification: a classifier learns Debian's sections from English texts and is tested on other languages.

A model's features are the mean of its last hidden states over a text's first tokens; the model itself is not
trained further. Names and loan words are common to English and its translations. TF-IDF over words uses them without
any model, so a student has to beat TF-IDF and not chance.

All read the same text: what the first tokens of the union's tokenizer cover, as many as fit into a model. TF-IDF of the
whole text, which no model sees, is a line of its own.

A mean of hidden states lies mainly where its language is, and a classifier that has seen English alone takes that for a
subject. So every classifier is tested twice: on features as they are, and *centred*, each language's moved by the
difference of the languages' means over unlabelled training texts. Centring needs no label and no translation; it needs
to know the language of a text.

The classifier learns from English texts that students may have trained on. It is tested on
held-out source packages only, which neither the classifier nor a student has read in any language.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from configs.papers.bag_of_words import Features, tfidf
from configs.papers.linear import fitted
from configs.papers.mergedistill import stage_one
from pipeline.encoding.held_out import is_held_out

KINDS_OF_FILE = {"", "libs", "libdevel", "oldlibs", "doc", "debug", "metapackages", "tasks", "localization", "misc"}
"""Sections that describe the form of a package and not its subject."""
BATCH = 64
UNLABELLED = 2000
"""Texts of a language whose mean is taken, at most."""
SPECIAL_TOKENS = 2
"""Tokens before and after a text."""

# N: texts, C: sections, D: features


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
        unlabelled: By language, texts of the training split, of any section.
        source: Language that is learned from.
    """

    sections: list[str]
    train: Labelled
    test: dict[str, Labelled]
    unlabelled: dict[str, list[str]]
    source: str


def read_task(
    texts: Path, languages: Sequence[str], held_out_fraction: float, num_sections: int = 12, source: str = "en"
) -> Task:
    """Return the task of a folder of texts.

    Args:
        texts: Holds ``<language>.jsonl`` with ``group``, ``section`` and ``text``.
        languages: Languages to test, the source among them.
        held_out_fraction: The fraction of the capture files: the groups that it holds out are the test texts.
        num_sections: How many to tell apart: those that are commonest in the training texts.
        source: Language to learn from.
    """
    split = {language: sides(texts / f"{language}.jsonl", held_out_fraction) for language in languages}
    train = split[source][0]
    counts = Counter(record["section"] for record in train if record["section"] not in KINDS_OF_FILE)
    sections = [name for name, _ in counts.most_common(num_sections)]
    return Task(
        sections,
        labelled(train, sections),
        {language: labelled(test, sections) for language, (_, test) in split.items()},
        {language: [r["text"] for r in of_train[:UNLABELLED]] for language, (of_train, _) in split.items()},
        source,
    )


def cut(task: Task, tokenizer: Path, max_tokens: int) -> Task:
    """Return a task whose texts end where their first tokens end.

    Args:
        task: The task with whole texts.
        tokenizer: Folder of the tokenizer that decides.
        max_tokens: Tokens that a model reads, the special ones among them.
    """
    reader = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    reader.enable_truncation(max_tokens - SPECIAL_TOKENS)

    def shortened(texts: Sequence[str]) -> list[str]:
        read = reader.encode_batch(list(texts), add_special_tokens=False)
        return [
            text[: max((end for _, end in tokens.offsets), default=0)] for text, tokens in zip(texts, read, strict=True)
        ]

    return task._replace(
        train=Labelled(shortened(task.train.texts), task.train.sections),
        test={name: Labelled(shortened(texts), sections) for name, (texts, sections) in task.test.items()},
        unlabelled={name: shortened(texts) for name, texts in task.unlabelled.items()},
    )


def sides(corpus: Path, held_out_fraction: float) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the records of a corpus that are learned from, and those that are held out."""
    records = list(stage_one.records(corpus))
    held_out = [is_held_out(record["group"], held_out_fraction) for record in records]
    return [r for r, out in zip(records, held_out, strict=True) if not out], [
        r for r, out in zip(records, held_out, strict=True) if out
    ]


def labelled(records: Sequence[dict[str, str]], sections: Sequence[str]) -> Labelled:
    """Return the texts of some sections."""
    of_sections = [record for record in records if record["section"] in sections]
    return Labelled(
        [record["text"] for record in of_sections],
        np.array([sections.index(record["section"]) for record in of_sections]),
    )


def right_answers(task: Task, features: Features) -> dict[str, dict[str, list[int]]]:
    """Return which held-out texts are classified rightly, 1 or 0, by language; ``plain`` and ``centred``.

    A classifier of centred features has the same weights, since its bias takes up the mean of the training texts; so
    centring is a change of logits: those of a language less the mean of its unlabelled texts, plus the source's mean.
    """
    classifier = fitted(features(task.train.texts), task.train.sections.tolist(), len(task.sections))
    logits = {name: classifier.logits(features(texts)) for name, (texts, _) in task.test.items()}
    mean_C = {name: classifier.logits(features(texts)).mean(dim=0) for name, texts in task.unlabelled.items()}
    centred = {name: logits_NC - mean_C[name] + mean_C[task.source] for name, logits_NC in logits.items()}
    return {
        how: {name: _right(of_language[name], task.test[name].sections) for name in of_language}
        for how, of_language in (("plain", logits), ("centred", centred))
    }


def _right(logits_NC: Tensor, sections_N: NDArray[np.int64]) -> list[int]:
    right: list[int] = (logits_NC.argmax(dim=1).numpy() == sections_N).astype(int).tolist()
    return right


def commonest_section(task: Task) -> dict[str, float]:
    """Return the accuracy by language of always guessing the section that is commonest in training."""
    guess = np.bincount(task.train.sections).argmax()
    return {language: float((texts.sections == guess).mean()) for language, texts in task.test.items()}


def of_words(task: Task) -> dict[str, dict[str, list[int]]]:
    """Return the right answers of TF-IDF and logistic regression."""
    return right_answers(task, tfidf(task.train.texts))


def model_features(folder: Path) -> Features:
    """Return the features of a masked language model: (N, D) means of last hidden states over the tokens of a text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    longest = model.config.max_position_embeddings

    def features(texts: Sequence[str]) -> Tensor:
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
            rows.append(((hidden_NLD * mask_NL1).sum(1) / mask_NL1.sum(1)).float())
        return torch.cat(rows)

    return features
