"""The example of a student that is rounded during training: its weights have few levels, and suit them."""

import importlib.util

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from doc_blocks import ROOT
from trainer.evaluation.evaluate import evaluate_folder

BITS, GROUP = 3, 16


def example():
    path = ROOT / "docs" / "examples" / "quantised_student.py"
    assert len(path.read_text().splitlines()) <= 50
    spec = importlib.util.spec_from_file_location("quantised_student", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linear_weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return [layer.weight for layer in model.base_model.modules() if type(layer) is nn.Linear]


def test_training_moves_rounded_weights_nearer_to_the_teacher_than_rounding_it(tmp_path):
    cached = tiny.capture(tmp_path, hidden={"layers": ["last"], "codec": "float32"})
    kl, module = {}, example()
    for steps in (0, 60):
        torch.manual_seed(0)
        module.train(str(cached.path), str(tmp_path / "teacher"), str(tmp_path / f"{steps}"), steps, BITS, GROUP)
        kl[steps] = evaluate_folder(tmp_path / f"{steps}", cached.encoding().teacher(), "held_out").kl.mean_nats
        for weight in linear_weights(tmp_path / f"{steps}"):
            groups = weight.detach().reshape(-1, GROUP)
            levels = groups / groups.abs().amax(dim=1, keepdim=True) * (2 ** (BITS - 1) - 1)
            assert (levels - levels.round()).abs().max() < 1e-4
    assert kl[60] < 0.7 * kl[0]
