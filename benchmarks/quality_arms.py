"""The arms of ``benchmarks.quality``: what each student learns from, and the capture that holds it.

One capture file has a teacher block for each kind of target, all of the same model, so every arm reads the
same sequences in the same order. Learning from the text alone and from the live teacher read
that cache too: for the sequences, and for nothing else.
"""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.inspection.summary import summarise
from cache_tools.progress.lines import open_reporter
from cache_tools.storage import write_object
from cache_tools.store.reader import Cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.demo.corpus import docstring_documents, standard_library, topic_documents
from pipeline.demo.run import FILES
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.run import Worker, run_capture
from trainer.config.student_file import LossConfig, StudentConfig

MEASURED = "top"
"""The teacher that students are measured against: its last hidden state gives the whole distribution."""

STUDENT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
}
"""A tenth of the demo's teacher: 0.25 M parameters at its vocabulary of 4,096."""


@dataclass(frozen=True)
class Arm:
    """One way to learn.

    Attributes:
        name: For the table; folders have it too.
        loss: What is minimised.
        cached: The teacher that is read.
        stored: What an arm needs of it: the ``target``, the ``hidden`` state, or ``nothing``.
        live: Whether the teacher itself runs at every step.
        seed_offset: Added to the seed of a run; 0 for all arms that are paired by their seeds.
    """

    name: str
    loss: LossConfig
    cached: str = MEASURED
    stored: str = "target"
    live: bool = False
    seed_offset: int = 0


TEXT = Arm("text alone", LossConfig(kd_weight=0), stored="nothing")
LIVE = Arm("live teacher", LossConfig(), stored="nothing", live=True)
REPEATED = Arm("live, repeated", LossConfig(), stored="nothing", live=True, seed_offset=1000)
"""The control: the live teacher with another seed. How far it is from the first is what repeating alone changes."""


@dataclass(frozen=True)
class Scale:
    """The settings of a table; two tables share a work folder only if all settings are equal.

    Attributes:
        tokens: About how many tokens of the corpus are used; some are held out.
        steps: Optimizer steps of a student.
        batch_sequences: Sequences per step.
        length_tokens: Largest length of a sequence.
        learning_rate: Highest learning rate; it falls as a cosine.
        teacher: Model folder.
        corpus: JSON lines with ``text``; None for the demo's documents.
        student: Model folder with the first weights of every student; None for random weights of ``STUDENT``.
        weight_decay: Of AdamW.
        k: Likeliest tokens per position, and draws of the sampled target.
        held_out_fraction: Share of the documents that students are measured on.
        is_bfloat16: Whether the teacher runs in bfloat16, and the student under autocast.
    """

    tokens: int = 270_000
    steps: int = 240
    batch_sequences: int = 8
    length_tokens: int = 128
    learning_rate: float = 4e-3
    teacher: Path = FILES / "teacher"
    corpus: Path | None = None
    student: Path | None = None
    weight_decay: float = 0.1
    k: int = 50
    held_out_fraction: float = 0.08
    is_bfloat16: bool = False


def real_scale(demo: Path) -> Scale:
    """Return the settings of the real demo, whose finished folder holds teacher, first weights and corpus."""
    places = {"teacher": demo / "teacher", "student": demo / "cut", "corpus": demo / "corpus.jsonl"}
    sizes = {"tokens": 1_000_000, "steps": 120, "batch_sequences": 4, "length_tokens": 256}
    optimiser = {"learning_rate": 1e-3, "weight_decay": 0.0}
    return Scale(**places, **sizes, **optimiser, k=64, held_out_fraction=0.35, is_bfloat16=True)  # type: ignore[arg-type]


def arms_of(scale: Scale) -> tuple[Arm, ...]:
    """Return all arms; ``kd_weight`` is 1 wherever there is a teacher, so that only the target differs."""
    k = scale.k
    return (
        TEXT,
        LIVE,
        REPEATED,
        Arm("hidden state", LossConfig(source="hidden"), stored="hidden"),
        Arm(f"sampled {k}", LossConfig(), "sampled"),
        Arm("hybrid 12 + 38", LossConfig(), "hybrid"),
        Arm(f"ghost {k}", LossConfig()),
        Arm(f"gold {k}", LossConfig(tail="gold", allow_biased=True)),
        Arm(f"top-k {k}", LossConfig(tail="renormalise", allow_biased=True)),
        Arm("top-k 12", LossConfig(tail="renormalise", allow_biased=True), "top-12"),
    )


def targets_of(scale: Scale) -> dict[str, dict[str, Any]]:
    """Return the teacher blocks of the capture file, by name.

    The hidden states are beside one of the targets, because they take no further pass.
    """
    return {
        MEASURED: {"target": {"k": scale.k}, "hidden": {"layers": ["last"]}},
        "top-12": {"target": {"k": 12}},
        "sampled": {"target": {"kind": "sampled", "draws": scale.k}},
        "hybrid": {"target": {"kind": "hybrid", "k": 12, "draws": 38}},
    }


