"""Scores of models against their cached original, beside those of a naive script with whole rows of logits.

``python -m benchmarks.scoring CACHE ORIGINAL MODEL…`` evaluates each model as ``logitcask evaluate`` does, then reads
every sequence by itself with the original and each model, multiplies their last states with their output matrices in
float64, and takes each figure from the two whole rows. It prints both, their difference, CPU seconds, and the bytes per
position that a record of the original takes: in the cache, and as rows of logits.

The naive script runs the original anew, in the type that the cache records. In bfloat16 other batches round otherwise,
so the two agree to the sum of the cache's floor and of that noise; in float32 they agree to rounding.
``python -m benchmarks.scoring --quantise BITS FOLDER TARGET`` rounds a model to try it on: each linear weight outside
the output matrix to the nearest of 2^BITS - 1 levels, in groups of 32.
"""

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from cache_tools.format.manifest import Split
from cache_tools.json_output import json_text
from cache_tools.models.files import is_gguf
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.loading import auto_class, load_checkpoint
from trainer.evaluation.evaluate import evaluate_folder
from trainer.evaluation.results import EvaluateResult

GROUP = 32

# P: positions of a sequence, D: width, V: vocabulary


@dataclass(frozen=True)
class Scores:
    """The figures of one model by one way.

    Attributes:
        mean_nats: Mean KL from the original.
        median_nats: Median.
        p90_nats: 90th percentile.
        p95_nats: 95th percentile.
        p99_nats: 99th percentile.
        p99_9_nats: 99.9th percentile.
        max_nats: Maximum.
        top1_agreement: Share of positions with the same most likely token.
        perplexity: Perplexity of the model on the gold tokens.
        original_perplexity: Perplexity of the original on them.
    """

    mean_nats: float
    median_nats: float
    p90_nats: float
    p95_nats: float
    p99_nats: float
    p99_9_nats: float
    max_nats: float
    top1_agreement: float
    perplexity: float
    original_perplexity: float


@dataclass(frozen=True)
class Comparison:
    """One model scored in both ways.

    Attributes:
        evaluated: What the evaluation from the cache returned.
        naive: Figures from whole rows in float64.
        cached_cpu_seconds: Time of the evaluation from the cache.
        naive_cpu_seconds: Time of the naive script, with this model's share of the original's.
    """

    evaluated: EvaluateResult
    naive: Scores
    cached_cpu_seconds: float
    naive_cpu_seconds: float


def load(source: Path, dtype: str) -> Any:
    """Load a model folder or GGUF file."""
    if is_gguf(source):
        return load_checkpoint(auto_class("causal"), source, "the model", dtype=dtype).eval()
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()


@torch.inference_mode()
def whole_log_probs(model: Any, ids: Tensor, positions: NDArray[np.int64]) -> Tensor:
    """Return the log-probabilities (P, V) float64 of a model whose head is a plain matrix."""
    states_PD = model.model(ids).last_hidden_state[0, positions].double()
    log_probs_PV: Tensor = (states_PD @ model.lm_head.weight.double().T).log_softmax(1)
    return log_probs_PV


def naive_scores(original: Path, models: list[Path], teacher: CachedTeacher, split: Split) -> list[Scores]:
    """Score models from whole rows of logits, one sequence at a time."""
    first = load(original, str(teacher.manifest.identity["dtype"]))
    others = [load(model, "float32") for model in models]
    columns: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for shard in teacher.encoding.split_shards(split):
        for sequence in teacher.encoding.sequences(shard):
            ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
            gold = torch.from_numpy(sequence.gold_ids("causal").astype(np.int64))[:, None]
            log_p = whole_log_probs(first, ids, sequence.positions())
            for column, other in zip(columns, others, strict=True):
                log_q = whole_log_probs(other, ids, sequence.positions())
                kl = (log_p.exp() * (log_p - log_q)).sum(1)
                same = (log_p.argmax(1) == log_q.argmax(1)).double()
                losses = [-log.gather(1, gold)[:, 0] for log in (log_q, log_p)]
                column.append(torch.stack([kl, same, *losses]).numpy())
    return [_scores(*np.concatenate(column, axis=1)) for column in columns]


