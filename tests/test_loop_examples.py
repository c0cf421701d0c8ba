"""The four loops in ``docs/examples`` have the losses of ``logitcask train`` on the same batches.

``python -m pytest -s tests/test_loop_examples.py`` prints the table of the guide.
"""

import importlib.util
import math

import pytest
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from cache_tools.store.reader import Cache
from doc_blocks import ROOT
from student_fixtures import GRADIENT_ROUNDING, LLAMA, LOSS_ROUNDING, curve, train
from tolerances import training_rounding

STEPS, LEARNING_RATE = 3, 0.05
LOOPS = {"loop_pytorch": "torch", "loop_trainer": "transformers", "loop_trl": "trl", "loop_lightning": "lightning"}
BATCH_POSITIONS = 100
"""At least so many in a batch of 8 sequences."""
TOLERANCE_NATS = LOSS_ROUNDING / math.sqrt(BATCH_POSITIONS) + training_rounding(
    GRADIENT_ROUNDING, STEPS - 1, LEARNING_RATE
)
"""Largest difference of two loops in the loss of the last step.

The first term is the rounding of a mean over positions, each of which rounds by itself. The second is what weights that
differ by rounding change, with gradients of norm 1 at most, to which all loops clip."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, vocab_size=300))
    return tiny.save_teacher(tmp_path_factory.mktemp("student"), made)


@pytest.fixture(scope="module")
def expected(cache, student, tmp_path_factory):
    """The losses of ``logitcask train``."""
    output = tmp_path_factory.mktemp("run")
    changes = {"optim": "sgd", "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "max_steps": STEPS}
    train(cache, output, student={"pretrained": str(student)}, loss={"kd_weight": 0.9}, **changes)
    return [line["loss"] for line in curve(output)]


@pytest.fixture(scope="module")
def table(expected):
    """A table that is printed after the last test."""
    shown = Table("loop", *(f"step {step}" for step in range(1, STEPS + 1)))
    shown.add_row("logitcask train", *(f"{loss:.7f}" for loss in expected))
    yield shown
    Console().print(shown)


def example(name):
    """Import an example, if its library is installed."""
    pytest.importorskip(LOOPS[name], reason=f"{LOOPS[name]} is not installed: pip install '.[dev]'")
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tolerance_is_within_a_hundred_thousandth_of_the_loss(cache, expected):
    encoding = Cache(cache).encoding()
    lengths = [
        sequence.num_positions for shard in encoding.split_shards("train") for sequence in encoding.sequences(shard)
    ]
    assert sum(sorted(lengths)[:8]) >= BATCH_POSITIONS
    assert 1e-5 * min(expected) >= TOLERANCE_NATS
    assert expected[0] - expected[-1] > 100 * TOLERANCE_NATS  # it learns


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", LOOPS)
def test_the_losses_of_an_example_are_those_of_train(name, cache, student, expected, table):
    losses = example(name).train(str(cache), str(student), steps=STEPS)
    table.add_row(name, *(f"{loss:.7f}" for loss in losses))
    assert losses == pytest.approx(expected, rel=0, abs=TOLERANCE_NATS)


def test_accumulated_micro_batches_of_the_trainer_are_one_step_of_train(cache, student, expected):
    losses = example("loop_trainer").train(str(cache), str(student), steps=STEPS, accumulated=2)
    assert losses == pytest.approx(expected, rel=0, abs=TOLERANCE_NATS)


@pytest.mark.parametrize("name", LOOPS)
def test_an_example_is_short(name):
    assert 20 <= len((ROOT / "docs" / "examples" / f"{name}.py").read_text().splitlines()) <= 50