def capture(scale: Scale, work: Path) -> Cache:
    """Run the capture, or the rest of it, and open the cache."""
    config = capture_config(scale, work)
    if not (work / "corpus.jsonl").exists():
        write_object(work / "corpus.jsonl", "".join(_lines(scale)).encode())
    with open_reporter() as reporter:
        run_capture(config, Worker(), reporter)
    return Cache(config.cache)


def capture_config(scale: Scale, work: Path) -> CaptureConfig:
    """Return the capture file of all arms."""
    dtype = "bfloat16" if scale.is_bfloat16 else "float32"
    shared = {"model": str(scale.teacher), "dtype": dtype, "batch_tokens": 4096}
    return CaptureConfig.model_validate(
        {
            "cache": str(work / "cache"),
            "corpus": {"paths": [work / "corpus.jsonl"], "held_out_fraction": scale.held_out_fraction},
            "encoding": {"max_length_tokens": scale.length_tokens, "positions_per_shard": 65_536},
            "teachers": [{"name": name, **shared, **kept} for name, kept in targets_of(scale).items()],
        }
    )


def student_config(arm: Arm, seed: int, scale: Scale, work: Path) -> StudentConfig:
    """Return the student file of one run; among the arms of a seed, nothing but loss and target differs."""
    training = {
        "output_dir": str(run_folder(arm, seed, work)),
        "max_steps": scale.steps,
        "per_device_train_batch_size": scale.batch_sequences,
        "learning_rate": scale.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(20, scale.steps // 10),
        "weight_decay": scale.weight_decay,
        "bf16": scale.is_bfloat16,
        "adam_beta2": 0.95,
        "save_steps": half(scale),
        "logging_steps": max(1, scale.steps // 10),
        "seed": seed + arm.seed_offset,
    }
    student = {"pretrained": str(scale.student)} if scale.student else {"config": STUDENT}
    blocks = {"cache": str(work / "cache"), "teacher": arm.cached, "loss": arm.loss, "window_shards": 64}
    return StudentConfig.model_validate(blocks | {"student": student, "training": training})


def run_folder(arm: Arm, seed: int, work: Path) -> Path:
    """Return the folder of one run."""
    return work / "runs" / f"{arm.name.replace(' ', '-')}-{seed}"


def half(scale: Scale) -> int:
    """Return the step at which a student is half trained, and saved."""
    return max(1, scale.steps // 2)


def bytes_per_position(cache: Cache, arms: Sequence[Arm]) -> dict[str, float]:
    """Return what the arms read of the cache, by arm; not the sequences, which all read, nor the output matrix."""
    teachers = {teacher.facts.name: teacher.facts for teacher in summarise(cache).encodings[0].teachers}

    def stored(arm: Arm) -> float:
        sizes = teachers[arm.cached].bytes_by_array
        prefixes = {"nothing": (), "hidden": ("hidden",), "target": sizes.keys() - {"hidden/last"}}[arm.stored]
        total = sum(size for name, size in sizes.items() if name.startswith(tuple(prefixes)))
        return total / teachers[arm.cached].positions

    return {arm.name: stored(arm) for arm in arms}


def storing_errors_nats(cache: Cache, arms: Sequence[Arm]) -> dict[str, float | None]:
    """Return the mean KL that storing alone adds to what an arm reads of the training split, by arm.

    It is None for arms that read no prediction. What a target leaves out or draws is no error of storing.
    """
    teachers = {teacher.facts.name: teacher.facts for teacher in summarise(cache).encodings[0].teachers}

    def error(arm: Arm) -> float | None:
        names = {"hidden": "hidden_last_kl_nats", "target": "codec_kl_nats"}
        if arm.stored not in names:
            return None
        return teachers[arm.cached].statistics["train"].get(names[arm.stored], 0.0)  # bits that are kept have no error

    return {arm.name: error(arm) for arm in arms}


def _lines(scale: Scale) -> Iterator[str]:
    """Yield shuffled documents, as JSON lines, until there are enough tokens."""
    if scale.corpus:
        opened = gzip.open if scale.corpus.suffix == ".gz" else open
        with opened(scale.corpus, "rt", encoding="utf-8") as lines:
            documents = [json.loads(line) for line in lines]
    else:
        documents = [*topic_documents(), *docstring_documents(standard_library())]
    random.Random(0).shuffle(documents)
    tokenizer, tokens = load_tokenizer(scale.teacher), 0
    for document in documents:
        if tokens >= scale.tokens:
            return
        tokens += len(tokenizer(document["text"], verbose=False)["input_ids"])
        yield json.dumps(document, ensure_ascii=False) + "\n"
