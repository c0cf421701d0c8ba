"""Quantised checkpoints: how they are named, what memory is planned, and scoring one that this machine can load.

Kernels of these methods need GPUs, so packed checkpoints are planned here from made-up headers and are not run.
transformers dequantises FP8 checkpoints on a CPU, so one of those is captured and scored.
"""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import tiny
from cache_tools.errors import FormatError
from cache_tools.models.quantised import quantisation_words, quantised_weights
from cache_tools.models.tensors import tensor_entries
from cache_tools.store.reader import Cache
from cache_tools.torch_models.quantised import quantisation_of
from logitcask import cli
from pipeline.capture.target import resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.planning.capture_plan import PlanSettings, plan_capture
from pipeline.planning.memory import plan_memory
from pipeline.planning.tables import print_plan
from pipeline.teachers.tensor_plan import meta_model, weight_bytes
from trainer.evaluation.evaluate import evaluate_folder
from trainer.student.finite import first_not_finite

COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}}},
}
METHODS = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8, 8 bits, blocks of 128 x 128"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}, "awq, 4 bits, groups of 64"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits, groups of 128"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq, 8 bits"),
    (COMPRESSED, "compressed-tensors, pack-quantized, 4 bits, groups of 128"),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes, nf4, 4 bits",
    ),
    ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
    ({"quant_method": "new"}, "new"),
    ({"bits": 3}, "a method without a name, 3 bits"),
    ({"quant_method": "compressed-tensors", "config_groups": "?"}, "compressed-tensors"),
]

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "lm_head": False}
GROUP = 32


@pytest.mark.parametrize(("settings", "words"), METHODS)
def test_a_method_is_named_with_bits_and_groups(settings, words):
    assert quantisation_words(settings) == words


