"""A student that is not finite stops its run at the first such step, on every process, and is never saved."""

import json
import math
import os
from contextlib import contextmanager

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

import tiny
from cache_tools.errors import ModelError
from cache_tools.store.reader import Cache
from logitcask import cli
from ranks import on_ranks
from student_fixtures import LLAMA, curve, student_values, train, weights
from trainer.evaluation.evaluate import evaluate_folder
from trainer.run import checkpointing_trainer
from trainer.run.distillation_trainer import DistillationTrainer
from trainer.run.progress import StepProgress
from trainer.student.finite import MAX_SKIPPED_STEPS, check_measures, first_not_finite, not_finite

FAST = {"learning_rate": 1e30, "max_steps": 4, "save_steps": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache"), hidden={"layers": ["last"], "codec": "float32"}).path


def all_finite(folder):
    return all(bool(tensor.isfinite().all()) for tensor in weights(folder).values())


def broken(folder, value=math.nan, name="model.embed_tokens.weight", row=0):
    """Put a value that is not finite into one weight of a model folder."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name][row] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"max_grad_norm": 0.0},
        {"optim": "sgd", "max_grad_norm": 0.0},
        {"loss": {"hidden": [{"student_layer": 1, "teacher_layer": "last"}]}},
        {"loss": {"source": "hidden"}},
        {"loss": {"kd_weight": 0.0}},
        {"bf16": True},
        {"logging_steps": 100},
    ],
    ids=str,
)
def test_the_first_step_that_is_not_finite_ends_the_run_and_is_named(cache, tmp_path, changes):
    with pytest.raises(ModelError, match=r"^step [234]: the loss or its gradient is not finite .*learning rate \d"):
        train(cache, tmp_path, **FAST | changes)
    assert not (tmp_path / "final").exists()
    assert all(all_finite(checkpoint) for checkpoint in tmp_path.glob("checkpoint-*"))
    logged = curve(tmp_path) if (tmp_path / "metrics.jsonl").exists() else []
    assert all(math.isfinite(value) for line in logged for value in line.values())


@contextmanager
def poisoned(step):
    """Let the optimizer's step of this number write NaN into the last row of the embeddings, which no text uses."""

    class Poison(StepProgress):
        def on_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step + 1 == step:
                with torch.no_grad():
                    model.student.get_input_embeddings().weight[-1] = math.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.run.train.StepProgress", Poison)
        yield


def test_the_last_step_is_looked_at_too(cache, tmp_path):
    """The weights become NaN in the last optimizer step, after which no loss is computed."""
    with poisoned(step=3), pytest.raises(ModelError, match=r"^step 3: the student's weights are not finite"):
        train(cache, tmp_path, max_steps=3)
    assert not (tmp_path / "final").exists()
    assert not list(tmp_path.glob("checkpoint-*/sha256.json"))


def test_a_weight_that_no_batch_reads_is_never_saved(cache, tmp_path):
    """The last row of the embeddings: no loss and no gradient sees it."""
    with poisoned(step=1), pytest.raises(ModelError, match=r"^step 2: the student's weights .*embed_tokens"):
        train(cache, tmp_path, max_steps=5, save_steps=2, student={"config": LLAMA | {"vocab_size": 310}})
    assert not list(tmp_path.glob("checkpoint-*/sha256.json"))


def test_a_pretrained_student_that_is_not_finite_is_refused_before_the_first_step(cache, tmp_path):
    start = train(cache, tmp_path / "start", max_steps=1)
    for value in (math.nan, math.inf):
        broken(start, value)
        with pytest.raises(ModelError, match=r"start/final: the student's weights are not finite .*embed_tokens"):
            train(cache, tmp_path / f"run{value}", student={"pretrained": str(start)})


def test_evaluation_says_so(cache, tmp_path):
    folder = train(cache, tmp_path / "run", max_steps=1)
    teacher = Cache(cache).encoding().teacher()
    evaluate_folder(folder, teacher, "held_out")
    for name in ("q_proj", "k_proj"):  # finite weights whose attention is not: infinity less infinity
        broken(folder, 1e38, f"model.layers.0.self_attn.{name}.weight", slice(None))
    with pytest.raises(ModelError, match=r"the student's predictions are NaN \(found \w+ is NaN"):
        evaluate_folder(folder, teacher, "held_out")
    broken(folder)
    with pytest.raises(ModelError, match=r"final: the student's weights are not finite .*embed_tokens"):
        evaluate_folder(folder, teacher, "held_out")


def test_measuring_on_the_way_says_so(cache, tmp_path):
    with pytest.raises(ModelError, match=r"^step 1: the student's predictions are NaN"):
        train(cache, tmp_path, **FAST | {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 100})
    assert not (tmp_path / "final").exists()


def test_a_loss_that_is_finite_is_logged_as_it_is(cache, tmp_path):
    train(cache, tmp_path, max_steps=3)
    lines = curve(tmp_path)
    assert [line["loss"] == pytest.approx(line["kl_nats"], rel=1e-6) for line in lines] == [True] * 3


# fp16: skipped steps


@pytest.fixture
def overflows(monkeypatch):
    """Scale losses on the CPU as accelerate does on a GPU, and let the gradients of the first steps overflow."""
    made, measured_norm = DistillationTrainer.create_accelerator_and_postprocess, Trainer._get_grad_norm

    def scaled(self):
        made(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu")

    def start(num_steps):
        def norm_of(self, model, grad_norm=None):
            norm = measured_norm(self, model, grad_norm)
            return torch.tensor(math.inf) if self.state.global_step < num_steps else norm

        monkeypatch.setattr(DistillationTrainer, "create_accelerator_and_postprocess", scaled)
        monkeypatch.setattr(Trainer, "_get_grad_norm", norm_of)

    return start


def test_a_gradient_that_overflows_while_the_scale_of_fp16_is_found_is_no_error(cache, tmp_path, overflows):
    overflows(3)
    assert all_finite(train(cache, tmp_path, fp16=True, max_steps=5, learning_rate=1e-3))


@pytest.mark.parametrize(("max_steps", "step"), [(50, MAX_SKIPPED_STEPS), (3, 3)])
def test_one_that_goes_on_overflowing_is(cache, tmp_path, overflows, max_steps, step):
    overflows(100)
    with pytest.raises(ModelError, match=rf"^step {step}: "):
        train(cache, tmp_path, fp16=True, max_steps=max_steps)


# Several processes


def train_twice_with_one_broken_rank(cache, output, changes):
    """Train with a loss that is NaN on the second rank, with a finite gradient; then with such a weight."""
    compute, look = DistillationTrainer.compute_loss, checkpointing_trainer.first_not_finite
    second = os.environ["RANK"] == "1"

    def broken_loss(self, *arguments, **named):
        loss = compute(self, *arguments, **named)
        if second and self.state.global_step == 1:
            self._watch.add(loss.detach() * math.nan)
        return loss

    for kind in ("loss", "weights"):
        DistillationTrainer.compute_loss = broken_loss if kind == "loss" else compute
        if kind == "weights":
            checkpointing_trainer.first_not_finite = lambda student: "w" if second else look(student)
        with pytest.raises(ModelError, match=r"^step 2:"):
            train(cache, output / kind, **changes)
        assert not (output / kind / "final").exists()


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_all_processes_stop_together_when_one_is_not_finite(cache, tmp_path, sharded):
    changes = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 8} | ({"fsdp": True} if sharded else {})
    on_ranks(2, tmp_path / "run", train_twice_with_one_broken_rank, cache, tmp_path / "run", changes)


# The functions


def test_the_first_weight_that_is_not_finite_is_named():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert first_not_finite(module) is None
    module[1].bias.data[2] = math.inf
    assert first_not_finite(module) == "1.bias"
    module[0].weight.data[1, 1] = math.nan
    assert first_not_finite(module) == "0.weight"
    assert first_not_finite(nn.ReLU()) is None


def test_counts_of_what_is_not_finite():
    values = (
        torch.tensor(1.0),
        torch.tensor(math.nan),
        3.0,
        math.inf,
        None,
        torch.tensor(-math.inf, dtype=torch.bfloat16),
    )
    assert not_finite(*values).tolist() == [0, 1, 0, 1, 0, 1]


def test_measures_may_be_infinite_and_not_nan():
    check_measures({"split": "train", "a": math.inf, "b": 1.0, "c": 3}, "here")
    with pytest.raises(ModelError, match="found b is NaN"):
        check_measures({"a": 1.0, "b": math.nan}, "here")


def test_a_student_file_with_a_rate_that_is_no_number_is_refused(cache, tmp_path):
    file = tmp_path / "student.yaml"
    for rate in (".nan", ".inf", "-1e-3", "1e999"):
        file.write_text(json.dumps(student_values(cache, tmp_path / "run")))
        result = CliRunner().invoke(cli, ["train", str(file), "--set", f"training.learning_rate={rate}"])
        assert "training.learning_rate: " in str(result.exception)
