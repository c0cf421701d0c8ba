"""Files of rows as other tools write them, made from a teacher that the text follows, and a tokenizer for their ids.

The text is drawn from the rows themselves, so the row that predicts a token fits it better than its neighbours do: the
property by which an import finds out how rows are aligned.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec, ResidualBin
from cache_tools.row_files.formats import Columns, SourceFormat
from cache_tools.row_files.writing import CacheRows, table_of

VOCABULARY, K = 200, 8
PACKED = {
    "exact": PackedCodec(d=VOCABULARY, k=K, exact_k=K, delta_encoding=False),
    "quickstart": PackedCodec(d=VOCABULARY, k=K, exact_k=4, polynomial_terms=(0, 1, 2)),
    "recommended": PackedCodec(
        d=VOCABULARY, k=K, exact_k=4, exact_dtype="bfloat16", polynomial_terms=(0, "sqrt"), delta_encoding=False
    ),
    "bins": PackedCodec(
        d=VOCABULARY,
        k=K,
        exact_k=2,
        exact_dtype="bfloat16",
        polynomial_terms=(0, 1),
        residual_bins=(
            ResidualBin(scale_dtype="float16", element_bits=8, num_elements=3),
            ResidualBin(scale_dtype="float32", element_bits=2, num_elements=2),
        ),
        delta_encoding=False,
        normalize_t=True,
    ),
}
LEGACY = LegacyCodec(k=K, exact_k=4, polynomial_degree=2, vocab_size=VOCABULARY)
FORMATS: dict[str, SourceFormat] = {
    **{name: SourceFormat("distillkit", Columns(), codec) for name, codec in PACKED.items()},
    "legacy": SourceFormat("distillkit-legacy", Columns(), LEGACY),
    "raw": SourceFormat("distillkit-raw", Columns()),
    "axolotl": SourceFormat("axolotl", Columns()),
    "rows": SourceFormat("rows", Columns()),
}
"""Every format, by the name of a test."""


def made_rows(
    seed: int = 0, sequences: int = 12, tokens: int = 24, k: int = K, vocabulary: int = VOCABULARY
) -> CacheRows:
    """Return sequences with predictions at all tokens but the last; every next token is drawn from its row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(tokens // 2, tokens + 1, sequences)
    total = int((lengths - 1).sum())
    ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(total)]).astype(np.uint32)
    logits = np.sort(rng.normal(0, 0.8, (total, k)), axis=1)[:, ::-1]
    mass = rng.uniform(0.7, 0.95, (total, 1))
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) + np.log(mass)
    drawn = np.array([rng.choice(k, p=(p := np.exp(row)) / p.sum()) for row in log_probs])
    texts, start = [], 0
    for length in lengths:
        following = ids[np.arange(start, start + length - 1), drawn[start : start + length - 1]]
        texts.append(np.concatenate([[rng.integers(vocabulary)], following]).astype(np.uint32))
        start += length - 1
    kept = log_probs.astype(np.float32)
    rest = np.log1p(-np.exp(kept, dtype=np.float64).sum(axis=1)).astype(np.float32)
    positions = [np.arange(length - 1) for length in lengths]
    return CacheRows(texts, positions, [f"text-{n}" for n in range(sequences)], None, ids, kept, rest, {})


def changed(rows: CacheRows, **changes: object) -> CacheRows:
    """Return rows with other fields."""
    return replace(rows, **changes)


def write_rows(folder: Path, rows: CacheRows, source: SourceFormat, name: str = "data_0.parquet") -> Path:
    """Write rows as a file of a format, with the YAML of its codec; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(rows, source), folder / name, row_group_size=5)
    if source.codec is not None:
        file = "compression_config.yaml" if source.name == "distillkit" else "legacy_config.yaml"
        (folder / file).write_text(yaml.safe_dump(source.codec.model_dump(mode="json")))
    return folder


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> str:
    """Write a tokenizer of so many words, each one token; return its folder."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return str(folder)


SILENT = Reporter()
