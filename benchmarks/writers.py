"""A server beside transformers, as writers of one corpus: their CPU seconds, and the distribution that they draw from.

The same model completes the same prompts twice, in this process and at a server that has loaded it. CPU seconds are
those of this process and, separately, of the server's processes on this machine, from the first completion to the last
file; loading and what is tried before are left out. Then transformers scores both texts. Of tokens that were
drawn at temperature 1 the mean log-probability is minus the mean entropy, in expectation: the difference is stated with
its 95 % interval over completions, and so is the difference between the two writers' mean log-probabilities.
``docs/how-to/generate.md`` says how to start a server.

Example: python -m benchmarks.writers --url http://127.0.0.1:8000/v1 --served-model NAME --model MODEL --prompts PROMPTS
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import t_quantile
from benchmarks.servers import tree_cpu_seconds
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.generation import GenerateConfig
from pipeline.generation.run import GenerateResult, run_generation
from pipeline.run import Worker, run_capture
from trainer.config.student_file import LossConfig
from trainer.verdicts.policy import judge_writer, origin_of

HERE, SERVER = "transformers", "server"


@dataclass(frozen=True)
class Written:
    """What writing with one of the two took, and what transformers makes of the text.

    Attributes:
        writer: ``transformers`` or ``server``.
        completions: Number of completions.
        completion_tokens: Tokens that were drawn.
        tokens_per_cpu_second: Tokens by the CPU seconds of both sides.
        own_cpu_seconds: CPU seconds of this process.
        server_cpu_seconds: CPU seconds of the server's processes.
        seconds: Seconds by the clock.
        log_prob_nats: Mean log-probability of the drawn tokens, by transformers.
        entropy_nats: Mean entropy of the distributions that they were drawn from, by transformers.
        excess_nats: The sum of the two, which is 0 in expectation at temperature 1.
        excess_interval_nats: Half the width of its 95 % interval, over completions.
        verdict: What ``train --explain`` says of the writer.
    """

    writer: str
    completions: int
    completion_tokens: int
    tokens_per_cpu_second: float
    own_cpu_seconds: float
    server_cpu_seconds: float
    seconds: float
    log_prob_nats: float
    entropy_nats: float
    excess_nats: float
    excess_interval_nats: float
    verdict: str


class CpuReporter(Reporter):
    """Notes the CPU seconds at which the stage of writing begins.

    Args:
        server_pid: First process of the server; None if it does not run on this machine.
    """

    def __init__(self, server_pid: int | None) -> None:
        self._server_pid = server_pid
        self._began = self._now()

    def stage(self, name: str, *_: Any, **__: Any) -> None:
        """Note the seconds if writing begins."""
        if name == "generate":
            self._began = self._now()

    def spent(self) -> tuple[float, float, float]:
        """Return CPU seconds here and at the server, and seconds by the clock, since then."""
        own, server, clock = (end - start for end, start in zip(self._now(), self._began, strict=True))
        return own, server, clock

    def _now(self) -> tuple[float, float, float]:
        return time.process_time(), tree_cpu_seconds(self._server_pid), time.monotonic()


@dataclass(frozen=True)
class Scores:
    """What transformers makes of the completions, one entry for each.

    Attributes:
        tokens: Tokens that were drawn.
        log_probs: Sum of their log-probabilities.
        entropies: Sum of the entropies of the distributions that they were drawn from.
    """

    tokens: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    entropies: NDArray[np.float64]

    def mean(self, sums: NDArray[np.float64]) -> tuple[float, float]:
        """Return a mean over all tokens and half of its 95 % interval: a ratio of sums over completions."""
        mean = float(sums.sum() / self.tokens.sum())
        residuals, count = sums - mean * self.tokens, len(sums)
        error = float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / self.tokens.sum())
        return mean, t_quantile(count - 1) * error


def write(config: GenerateConfig, server_pid: int | None) -> tuple[GenerateResult, tuple[float, float, float]]:
    """Write completions; return the result, and the seconds that it took."""
    reporter = CpuReporter(server_pid)
    result = run_generation(config, reporter)
    return result, reporter.spent()


def score(folder: Path, completions: Path, model: str) -> Cache:
    """Score completions with transformers."""
    lines = [json.loads(line) for file in completions.glob("*.jsonl") for line in file.read_text().splitlines()]
    longest_tokens = max(len(line["ids"]) for line in lines)
    cache = folder / f"cache-{completions.name}"
    teacher = {"name": HERE, "model": model, "dtype": "bfloat16", "target": {"k": 1}, "batch_tokens": 2048}
    values = {
        "cache": str(cache),
        "corpus": {"paths": [str(completions)], "ids_field": "ids", "mask_field": "mask", "held_out_fraction": 0},
        "encoding": {"max_length_tokens": longest_tokens},
        "teachers": [teacher],
    }
    run_capture(CaptureConfig.model_validate(values), Worker(), Reporter())
    return Cache(cache)


def scores(cache: Cache) -> Scores:
    """Return the sums over each completion."""
    encoding = cache.encoding()
    teacher, rows = encoding.teacher(), []
    for shard in range(len(encoding.shards)):
        for sequence in encoding.sequences(shard):
            values = [teacher.scalar(name, *sequence.rows).astype(np.float64) for name in ("gold_logprob", "entropy")]
            rows.append((len(values[0]), *(value.sum() for value in values)))
    tokens, log_probs, entropies = np.array(rows, np.float64).T
    return Scores(tokens, log_probs, entropies)


def verdict(cache: Cache) -> str:
    """Return what ``train --explain`` says of the writer."""
    teacher = cache.encoding().teacher()
    (policy,) = origin_of(teacher).policies
    found = judge_writer(policy, teacher, LossConfig())
    return f"{found.level}: {found.reason}"


def measured(writer: str, result: GenerateResult, spent: tuple[float, float, float], cache: Cache) -> Written:
    """Return the figures of one writer."""
    own, server, clock = spent
    scored = scores(cache)
    excess, interval = scored.mean(scored.log_probs + scored.entropies)
    return Written(
        writer,
        result.completions,
        result.completion_tokens,
        result.completion_tokens / (own + server),
        own,
        server,
        clock,
        scored.mean(scored.log_probs)[0],
        scored.mean(scored.entropies)[0],
        excess,
        interval,
        verdict(cache),
    )


@click.command()
@click.option("--url", required=True, help="Address of the server.")
@click.option("--request", "request_kind", default="completions", show_default=True, help="How it is asked.")
@click.option("--served-model", required=True, help="Name of the model at the server.")
@click.option("--server-pid", type=int, help="First process of the server, if it runs on this machine.")
@click.option("--model", required=True, type=click.Path(exists=True, file_okay=False), help="Its folder.")
@click.option("--prompts", required=True, type=click.Path(exists=True, path_type=Path), help="Chats as JSON lines.")
@click.option("--samples", default=1, show_default=True, help="Completions of each prompt.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Length at which completions are cut.")
@click.option("--in-flight", default=16, show_default=True, help="Requests at a time, and prompts of a batch.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the completions and caches there.")
def main(
    url: str,
    request_kind: str,
    served_model: str,
    server_pid: int | None,
    model: str,
    prompts: Path,
    samples: int,
    max_new_tokens: int,
    in_flight: int,
    output: Path | None,
) -> None:
    """Write the same completions twice and compare; prints one JSON object a line."""
    disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    engine: dict[str, Any] = {"kind": "server", "url": url, "request": request_kind, "served_model": served_model}
    engine |= {"requests_in_flight": in_flight, "same_weights": True}
    policy: dict[str, Any] = {"model": model, "dtype": "bfloat16"}
    values: dict[str, Any] = {
        "prompts": {"paths": [str(prompts)], "messages_field": "messages"},
        "sampling": {"max_new_tokens": max_new_tokens, "samples_per_prompt": samples},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder, both = output or Path(temporary), []
        for writer in (HERE, SERVER):
            own: dict[str, Any] = {"policy": policy, "batch_prompts": in_flight}
            if writer == SERVER:
                own = {"policy": policy | {"engine": engine}}
            config = GenerateConfig.model_validate(values | own | {"output": str(folder / writer)})
            result, spent = write(config, server_pid if writer == SERVER else None)
            cache = score(folder, folder / writer, model)
            both.append(scores(cache))
            click.echo(json.dumps(asdict(measured(writer, result, spent, cache))))
        means = [scored.mean(scored.log_probs) for scored in both]
        interval = sum(half**2 for _, half in means) ** 0.5
        click.echo(json.dumps({"log_prob_difference_nats": means[1][0] - means[0][0], "interval_nats": interval}))


if __name__ == "__main__":
    main()
