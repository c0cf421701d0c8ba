"""No weight is invented: what a checkpoint lacks, has too much of, or has in another shape is refused by name."""

import json
import logging
from importlib.util import find_spec

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertForPreTraining

import tiny
from cache_tools.errors import LogitcaskError, ModelError
from cache_tools.models.loading_report import check_report
from cache_tools.store.reader import Cache
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.checkpoint import check_tensors, load_teacher_checkpoint
from pipeline.teachers.loading import resolve_model
from student_fixtures import LLAMA, train, train_and_stop
from trainer.config.student_file import StudentModelConfig
from trainer.evaluation.evaluate import evaluate_folder
from trainer.student.initial_weights import initial_weights

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture
def teacher(tmp_path):
    return tiny.save_teacher(tmp_path / "model")


def change(folder, lose=(), **more):
    """Rewrite a folder's weights without some tensors and with others."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    for name in lose:
        del tensors[name]
    save_file(tensors | more, weights, metadata={"format": "pt"})
    return folder


def block(folder):
    return TeacherConfig(name="toy", model=str(folder), dtype="float32")


def refused(folder, objective="causal"):
    """Both looks at a teacher must refuse it; return what the first says."""
    with pytest.raises(ModelError) as first:
        check_tensors(block(folder), folder, objective)
    with pytest.raises(ModelError) as second:
        load_teacher_checkpoint(block(folder), folder, objective)
    assert str(first.value) == str(second.value)
    return str(first.value)


@pytest.mark.parametrize("name", [UP, "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_teacher_that_lacks_a_tensor_is_refused_before_anything_is_encoded(tmp_path, teacher, name):
    change(teacher, lose=[name])
    with pytest.raises(ModelError, match=rf"1 missing: {name}\b.*random numbers"):
        tiny.capture(tmp_path, teacher)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("tensors", "advice"),
    [
        ({"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}, "restore the configuration"),
        ({"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}, "quantization_config"),
        ({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)}, "quantization_config"),
        ({"base_model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 32)}, "merge the adapter"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, "restore the configuration"),
        ({"score.weight": torch.zeros(2, 32)}, "complete checkpoint"),
    ],
)
def test_unexpected_tensors_are_refused_with_what_to_do(teacher, tensors, advice):
    message = refused(change(teacher, **tensors))
    assert f"1 unexpected: {next(iter(tensors))}" in message
    assert advice.lower() in message.lower()


@pytest.mark.parametrize("placement", [{}, {"device_map": {"": "cpu"}}])
def test_a_tensor_of_another_shape_is_refused_with_both_shapes(teacher, placement):
    change(teacher, **{UP: torch.zeros(40, 32)})
    assert f"1 of another shape: {UP} 40×32 instead of 48×32" in refused(teacher)
    with pytest.raises(ModelError, match="40×32"):
        load_teacher_checkpoint(block(teacher), teacher, "causal", **placement)


def test_a_configuration_with_fewer_layers_than_the_file_is_refused(teacher):
    path = teacher / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1, "layer_types": None}))
    assert "unexpected: model.layers.1." in refused(teacher)


def test_a_configuration_with_more_layers_than_the_file_is_refused(teacher):
    path = teacher / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3, "layer_types": None}))
    assert "missing: model.layers.2." in refused(teacher)


def test_an_encoder_is_no_masked_teacher_and_the_message_says_why(tmp_path):
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", **{**tiny.SHAPE, "vocab_size": 300}))
    encoder.save_pretrained(tmp_path / "encoder")
    message = refused(tmp_path / "encoder", "masked")
    assert "no head" in message
    assert "cls.predictions" in message


def test_a_missing_weight_file_of_several_is_one_sentence(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2
    check_tensors(block(tmp_path / "model"), tmp_path / "model", "causal")
    files[1].unlink()
    with pytest.raises(ModelError, match=rf"weight files are missing .*missing: {files[1].name}"):
        tiny.capture(tmp_path, tmp_path / "model")


def test_an_adapter_beside_the_weights_is_refused(teacher):
    (teacher / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere"}))
    assert "holds an adapter" in refused(teacher)


@pytest.mark.parametrize("kind", sorted({*tiny.ARCHITECTURES, "mixtral", "qwen3_moe", "electra", "roberta"}))
def test_what_was_saved_whole_is_loaded_without_a_word(tmp_path, kind, caplog):
    """Tied weights, merged experts and rebuilt buffers are neither missing nor unexpected."""
    objective = "masked" if kind in ("bert", "modernbert", "electra", "roberta") else "causal"
    if kind in ("electra", "roberta"):
        from transformers import AutoModelForMaskedLM

        made = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **{**tiny.SHAPE, "vocab_size": 300}))
    else:
        made = tiny.model(kind, **{"tie_word_embeddings": True, **tiny.ARCHITECTURES.get(kind, {})})
    made.save_pretrained(tmp_path)
    check_tensors(block(tmp_path), tmp_path, objective)
    with caplog.at_level(logging.WARNING, logger="transformers.modeling_utils"):
        loaded = load_teacher_checkpoint(block(tmp_path), tmp_path, objective)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in made.state_dict().items())
    assert "LOAD REPORT" not in caplog.text


def test_a_checkpoint_with_pooler_and_next_sentence_head_is_a_masked_teacher(tmp_path):
    made = BertForPreTraining(AutoConfig.for_model("bert", **{**tiny.SHAPE, "vocab_size": 300}))
    made.save_pretrained(tmp_path)
    check_tensors(block(tmp_path), tmp_path, "masked")
    load_teacher_checkpoint(block(tmp_path), tmp_path, "masked")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "transformer.h.0.attn.bias",
        "transformer.h.3.attn.attention.masked_bias",
        "bert.embeddings.position_ids",
        "bert.pooler.dense.weight",
        "mtp.layers.0.weight",
    ],
)
def test_what_no_prediction_depends_on_may_be_there(name):
    check_report({"missing_keys": (), "unexpected_keys": [name], "mismatched_keys": ()}, "x", "y", "z")


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.bias", "lm_head.bias", "v_head.summary.weight", "model.mtpx.weight"])
def test_what_a_prediction_may_depend_on_is_refused_in_doubt(name):
    with pytest.raises(ModelError, match="1 unexpected"):
        check_report({"missing_keys": (), "unexpected_keys": [name], "mismatched_keys": ()}, "x", "y", "z")


def test_a_message_names_some_tensors_and_counts_the_others():
    names = [f"a{i}" for i in range(9)]
    with pytest.raises(ModelError, match="9 missing: a0, a1, a2, a3 and 5 more"):
        check_report({"missing_keys": names, "unexpected_keys": (), "mismatched_keys": ()}, "x", "y", "z")


@pytest.mark.parametrize("damage", [{"lose": ["lm_head.weight"]}, {UP: torch.zeros(40, 32)}, {"extra": torch.zeros(1)}])
def test_a_pretrained_student_that_does_not_fit_is_refused(cache, tmp_path, damage):
    start = change(tiny.save_teacher(tmp_path / "start", tiny.model(seed=5)), **damage)
    with pytest.raises(ModelError, match="the weights of the student"):
        train(cache, tmp_path / "run", student={"pretrained": str(start)})


def test_a_student_that_lacks_a_tensor_is_not_evaluated(cache, tmp_path):
    folder = change(tiny.save_teacher(tmp_path / "student"), lose=["lm_head.weight"])
    with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight"):
        evaluate_folder(folder, Cache(cache).encoding().teacher(), "held_out")


def test_a_run_is_not_continued_from_a_checkpoint_that_lacks_a_tensor(cache, tmp_path):
    train_and_stop(2, cache, tmp_path, save_steps=1, student={"config": LLAMA})
    change(tmp_path / "checkpoint-1", lose=[UP])
    with pytest.raises(LogitcaskError):
        train(cache, tmp_path, save_steps=1, student={"config": LLAMA})


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed")
def test_an_adapter_is_evaluated_on_its_base_and_only_if_it_is_whole(cache, tmp_path):
    start = tiny.save_teacher(tmp_path / "start", tiny.model(seed=5))
    final = train(cache, tmp_path / "run", student={"pretrained": str(start), "lora": {}}, max_steps=1, save_steps=1)
    checkpoint, cached = tmp_path / "run" / "checkpoint-1", Cache(cache).encoding().teacher()
    merged, adapted = (evaluate_folder(folder, cached, "held_out") for folder in (final, checkpoint))
    assert adapted.kl_to_teacher_nats == pytest.approx(merged.kl_to_teacher_nats, abs=1e-5)
    weights = checkpoint / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 missing"):
        evaluate_folder(checkpoint, cached, "held_out")


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed")
def test_a_run_is_not_continued_from_half_an_adapter(cache, tmp_path):
    start = tiny.save_teacher(tmp_path / "start", tiny.model(seed=5))
    values = {"student": {"pretrained": str(start), "lora": {}}, "save_steps": 1}
    train_and_stop(2, cache, tmp_path / "run", **values)
    weights = tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(LogitcaskError, match="adapter"):
        train(cache, tmp_path / "run", **values)


@pytest.mark.parametrize("name", ["nothere", "owner/nothere"])
def test_a_name_that_is_no_folder_while_the_hub_is_away_is_said_plainly(tmp_path, monkeypatch, name):
    def away(*_, **__):
        raise LocalEntryNotFoundError("Got: ConnectError: [Errno -2] Name or service not known. Check your connection")

    monkeypatch.setattr("pipeline.teachers.loading.snapshot_download", away)
    monkeypatch.setattr("trainer.student.initial_weights.hf_hub_download", away)
    reason = f"^{name}: .*found no folder of this name exists, and the hub could not be reached\\)"
    with pytest.raises(ModelError, match=reason) as error:
        resolve_model(TeacherConfig.model_validate({"name": "toy", "model": name, "target": {"k": 2}}))
    assert "Errno" not in str(error.value)
    with pytest.raises(ModelError, match=reason):
        initial_weights(StudentModelConfig(pretrained=name))


def test_a_path_that_is_no_folder_is_said_plainly():
    with pytest.raises(ModelError, match=r"^/no/such/folder: .*found no folder of this name exists, and it is no hub"):
        resolve_model(TeacherConfig.model_validate({"name": "toy", "model": "/no/such/folder", "target": {"k": 2}}))


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_broken_generation_settings_are_refused_before_anything_is_loaded(tmp_path, content):
    folder = tiny.save_teacher(tmp_path / "teacher")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json: the generation settings of teacher 'toy' cannot"):
        resolve_model(TeacherConfig.model_validate({"name": "toy", "model": str(folder)}))


def test_a_tokenizer_that_is_nowhere_is_refused_after_one_question(tmp_path, monkeypatch):
    questions = []

    def away(name, **_):
        questions.append(name)
        raise LocalEntryNotFoundError("Got: ConnectError: [Errno -2] Name or service not known. Check your connection")

    monkeypatch.setattr("pipeline.teachers.loading.snapshot_download", away)
    monkeypatch.setattr("pipeline.run.load_tokenizer", lambda *_: pytest.fail("it asks for one file after another"))
    values = tiny.capture_values(tmp_path, tokenizer="nothere")
    with pytest.raises(ModelError, match=r"^nothere: the encoding's tokenizer cannot be found .*hub could not be"):
        tiny.run(values)
    assert questions == ["nothere"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_without_a_recipe_are_refused_by_name(teacher, dtype):
    change(teacher, **{UP: load_file(teacher / "model.safetensors")[UP].to(dtype)})
    assert f"such as {UP} of type" in refused(teacher)
