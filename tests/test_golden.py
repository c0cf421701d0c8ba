"""Caches that the first version of each codec wrote are read to the same values by every later one.

``golden/make.py`` wrote them and, beside each, what a reader found in it.
"""

from pathlib import Path

import numpy as np
import pytest
import zarr

from cache_tools.codecs.registry import CODECS
from cache_tools.maintenance.verify import verify
from cache_tools.store.predictions import group_layouts
from cache_tools.store.reader import Cache

GOLDEN = Path(__file__).parent / "golden"
CACHES = sorted(path for path in GOLDEN.iterdir() if (path / "zarr.json").exists())
TOLERANCE = 1e-6

every_golden_cache = pytest.mark.parametrize("path", CACHES, ids=lambda path: path.name)


def read(path):
    """Return (name, values) of everything in a golden cache, as ``golden/make.py`` recorded it."""
    teacher = Cache(path).encoding().teacher()
    rows = [teacher.shard_rows(shard) for shard in range(len(teacher.encoding.shards))]
    targets = [vars(teacher.targets(*span)) for span in rows]
    yield from ((name, np.concatenate([one[name] for one in targets])) for name in targets[0])
    for name in teacher.manifest.scalars:
        yield name, np.concatenate([teacher.scalar(name, *span) for span in rows])
    for layer in teacher.manifest.hidden:
        yield f"hidden_{layer}", np.concatenate([teacher.hidden(layer, *span) for span in rows])


def arrays(path):
    """Yield the name of every array of a golden cache, and the stored rows of each shard as our reader finds them."""
    teacher = Cache(path).encoding().teacher()
    size = teacher.encoding.manifest.positions_per_shard
    for group, layouts in group_layouts(teacher.manifest, size).items():
        for name in layouts:
            for shard, entry in enumerate(teacher.encoding.shards):
                teacher.require_shards([shard], group)
                rows = slice(shard * size, shard * size + entry.positions)
                yield teacher.path / name, rows, teacher.stored_rows([name], shard, 0, entry.positions)[name]


def test_there_is_a_golden_cache_of_every_codec():
    codecs, layers = set(), set()
    for path in CACHES:
        manifest = Cache(path).encoding().teacher().manifest
        codecs.add(manifest.target.codec["name"])
        layers |= {spec.codec for spec in manifest.hidden.values()}
    assert codecs == set(CODECS)
    assert layers == {"bfloat16", "float32", "transform"}


@every_golden_cache
def test_its_values_are_those_it_had(path):
    with np.load(path.with_suffix(".npz")) as expected:
        found = dict(read(path))
        assert set(found) == set(expected.files)
        for name, values in found.items():
            assert values.dtype == expected[name].dtype
            assert np.allclose(values, expected[name], rtol=0, atol=0 if name == "ids" else TOLERANCE)


@every_golden_cache
def test_it_verifies(path):
    assert verify(path, deep=True) == []


@every_golden_cache
def test_zarr_reads_every_stored_number(path):
    for folder, rows, expected in arrays(path):
        assert np.array_equal(zarr.open_array(folder, mode="r")[rows], expected)


@every_golden_cache
def test_tensorstore_reads_every_stored_number(path):
    tensorstore = pytest.importorskip("tensorstore")
    for folder, rows, expected in arrays(path):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
        found = tensorstore.open(spec, open=True, read=True).result()[rows].read().result()
        assert np.array_equal(found, expected)
