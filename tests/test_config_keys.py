"""Keys of ``student.config``: what a model reads is accepted, what it would ignore is refused."""

import math

import pytest
from pydantic import ValidationError
from transformers import CONFIG_MAPPING

import tiny
from cache_tools.errors import ConfigError, IdentityError, ModelError
from pipeline.config.targets import TargetConfig
from student_fixtures import BERT, LLAMA, train
from trainer.config.model_keys import check_config_keys
from trainer.config.student_file import LossConfig


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


MODELS = [
    "llama",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "bert",
    "modernbert",
    "deepseek_v3",
]


@pytest.mark.parametrize("model_type", MODELS)
def test_a_saved_configuration_is_accepted_as_it_is(model_type):
    check_config_keys(CONFIG_MAPPING[model_type]().to_dict() | {"model_type": model_type})


@pytest.mark.parametrize("model_type", MODELS)
def test_every_declared_key_with_a_letter_missing_is_refused(model_type):
    kind = CONFIG_MAPPING[model_type]
    for key in kind.__dataclass_fields__:
        if len(key) > 6:
            with pytest.raises(ConfigError, match=f"student.config.{key[:3] + key[4:]}: "):
                check_config_keys({"model_type": model_type, key[:3] + key[4:]: 1})


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "type": "yarn"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"attn_implementation": "eager", "torch_dtype": "float32", "dtype": "float32", "_name_or_path": "x"},
        {"id2label": {"0": "a"}, "num_labels": 1, "architectures": ["LlamaForCausalLM"], "output_attentions": False},
        {"model_type": "gpt2", "n_layer": 2, "num_hidden_layers": 2},
        {
            "model_type": "gemma3_text",
            "rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": None},
        },
        {"model_type": "nobody knows this", "whatever": 1},
        {"model_type": ["a list"], "whatever": 1},
    ],
)
def test_other_names_and_blocks_are_accepted(keys):
    check_config_keys({"model_type": "llama"} | keys)


@pytest.mark.parametrize(
    ("keys", "place", "meant"),
    [
        ({"num_hiden_layers": 1}, "num_hiden_layers", "num_hidden_layers"),
        ({"num_layers": 1}, "num_layers", "num_hidden_layers"),
        ({"rope_parameters": {"rope_tehta": 1}}, "rope_parameters.rope_tehta", "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "facotr": 2}}, "rope_scaling.facotr", "factor"),
        ({"model_type": "gemma3", "text_config": {"hiden_size": 1}}, "text_config.hiden_size", "hidden_size"),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama", "hiden_size": 1}},
            *("text_config.hiden_size", "hidden_size"),
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_thet": 1}}},
            *("rope_parameters.full_attention.rope_thet", "rope_theta"),
        ),
    ],
)
def test_a_misspelt_key_is_refused_wherever_it_stands(keys, place, meant):
    with pytest.raises(ConfigError, match=rf"^student.config.{place}: .*\(expected perhaps {meant}\)"):
        check_config_keys({"model_type": "llama"} | keys)


def test_a_run_refuses_it_before_anything_is_written(cache, tmp_path):
    with pytest.raises(ConfigError, match="num_hiden_layers"):
        train(cache, tmp_path, student={"config": LLAMA | {"num_hiden_layers": 1}})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "64"},
        {"num_hidden_layers": 2.5},
        {"rms_norm_eps": [1]},
        {"num_attention_heads": None},
        {"hidden_act": "x"},
        {"hidden_size": -2},
        {"num_hidden_layers": -1},
        {"rope_parameters": 3},
        {"dtype": "x"},
        {"num_key_value_heads": 3},
        {"pad_token_id": 10**6},
        {"attention_dropout": 2.0},
        {"attention_dropout": math.nan},
        {"rms_norm_eps": math.inf},
        {"rope_parameters": {"rope_type": "linear", "factor": math.nan}},
    ],
    ids=str,
)
def test_values_that_no_student_can_have_are_one_sentence(cache, tmp_path, changes):
    with pytest.raises((ModelError, ConfigError, IdentityError), match="student"):
        train(cache, tmp_path, student={"config": LLAMA | changes}, max_steps=1)


def test_masked_students_are_checked_too():
    with pytest.raises(ConfigError, match="hidden_dropout_prob"):
        check_config_keys(BERT | {"hidden_dropuot_prob": 0.1})


@pytest.mark.parametrize("temperature", [1e-300, 0, 1e-4, 1001, math.nan])
def test_a_temperature_that_the_stored_scalars_cannot_serve_is_refused_when_the_file_is_read(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        LossConfig(temperature=temperature)
    with pytest.raises(ValidationError, match="temperatures"):
        TargetConfig(temperatures=(temperature,))
