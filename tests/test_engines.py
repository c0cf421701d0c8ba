"""A teacher that an engine reads in another process is the same teacher: its rows, its identity, its failures.

The process runs the shipped file, with a stand-in for vLLM; see ``tests/support/fake_engine``.
"""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import tiny
from cache_tools.errors import ConfigError, ModelError
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from engine_fixtures import by_engine, engine_python
from pipeline.audit.asking import engine_assignments
from pipeline.audit.run import run_audit
from pipeline.config.capture_file import CaptureConfig
from pipeline.engines.opening import CHILDREN
from pipeline.engines.own_rows import OwnRows
from pipeline.engines.process import EngineProcess
from pipeline.planning.capture_plan import plan_capture
from pipeline.planning.tables import print_plan
from pipeline.run import Worker, run_capture
from refusal_fixtures import command_line, write_yaml
from store_fixtures import snapshot
from tolerances import model_rounding

EXACT = {"target": {"k": 16, "exact": True}, "hidden": {"layers": ["last"], "codec": "float32"}}


def settings(values):
    return CaptureConfig.model_validate(values)


def capture_values(folder, teacher, **changes):
    values = tiny.capture_values(folder, teacher, positions_per_shard=256, batch_tokens=300, **EXACT | changes)
    tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:12])
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("engines")
    tiny.save_teacher(made / "teacher")
    return made


@pytest.fixture(scope="module")
def python(folder):
    return engine_python(folder)


@pytest.fixture(scope="module")
def values(folder):
    return capture_values(folder, folder / "teacher")


@pytest.fixture(scope="module")
def cache(folder, values, python):
    """The same model as two teachers: ``toy`` read here, ``served`` by the engine."""
    tiny.run(values)
    tiny.run(by_engine(values, python, name="served"))
    return Cache(folder / "cache")


def run_and_die(monkeypatch, values, call):
    monkeypatch.setenv("FAKE_VLLM_DIE_AT", str(call))
    with pytest.raises(ModelError) as refusal:
        tiny.run(values)
    monkeypatch.delenv("FAKE_VLLM_DIE_AT")
    return str(refusal.value)


def test_rows_scalars_and_states_are_those_of_the_ordinary_capture(cache):
    encoding = cache.encoding()
    ours, engine = (encoding.teacher(name) for name in ("toy", "served"))
    config = tiny.model().config
    for shard in range(len(encoding.shards)):
        rows = ours.shard_rows(shard)
        a, b = ours.targets(*rows), engine.targets(*rows)
        tolerance = model_rounding(config, 48, ours.scalar("logsumexp", *rows))
        assert tolerance < 1e-2
        assert np.array_equal(a.ids, b.ids)
        assert a.log_probs == pytest.approx(b.log_probs, rel=0, abs=tolerance)
        assert np.sqrt(np.mean(np.square(np.exp(a.log_probs) - np.exp(b.log_probs)))) <= 1e-6
        for name in ours.manifest.scalars:
            assert ours.scalar(name, *rows) == pytest.approx(engine.scalar(name, *rows), rel=0, abs=tolerance)
        assert ours.hidden("last", *rows) == pytest.approx(engine.hidden("last", *rows), rel=0, abs=tolerance)
    assert ours.file("head.safetensors") == engine.file("head.safetensors")
    assert verify(cache.path, deep=True) == []


def test_the_identity_and_the_receipts_name_the_engine(cache, capsys, monkeypatch):
    teacher = cache.encoding().teacher("served")
    assert teacher.manifest.identity["engine"] == {
        "name": "vllm",
        "version": "0.0.fake",
        "attention": "FAKE_ATTN",
        "dtype": "float32",
        "batch_tokens": 300,
    }
    assert "engine" not in cache.encoding().teacher("toy").manifest.identity
    assert "vllm 0.0.fake on cpu" in teacher.receipt(0).provenance["targets"]["software"]
    assert command_line(monkeypatch, "inspect", cache.path) == 0
    words = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "read by vllm 0.0.fake" in words


def audit(values):
    (report,) = run_audit(settings(values), None, tiny.SilentReporter()).teachers
    return report


def test_a_command_chooses_who_is_asked(cache, folder, values, python, monkeypatch, capsys):
    (block,) = values["teachers"]
    served = by_engine(values, python, name="served")["teachers"][0]
    made = {"toy": block, "served": served, "null": block | {"engine": None}}
    paths = {}
    for name, teacher in made.items():
        (folder / name).mkdir()
        paths[name] = write_yaml(folder / name, values | {"teachers": [teacher]})
    asked = {"toy": python, "served": "transformers", "null": python}
    for name, engine in asked.items():
        assert command_line(monkeypatch, "audit", paths[name], "--engine", engine) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("captured by")]
    expected = "rounding alone is expected to cost about 2e-11 nats of KL between them"
    by_transformers = f"captured by transformers, asked by vllm 0.0.fake; {expected}"
    assert lines == [by_transformers, f"captured by vllm 0.0.fake, asked by transformers; {expected}", by_transformers]


