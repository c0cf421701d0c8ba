import json
import shutil

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, set_seed

import tiny
from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.format.vocabulary import vocabulary_fingerprint
from cache_tools.store.reader import Cache
from logitcask import cli
from student_fixtures import (
    BERT,
    LLAMA,
    LOSS_ROUNDING,
    StoppedError,
    assert_same_run,
    curve,
    largest_difference,
    naive_kl_nats,
    student_values,
    train,
    weights,
)
from trainer.config.student_file import StudentConfig
from trainer.config.training_arguments import training_arguments
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.data.sampler import ShardWindowSampler
from trainer.student.student import build_student


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def other_cache(tmp_path_factory):
    """The same text, said otherwise: a cache of another teacher over the same encoding."""
    folder = tmp_path_factory.mktemp("other")
    return tiny.capture(folder, tiny.save_teacher(folder / "teacher", tiny.model(seed=1))).path


def first_batch(cache, size=8):
    teacher = Cache(cache).encoding().teacher()
    dataset = CachedSequences(teacher, "train", 300)
    order = list(ShardWindowSampler(dataset.shard_sizes, 4, seed=42))
    return collate([dataset[i] for i in order[:size]])


@pytest.mark.parametrize("tail", ["ghost", "renormalise"])
@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_the_first_loss_is_the_stated_mix_by_naive_computation(cache, tmp_path, weight, tail):
    train(cache, tmp_path, loss={"kd_weight": weight, "tail": tail, "allow_biased": True}, max_steps=1)
    set_seed(42)
    student = build_student(
        StudentConfig.model_validate(student_values(cache, tmp_path)).student, Cache(cache).encoding()
    )
    batch = first_batch(cache)
    kept = batch["gold_ids"] != IGNORED
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[kept].detach()
    names = ("target_ids", "target_log_probs", "target_log_left_out")
    kl = naive_kl_nats(logits, *(batch[name] for name in names), tail).mean()
    cross_entropy = F.cross_entropy(logits.double(), batch["gold_ids"][kept])
    (logged,) = curve(tmp_path)
    expected = float(weight * kl + (1 - weight) * cross_entropy)
    assert logged["loss"] == pytest.approx(expected, rel=0, abs=LOSS_ROUNDING)
    assert ("kl_nats" in logged) == (weight > 0)
    assert weight == 0 or logged["kl_nats"] == pytest.approx(float(kl), rel=0, abs=LOSS_ROUNDING)
    assert logged["cross_entropy_nats"] == pytest.approx(float(cross_entropy), rel=0, abs=LOSS_ROUNDING)