def _scores(
    kl: NDArray[np.float64], same: NDArray[np.float64], loss: NDArray[np.float64], own: NDArray[np.float64]
) -> Scores:
    median, p90, p95, p99, p99_9, largest = np.quantile(kl, [0.5, 0.9, 0.95, 0.99, 0.999, 1.0]).tolist()
    perplexity, original = (float(np.exp(values.mean())) for values in (loss, own))
    mean, agreement = float(kl.mean()), float(same.mean())
    return Scores(mean, median, p90, p95, p99, p99_9, largest, agreement, perplexity, original)


def cached_scores(result: EvaluateResult) -> Scores:
    """Return the figures of an evaluation."""
    spread, own_perplexity = result.kl, result.teacher_perplexity
    assert spread is not None
    assert own_perplexity is not None
    percentiles = (spread.median_nats, spread.p90_nats, spread.p95_nats, spread.p99_nats, spread.p99_9_nats)
    return Scores(
        spread.mean_nats,
        *percentiles,
        spread.max_nats,
        result.top1_agreement,
        result.perplexity,
        own_perplexity,
    )


def compare(teacher: CachedTeacher, split: Split, original: Path, models: list[Path]) -> list[Comparison]:
    """Score models in both ways."""
    results, seconds = [], []
    for model in models:
        began = time.process_time()
        results.append(evaluate_folder(model, teacher, split))
        seconds.append(time.process_time() - began)
    began = time.process_time()
    naive = naive_scores(original, models, teacher, split)
    share = (time.process_time() - began) / len(models)
    return [
        Comparison(result, scores, spent, share) for result, scores, spent in zip(results, naive, seconds, strict=True)
    ]


@torch.no_grad()
def quantise(folder: Path, target: Path, bits: int) -> None:
    """Round the linear weights of a model to the nearest level in groups of GROUP, and write it as a folder."""
    model, levels = load(folder, "float32"), 2 ** (bits - 1) - 1
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            groups = module.weight.reshape(len(module.weight), -1, GROUP)
            steps = groups.abs().amax(dim=2, keepdim=True) / levels
            module.weight.copy_(((groups / steps).round() * steps).flatten(1))
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, target / name)


def print_comparison(comparison: Comparison) -> None:
    """Print one model's figures as a table, and its costs."""
    result, cached = comparison.evaluated, cached_scores(comparison.evaluated)
    print(f"\n{result.model.name}\n{'figure':<22}{'from the cache':>16}{'naive':>16}{'difference':>14}")
    for name, naive in vars(comparison.naive).items():
        value = getattr(cached, name)
        print(f"{name:<22}{value:>16.6g}{naive:>16.6g}{value - naive:>14.1e}")
    seconds = {"cached": comparison.cached_cpu_seconds, "naive": comparison.naive_cpu_seconds}
    print(json_text({"kl": result.kl, "floor": result.floor, "stored": result.stored, "cpu_seconds": seconds}))


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, help="CACHE ORIGINAL MODEL…; or FOLDER TARGET with --quantise")
    parser.add_argument("--quantise", type=int, metavar="BITS", help="round a model instead")
    parser.add_argument("--teacher", help="name of the teacher, if the cache has several")
    parser.add_argument("--split", default="held_out", choices=["held_out", "train"])
    options = parser.parse_args()
    if options.quantise:
        quantise(options.places[0], options.places[1], options.quantise)
        return
    cache, original, *models = options.places
    teacher = Cache(str(cache)).encoding().teacher(options.teacher)
    for comparison in compare(teacher, options.split, original, models):
        print_comparison(comparison)


if __name__ == "__main__":
    main()