def test_an_engine_that_is_asked_keeps_its_options(tmp_path):
    engine = {"kind": "vllm", "python": "a", "options": {"seed": 1}}
    teachers = [{"name": "x", "model": "y"} | more for more in ({"engine": engine}, {})]
    path = write_yaml(tmp_path, {"cache": "c", "corpus": {"paths": ["d"]}, "teachers": teachers})
    assert engine_assignments(path, "/b c") == (
        'teachers.0.engine.python="/b c"',
        'teachers.1.engine={"kind": "vllm", "python": "/b c"}',
    )
    assert engine_assignments(path, "transformers") == ("teachers.0.engine=null", "teachers.1.engine=null")


def test_each_side_audits_the_other(cache, values, python):
    (block,) = values["teachers"]
    reports = [
        audit(values | {"teachers": [block | {"name": "served"}]}),
        audit(by_engine(values, python)),
        audit(by_engine(values, python, name="served", batch_tokens=90)),
    ]
    assert all(report.passed and not report.identity for report in reports)
    names = ("transformers", "vllm 0.0.fake")
    assert [(report.captured_by, report.asked_by) for report in reports] == [names[::-1], names, names[1:] * 2]


def test_a_killed_engine_is_one_error_and_its_shard_is_redone_to_the_same_bytes(tmp_path, folder, python, monkeypatch):
    whole, part = (tmp_path / name for name in ("whole", "part"))
    made = []
    for place in (whole, part):
        place.mkdir()
        made.append(by_engine(capture_values(place, folder / "teacher"), python))
    tiny.run(made[0])
    errors = [run_and_die(monkeypatch, made[1], call) for call in (1, 9, 16)]
    for error in errors:
        assert "the engine of teacher 'toy' has stopped (found signal 9; its last lines: " in error
        assert "the last words of the engine" in error
        assert "run the same command again" in error
    assert len(Cache(made[1]["cache"]).encoding().teacher("toy").missing_shards()) > 0
    tiny.run(made[1])
    ours, theirs = (snapshot(place / "cache") for place in (whole, part))
    assert {key: content for key, content in ours.items() if "receipts" not in str(key)} == {
        key: content for key, content in theirs.items() if "receipts" not in str(key)
    }


def test_ranks_share_a_capture_each_with_an_engine_of_its_own(tmp_path, folder, python):
    values = by_engine(capture_values(tmp_path, folder / "teacher"), python)
    shards = [run_capture(settings(values), Worker(rank, 2), tiny.SilentReporter())["toy"] for rank in (0, 1)]
    encoding = Cache(tmp_path / "cache").encoding()
    assert sum(shards) == len(encoding.shards)
    assert min(shards) > 0
    assert encoding.teacher("toy").missing_shards() == []


def test_no_engine_outlives_its_teacher(python):
    process = EngineProcess(str(python), str(CHILDREN["vllm"]), "teacher 'toy'")
    number = process.pid
    os.kill(number, 0)
    del process
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_no_engine_outlives_a_program_that_is_killed(python):
    code = (
        "import sys, time; from pipeline.engines.process import EngineProcess; "
        "process = EngineProcess(sys.argv[1], sys.argv[2], 'x'); print(process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(python), str(CHILDREN["vllm"])],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not os.path.exists(f"/proc/{number}"):
            return
        time.sleep(0.1)
    pytest.fail("the engine's process is still there")


FAULTS = {
    "normalised": "found states of length 1: they were normalised",
    "other layer": "more than twice that of guessing",
    "rows": "vLLM returned",
    "ids": "vLLM read other token ids than it was given",
    "scaled head": "do not give the engine's own log-probabilities",
    "width": "the engine's states are of another width than the model's (expected 32, found 33)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_answers_something_else_is_refused(tmp_path, folder, python, monkeypatch, fault):
    monkeypatch.setenv("FAKE_VLLM_FAULT", fault)
    with pytest.raises(ModelError) as refusal:
        tiny.run(by_engine(capture_values(tmp_path, folder / "teacher"), python))
    assert FAULTS[fault] in str(refusal.value)


def test_a_declared_teacher_is_not_asked_for_its_log_probabilities_again(tmp_path, folder, python, monkeypatch):
    values = by_engine(capture_values(tmp_path, folder / "teacher"), python)
    tiny.run(values)
    monkeypatch.setenv("FAKE_VLLM_FAULT", "scaled head")
    tiny.run(values)
    engine = values["teachers"][0]["engine"] | {"compare_log_probs": False}
    tiny.run(by_engine(values, python, name="unasked", engine=engine))
    assert verify(tmp_path / "cache", deep=True) == []


def test_the_distance_from_an_engines_own_rows_is_their_kl():
    generator = np.random.default_rng(0)
    own, here = (generator.normal(0, 2, (9, 50)) for _ in range(2))
    ids = np.argsort(-own, axis=1)[:, :20]
    ids[3, 12:] = -1
    p, q = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) for logits in (own, here))
    expected = []
    for row, a, b in zip(ids, p, q, strict=True):
        kept = row[row >= 0]
        sides = [[*side[kept], 1 - side[kept].sum()] for side in (a, b)]
        expected.append(sum(x * np.log(x / y) for x, y in zip(*sides, strict=True)))
    log_probs = np.where(ids >= 0, np.take_along_axis(np.log(p), ids, 1), -np.inf).astype(np.float32)
    rows = OwnRows(np.arange(10), ids, log_probs)
    assert rows.kl_nats(torch.from_numpy(here)) == pytest.approx(np.mean(expected), rel=1e-5)
    with pytest.raises(ModelError, match="at most 3e-05 nats over the first 9 rows"):
        rows.check(torch.from_numpy(here), "float32", "engine 1")