@pytest.mark.parametrize("micro_sequences", [4, 2, 1])
def test_accumulating_micro_batches_equals_one_batch_of_eight(cache, tmp_path, micro_sequences):
    """Up to rounding in float32, though the micro-batches hold different numbers of positions."""
    lengths = first_batch(cache)["attention_mask"].sum(dim=1)
    assert len(set(lengths.reshape(-1, micro_sequences).sum(dim=1).tolist())) > 1
    whole = train(cache, tmp_path / "whole", optim="sgd")
    changes = {"per_device_train_batch_size": micro_sequences, "gradient_accumulation_steps": 8 // micro_sequences}
    assert_same_run(whole, train(cache, tmp_path / "parts", optim="sgd", **changes), optim="sgd")


@pytest.mark.parametrize("weight", [0, 1])
def test_what_the_teacher_said_reaches_the_gradient_of_the_kd_loss_only(cache, other_cache, tmp_path, weight):
    loss = {"kd_weight": weight}
    one, other = (train(c, tmp_path / c.parent.name, loss=loss, max_steps=1, optim="sgd") for c in (cache, other_cache))
    assert (largest_difference(weights(one), weights(other)) > 1e-5) == (weight == 1)


def test_a_masked_student_trains(tmp_path):
    teacher = tiny.save_teacher(tmp_path / "teacher", masked=True)
    cache = tiny.capture(tmp_path, teacher, objective="masked").path
    final = train(cache, tmp_path / "run", student={"config": BERT}, max_steps=20)
    losses = [line["loss"] for line in curve(tmp_path / "run")]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert AutoModelForMaskedLM.from_pretrained(final).config.model_type == "bert"


def test_a_pretrained_student_starts_from_its_weights(cache, tmp_path):
    start = tiny.save_teacher(tmp_path / "start", tiny.model(seed=5))
    final = train(cache, tmp_path / "run", student={"pretrained": str(start)}, learning_rate=0.0)
    assert largest_difference(weights(final), weights(start)) == 0


def test_recomputing_activations_changes_nothing(cache, tmp_path):
    known = transformers.TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    plain = train(cache, tmp_path / "plain")
    checkpointed = train(cache, tmp_path / "checkpointed", **{name: True})
    assert_same_run(plain, checkpointed)


def test_a_finished_run_is_left_alone(cache, tmp_path, monkeypatch):
    final = train(cache, tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("trainer.run.train.build_student", None)
    assert train(cache, tmp_path) == final
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_run_is_recorded_before_the_first_step(cache, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise StoppedError

    monkeypatch.setattr("trainer.run.train.StepProgress.on_train_begin", stop)
    with pytest.raises(StoppedError):
        train(cache, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"] == json.loads(StudentConfig(**student_values(cache, tmp_path)).model_dump_json())
    assert record["caches"] == [str(cache)]
    assert record["versions"]["transformers"] == transformers.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 0.02}, "config.training.learning_rate: 0.01 -> 0.02"),
        ({"loss": {"kd_weight": 0.5}}, "config.loss.kd_weight: 1.0 -> 0.5"),
        ({"student": {"config": LLAMA | {"hidden_size": 64}}}, "config.student.config.hidden_size: 32 -> 64"),
        ({"window_shards": 1}, "config.window_shards: 4 -> 1"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_in_the_same_folder_is_refused(cache, tmp_path, changes, difference, finished):
    train(cache, tmp_path)
    if not finished:
        shutil.rmtree(tmp_path / "final")
    with pytest.raises(IdentityError) as refusal:
        train(cache, tmp_path, **changes)
    assert f"found {difference})" in str(refusal.value)


def test_another_cache_in_the_same_folder_is_refused_and_a_moved_one_is_not(cache, other_cache, tmp_path):
    train(cache, tmp_path)
    one, other = (Cache(path).encoding().teacher().manifest.fingerprint for path in (cache, other_cache))
    with pytest.raises(IdentityError, match=rf'found teacher: "{one[:30]}.* -> "{other[:30]}'):
        train(other_cache, tmp_path)
    shutil.copytree(cache, tmp_path / "moved")
    train(tmp_path / "moved", tmp_path)


def test_the_finished_student_is_an_ordinary_model_folder(cache, tmp_path):
    final, encoding = train(cache, tmp_path), Cache(cache).encoding()
    student = AutoModelForCausalLM.from_pretrained(final)
    assert largest_difference(weights(final), student.state_dict()) == 0
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert vocabulary_fingerprint(tokenizer.get_vocab()) == encoding.manifest.identity["tokenizer"]["vocabulary"]
    identity = json.loads((final / "logitcask.json").read_text())["identity"]
    assert identity["encoding"] == encoding.manifest.contents_fingerprint
    assert identity["teacher"] == encoding.teacher().manifest.fingerprint
    assert {path.suffix for path in final.iterdir()} == {".json", ".safetensors"}
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_prints_where_the_finished_student_lies(cache, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text(json.dumps(student_values(cache, tmp_path / "run")))
    result = CliRunner().invoke(cli, ["train", str(file), "--set", "training.learning_rate=1e-4"])
    assert result.stdout == f"{tmp_path / 'run' / 'final'}\n"
    assert curve(tmp_path / "run")[0]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing_factor": 0.1},
        {"save_only_model": True},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 100},
        {"train_sampling_strategy": "group_by_length"},
    ],
)
def test_an_argument_that_would_break_a_promise_is_refused(cache, tmp_path, changes):
    with pytest.raises(
        ConfigError, match=rf"training.{next(iter(changes))}: this argument cannot be used with logitcask"
    ):
        train(cache, tmp_path, **changes)


def test_an_unknown_training_argument_is_refused_by_its_name(cache, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"training.learning_rat: .* no training argument of this name \(expected perhaps learning_rate\)",
    ):
        train(cache, tmp_path, learning_rat=0.1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        ({"config": LLAMA | {"model_type": "lama"}}, "lama"),
        ({"config": LLAMA | {"hidden_size": 31}}, "31.* is not a multiple of the number of attention heads"),
        ({"config": LLAMA | {"hidden_size": "wide"}}, "hidden_size"),
        ({"pretrained": "/nowhere"}, "no folder of this name"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused_with_the_reason(cache, tmp_path, student, reason):
    with pytest.raises(ModelError, match=f"the student cannot be made .*{reason}"):
        train(cache, tmp_path, student=student)


def test_damaged_weights_to_start_from_are_refused(cache, tmp_path):
    start = tiny.save_teacher(tmp_path / "start")
    (start / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="the student cannot be made"):
        train(cache, tmp_path / "run", student={"pretrained": str(start)})


def test_a_student_with_another_tokenizer_is_refused(cache, tmp_path):
    start = tiny.save_teacher(tmp_path / "start")
    tiny.tokenizer(vocabulary_size=290).save_pretrained(start)
    with pytest.raises(IdentityError, match="the student has another tokenizer than the cache"):
        train(cache, tmp_path / "run", student={"pretrained": str(start)})


@pytest.mark.parametrize("missing", [1, 0, -4])
def test_a_student_has_at_least_as_many_logits_as_the_tokenizer_has_ids(cache, tmp_path, missing):
    size = Cache(cache).encoding().manifest.vocabulary_size - missing
    changes = {"student": {"config": LLAMA | {"vocab_size": size}}, "max_steps": 1}
    if missing <= 0:
        assert weights(train(cache, tmp_path, **changes))["lm_head.weight"].shape[0] == size
        return
    with pytest.raises(IdentityError, match=f"expected vocab_size of at least {size + 1}, found {size}"):
        train(cache, tmp_path, **changes)


def test_one_process_uses_one_gpu(cache, tmp_path, monkeypatch):
    def four_gpus(arguments):
        arguments._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(transformers.TrainingArguments, "_setup_devices", property(four_gpus))
    arguments = training_arguments(StudentConfig.model_validate(student_values(cache, tmp_path)))
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 8)
