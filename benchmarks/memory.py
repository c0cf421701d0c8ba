"""Compare the peak memory of a capture with the plan's estimate: ``python -m benchmarks.memory``.

Three teachers: the demo's, a random one with a vocabulary of 151,936, and one with states of 1,024 values, captured
with and without them, in two sizes of shards. Each captures part of the demo's corpus in a process of its own.
Printed, in megabytes: weights, body, head, kept predictions; on the device the predicted peak and the measured one
(tensors alive at once); on the host the predicted peak and the measured one (Linux: resident memory, above what it
was before the teacher was loaded, so what the allocator holds back and what torch sets up in its first pass is in
it). On a CPU both are the same memory.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.peak import resident_bytes
from cache_tools.json_output import json_object
from pipeline.demo.corpus import topic_documents
from pipeline.demo.run import FILES

DOCUMENTS = 4
WIDE_VOCABULARY = 151_936
BROAD = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 8}
BROAD |= {"num_key_value_heads": 8, "head_dim": 128}
HIDDEN = {"hidden": {"layers": ["last"], "codec": "bfloat16"}}
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "demo": ({}, 4096, {}),
    "wide": ({"vocab_size": WIDE_VOCABULARY, "tie_word_embeddings": False}, 4096, {}),
    "broad, targets only": (BROAD, 4096, {}),
    "broad, hidden": (BROAD, 4096, HIDDEN),
    "broad, targets only, shards of 16,384": (BROAD, 16_384, {}),
    "broad, hidden, shards of 16,384": (BROAD, 16_384, HIDDEN),
    "broad, hidden in float32": (BROAD, 4096, {"hidden": {"layers": ["last"], "codec": "float32"}}),
    "broad, hidden to a budget": (BROAD, 4096, {"hidden": {"layers": ["last"], "codec": "budget"}}),
}
"""Shape of the teacher, positions of a shard, and more of its block in the capture file."""


def capture_values(folder: Path, teacher: Path, positions: int = 4096, **block: Any) -> dict[str, Any]:
    """Write a corpus and return the capture file of several shards."""
    count = DOCUMENTS * positions // 4096
    documents = [json.dumps(document) for document in islice(topic_documents(), count)]
    (folder / "corpus.jsonl").write_text("\n".join(documents) + "\n")
    return {
        "cache": str(folder / "cache"),
        "corpus": {"paths": [str(folder / "corpus.jsonl")], "held_out_fraction": 0},
        "encoding": {"max_length_tokens": 256, "positions_per_shard": positions},
        "teachers": [{"name": "one", "model": str(teacher), "dtype": "float32", "batch_tokens": 2048} | block],
    }


def random_teacher(folder: Path, **changes: Any) -> Path:
    """Save a random teacher with the demo's tokenizer and a shape of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(FILES / "teacher"))
    config.update(changes)
    AutoModelForCausalLM.from_config(config, dtype="float32").save_pretrained(folder)
    for path in (FILES / "teacher").glob("token*"):
        shutil.copy(path, folder)
    return folder


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Plan, capture, and return predicted and measured peaks; runs in a process of its own."""
    from cache_tools.store.reader import Cache
    from cache_tools.store.root import create_cache
    from pipeline.capture.declare import declare
    from pipeline.capture.predict import KeptOutputs, predict
    from pipeline.capture.shards import capture_shards
    from pipeline.capture.target import resolve_teacher
    from pipeline.config.capture_file import CaptureConfig
    from pipeline.encoding.encode import encode
    from pipeline.encoding.recipe import Recipe
    from pipeline.encoding.tokenizer import load_tokenizer
    from pipeline.planning.memory import plan_memory
    from pipeline.teachers.loading import load_teacher
    from pipeline.teachers.tensor_plan import meta_model

    config = CaptureConfig.model_validate(values)
    resolved = resolve_teacher(config.teachers[0])
    block, keep = resolved.config, resolved.target.keep
    planned = plan_memory(resolved, meta_model(block, "causal", resolved.folder), config.encoding)
    create_cache(config.cache)
    encode(config.cache, Recipe(config.corpus, config.encoding, load_tokenizer(resolved.folder)))
    encoding = Cache(config.cache).encoding()
    before = resident_bytes()
    teacher = load_teacher(block, resolved.folder, "causal")
    cached = declare(encoding, teacher, block, resolved.target, config.encoding.chunk_positions)
    capture_shards(cached, list(range(len(encoding.shards))), teacher, keep, block.batch_tokens)
    resident, kept = resident_bytes("VmHWM") - before, KeptOutputs(keep)
    live = _live_bytes(lambda: predict(encoding.sequences(0), "causal", teacher, kept, block.batch_tokens))
    return {
        **json_object(planned),
        "measured_device_bytes": planned.weights_bytes + live,
        "measured_host_bytes": resident,
    }


def _live_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors that are alive at once, besides those that were before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated()) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(max(accumulate(changes)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
@click.option("--values", hidden=True, help="A capture file as JSON: measure it in this process.")
def main(as_json: bool, values: str | None) -> None:
    """Measure both teachers."""
    if values:
        click.echo(json.dumps(measure(json.loads(values))))
        return
    for name, (shape, positions, block) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            teacher = random_teacher(folder / "teacher", **shape) if shape else FILES / "teacher"
            capture = capture_values(folder, teacher, positions, **block)
            command = [sys.executable, "-m", "benchmarks.memory", "--values"]
            answer = subprocess.check_output([*command, json.dumps(capture)], text=True)
        row = json.loads(answer.splitlines()[-1])
        if as_json:
            click.echo(json.dumps({"teacher": name} | row))
            continue
        keys = (
            "weights",
            "body",
            "head",
            "kept",
            "writing",
            "batch",
            "device",
            "measured_device",
            "host",
            "measured_host",
        )
        click.echo(f"{name}: " + ", ".join(f"{key} {row[f'{key}_bytes'] / 1e6:,.0f}" for key in keys))


if __name__ == "__main__":
    main()
