"""The student before its training: the teacher's first layers with a smaller vocabulary."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from cache_tools.vocabularies.folder import read_vocabulary, save_tokenizer
from cache_tools.vocabularies.union import NO_ID
from configs.papers.recipes import make_once


def beginning(teacher: Path, layers: int, vocabulary: Path, output: Path) -> Path:
    """Write a teacher's first layers with the rows of the tokens that a vocabulary keeps, and its tokenizer and map."""
    output.parent.mkdir(exist_ok=True)

    def make(folder: Path) -> None:
        model = AutoModelForMaskedLM.from_pretrained(teacher, num_hidden_layers=layers)
        kept = torch.from_numpy(teacher_rows(vocabulary))
        with torch.no_grad():  # the kept rows come first, and the others are cut off
            for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().bias):
                rows[: len(kept)] = rows[kept].clone()
        model.resize_token_embeddings(len(kept))
        model.save_pretrained(folder)
        save_tokenizer(vocabulary, folder)

    return make_once(output, make)


def teacher_rows(vocabulary: Path) -> np.ndarray:
    """Return the teacher's id of each id of a smaller vocabulary: (n,) int64."""
    (predicted,) = read_vocabulary(vocabulary).maps.values()
    kept_ids = np.flatnonzero(predicted != NO_ID)
    return kept_ids[np.argsort(predicted[kept_ids])]
