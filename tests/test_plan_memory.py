"""Planned memory: weights and kept rows are exact, and the formulas are those of the documentation."""

import tracemalloc
from dataclasses import replace

import pytest
from test_target_kinds import KINDS

import tiny
from cache_tools.store.writer import commit_shard
from pipeline.capture import host_memory
from pipeline.capture.declare import declare
from pipeline.capture.predict import KeptOutputs, predict
from pipeline.capture.shards import _error_measures
from pipeline.capture.target import resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.planning import memory as planned
from pipeline.planning.capture_plan import PlanSettings, plan_capture
from pipeline.planning.tables import print_plan
from pipeline.run import Worker, prepare
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.tensor_plan import meta_model


def one_teacher(tmp_path, model_type="llama", **changes):
    folder = tiny.save_teacher(
        tmp_path / model_type, tiny.model(model_type), masked=model_type in ("bert", "modernbert")
    )
    objective = {"objective": "masked"} if model_type in ("bert", "modernbert") else {}
    values = tiny.capture_values(tmp_path, folder, **objective, **changes)
    config = CaptureConfig.model_validate(values)
    return config, resolve_teacher(config.teachers[0])


def plan_of(config, teacher):
    model = meta_model(teacher.config, config.encoding.objective, teacher.folder)
    return planned.plan_memory(teacher, model, config.encoding)


@pytest.mark.parametrize("model_type", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_loaded_teacher(tmp_path, model_type, dtype):
    config, teacher = one_teacher(tmp_path, model_type, dtype=dtype)
    model = load_teacher(teacher.config, teacher.folder, config.encoding.objective).head.model
    weights = plan_of(config, teacher).weights_bytes
    assert weights == planned.weight_bytes(model) > 10_000
    assert weights >= model.num_parameters() * model.dtype.itemsize


def declared(values):
    """Encode and declare what a dictionary describes, without a shard: teacher, encoding, cached teacher, model."""
    config = CaptureConfig.model_validate(values)
    encoding, (teacher,) = prepare(config, Worker(), tiny.SilentReporter())
    loaded = load_teacher(teacher.config, teacher.folder, "causal")
    cached = declare(encoding, loaded, teacher.config, teacher.target, config.encoding.chunk_positions)
    return teacher, encoding, cached, loaded


@pytest.mark.parametrize("kind", KINDS)
def test_kept_rows_are_as_large_as_the_predictions(tmp_path, kind):
    tiny.write_corpus(tmp_path / "corpus.jsonl", tiny.TEXTS[:9])
    values = tiny.capture_values(tmp_path, target=KINDS[kind], hidden={"layers": ["last", 1]})
    teacher, encoding, _, loaded = declared(values)
    kept = KeptOutputs(teacher.target.keep, ("last", "1"))
    rows = predict(encoding.sequences(0), "causal", loaded, kept, 512)
    arrays = [*vars(rows.targets).values(), *rows.scalars.values(), *rows.hidden.values()]
    size = sum(array.nbytes for array in arrays)
    assert (
        host_memory.kept_bytes_per_position(teacher, host_memory.ModelShape.of(loaded.head.model))
        == size / encoding.shards[0].positions
    )


def test_activations_follow_the_formula(tmp_path):
    config, teacher = one_teacher(tmp_path, hidden={"layers": [1]})
    memory = plan_of(config, teacher)
    width, inner, length, tokens = 32, 48, 48, 512
    attention = (4 + 2) * width + length  # as many key heads as query heads
    states = 3 * width  # embeddings and two layers
    assert memory.body_bytes == tokens * (4 * (4 * width + max(3 * inner, attention) + states) + length)
    assert memory.head_bytes == (tokens + -(-tokens // 2)) * 4 * 300 + 2 * 4 * tokens * width
    assert memory.device_bytes == memory.weights_bytes + max(memory.body_bytes, memory.head_bytes)
    host = memory.kept_bytes + memory.writing_bytes + memory.batch_bytes
    assert memory.host_bytes == memory.device_bytes + host
    per_position = host_memory.kept_bytes_per_position(teacher, host_memory.shape_of(teacher, "causal"))
    assert memory.kept_bytes == 2 * config.encoding.positions_per_shard * per_position
    assert memory.batch_bytes == 2 * tokens * per_position


def test_a_chunk_of_logits_bounds_the_head(tmp_path):
    _, teacher = one_teacher(tmp_path)
    model = meta_model(teacher.config, "causal", teacher.folder)
    assert planned.head_bytes(model, 512, 7 * 4 * 300) == (7 + 4) * 4 * 300 + 2 * 4 * 512 * 32


POSITIONS = 8192
WRITTEN = {
    "topk": {"target": {"k": 64}},
    "exact": {"target": {"k": 64, "exact": True}},
    "sampled": {"target": {"kind": "sampled", "draws": 64}},
    "hybrid": {"target": {"kind": "hybrid", "k": 16, "draws": 48}},
    "dense": {"target": {"kind": "dense"}},
    "bfloat16": {"target": {"k": 4}, "hidden": {"layers": ["last", 1], "codec": "bfloat16"}},
    "float32": {"target": {"k": 4}, "hidden": {"layers": ["last", 1], "codec": "float32"}},
    "budget": {"target": {"k": 4}, "hidden": {"layers": [1, 2], "codec": "budget"}},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_shard_takes_while_it_is_written_is_what_is_planned(tmp_path, name):
    """Arrays and bytes that are alive at once, as Python counts them: no allocator, no pages."""
    folder = tmp_path / "teacher"
    tiny.save_teacher(folder, tiny.model(hidden_size=64))
    changes = {"positions_per_shard": POSITIONS, "chunk_positions": 1024} | WRITTEN[name]
    values = tiny.capture_values(tmp_path, folder, held_out_fraction=0, **changes)
    tiny.write_corpus(tmp_path / "corpus.jsonl", tiny.TEXTS * 6)
    teacher, encoding, cached, loaded = declared(values)
    kept = KeptOutputs(teacher.target.keep, tuple(cached.manifest.hidden))
    rows = predict(encoding.sequences(0), "causal", loaded, kept, 512)
    errors = _error_measures(cached, loaded)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    commit_shard(cached, 0, rows, {}, errors)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    positions = encoding.shards[0].positions
    per_position = host_memory.writing_bytes_per_position(teacher, host_memory.ModelShape.of(loaded.head.model))
    blocks = (
        2048 * 8 * 6 * max(64, teacher.target.keep.slots(300))
    )  # of intermediate results, whatever the shard's size
    assert positions > 0.9 * POSITIONS
    assert 0.6 * per_position * positions < peak < per_position * positions + blocks


@pytest.mark.parametrize(("there", "words"), [(10**12, False), (10**4, True), (None, False)])
def test_a_plan_says_when_a_gpu_is_too_small(tmp_path, capsys, there, words):
    config = CaptureConfig.model_validate(tiny.capture_values(tmp_path))
    plan = plan_capture(config, PlanSettings(sample_documents=5))
    (teacher,) = plan.teachers
    memory = replace(teacher.memory, device="cuda", device_total_bytes=there)
    print_plan(replace(plan, teachers=(replace(teacher, memory=memory),)))
    assert ("NOT FIT" in " ".join(capsys.readouterr().out.split())) == words
