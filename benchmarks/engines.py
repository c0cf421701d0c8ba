"""An engine beside transformers, as teachers of one cache: speed by CPU seconds, and how far their predictions differ.

One corpus is encoded, and the same model captured twice: read by transformers in this process, and by the engine in its
own. CPU seconds are those of this process and of the engine's, without loading, because a wall clock says little on a
machine that does other work. Then the cache is verified, the two teachers are compared at every position, and the
engine's capture is audited by transformers. ``docs/how-to/engines.md`` says how to make the engine's environment.

Example: python -m benchmarks.engines --engine-python /opt/vllm/bin/python --model MODEL --corpus corpus.jsonl
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils.logging import disable_progress_bar

from cache_tools.comparison.pair import compare
from cache_tools.maintenance.verify import verify
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from pipeline.audit.run import TeacherAudit, run_audit
from pipeline.capture.declare import declare
from pipeline.capture.shards import capture_shards
from pipeline.capture.target import resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.encoding.encode import encode
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.engines.engine_body import EngineBody
from pipeline.engines.opening import open_teacher
from pipeline.teachers.teacher import AnyTeacher, Teacher


@dataclass(frozen=True)
class Speed:
    """What capturing took.

    Attributes:
        software: What read the tokens.
        loading_cpu_seconds: CPU seconds until the teacher was declared.
        cpu_seconds: CPU seconds of capturing, until everything was written.
        tokens_per_cpu_second: Tokens by that.
    """

    software: str
    loading_cpu_seconds: float
    cpu_seconds: float
    tokens_per_cpu_second: float


def cpu_seconds(teacher: AnyTeacher | None) -> float:
    """Return the CPU seconds of this process, and of an engine's if there is one."""
    seconds = time.process_time()
    if isinstance(teacher, Teacher) and isinstance(teacher.body, EngineBody):
        fields = Path(f"/proc/{teacher.body.process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def capture(config: CaptureConfig, block: TeacherConfig) -> Speed:
    """Capture the whole encoding with one teacher."""
    encoding = Cache(config.cache).encoding()
    began, resolved = cpu_seconds(None), resolve_teacher(block)
    teacher = open_teacher(block, resolved.folder, "causal", config.encoding.max_length_tokens)
    cached = declare(encoding, teacher, block, resolved.target, config.encoding.chunk_positions)
    loaded = cpu_seconds(teacher)
    shards, keep = list(range(len(encoding.shards))), resolved.target.keep
    capture_shards(cached, shards, teacher, keep, block.batch_tokens)
    seconds = cpu_seconds(teacher) - loaded
    tokens = sum(entry.tokens for entry in encoding.shards)
    return Speed(teacher.software, loaded - began, seconds, tokens / seconds)


def audit(config: CaptureConfig, name: str) -> TeacherAudit:
    """Return the audit of a captured teacher by transformers."""
    block = next(teacher for teacher in config.teachers if teacher.name == name).model_copy(update={"engine": None})
    (report,) = run_audit(config.model_copy(update={"teachers": (block,)}), None, Reporter()).teachers
    return report


def configuration(folder: Path, corpus: Path, documents: int, block: dict[str, Any], engine: Any) -> CaptureConfig:
    """Return a capture file with the teachers ``transformers`` and ``engine``, over the first documents of a corpus."""
    with corpus.open() as lines:
        (folder / "corpus.jsonl").write_text("".join(islice(lines, documents)))
    return CaptureConfig.model_validate(
        {
            "cache": str(folder / "cache"),
            "corpus": {"paths": [str(folder / "corpus.jsonl")], "held_out_fraction": 0},
            "encoding": {"max_length_tokens": 512, "positions_per_shard": 8192},
            "teachers": [block | {"name": "transformers"}, block | {"name": "engine", "engine": engine}],
        }
    )


@click.command()
@click.option("--engine-python", required=True, help="Python of the environment with vLLM.")
@click.option("--model", required=True, type=click.Path(exists=True, file_okay=False), help="Model folder.")
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path), help="A .jsonl file.")
@click.option("--documents", default=40, show_default=True, help="Documents to read.")
@click.option("--batch-tokens", default=4096, show_default=True, help="Tokens of a batch.")
@click.option("--options", default="{}", help='Options of the engine as JSON, such as {"enforce_eager": true}.')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    engine_python: str, model: str, corpus: Path, documents: int, batch_tokens: int, options: str, as_json: bool
) -> None:
    """Capture a corpus twice and compare."""
    disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    engine = {"kind": "vllm", "python": engine_python, "options": json.loads(options)}
    block = {"model": model, "dtype": "bfloat16", "target": {"k": 64}, "batch_tokens": batch_tokens}
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), corpus, documents, block, engine)
        create_cache(config.cache)
        encode(config.cache, Recipe(config.corpus, config.encoding, load_tokenizer(Path(model))))
        speeds = [capture(config, teacher) for teacher in config.teachers]
        problems = verify(config.cache, deep=True)
        encoding = Cache(config.cache).encoding()
        difference = compare(
            encoding.teacher("transformers"), encoding.teacher("engine"), shards=None, seed=0, worst=0
        ).all
        report = audit(config, "engine")
        result = {
            "tokens": sum(entry.tokens for entry in encoding.shards),
            "speeds": [vars(speed) for speed in speeds],
            "ratio": speeds[1].tokens_per_cpu_second / speeds[0].tokens_per_cpu_second,
            "problems": len(problems),
            "positions": difference.positions,
            "kl_ab_nats": difference.kl_ab_nats,
            "kl_ba_nats": difference.kl_ba_nats,
            "same_top1": difference.same_top1,
            "audit_passed": report.passed,
            "audit": [vars(check) for check in report.checks],
        }
    if as_json:
        click.echo(json.dumps(result))
        return
    for speed in speeds:
        click.echo(
            f"{speed.software}: {speed.tokens_per_cpu_second:.0f} tokens per CPU second "
            f"({speed.cpu_seconds:.1f} s for {result['tokens']:,} tokens; loading {speed.loading_cpu_seconds:.1f} s)"
        )
    click.echo(f"engine / transformers: {result['ratio']:.2f}")
    click.echo(f"verify --deep: {len(problems)} problems")
    click.echo(
        f"KL {result['kl_ab_nats']:.2e} and {result['kl_ba_nats']:.2e} nats, same top-1 {result['same_top1']:.1%}"
    )
    click.echo(f"audit by transformers: {'passed' if report.passed else 'FAILED'}")
    for check in report.checks:
        click.echo(f"  {check.name}: {check.value:.2g} (limit {check.limit:.2g})")


if __name__ == "__main__":
    main()
