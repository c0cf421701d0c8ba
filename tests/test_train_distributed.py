"""Several ranks end as one process does: with DDP, FSDP, DeepSpeed, packed, and continued on other numbers of ranks."""

import importlib.util
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import bucket
import tiny
from cache_tools.errors import ConfigError, IdentityError
from cache_tools.maintenance.copying import copy_cache
from cache_tools.storage import store_path
from cache_tools.store.reader import Cache
from ranks import train_on
from student_fixtures import (
    GRADIENT_ROUNDING,
    LLAMA,
    LOSS_ROUNDING,
    assert_same_run,
    curve,
    train,
    train_and_stop,
    weights,
)
from trainer.evaluation.passes import shared_batches
from trainer.run.sharding import check_checkpoint, check_sharding

STEPS = {"max_steps": 6}
"""A run into its second epoch: the cache's 70 training sequences make 4 steps of 16."""
ONE, TWO = STEPS | {"per_device_train_batch_size": 16}, STEPS | {"per_device_train_batch_size": 8}
SHARDED = TWO | {"fsdp": True}
RUNS = {"one process": (train, ONE), "DDP": (partial(train_on, 2), TWO), "FSDP": (partial(train_on, 2), SHARDED)}
WATCHED = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache"), hidden={"layers": ["last"]}).path


@pytest.fixture(scope="module")
def one(cache, tmp_path_factory):
    """The run of one process, measured on the way."""
    return train(cache, tmp_path_factory.mktemp("one") / "run", **ONE | WATCHED)