def test_a_python_without_the_engine_is_refused(tmp_path, folder):
    values = capture_values(tmp_path, folder / "teacher")
    with pytest.raises(ModelError, match="has failed \\(found ModuleNotFoundError: No module named 'vllm'"):
        tiny.run(by_engine(values, sys.executable))
    with pytest.raises(ConfigError, match=r"cannot be started .*found /nowhere/python: No such file"):
        tiny.run(by_engine(values, "/nowhere/python"))


REFUSED = {
    "middle layers": ({"hidden": {"layers": [1]}}, "engine and hidden.layers exclude each other: vllm gives the last"),
    "packing": ({"packing": True}, "engine and packing exclude each other"),
    "compile": ({"compile": True}, "engine and compile exclude each other"),
    "attention": ({"attention": "eager"}, "engine and attention exclude each other"),
    "device_map": ({"device_map": "auto"}, "engine and device_map exclude each other"),
    "tensor_parallel": ({"tensor_parallel": 2}, "set engine.options.tensor_parallel_size"),
    "gguf": ({"gguf_file": "model.gguf"}, "engine and gguf_file exclude each other"),
    "our own settings": (
        {"engine": {"kind": "vllm", "python": "x", "options": {"dtype": "half"}}},
        "options cannot set dtype, which the capture decides",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_engine_cannot_do_is_refused_in_one_sentence(values, python, name):
    changes, message = REFUSED[name]
    with pytest.raises(ValidationError, match=message):
        settings(by_engine(values, python, **changes))


def test_a_masked_objective_is_refused(values, python):
    masked = values | {"encoding": values["encoding"] | {"objective": "masked"}}
    with pytest.raises(ValidationError, match="teacher 'toy': an engine predicts next tokens only; leave engine out"):
        settings(by_engine(masked, python))


def test_a_head_that_is_not_there_or_quantised_is_refused(tmp_path, python):
    folder = tiny.save_teacher(tmp_path / "teacher")
    path = folder / "model.safetensors"
    weights = load_file(path)
    values = by_engine(capture_values(tmp_path, folder), python)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"quantization_config": {"quant_method": "fp8"},', 1))
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"].to(torch.int8)}, path, {"format": "pt"})
    message = (
        "cannot be read apart from its body .expected floating-point numbers under the name lm_head.weight, found "
    )
    with pytest.raises(ModelError, match=f"{message}type I8"):
        tiny.run(values)
    del weights["lm_head.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{message}no such tensor"):
        tiny.run(values)


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite", "gpt2"])
def test_a_head_without_its_body_gives_the_models_own_logits(tmp_path, model_type):
    from pipeline.config.teacher import TeacherConfig
    from pipeline.engines.output_head import load_output_head
    from pipeline.teachers.body_and_head import output_scaling, run_body, run_head

    model = tiny.model(model_type)
    folder = tiny.save_teacher(tmp_path, model)
    head = load_output_head(TeacherConfig(name="x", model=str(folder)), folder, "causal", torch.device("cpu"))
    ids = torch.arange(20, 29)[None]
    with torch.inference_mode():
        states = run_body(model, ids, torch.ones_like(ids), hidden=False)[0][0]
        whole, alone = run_head(model, states), run_head(head, states)
        assert torch.equal(whole.logits, alone.logits)
        assert output_scaling(model, whole) == output_scaling(head, alone)


def test_a_plan_says_who_reads(cache, values, python, capsys):
    plan = plan_capture(settings(by_engine(values, python)))
    assert plan.teachers[0].engine == "vllm"
    print_plan(plan)
    assert "vllm, in a process" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def child():
    spec = importlib.util.spec_from_file_location("vllm_child", CHILDREN["vllm"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_states_cross_the_pipe_in_their_own_type_without_loss(child, dtype):
    kind = getattr(torch, dtype)
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(kind)
    name, content = child.shortest(values.float().numpy(), dtype)
    assert name == dtype
    assert torch.equal(torch.frombuffer(bytearray(content), dtype=kind).reshape(7, 5), values)
    between = values.float().numpy() + np.float32(2.0**-20)
    assert child.shortest(between, dtype) == ("float32", between.tobytes())
