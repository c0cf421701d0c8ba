"""LoRA students: what is trained, what is saved, and that both mean the same."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, set_seed

import tiny
from cache_tools.configuration import load_config
from cache_tools.errors import ConfigError, IdentityError
from cache_tools.store.reader import Cache
from loss_fixtures import naive_divergence
from student_fixtures import (
    BERT,
    GRADIENT_ROUNDING,
    LLAMA,
    assert_same_run,
    curve,
    largest_difference,
    student_values,
    train,
    train_and_stop,
    weights,
)
from tolerances import model_rounding
from trainer.config.student_file import StudentConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.losses.distillation_loss import TeacherRows
from trainer.student.lora import has_adapter, load_adapter
from trainer.student.student import build_student, distilled

pytest.importorskip("peft", reason="needs peft: pip install 'logitcask[lora]'")

IDS_1L = torch.arange(40)[None]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache"), hidden={"layers": ["last"]}).path


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("start"), tiny.model(seed=5))


def lora(start, dtype="float32", **keys):
    """Return the student block of a LoRA student."""
    return {"pretrained": str(start), "dtype": dtype, "lora": {"r": 4, "lora_alpha": 8} | keys}


def built(cache, start, loss=None, **keys):
    """Return the wrapped student as a run would begin with it."""
    values = student_values(cache, start / "never", student=lora(start, **keys), loss=loss or {})
    config, teacher = StudentConfig.model_validate(values), Cache(cache).encoding().teacher()
    set_seed(0)
    return distilled(build_student(config.student, teacher.encoding), config.loss, teacher)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS_1L).logits


def with_adapter(start, adapter, dtype=torch.float32):
    """Return a pretrained model that wears a saved adapter, as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    model.load_adapter(str(adapter))
    return model


def randomized(module):
    """Let B be something else than zero, as after some steps."""
    torch.manual_seed(1)
    for parameter in module.student.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return module


def test_a_fresh_adapter_says_what_the_pretrained_student_says(cache, start):
    adapted = built(cache, start).student
    assert has_adapter(adapted)
    assert torch.equal(logits(adapted), logits(AutoModelForCausalLM.from_pretrained(start)))


def test_only_adapters_and_projections_are_trained(cache, start):
    pair = {"student_layer": 1, "teacher_layer": "last"}
    module = built(cache, start, loss={"hidden": [pair]})
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if ".lora_A." in name or ".lora_B." in name}
    assert len(adapters) == 2 * 7 * 2  # A and B of seven matrices in two layers
    assert {".".join(name.split(".")[:2]) for name in trained - adapters} == {"loss.match"}


@pytest.mark.parametrize("kd_weight", [1.0, 0.3])
def test_gradients_of_adapters_equal_the_naive_ones(cache, start, kd_weight):
    module = randomized(built(cache, start, loss={"kd_weight": kd_weight}).double())
    assert module.head is not None, "the loss must go through the fused path"
    dataset = CachedSequences(Cache(cache).encoding().teacher(), "train", 300)
    batch = collate([dataset[index] for index in range(3)])
    trained = {name: p for name, p in module.student.named_parameters() if p.requires_grad}
    fused = torch.autograd.grad(module(**batch)["loss"], trained.values())

    kept = batch["gold_ids"] != IGNORED
    logits_PV = module.student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[kept]
    gold_P, settings = batch["gold_ids"][kept], module.loss.objective.loss
    divergence = naive_divergence(logits_PV, TeacherRows.of(batch).targets, gold_P, settings).mean()
    naive_value = kd_weight * divergence + (1 - kd_weight) * F.cross_entropy(logits_PV, gold_P)
    naive = torch.autograd.grad(naive_value, trained.values())
    for name, one, other in zip(trained, fused, naive, strict=True):
        assert float(other.norm()) > 0, name
        error = (one - other).norm() / other.norm()  # logits are float32 in the fused path
        assert error < GRADIENT_ROUNDING


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "exclude_modules": ["v_proj"]},
        {"target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1], "alpha_pattern": {"up_proj": 3}},
        {"target_modules": r".*\.0\..*_proj", "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
    ],
    ids=lambda keys: "+".join(keys) or "all linear layers",
)
def test_the_finished_student_says_what_its_adapter_says_on_the_pretrained_one(cache, start, tmp_path, keys):
    before = {path.name: path.read_bytes() for path in start.iterdir()}
    final = train(cache, tmp_path, student=lora(start, **keys))
    merged = AutoModelForCausalLM.from_pretrained(final)
    worn = with_adapter(start, final / "adapter")
    tolerance = model_rounding(merged.config, 40, logits(merged))
    torch.testing.assert_close(logits(merged), logits(worn), rtol=0, atol=tolerance)
    assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(start))).abs().max() > 0.1
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before


