"""A finished student is an ordinary Hugging Face folder, and precision and compilation change speed, not meaning."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from student_fixtures import LLAMA, curve, largest_difference, train, weights

ELSEWHERE = """
import sys
sys.modules |= dict.fromkeys(("trainer", "cache_tools", "pipeline", "logitcask", "peft"))  # None: not to be found
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    read = tokenizer("Document 3: the token of a shard", return_tensors="pt")
    print(model.generate(**read, max_new_tokens=5, do_sample=False).tolist())
"""
"""A program of somebody who has transformers alone."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.mark.slow
def test_finished_students_load_and_write_text_in_a_process_that_does_not_know_this_package(cache, tmp_path):
    start = tiny.save_teacher(tmp_path / "start", tiny.model(seed=5))
    students = {"random": {"config": LLAMA}, "tuned": {"pretrained": str(start)}}
    if find_spec("peft"):
        students["adapted"] = {"pretrained": str(start), "lora": {}}
    finals = [train(cache, tmp_path / name, max_steps=1, student=student) for name, student in students.items()]
    expected = ""
    for final in finals:
        files = {path.name for path in final.iterdir()}
        assert files >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
        assert {path.suffix for path in final.rglob("*") if path.is_file()} == {".json", ".safetensors"}
        read = AutoTokenizer.from_pretrained(final)("Document 3: the token of a shard", return_tensors="pt")
        written = AutoModelForCausalLM.from_pretrained(final).generate(**read, max_new_tokens=5, do_sample=False)
        expected += f"{written.tolist()}\n"
    command = [sys.executable, "-I", "-c", ELSEWHERE, *map(str, finals)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected


def test_a_checkpoint_is_an_ordinary_model_folder_too(cache, tmp_path):
    final = train(cache, tmp_path, save_steps=3)
    checkpoint = tmp_path / "checkpoint-3"
    assert largest_difference(weights(checkpoint), weights(final)) == 0
    assert largest_difference(weights(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()) == 0
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names <= {path.name for path in checkpoint.iterdir()}


@pytest.mark.parametrize("loss", [{}, {"kd_weight": 0.3}])
def test_bf16_autocast_with_recomputed_activations_trains_float32_weights_to_nearly_the_same(cache, tmp_path, loss):
    train(cache, tmp_path / "plain", loss=loss)
    mixed = train(cache, tmp_path / "mixed", loss=loss, bf16=True, activation_checkpointing=True)
    assert {tensor.dtype for tensor in weights(mixed).values()} == {torch.float32}
    for one, other in zip(curve(tmp_path / "plain"), curve(tmp_path / "mixed"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)
        assert one["loss"] != other["loss"], "nothing was computed in bfloat16"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_a_compiled_student_trains_to_the_same(cache, tmp_path):
    """With the backend that only traces: what is traced, and where the loss breaks the graph, is the same for all."""
    plain = train(cache, tmp_path / "plain")
    compiled = train(cache, tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager", save_steps=3)
    assert curve(tmp_path / "plain") == curve(tmp_path / "compiled")
    assert largest_difference(weights(plain), weights(compiled)) == 0
    assert largest_difference(weights(tmp_path / "compiled" / "checkpoint-3"), weights(compiled)) == 0
