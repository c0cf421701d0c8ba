"""By how much one student is better than another, with an interval: ``python -m pipeline.demo.paired CACHE A B``.

Both read the held-out sequences of a cache. The difference of their cross-entropies is taken document by document, and
documents are drawn again with replacement (the paired bootstrap), because positions of one document are not
independent. The interval covers the choice of held-out documents; it does not cover first weights and order, which
only several seeds show.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM

from cache_tools.json_output import json_text
from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache, Encoding


@dataclass(frozen=True)
class Difference:
    """By how much one student is better.

    Attributes:
        mean: Nats per position.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


DRAWS = 10_000
"""Number of bootstrap resamplings; more do not change the second digit of an interval."""


def paired_difference(cache: Path, worse: Path, better: Path, reporter: Reporter | None = None) -> Difference:
    """Return by how much the second student is better.

    Args:
        cache: Its held-out sequences are read, of its only encoding.
        worse: Folder of the first student.
        better: Folder of the second student.
        reporter: Shown what happens.
    """
    reporter, encoding = reporter or Reporter(), Cache(str(cache)).encoding()
    totals = [document_nats(encoding, folder, reporter) for folder in (worse, better)]
    documents = sorted(totals[0])
    nats_SD = np.array([[total[document][0] for document in documents] for total in totals])  # student, document
    positions_D = np.array([totals[0][document][1] for document in documents])
    return bootstrap(nats_SD[0] - nats_SD[1], positions_D)


def bootstrap(sums_D: NDArray[Any], positions_D: NDArray[Any], draws: int = DRAWS) -> Difference:
    """Return the mean of sums over positions, and the ends of its 95 % interval over drawn documents.

    Args:
        sums_D: (D,) a sum over the positions of each document.
        positions_D: (D,) the number of its positions.
        draws: How often D documents are drawn with replacement, from a fixed seed.
    """
    drawn = np.random.default_rng(0).integers(len(sums_D), size=(draws, len(sums_D)))
    means = sums_D[drawn].sum(axis=1) / positions_D[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(sums_D.sum() / positions_D.sum()), float(low), float(high))


@torch.inference_mode()
def document_nats(encoding: Encoding, folder: Path, reporter: Reporter) -> dict[str, tuple[float, int]]:
    """Return the summed cross-entropy of a model and the number of positions, by held-out group of documents."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = [s for shard in encoding.split_shards("held_out") for s in encoding.sequences(shard)]
    reporter.stage(f"comparing {folder.parent.name}", sum(len(s.input_ids) for s in sequences), "tokens")
    totals: dict[str, tuple[float, int]] = {}
    for sequence in sequences:
        ids_L = torch.from_numpy(sequence.input_ids.astype(np.int64))
        gold_P = torch.from_numpy(sequence.gold_ids("causal").astype(np.int64))
        logits_PV = model(ids_L[None]).logits[0, sequence.positions()]
        nats = functional.cross_entropy(logits_PV, gold_P, reduction="sum").item()
        sum_before, positions_before = totals.get(sequence.group_id, (0.0, 0))
        totals[sequence.group_id] = (sum_before + nats, positions_before + len(gold_P))
        reporter.advance(len(ids_L))
    return totals


if __name__ == "__main__":
    with open_reporter() as shown:
        print(json_text(paired_difference(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), shown)))