def add_settings(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def packed(folder, settings=GPTQ, head=False):
    """Write a tiny Llama whose linear weights are replaced by tensors of the shapes of 4-bit GPTQ."""
    tiny.save_teacher(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "proj" in name or (head and name.startswith("lm_head")):
            (rows, columns), module = tensor.shape, name.removesuffix(".weight")
            groups = -(-columns // GROUP)
            tensors[f"{module}.qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
            tensors[f"{module}.scales"] = torch.ones(groups, rows, dtype=torch.float16)
            tensors[f"{module}.qzeros"] = torch.zeros(groups, rows // 8, dtype=torch.int32)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    add_settings(folder, settings)
    return folder


@pytest.mark.parametrize("head", [False, True])
def test_the_output_head_is_read_from_the_headers(tmp_path, head):
    stored = quantised_weights(packed(tmp_path, head=head))
    assert stored.words == "gptq, 4 bits, groups of 32"
    assert stored.output_head == (stored.words if head else None)
    assert stored.stored_bytes == sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert quantisation_of(tmp_path).output_head == stored.output_head


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"lm_head.weight": torch.bfloat16}, False),
        ({"lm_head.weight": torch.float8_e4m3fn, "lm_head.weight_scale": torch.float32}, True),
        ({"lm_head.weight": torch.int8}, True),
        ({"lm_head.weight_packed": torch.int32, "lm_head.weight_scale": torch.bfloat16}, True),
        ({"model.embed_tokens.weight": torch.bfloat16, "model.layers.0.mlp.weight": torch.int8}, False),
        ({"model.embed_tokens.weight": torch.int8}, True),
        ({"lm_head.weight": torch.bfloat16, "model.embed_tokens.weight": torch.int8}, False),
    ],
)
def test_types_and_companions_tell_a_quantised_head(tmp_path, names, expected):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": GPTQ}))
    save_file({name: torch.zeros(4, 4).to(dtype) for name, dtype in names.items()}, tmp_path / "model.safetensors")
    assert (quantised_weights(tmp_path).output_head is not None) == expected


def test_ordinary_weights_have_no_quantisation(tmp_path):
    assert quantised_weights(tiny.save_teacher(tmp_path)) is None
    assert quantisation_of(tmp_path).weights is None


def test_a_damaged_file_is_refused(tmp_path):
    packed(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(FormatError, match="not a safetensors file"):
        quantised_weights(tmp_path)


def planned(tmp_path, folder, **changes):
    config = CaptureConfig.model_validate(tiny.capture_values(tmp_path, folder, **changes))
    teacher = resolve_teacher(config.teachers[0])
    model = meta_model(teacher.config, "causal", folder)
    return plan_memory(teacher, model, config.encoding), model, config


def test_packed_weights_are_planned_as_stored_and_the_rest_in_the_type_that_computes(tmp_path):
    folder = packed(tmp_path / "gptq")
    memory, model, _ = planned(tmp_path, folder, dtype="bfloat16")
    entries = tensor_entries(folder)
    in_types = {name: entry for name, entry in entries.items() if name.endswith(".weight")}
    stored = sum(entry.bytes for name, entry in entries.items() if name not in in_types)
    halved = sum(entry.bytes // 2 for entry in in_types.values())  # float32 in the file
    assert memory.weights_are == "quantised"
    assert memory.weights_bytes == stored + halved < weight_bytes(model)


def test_without_weight_files_the_plan_is_an_upper_bound(tmp_path):
    folder = packed(tmp_path / "gptq")
    (folder / "model.safetensors").unlink()
    memory, model, _ = planned(tmp_path, folder)
    assert (memory.weights_are, memory.weights_bytes) == ("unknown", weight_bytes(model))


def test_the_plan_names_the_quantisation_and_the_head(tmp_path, monkeypatch, capsys):
    folder = packed(tmp_path / "gptq", head=True)
    _, _, config = planned(tmp_path, folder)
    plan = plan_capture(config, PlanSettings(sample_documents=2))
    assert plan.teachers[0].quantisation == plan.teachers[0].output_head == "gptq, 4 bits, groups of 32"
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(plan)
    text = capsys.readouterr().out
    assert "gptq, 4 bits, groups of 32; output head: gptq" in text
    assert "quantised weights" in text


def fp8(source, folder):
    """Write a folder's linear weights as FP8 with a scale for each block of 16 x 16, as transformers stores them."""
    tensors, block = {}, 16
    for name, tensor in load_file(source / "model.safetensors").items():
        if "proj" not in name:
            tensors[name] = tensor
            continue
        blocks = tensor.unflatten(0, (-1, block)).unflatten(2, (-1, block))
        scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
        tensors[name] = (blocks / scales).flatten(2, 3).flatten(0, 1).to(torch.float8_e4m3fn)
        tensors[name.replace("weight", "weight_scale_inv")] = scales[:, 0, :, 0].contiguous()
    folder.mkdir()
    for path in source.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    add_settings(folder, settings)
    return folder


def test_an_fp8_checkpoint_is_captured_and_scored_on_a_cpu_with_what_it_is_said(tmp_path):
    """transformers dequantises it here, and says so; the identity of its capture says so too."""
    teacher = tiny.save_teacher(tmp_path / "teacher", tiny.model(intermediate_size=64))
    folder = fp8(teacher, tmp_path / "fp8")
    memory, model, _ = planned(tmp_path, folder)
    assert (memory.weights_are, memory.weights_bytes) == ("dequantised", weight_bytes(model))
    cached = tiny.capture(tmp_path, teacher, hidden={"layers": ["last"], "codec": "float32"}).encoding().teacher()
    result = evaluate_folder(folder, cached, "held_out")
    assert result.model.quantisation == "fp8, 8 bits, blocks of 16 x 16, dequantised when loaded"
    assert (result.model.output_head, result.model.dtype) == (None, "float32")
    assert 1e-4 < result.kl.mean_nats < 0.1  # 3 bits of a mantissa: an error of 2 % of each weight
    own = tiny.capture_values(tmp_path, folder)
    own["cache"] = str(tmp_path / "own")
    tiny.run(own)
    captured = Cache(own["cache"]).encoding().teacher().manifest
    assert captured.identity["quantisation"] == captured.model["quantisation"] == result.model.quantisation
    assert "from fp8, 8 bits" in CliRunner().invoke(cli, ["inspect", own["cache"]], env={"COLUMNS": "200"}).stdout


def test_packed_weights_are_not_looked_at_for_numbers_that_are_not_finite():
    module = torch.nn.Module()
    for name, dtype in {"codes": torch.int8, "eighths": torch.float8_e4m3fn, "scales": torch.bfloat16}.items():
        module.register_parameter(name, torch.nn.Parameter(torch.ones(4).to(dtype), requires_grad=False))
    assert first_not_finite(module) is None
    module.scales[2] = torch.inf
    assert first_not_finite(module) == "scales"