def test_matrices_without_adapter_end_as_they_began(cache, start, tmp_path):
    final = weights(train(cache, tmp_path, student=lora(start, target_modules=["q_proj"])))
    changed = {name for name, tensor in weights(start).items() if not torch.equal(tensor, final[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert final.keys() == weights(start).keys()


def test_adapters_of_a_bfloat16_student_are_float32_and_merged_without_rounding_twice(cache, start, tmp_path):
    final = train(cache, tmp_path, student=lora(start, dtype="bfloat16"))
    adapter = load_file(final / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = weights(start)[f"{name}.weight"].bfloat16() + (8 / 4 * (b @ a)).bfloat16()
    assert torch.equal(weights(final)[f"{name}.weight"], expected)


def test_a_stopped_run_continues_to_the_same_curve_adapter_and_weights(cache, start, tmp_path):
    changes = {"student": lora(start, lora_dropout=0.1), "max_steps": 6, "save_steps": 2}
    changes["loss"] = {"hidden": [{"student_layer": 1, "teacher_layer": "last"}]}
    straight = train(cache, tmp_path / "straight", **changes)
    train_and_stop(5, cache, tmp_path / "stopped", **changes)
    saved = {path.name for path in (tmp_path / "stopped" / "checkpoint-4").glob("*.safetensors")}
    assert saved == {"adapter_model.safetensors", "projections.safetensors"}
    final = train(cache, tmp_path / "stopped", **changes)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    assert largest_difference(weights(final), weights(straight)) == 0
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (final, straight)]
    assert largest_difference(*adapters) == 0


def test_a_checkpoint_is_read_back_exactly(cache, start, tmp_path):
    module = randomized(built(cache, start))
    module.student.save_pretrained(tmp_path)
    other = built(cache, start).student
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(module.student))
    assert torch.equal(logits(with_adapter(start, tmp_path)), logits(other))


def test_recomputing_activations_changes_nothing(cache, start, tmp_path):
    plain, again = (
        train(cache, tmp_path / str(on), student=lora(start), activation_checkpointing=on) for on in (False, True)
    )
    assert_same_run(plain, again)
    assert largest_difference(weights(plain), weights(start)) > 1e-3


def test_a_masked_student_is_adapted_too(tmp_path):
    cache = tiny.capture(tmp_path, tiny.save_teacher(tmp_path / "teacher", masked=True), objective="masked").path
    final = train(cache, tmp_path / "run", student=lora(tmp_path / "teacher"), max_steps=2)
    changed = {k for k, v in weights(tmp_path / "teacher").items() if not torch.equal(v, weights(final)[k])}
    assert changed
    assert not [name for name in changed if "embeddings" in name or name.startswith("cls.predictions.decoder")]
    assert json.loads((final / "config.json").read_text())["model_type"] == BERT["model_type"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"target_modules": ["lm_head", "q_proj"]},
            "target_modules: an adapter would change the embeddings or the head",
        ),
        ({"target_modules": ["embed_tokens"]}, "target_modules: an adapter would change the embeddings or the head"),
        ({"target_modules": ["w_proj"]}, "student.lora: these adapter settings do not fit the student .*w_proj"),
    ],
)
def test_adapters_that_cannot_be_merged_or_placed_are_refused(cache, start, tmp_path, keys, words):
    with pytest.raises(ConfigError, match=words):
        train(cache, tmp_path, student=lora(start, **keys))


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (
            {"pretrained": "x", "lora": {"alpha": 32}},
            r"student.lora.alpha: unknown key; did you mean lora_alpha\? known here: r, ",
        ),
        ({"config": LLAMA, "lora": {}}, "student: lora adapts pretrained weights: set pretrained"),
        (
            {"pretrained": "x", "lora": {"layers_to_transform": 1}},
            "layers_to_transform needs target_modules as a list of names",
        ),
        ({"pretrained": "x", "lora": {"init_lora_weights": "pissa"}}, "student.lora.init_lora_weights"),
    ],
)
def test_keys_that_have_no_place_are_refused_by_name(cache, tmp_path, student, words):
    file = tmp_path / "student.yaml"
    file.write_text(json.dumps(student_values(cache, tmp_path / "run", student=student)))
    with pytest.raises(ConfigError, match=words):
        load_config(file, StudentConfig)


def test_every_key_is_one_of_pefts(start):
    from peft import LoraConfig

    from trainer.config.lora import LoraKeys

    assert LoraKeys.model_fields.keys() <= LoraConfig.__dataclass_fields__.keys()


def test_without_peft_one_sentence_says_what_to_install(cache, start, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError) as refusal:
        train(cache, tmp_path, student=lora(start))
    assert str(refusal.value) == "student.lora: peft is not installed. Install it: pip install 'logitcask[lora]'."


def test_another_adapter_in_the_same_folder_is_refused(cache, start, tmp_path):
    train(cache, tmp_path, student=lora(start))
    with pytest.raises(IdentityError, match=r"config.student.lora.r: 4 -> 8"):
        train(cache, tmp_path, student=lora(start, r=8))