def logged(output):
    """Return what a run logged and measured, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return curve(output) + [line for line in lines if "eval_positions" in line]


def assert_close(left, right):
    """Assert that what two runs logged is equal, up to rounding."""
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        numbers = {name: value for name, value in other.items() if not isinstance(value, str)}
        rounded = {"rel": 2 * GRADIENT_ROUNDING, "abs": LOSS_ROUNDING}
        assert one == other | {name: pytest.approx(value, **rounded) for name, value in numbers.items()}


@pytest.mark.parametrize("wrapper", [pytest.param("DDP", marks=pytest.mark.slow), "FSDP"])
def test_two_ranks_end_as_one_process_does_and_measure_the_same_on_the_way(cache, one, tmp_path, wrapper):
    run, changes = RUNS[wrapper]
    two = run(cache, tmp_path / "two", **changes | WATCHED)
    assert_same_run(one, two, steps=6)
    assert_close(logged(two.parent), logged(one.parent))
    assert len(logged(one.parent)) == len(curve(one.parent)) + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [("FSDP", "one process"), ("FSDP", "DDP"), ("FSDP", "FSDP"), ("one process", "FSDP")]
)
def test_a_run_in_pieces_continues_whole_and_the_other_way(cache, one, tmp_path, first, then):
    run, changes = RUNS[first]
    stop = partial(train_and_stop, 5) if run is train else partial(run, stop_after=5)
    stop(cache=cache, output=tmp_path, **changes | {"save_steps": 3})
    saved = tmp_path / "checkpoint-3"
    assert AutoModelForCausalLM.from_pretrained(saved).state_dict().keys() == weights(one).keys()
    run, changes = RUNS[then]
    final = run(cache, tmp_path, **changes | {"save_steps": 3})
    assert_same_run(final, one, steps=6)
    assert [line["step"] for line in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]


LONG = {"max_steps": 30, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def long_one(cache, tmp_path_factory):
    """A longer run of one process."""
    return train(cache, tmp_path_factory.mktemp("long") / "run", **ONE | LONG)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP"])
def test_after_30_steps_every_rank_has_the_weights_of_one_process(cache, long_one, tmp_path, wrapper):
    two = train_on(2, cache, tmp_path / "two", **RUNS[wrapper][1] | LONG)
    first, second = (load_file(tmp_path / f"two-rank{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_same_run(long_one, two, steps=30, learning_rate=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP"])
def test_micro_batches_on_two_ranks_equal_one_batch(cache, tmp_path, wrapper):
    """Four parts with different numbers of positions, divided by the positions of all; SGD, in float32."""
    plain = {"optim": "sgd", "max_steps": 3}
    whole = train(cache, tmp_path / "one", **plain | {"per_device_train_batch_size": 12})
    parts = plain | {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "fsdp": wrapper == "FSDP"}
    assert_same_run(whole, train_on(2, cache, tmp_path / "two", **parts), optim="sgd")


@pytest.mark.slow
def test_a_run_continues_in_mid_epoch_on_two_then_one_then_four_ranks(cache, tmp_path):
    steps = {"max_steps": 12, "save_steps": 3}  # an epoch has 8
    straight = train(cache, tmp_path / "straight", **steps | {"per_device_train_batch_size": 8})
    output = tmp_path / "moving"
    train_on(2, cache, output, stop_after=4, **steps | {"per_device_train_batch_size": 4})
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    train_and_stop(7, cache, output, **steps | halves)
    final = train_on(4, cache, output, **steps | {"per_device_train_batch_size": 2})
    assert_close(curve(output), curve(straight.parent))
    assert_same_run(final, straight, steps=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"config": LLAMA | {"tie_word_embeddings": True}}},
        {"student": {"config": LLAMA | {"model_type": "mixtral", "num_local_experts": 4}}},
        {"loss": {"hidden": [{"student_layer": 2, "teacher_layer": "last"}]}},
        {"loss": {"source": "hidden"}},
        {"packing": {"row_tokens": 96}},
        {"fsdp_config": {"activation_checkpointing": True}},
        {"activation_checkpointing": True},
    ],
    ids=["tied", "experts", "hidden states", "whole distribution", "packed", "recomputed", "recomputed by itself"],
)
def test_any_student_ends_the_same_in_pieces(cache, tmp_path, changes):
    whole = train(cache, tmp_path / "one", **ONE | changes | {"max_steps": 2})
    pieces = train_on(2, cache, tmp_path / "two", **SHARDED | changes | {"max_steps": 2})
    assert_same_run(whole, pieces, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP"])
def test_adapters_on_two_ranks_end_and_continue_as_in_one_process(cache, tmp_path, wrapper):
    pytest.importorskip("peft")
    pretrained = tiny.save_teacher(tmp_path / "pretrained", tiny.model(seed=5))
    changes = {"student": {"pretrained": str(pretrained), "lora": {"r": 4, "lora_alpha": 8}}, "save_steps": 2}
    whole = train(cache, tmp_path / "one", **ONE | changes | {"max_steps": 4})
    two = {"DDP": TWO, "FSDP": SHARDED}[wrapper] | changes | {"max_steps": 4}
    train_on(2, cache, tmp_path / "two", stop_after=3, **two)
    again = train_on(2, cache, tmp_path / "two", **two)
    assert_same_run(whole, again, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP"])
def test_packed_on_two_ranks_ends_as_padded_in_one_process(cache, one, tmp_path, wrapper):
    run, changes = RUNS[wrapper]
    packed = run(cache, tmp_path / "packed", **changes | {"packing": {"row_tokens": 96}})
    assert_same_run(packed, one, steps=6)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("num_sequences", [1, 11, 12, 13])
def test_ranks_share_a_split_each_sequence_once_in_equally_many_batches(num_sequences, ranks):
    shares = [shared_batches(num_sequences, 4, rank, ranks) for rank in range(ranks)]
    assert len({len(share.batches) for share in shares}) == 1
    counted = [i for share in shares for batch in share.batches[: share.num_counted] for i in batch]
    assert counted == list(range(num_sequences))


@pytest.mark.slow
def test_two_ranks_train_from_a_bucket_as_from_disk(cache, one, tmp_path):
    with bucket.serve() as server:
        environment = bucket.environment(server)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            copy_cache(Cache(cache), store_path(f"{server.url}/cache"))
        final = train_on(2, f"{server.url}/cache", tmp_path / "run", environment=environment, **TWO)
    assert_same_run(final, one, steps=6)


@pytest.mark.slow
def test_half_precision_in_pieces_learns_what_half_precision_in_one_process_does(cache, tmp_path):
    whole = train(cache, tmp_path / "one", **ONE | {"bf16": True, "max_steps": 3})
    pieces = train_on(2, cache, tmp_path / "two", **SHARDED | {"bf16": True, "max_steps": 3})
    for one, two in zip(curve(whole.parent), curve(pieces.parent), strict=True):
        assert two["kl_nats"] == pytest.approx(one["kl_nats"], rel=0.01)
    assert weights(pieces)["lm_head.weight"].dtype == weights(whole)["lm_head.weight"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_deepspeed_ends_as_one_process_does_and_continues_on_as_many_ranks_only(cache, one, tmp_path):
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    engine = {"deepspeed": {"zero_optimization": {"stage": 2}} | dict.fromkeys(auto, "auto"), "save_steps": 3}
    on_cpu = {"DS_ACCELERATOR": "cpu"}
    train_on(2, cache, tmp_path / "run", stop_after=5, environment=on_cpu, **TWO | engine)
    final = train_on(2, cache, tmp_path / "run", environment=on_cpu, **TWO | engine)
    assert_same_run(final, one, steps=6)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    check_checkpoint(checkpoint, deepspeed_ranks=2)
    for ranks in (0, 1, 4):
        with pytest.raises(
            IdentityError, match=r"the optimizer state of this checkpoint cannot be read by this run .* on 2 ranks"
        ):
            check_checkpoint(checkpoint, deepspeed_ranks=ranks)


def test_pieces_for_one_process_are_refused(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.fsdp: FSDP needs ranks to share a student.*torchrun"):
        train(cache, tmp_path, **ONE | {"fsdp": True})


@pytest.mark.parametrize(
    ("plugins", "setting"),
    [
        ({"fsdp_plugin": {"fsdp_version": 1}}, "fsdp_config.version: .*expected 2, found 1"),
        ({"fsdp_plugin": {"cpu_ram_efficient_loading": True}}, "fsdp_config.cpu_ram_efficient_loading: .*found true"),
        (
            {"deepspeed_plugin": {"zero_stage": 3}},
            "deepspeed: zero_optimization.stage: .*expected 0 or 1 or 2, found 3",
        ),
        (
            {"deepspeed_plugin": {"deepspeed_config": {"fp16": {"enabled": True}}}},
            "deepspeed: fp16.enabled: .*found true",
        ),
    ],
)
def test_settings_that_would_change_the_result_are_refused(plugins, setting):
    usual = {
        "fsdp_plugin": {"fsdp_version": 2, "cpu_ram_efficient_loading": False},
        "deepspeed_plugin": {"zero_stage": 2, "deepspeed_config": {}},
    }
    state = {name: SimpleNamespace(**usual[name] | changes) for name, changes in plugins.items()}
    with pytest.raises(ConfigError, match=f"training.{setting}"):
        check_sharding(SimpleNamespace(state=SimpleNamespace(**{"deepspeed_plugin": None} | state)))
