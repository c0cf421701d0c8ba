"""Files that DistillKit itself wrote come in as its own decoder reads them. Skipped unless they are on this machine.

``LOGITCASK_PEER_ROWS`` names a folder with ``truth.npz`` (``ids``, ``logprobs`` of every position) and one folder for
each set: ``data_0.parquet``, the codec's YAML, and ``decoded.npz`` with what DistillKit's decoder gives for it::

    LOGITCASK_PEER_ROWS=distillkit python -m pytest tests/test_exchange_peers.py
"""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cache_tools.codecs.registry import Targets, kl_nats
from cache_tools.codecs.rows import MASS_TOLERANCE
from cache_tools.exchange.importing import import_rows
from cache_tools.exchange.plan import ImportOptions
from cache_tools.maintenance.verify import verify
from cache_tools.row_files.source_rows import ROUNDING
from cache_tools.store.reader import Cache
from row_fixtures import SILENT, write_tokenizer
from tolerances import rounding

FOLDER = os.environ.get("LOGITCASK_PEER_ROWS")
SETS = sorted(path.name for path in Path(FOLDER).iterdir() if path.is_dir()) if FOLDER else []
VOCABULARY, BUDGET = 49_152, 5e-5
NOTES = {
    "raw-topk-k64": (),
    "quickstart-k64": ("fitted curve", "not monotone", "float32 differences"),
    "recommended-k64": ("fitted curve", "not monotone", "bfloat16", "mass above 1"),
    "recommended-normalized-k64": ("fitted curve", "not monotone", "bfloat16", "mass above 1"),
    "bins-k64": ("fitted curve", "not monotone", "bfloat16", "mass above 1"),
    "legacy-k64": ("fitted curve", "not monotone", "float16"),
}
"""What the report must name of each set."""

pytestmark = pytest.mark.skipif(not FOLDER, reason="LOGITCASK_PEER_ROWS names no folder")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), VOCABULARY)


def reference(name):
    """Return what DistillKit's decoder gives, sorted by id; masses that its rounding lifts above 1 scaled to 1."""
    path = Path(FOLDER) / name / "decoded.npz"
    decoded = np.load(path if path.exists() else Path(FOLDER) / "truth.npz")
    order = np.argsort(decoded["ids"], axis=1)
    ids = np.take_along_axis(decoded["ids"], order, axis=1)
    logs = np.take_along_axis(decoded["logprobs"], order, axis=1).astype(np.float64)
    mass = np.exp(logs).sum(axis=1)
    logs -= np.where(mass > 1 + MASS_TOLERANCE, np.log(mass), 0)[:, None]
    rest = 1 - np.exp(logs).sum(axis=1)
    hidden = rest <= ROUNDING * logs.shape[1]  # float32 values cannot tell this from nothing
    rest = np.where(hidden, -np.inf, np.log(np.where(hidden, 1, rest)))
    return Targets(ids, logs.astype(np.float32), rest.astype(np.float32))


def summation(name):
    """Return by how much a curve summed in float32 may differ: as many roundings of the largest term as terms."""
    table = pq.read_table(Path(FOLDER) / name / "data_0.parquet")
    if "coeffs" not in table.schema.names:
        return rounding(torch.float32, 64, 100.0)
    coefficients = table["coeffs"].combine_chunks().flatten().flatten().to_numpy()
    return rounding(torch.float32, 9, coefficients)


@pytest.mark.parametrize("name", SETS)
def test_a_set_comes_in_as_its_own_decoder_reads_it(tmp_path, tokenizer, name):
    for exact in (True, False):
        cache = tmp_path / f"cache-{exact}"
        options = ImportOptions(tokenizer, exact=exact, positions_per_shard=4096, chunk_positions=1024)
        report = import_rows(Path(FOLDER) / name, cache, options, SILENT)
        teacher = Cache(cache).encoding().teacher()
        parts = [teacher.targets(*teacher.shard_rows(shard)) for shard in range(len(teacher.encoding.shards))]
        stored = Targets(*(np.concatenate([getattr(part, field) for part in parts]) for field in vars(parts[0])))
        expected = reference(name)
        assert np.array_equal(stored.ids, expected.ids)
        if exact:
            assert np.abs(stored.log_probs - expected.log_probs).max() <= summation(name)
        else:
            assert kl_nats(expected, stored).mean() <= BUDGET * 1.1
            assert report.codec_kl_nats <= BUDGET
            assert report.bytes_per_position < report.source_bytes_per_position
        assert (report.first_token, report.decided_by) == (1, "text")
        assert all(words in " ".join(report.notes) for words in NOTES.get(name, ()))
        assert verify(cache, deep=True) == []
