"""Real hidden states to measure on: a teacher's last and middle layer, some to calibrate on and others held out."""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.capture.hidden_budget import OutputHead
from pipeline.teachers.body_and_head import run_body, run_head

LENGTH = 256
NUM_CALIBRATION, NUM_HELD_OUT = 8192, 16_384
CALIBRATION_STRIDE = 4
"""Every fourth position of four times as many windows: more documents for the same sample."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class States:
    """Hidden states of one teacher, (n, d) float32 each, and its head."""

    name: str
    head: OutputHead
    calibration: Floats
    held_out: Floats
    middle_calibration: Floats
    middle_held_out: Floats


def load_states(data: Path | None) -> States:
    """Run the teacher in ``data/teacher-32k`` over ``data/docs-*.jsonl.gz``; the demo's if ``data`` is None."""
    if data is not None:
        folder = data / "teacher-32k"
        texts = [_texts(data / f"docs-{name}.jsonl.gz") for name in ("train", "heldout")]
    else:
        from pipeline.demo.corpus import topic_documents
        from pipeline.demo.run import FILES

        folder = FILES / "teacher"
        documents = [str(document["text"]) for document in topic_documents()]
        texts = [documents[::2], documents[1::2]]
    return _run(folder, *texts)


def _texts(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@torch.inference_mode()
def _run(folder: Path, calibration: list[str], held_out: list[str]) -> States:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    sample = _layers(model, _windows(tokenizer, calibration, NUM_CALIBRATION * CALIBRATION_STRIDE // LENGTH))
    layers = _layers(model, _windows(tokenizer, held_out, NUM_HELD_OUT // LENGTH))
    head = OutputHead.of(model, run_head(model, torch.from_numpy(layers[0][:64])))
    last, middle = (np.ascontiguousarray(rows[::CALIBRATION_STRIDE]) for rows in sample)
    return States(folder.name, head, last, layers[0], middle, layers[1])


def _windows(tokenizer: Any, texts: list[str], number: int) -> Tensor:
    """Return windows (number, LENGTH) of tokens from all over the texts, evenly."""
    windows: list[list[int]] = []
    for text in texts[:: max(1, len(texts) // number)]:
        ids = tokenizer(text[:40_000], verbose=False)["input_ids"]
        windows += [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    spread = np.linspace(0, len(windows) - 1, min(number, len(windows))).astype(int)
    return torch.tensor([windows[i] for i in spread])


def _layers(model: Any, windows: Tensor) -> tuple[Floats, Floats]:
    """Return the last and the middle layer's states at every position."""
    last, middle = [], []
    for batch in windows.split(8):  # type: ignore[no-untyped-call]
        hidden, every = run_body(model, batch, torch.ones_like(batch), hidden=True)
        last.append(hidden.flatten(0, 1))
        middle.append(every[len(every) // 2].flatten(0, 1))
    return _joined(last), _joined(middle)


def _joined(parts: Iterable[Tensor]) -> Floats:
    joined: Floats = torch.cat(list(parts)).numpy()
    return joined
