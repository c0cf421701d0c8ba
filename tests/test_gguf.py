"""GGUF files as teachers and students: the numbers, text split and identity that the file names, or a refusal."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from cache_tools.errors import LogitcaskError, ModelError
from cache_tools.models.files import weight_files, weights_sha256
from cache_tools.storage import file_sha256
from cache_tools.torch_models.gguf import load_tokenizer, quantisation
from cache_tools.torch_models.loading import auto_class, load_checkpoint, load_configuration
from pipeline.config.teacher import TeacherConfig
from pipeline.planning.memory import dequantising_bytes, held_weights
from pipeline.teachers.loading import resolve_model
from pipeline.teachers.tensor_plan import meta_model, weight_bytes
from trainer.config.student_file import StudentModelConfig
from trainer.student.initial_weights import initial_weights

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Of a Llama's tensors, in transformers and in a GGUF file; layers are ``model.layers.<n>`` and ``blk.<n>``."""

HEADS = 2


def permuted(weight):
    """Return a query or key matrix with the two halves of each head interleaved, as GGUF files keep them."""
    rows, columns = weight.shape
    return weight.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_name(name):
    parts = name.removesuffix(".weight").split(".")
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{NAMES['.'.join(parts[3:])]}.weight"
    return f"{NAMES['.'.join(parts)]}.weight"


@pytest.fixture
def teacher(tmp_path):
    """A tiny Llama with tied embeddings and its tokenizer, as an ordinary folder."""
    return tiny.save_teacher(tmp_path / "plain", tiny.model(tie_word_embeddings=True))


def write_gguf(teacher, path, rule="smollm", quantised=True):
    """Write a tiny Llama as a GGUF file: matrices in Q8_0, norms in float32."""
    tokenizer, config = tiny.tokenizer(), AutoModelForCausalLM.from_pretrained(teacher).config
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens[tokenizer.eos_token_id] = "<|endoftext|>"  # which transformers adds to byte-level vocabularies without it
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in load_file(teacher / "model.safetensors").items():
        values = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            values = permuted(values)
        if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_unquantised_weights_come_back_bit_for_bit(teacher, tmp_path):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf", quantised=False)
    plain = load_file(teacher / "model.safetensors")
    model = load_checkpoint(auto_class("causal"), file, "the model", dtype=torch.float32)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())


def test_quantised_weights_are_off_by_half_a_step_and_can_be_trained_and_saved(teacher, tmp_path):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf")
    assert quantisation(file).startswith("Q8_0")
    model = load_checkpoint(auto_class("causal"), file, "the model", dtype=torch.float32)
    plain, state = load_file(teacher / "model.safetensors"), model.state_dict()
    for name, tensor in plain.items():
        step = tensor.abs().max() / 127  # of a block of 32 at most; its scale is rounded to float16
        assert (state[name] - tensor).abs().max() <= step * (0.5 + 127 * 2**-11)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in load_configuration(tmp_path / "saved").to_dict()


def test_digits_and_the_spaces_before_them_are_split_as_the_file_says(teacher, tmp_path):
    single = load_tokenizer(write_gguf(teacher, tmp_path / "a" / "m.gguf", rule="smollm"))
    gpt2 = load_tokenizer(write_gguf(teacher, tmp_path / "b" / "m.gguf", rule="gpt-2"))
    pieces = [
        [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
        for tokenizer in (single, gpt2)
    ]
    assert pieces == [["a", "ĠĠ", "1", "2"], ["a", "Ġ", "Ġ12"]]


def test_a_rule_that_nobody_knows_is_refused(teacher, tmp_path):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf", rule="unheard-of")
    with pytest.raises(ModelError, match=r"cannot be rebuilt.*found unheard-of"):
        load_tokenizer(file)


def test_a_capture_from_the_file_is_the_capture_from_its_dequantised_folder(teacher, tmp_path):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf")
    model = load_checkpoint(auto_class("causal"), file, "the model", dtype=torch.float32)
    model.save_pretrained(tmp_path / "dequantised")
    load_tokenizer(file).save_pretrained(tmp_path / "dequantised")
    caches = []
    for folder, changes in ((file.parent, {"gguf_file": file.name}), (tmp_path / "dequantised", {})):
        place = tmp_path / f"from-{folder.name}"
        place.mkdir()
        values = tiny.capture_values(place, folder, target={"k": 8, "exact": True})
        values["teachers"][0] |= {"dtype": "float32", **changes}
        tiny.write_corpus(place / "corpus.jsonl")
        tiny.run(values)
        caches.append(tiny.Cache(str(place / "cache")).encoding().teacher())
    first, second = caches
    rows = [teacher.targets(*teacher.shard_rows(0)) for teacher in caches]
    assert np.array_equal(rows[0].ids, rows[1].ids)
    assert np.array_equal(rows[0].log_probs, rows[1].log_probs)
    assert first.manifest.model["quantisation"].startswith("Q8_0")
    assert "quantisation" not in second.manifest.model
    assert first.manifest.identity != second.manifest.identity


def test_the_file_alone_identifies_teacher_and_student(teacher, tmp_path):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf")
    assert weights_sha256(file) == file_sha256(file)
    student = StudentModelConfig(pretrained=str(file.parent), gguf_file=file.name)
    assert initial_weights(student) == {"sha256": file_sha256(file)}


@pytest.mark.parametrize("length", [0, 4, 12, 30, 200, -1000])
def test_a_file_that_ends_early_is_refused(teacher, tmp_path, length):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf")
    file.write_bytes(file.read_bytes()[:length])
    values = tiny.capture_values(tmp_path, file.parent)
    values["teachers"][0] |= {"dtype": "float32", "gguf_file": file.name}
    with pytest.raises(LogitcaskError):
        tiny.run(values)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such GGUF file"):
        weight_files(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (TeacherConfig, {"name": "t", "model": "m", "gguf_file": "m.bin"}, "pattern"),
        (TeacherConfig, {"name": "t", "model": "m", "gguf_file": "m.gguf", "tensor_parallel": 2}, "cannot be split"),
        (StudentModelConfig, {"config": {"model_type": "llama"}, "gguf_file": "m.gguf"}, "give pretrained"),
        (StudentModelConfig, {"pretrained": "m", "gguf_file": "m.gguf", "lora": {}}, "exclude each other"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(model, values, words):
    with pytest.raises(ValidationError, match=words):
        model(**values)


def test_a_plan_counts_dequantised_weights_and_the_largest_tensor_once_more(teacher, tmp_path):
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf")
    config = TeacherConfig(name="t", model=str(file.parent), gguf_file=file.name, dtype="bfloat16")
    model = meta_model(config, "causal", resolve_model(config))
    count = sum(tensor.numel() for tensor in load_file(teacher / "model.safetensors").values())
    assert weight_bytes(model) >= 2 * count
    resolved = SimpleNamespace(config=config)  # the target takes no part in this
    assert held_weights(resolved, model, "cpu") == (weight_bytes(model), "dequantised")
    assert dequantising_bytes(model) == 4 * model.get_input_embeddings().weight.numel()
