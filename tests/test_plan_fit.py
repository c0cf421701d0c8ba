"""A plan needs no weights, and says whether the teacher fits and how many devices it takes."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig

import pipeline.planning.fit
import pipeline.planning.memory
import pipeline.teachers.loading
import tiny
from cache_tools.errors import ConfigError, ModelError
from pipeline.capture.target import resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.planning.capture_plan import PlanSettings, plan_capture
from pipeline.planning.command import plan_command
from pipeline.planning.fit import USABLE_SHARE, host_memory_bytes, plan_fit
from pipeline.planning.memory import plan_memory
from pipeline.teachers.tensor_plan import meta_model
from refusal_fixtures import write_yaml

QWEN3_235B = {
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "dtype": "bfloat16",
}


def described(folder, model_type="llama", **shape):
    """Write a model folder without weights."""
    config = AutoConfig.for_model(model_type, **{**tiny.SHAPE, "vocab_size": 300, "pad_token_id": 0, **shape})
    config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    assert not list(folder.glob("*.safetensors"))
    return folder


def values_of(folder, model, **keys):
    values = tiny.capture_values(folder, model)
    values["teachers"][0] |= keys
    return values


def planned(values, device_memory_bytes=None, sequences=0):
    settings = PlanSettings(5, sequences, device_memory_bytes=device_memory_bytes)
    (teacher,) = plan_capture(CaptureConfig.model_validate(values), settings).teachers
    return teacher


def test_a_plan_without_weights_is_the_plan_with_them(tmp_path):
    whole = tiny.save_teacher(tmp_path / "teacher")
    bare = described(tmp_path / "bare")
    with_weights, without = (planned(values_of(tmp_path, folder)) for folder in (whole, bare))
    assert with_weights == without


def test_only_measuring_needs_weights(tmp_path):
    values = values_of(tmp_path, described(tmp_path / "bare"))
    with pytest.raises(ModelError, match="no safetensors weights"):
        planned(values, sequences=5)
    assert planned(values).whole.stored.stored_bytes > 0


@pytest.mark.parametrize("weights", [True, False])
def test_a_plan_downloads_no_weights_from_the_hub(tmp_path, monkeypatch, weights):
    asked = {}
    monkeypatch.setattr(
        pipeline.teachers.loading, "snapshot_download", lambda *_, **named: asked.update(named) or tmp_path
    )
    config = CaptureConfig.model_validate(values_of(tmp_path, "someone/model")).teachers[0]
    pipeline.teachers.loading.resolve_model(config, weights=weights)
    assert ("*.safetensors" in asked["allow_patterns"]) == weights
    assert "*.json" in asked["allow_patterns"]


def test_a_model_of_235_billion_weights_is_planned_and_allocates_none(tmp_path):
    teacher = planned(
        values_of(tmp_path, described(tmp_path / "big", "qwen3_moe", **QWEN3_235B), dtype="bfloat16"), 80 * 10**9
    )
    memory, fit = teacher.memory, teacher.fit
    assert memory.weights_bytes == pytest.approx(2 * 235.1e9, rel=0.001)
    assert not fit.fits
    assert fit.devices_needed == 7  # 470 GB over 72 GB of each
    assert fit.tensor_parallel is None  # four key heads: at most four processes


GPU = 80 * 10**9


def fit_of(tmp_path, device_memory_bytes, **keys):
    folder = tmp_path / "model"
    if not folder.exists():
        described(folder, num_attention_heads=8, num_key_value_heads=8, hidden_size=256, num_hidden_layers=6)
    config = CaptureConfig.model_validate(values_of(tmp_path, folder, dtype="float32", batch_tokens=64, **keys))
    teacher, model = resolve_teacher(config.teachers[0]), meta_model(config.teachers[0], "causal", folder)
    memory = plan_memory(teacher, model, config.encoding, device_memory_bytes)
    return memory, plan_fit(teacher.config, model, memory)


def test_one_device_is_enough_from_its_usable_share_on(tmp_path):
    memory, fit = fit_of(tmp_path, GPU)
    assert (fit.fits, fit.devices_needed, fit.device_memory_bytes) == (True, 1, GPU)
    just = int(memory.device_bytes / USABLE_SHARE) + 2
    assert fit_of(tmp_path, just)[1].fits
    _, small = fit_of(tmp_path, just - 10)
    assert (small.fits, small.devices_needed, small.tensor_parallel) == (False, 2, 2)


def test_the_number_of_devices_holds_the_weights_and_each_a_batch(tmp_path):
    memory, _ = fit_of(tmp_path, GPU)
    batch = max(memory.body_bytes, memory.head_bytes)
    assert fit_of(tmp_path, int(batch / USABLE_SHARE) + 1000)[1].device_map_gpus is None  # more than layers
    for devices in (2, 3, 5):
        room = batch + -(-memory.weights_bytes // devices)
        _, fit = fit_of(tmp_path, int(room / USABLE_SHARE) + 2)
        assert fit.device_map_gpus == devices
        assert fit.tensor_parallel in (2, 4, 8, None)  # divisors of the heads
        assert fit.devices_needed == min(devices, fit.tensor_parallel or devices)


def test_what_the_capture_file_gives_is_taken_into_account(tmp_path):
    memory, _ = fit_of(tmp_path, GPU)
    size = int((memory.weights_bytes * 0.7 + max(memory.body_bytes, memory.head_bytes)) / USABLE_SHARE)
    assert not fit_of(tmp_path, size)[1].fits
    for keys, devices in (({"tensor_parallel": 2}, 2), ({"device_map": "auto", "gpus": 2}, 2)):
        _, fit = fit_of(tmp_path, size, **keys)
        assert (fit.fits, fit.devices) == (True, devices)


def test_a_batch_that_fits_no_device_is_not_helped_by_more(tmp_path):
    _, fit = fit_of(tmp_path, 10_000)
    assert (fit.fits, fit.devices_needed, fit.tensor_parallel) == (False, None, None)


@pytest.mark.parametrize(("there", "fits"), [(10**12, True), (10**6, False), (None, None)])
def test_on_a_cpu_the_machines_memory_counts(tmp_path, monkeypatch, there, fits):
    monkeypatch.setattr(pipeline.planning.fit, "host_memory_bytes", lambda: there)
    _, fit = fit_of(tmp_path, None, device="cpu")
    assert (fit.fits, fit.device_memory_bytes, fit.device) == (fits, there, "cpu")


def test_a_containers_limit_counts_as_its_memory(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(pipeline.planning.fit, "CGROUP_LIMIT", limit)
    installed = host_memory_bytes()
    for text, expected in (("max\n", installed), ("1000000\n", 1_000_000)):
        limit.write_text(text)
        assert host_memory_bytes() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU here is one that could be used")
def test_a_gpu_that_is_not_here_can_be_planned_for(tmp_path):
    config = write_yaml(tmp_path, values_of(tmp_path, described(tmp_path / "model"), device="cuda"))
    refused = CliRunner().invoke(plan_command, [str(config)])
    assert refused.exit_code == 1
    result = CliRunner().invoke(plan_command, [str(config), "--device-memory", "80GB", "--json"])
    assert json.loads(result.stdout)["teachers"][0]["fit"]["fits"]


@pytest.mark.parametrize(
    ("size", "bytes_"), [("80GB", 80e9), ("79.6 GiB", 79.6 * 2**30), ("500mb", None), ("512MiB", 2**29), ("1e9", None)]
)
def test_sizes_have_units(tmp_path, size, bytes_):
    config = write_yaml(tmp_path, values_of(tmp_path, described(tmp_path / "model")))
    result = CliRunner().invoke(plan_command, [str(config), "--device-memory", size, "--json"])
    if bytes_ is None:
        assert result.exit_code == 2
        assert "Write a number and a unit" in result.stderr
    else:
        assert json.loads(result.stdout)["teachers"][0]["fit"]["device_memory_bytes"] == round(bytes_)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("80GB", "one of 80.0 GB"),
        ("1300kB", "set tensor_parallel: 2, or device_map: auto with gpus: 2"),
        ("1kB", "lower"),
    ],
)
def test_the_table_says_what_to_set(tmp_path, size, words):
    model = described(tmp_path / "model", intermediate_size=1024)
    config = write_yaml(tmp_path, values_of(tmp_path, model, dtype="float32", batch_tokens=8))
    result = CliRunner().invoke(plan_command, [str(config), "--device-memory", size], env={"COLUMNS": "200"})
    assert words in " ".join(result.stdout.split())


def engine_of(**options):
    return {"engine": {"kind": "vllm", "python": "python", "options": options}}


def test_an_engine_reserves_its_share_and_the_head_lies_beside_it(tmp_path, monkeypatch):
    plain, _ = fit_of(tmp_path, GPU)
    for options, share in (({}, 0.92), ({"gpu_memory_utilization": 0.5}, 0.5)):
        memory, fit = fit_of(tmp_path, GPU, **engine_of(**options))
        engine = memory.engine
        assert engine.reserved_bytes == share * GPU
        assert engine.needed_bytes == plain.weights_bytes + plain.body_bytes
        matrix = engine.output_matrix_bytes
        assert memory.device_bytes == engine.reserved_bytes + matrix + memory.head_bytes
        assert (fit.fits, fit.devices, fit.devices_needed) == (True, 1, 1)
    monkeypatch.setattr(pipeline.planning.memory, "machine_bytes", lambda: 10**12)
    monkeypatch.setattr(pipeline.planning.fit, "machine_bytes", lambda: 10**12)
    monkeypatch.setattr(pipeline.planning.fit, "host_memory_bytes", lambda: 10**12)
    memory, fit = fit_of(tmp_path, None, device="cpu", **engine_of(gpu_memory_utilization=0.25))
    assert (memory.engine.reserved_bytes, fit.fits) == (0.25 * 10**12, True)
    host = memory.kept_bytes + memory.writing_bytes + memory.batch_bytes
    assert memory.host_bytes == memory.device_bytes + host


def test_a_cache_of_fixed_size_replaces_the_share(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    memory, _ = fit_of(tmp_path, GPU, **engine_of(kv_cache_memory_bytes=10**9))
    plain = memory.weights_bytes + memory.body_bytes
    assert memory.engine.reserved_bytes == plain + 10**9  # the variable is about CPUs
    memory, _ = fit_of(tmp_path, None, device="cpu", **engine_of(gpu_memory_utilization=0.5))
    assert memory.engine.reserved_bytes == plain + 4 * 2**30
    assert memory.engine.set_by == "VLLM_CPU_KVCACHE_SPACE=4 (GiB)"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "much")
    with pytest.raises(ConfigError, match=r"is no number of GiB .expected an integer, found much"):
        fit_of(tmp_path, None, device="cpu", **engine_of())
    with pytest.raises(
        ConfigError, match=r"engine\.options\.gpu_memory_utilization: this option of the engine is no number"
    ):
        fit_of(tmp_path, GPU, **engine_of(gpu_memory_utilization="half"))


def test_an_engine_whose_share_is_too_small_needs_more_devices_and_one_that_takes_all_leaves_no_room(tmp_path):
    memory, _ = fit_of(tmp_path, GPU, **engine_of())
    half = (memory.weights_bytes // 2 + memory.body_bytes + 100) / GPU
    _, fit = fit_of(tmp_path, GPU, **engine_of(gpu_memory_utilization=half))
    assert (fit.fits, fit.devices, fit.devices_needed) == (False, 1, 2)
    _, fit = fit_of(tmp_path, GPU, **engine_of(gpu_memory_utilization=half, tensor_parallel_size=2))
    assert (fit.fits, fit.devices) == (True, 2)
    _, fit = fit_of(tmp_path, GPU, **engine_of(gpu_memory_utilization=1.0))
    assert (fit.fits, fit.devices_needed) == (False, 1)
    _, fit = fit_of(tmp_path, GPU, **engine_of(gpu_memory_utilization=1e-9))
    assert (fit.fits, fit.devices_needed) == (False, None)


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({}, "80GB", "reserves 73.6 GB (gpu_memory_utilization: 0.92, its default); the model needs"),
        ({}, "80GB", "fits a device of 80.0 GB"),
        ({"gpu_memory_utilization": 1}, "80GB", "beside the engine: lower gpu_memory_utilization in engine.options"),
        ({"gpu_memory_utilization": 0.0000001}, "80GB", "reserves too little for the model"),
        ({"gpu_memory_utilization": 0.000014}, "80GB", "set engine.options.tensor_parallel_size: "),
        ({"tensor_parallel_size": 2}, "80GB", "on each of 2 devices (gpu_memory_utilization"),
    ],
)
def test_the_table_says_what_an_engine_reserves(tmp_path, options, size, words):
    model = described(tmp_path / "model", intermediate_size=1024)
    values = values_of(tmp_path, model, dtype="float32", batch_tokens=8, **engine_of(**options))
    result = CliRunner().invoke(
        plan_command, [str(write_yaml(tmp_path, values)), "--device-memory", size], env={"COLUMNS": "250"}
    )
    assert words in " ".join(result.stdout.split())
