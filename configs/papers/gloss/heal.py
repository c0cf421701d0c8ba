"""A start at rest: what a model learns, or is given, before any student begins.

What a student loses as a language model is measured on both forms of text. A start that has never seen one of them
would still gain much there, and that gain would hide what the labels cost. So the start first learns the masked words
of both, from synsets that are not held out, with the public trainer and no label. ``--heal-steps`` says how long.

Labels are tokens among 30,000 others. A model that has never seen a label gives it next to no probability, and students
would spend hundreds of steps on making labels likelier, everywhere in a text. ``set_label_rows`` sets their rows of the
output matrix in closed form: at the first token, the start predicts either label with a probability of almost one half.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from configs.papers.cohesive.texts import Document, wordnet_documents, write
from configs.papers.gloss.corpora import LABELS, TokensOf
from configs.papers.recipes import Overrides, capture_file, make_once, train_file
from configs.papers.wordpiece import with_tokenizer_of

HERE = Path(__file__).parent
GLOSSES = 40_000
"""Synsets whose words, definition and examples are read, at most."""
MOST_TOKENS = 64
"""As in the capture file."""
AHEAD_NATS = 3.0
"""Log-probability of a label minus that of all other tokens together; both labels have 97.6 % then."""
TRAINING: Overrides = {
    "loss.label_weight": None,
    "loss.token_weight": None,
    "training.per_device_train_batch_size": 32,
    "training.learning_rate": 1e-3,
    "training.warmup_steps": 100,
    "training.adam_beta2": 0.98,
}


def healed(
    wordnet: Path,
    start: Path,
    tokens_of: TokensOf,
    pairs: Path,
    work: Path,
    steps: int,
    segments: bool,
    set_heal: Overrides,
) -> Path:
    """Train a model on the masked words of glosses and pairs; return the folder of the healed model.

    Args:
        wordnet: Folder of WordNet's data files.
        start: Folder of the masked language model, with the labels among its tokens.
        tokens_of: Returns the numbers of tokens of texts.
        pairs: Corpus of pairs, of which those of training synsets are read and the labels are not.
        work: Folder for the corpus, the cache and the model.
        steps: Number of steps of 32 texts, with a learning rate that falls to 0.
        segments: Whether the two sides of a pair are read as two segments.
        set_heal: Overrides of ``TRAINING`` and the student file.
    """
    make_once(work / "corpus", lambda folder: write_both(wordnet, tokens_of, pairs, folder))
    cache = capture_file(
        HERE / "capture.yaml",
        {
            "corpus.paths": [work / "corpus" / "both.jsonl"],
            "corpus.label_field": None,
            "encoding.masking.probability": 0.15,
            "encoding.segments": segments,
            "teachers.0.model": with_tokenizer_of(start, work / "nobody"),
            "cache": work / "cache",
        },
    )
    output = work / f"{steps}-steps"
    places = {"student.pretrained": start, "cache": cache, "training.output_dir": output}
    return train_file(HERE / "student.yaml", {**TRAINING, **set_heal, **places, "training.max_steps": steps})


def write_both(wordnet: Path, tokens_of: TokensOf, pairs: Path, folder: Path) -> None:
    """Write the corpus of both forms; stage one holds out the same groups of it as of the pairs.

    A text that fills more than a sequence is left out: of a pair, its second half would be read as a first side.
    """
    folder.mkdir(parents=True)
    documents = [*islice(wordnet_documents(wordnet), GLOSSES), *without_labels(pairs)]
    lengths = tokens_of([document.text for document in documents])
    fitting = (document for document, length in zip(documents, lengths, strict=True) if length <= MOST_TOKENS)
    write(folder / "both.jsonl", fitting)


def without_labels(pairs: Path) -> Iterator[Document]:
    """Yield the pairs of a corpus as plain texts."""
    for record in map(json.loads, pairs.read_text(encoding="utf-8").splitlines()):
        yield Document(record["id"], record["group"], record["text"])


@torch.inference_mode()
def set_label_rows(model: Path, texts: Sequence[str], segments: bool, folder: Path) -> None:
    """Write a model that predicts, at the first token of a pair, either label with the same probability.

    Added to each label's row of the output matrix is a multiple of the mean state that the matrix reads at the first
    token. At the mean state, a label is ``AHEAD_NATS`` ahead of all other tokens together.

    Args:
        model: Folder of the masked language model, with the labels among its tokens.
        texts: Pairs whose states are averaged.
        segments: Whether their two sides are read as two segments.
        folder: Where to write the model to.
    """
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForMaskedLM.from_pretrained(model).eval()
    output, labels, states_P = network.get_output_embeddings(), tokenizer.convert_tokens_to_ids(list(LABELS)), []

    def keep_first(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        states_P.append(inputs[0][:, 0])

    with output.register_forward_pre_hook(keep_first):
        for text in texts:
            sides = text.split(" [SEP] ") if segments else [text]
            network(**tokenizer(*sides, return_tensors="pt"))
    state_D = torch.cat(states_P).mean(dim=0)
    logits_V = output(state_D)
    others = torch.ones_like(logits_V, dtype=torch.bool).index_fill_(0, torch.tensor(labels), False)
    missing_L = logits_V[others].logsumexp(dim=0) + AHEAD_NATS - logits_V[labels]
    output.weight[labels] += missing_L[:, None] * state_D / state_D.square().sum()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
