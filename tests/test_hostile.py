"""A stranger's cache, whose seals and hashes hold: every command works or ends with one sentence, and harms nothing.

``hostile.py`` makes such caches at random; it runs here for a second and, as a slow test, for
``LOGITCASK_FUZZ_SECONDS`` (5 by default).
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from click.testing import CliRunner
from numcodecs.blosc import Blosc

from cache_tools import limits
from cache_tools.errors import ConfigError, DamageError, FormatError, LogitcaskError
from cache_tools.format import arrow_files, sequences
from cache_tools.format.arrow_files import read_arrow, unpacked_bytes
from cache_tools.format.manifest import KEY, ObjectRecord, TeacherManifest
from cache_tools.format.sealed import UNSEALED, parse_json, sealed_bytes
from cache_tools.format.sequences import SCHEMA, contradiction, sequences_bytes
from cache_tools.format.zarr_arrays import BLOSC_HEADER, ArrayLayout, ArrayType
from cache_tools.maintenance.drop import drop_teacher
from cache_tools.maintenance.repair import repair
from cache_tools.maintenance.verify import verify
from cache_tools.storage import read_object
from cache_tools.store.chunk_reader import open_array, read_shard_rows
from cache_tools.store.predictions import group_layouts
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from hostile import ipc, nested, rehash, with_crc
from logitcask import cli
from store_fixtures import make_cache, random_sequences, snapshot

FUZZ_SECONDS = os.environ.get("LOGITCASK_FUZZ_SECONDS", "5")
SUPPORT = Path(__file__).parent / "support"


@pytest.fixture
def tiny(tmp_path):
    return make_cache(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is asked of Linux here")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    held = np.ones(100 * 2**20, np.uint8)
    command = [sys.executable, "-c", "from benchmarks.peak import resident_bytes; print(resident_bytes('VmHWM'))"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SUPPORT.parents[1])
    assert int(ended.stdout) < held.nbytes


@pytest.mark.parametrize("seconds", ["1", pytest.param(FUZZ_SECONDS, marks=pytest.mark.slow)])
def test_no_command_fails_otherwise_than_with_one_sentence_on_random_hostile_caches(seconds):
    command = [sys.executable, str(SUPPORT / "hostile.py"), "--seconds", seconds]
    seed = os.environ.get("LOGITCASK_FUZZ_SEED", "0")
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(SUPPORT)])
    ended = subprocess.run(
        [*command, "--seed", seed], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}{ended.stderr[-3000:]}"


# Chunks and indexes


def plant(tiny, chunk, index=None):
    """Put four copies of a chunk in the place of hidden states, with checksums and hashes that hold."""
    stored = with_crc(chunk)
    places = [(number * len(stored), len(stored)) for number in range(4)] if index is None else index
    content = stored * 4 + with_crc(np.array(places, "<u8").tobytes())
    path = tiny.teacher / "hidden/last/c/0/0"
    path.write_bytes(content)
    tiny.record_object(0, "hidden/last/c/0/0", path)


def lawful_chunk():
    return bytes(Blosc("zstd", 1).encode(np.arange(12, dtype=np.uint16)))


def test_a_planted_chunk_that_is_lawful_is_read(tiny):
    plant(tiny, lawful_chunk())
    assert tiny.open().hidden("last", 0, 12).shape == (12, 3)


HEADERS = [
    (0, 1),
    (0, 3),
    (3, 1),
    (3, 4),
    (4, 0),
    (4, 1),
    (4, 2**31),
    (4, 23),
    (5, 0),
    (5, 25),
    (6, 16),
    (6, 2**32 - 1),
]


@pytest.mark.parametrize(("field", "value"), HEADERS)
def test_a_header_that_states_other_sizes_is_refused_before_it_is_unpacked(tiny, field, value):
    chunk = lawful_chunk()
    fields = list(BLOSC_HEADER.unpack_from(chunk))
    fields[field] = value
    plant(tiny, BLOSC_HEADER.pack(*fields) + chunk[BLOSC_HEADER.size :])
    with pytest.raises(DamageError, match="a chunk's header"):
        tiny.open().hidden("last", 0, 12)
    assert any("cannot be decoded" in problem.message for problem in verify(tiny.path, deep=True))


@pytest.mark.parametrize("chunk", [b"", b"\2\1", BLOSC_HEADER.pack(2, 1, 2, 2, 24, 24, 40)])
def test_a_chunk_without_header_or_body_is_refused(tiny, chunk):
    plant(tiny, chunk)
    with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
        tiny.open().hidden("last", 0, 12)


def indexes():
    size = len(lawful_chunk()) + 4
    sound = [(number * size, size) for number in range(4)]
    return {
        "overlapping": [sound[0], sound[0], *sound[2:]],
        "beyond the end": [*sound[:3], (3 * size + 1, size)],
        "wrapping around": [*sound[:3], (2**64 - size, size)],
        "half absent": [*sound[:3], (2**64 - 1, size)],
        "empty": [*sound[:3], (3 * size, 4)],
    }


@pytest.mark.parametrize("what", indexes())
def test_an_index_whose_chunks_overlap_or_lie_outside_is_refused(tiny, what):
    plant(tiny, lawful_chunk(), indexes()[what])
    with pytest.raises(DamageError, match="a chunk "):
        tiny.open().hidden("last", 0, 12)


def test_another_cache_that_claims_the_hash_of_an_object_changes_nothing_that_is_read(tmp_path):
    """Indexes stay in memory; a stranger's must not be taken for that of an object with the same recorded hash."""
    mine, other = make_cache(tmp_path / "mine"), make_cache(tmp_path / "other")
    expected = mine.open().targets(0, 12).ids.copy()
    key = "ids/c/0/0"
    content = (other.teacher / key).read_bytes()
    index = np.frombuffer(content[-68:-4], "<u8").reshape(4, 2)[[1, 0, 2, 3]]
    (other.teacher / key).write_bytes(content[:-68] + with_crc(index.tobytes()))
    other.open().targets(0, 12)
    assert np.array_equal(mine.open().targets(0, 12).ids, expected)


def other_array(folder, content, **options):
    """Write an array of another layout with zarr, and put other bytes into its one chunk."""
    array = zarr.create_array(
        store=folder / "other", shape=(8, 4), shards=(8, 4), chunks=(8, 4), dtype="uint16", fill_value=7, **options
    )
    array[:] = np.arange(32, dtype=np.uint16).reshape(8, 4)
    metadata = folder / "other/zarr.json"
    document = json.loads(metadata.read_bytes()) | {"attributes": {KEY: {"seal": UNSEALED}}}
    metadata.write_bytes(sealed_bytes(document))
    path = folder / "other/c/0/0"
    if content is not None:
        path.write_bytes(content + with_crc(np.array([(0, len(content))], "<u8").tobytes()))
    opened = open_array(folder, "other", ArrayLayout(ArrayType((4,), np.dtype(np.uint16)), 8, 8))
    return lambda: read_shard_rows([opened], 0, {"other/c/0/0": ObjectRecord.of(path.read_bytes())}, 0, 8)["other"]


BOMB = np.zeros(10**6, np.uint8).tobytes()
OTHERS = {
    "gzip": (zarr.codecs.GzipCodec(), gzip.compress(BOMB)),
    "zstd": (zarr.codecs.ZstdCodec(), pa.Codec("zstd").compress(BOMB, asbytes=True)),
    "blosc": (zarr.codecs.BloscCodec(), BLOSC_HEADER.pack(2, 1, 2, 2, 64, 64, 80)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_chunk_of_another_codec_is_unpacked_no_further_than_its_size(tmp_path, name):
    codec, bomb = OTHERS[name]
    read = other_array(tmp_path / "sound", None, compressors=[codec])
    assert read().tolist() == np.arange(32).reshape(8, 4).tolist()
    with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
        other_array(tmp_path / "bomb", bomb, compressors=[codec])()


def test_codecs_that_are_not_known_are_refused(tmp_path):
    with pytest.raises(FormatError, match="codecs that this reader does not know"):
        other_array(tmp_path, None, filters=[zarr.codecs.TransposeCodec(order=(1, 0))])()


# Kinds of files


def replaced(path, kind, outside):
    """Put something else where a file is."""
    outside.mkdir(exist_ok=True)
    path.rename(outside / "moved")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to({"device": "/dev/zero", "link": outside / "moved"}[kind])


FILES = [
    "zarr.json",
    "encodings/tiny/zarr.json",
    "encodings/tiny/sequences/00000.arrow",
    "encodings/tiny/parts/00000/shards.arrow",
    "encodings/tiny/tokenizer/tokenizer.json",
    "encodings/tiny/teachers/toy/zarr.json",
    "encodings/tiny/teachers/toy/ids/zarr.json",
    "encodings/tiny/teachers/toy/ids/c/0/0",
    "encodings/tiny/teachers/toy/receipts/00000.json",
]


@pytest.mark.parametrize(
    "kind", ["FIFO", "endless", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("folder", "device", "link"))]
)
@pytest.mark.parametrize("key", FILES)
def test_only_regular_files_are_read(tiny, tmp_path, key, kind):
    replaced(tiny.path / key, kind, tmp_path / "outside")
    for command in (["inspect"], ["show"], ["verify", "--deep"], ["copy", str(tmp_path / "copy")]):
        ended = CliRunner().invoke(cli, [command[0], str(tiny.path), *command[1:]])
        assert isinstance(ended.exception, LogitcaskError | SystemExit | None), (command, ended.exception)
    with pytest.raises(LogitcaskError, match=r"regular file|symbolic link|too large"):
        read_object(tiny.path / key)


def test_the_path_of_a_cache_may_be_a_link(tiny, tmp_path):
    (tmp_path / "linked").symlink_to(tiny.path)
    assert verify(tmp_path / "linked", deep=True) == []


@pytest.mark.parametrize("folder", ["encodings", "encodings/tiny", "encodings/tiny/teachers/toy/ids", "receipts"])
def test_no_folder_that_is_a_link_is_read_written_or_deleted_through(tmp_path, folder):
    mine, other = make_cache(tmp_path / "mine"), make_cache(tmp_path / "other")
    key = "encodings/tiny/teachers/toy/receipts" if folder == "receipts" else folder
    shutil.rmtree(mine.path / key)
    (mine.path / key).symlink_to(other.path / key)
    before = snapshot(other.path)
    for work in (lambda: repair(mine.path), lambda: mine.commit(0), lambda: mine.open().targets(0, 4)):
        with suppress(LogitcaskError):
            work()
    assert snapshot(other.path) == before
    with suppress(DamageError):
        assert verify(mine.path, deep=True) != []


def test_a_teacher_that_is_a_link_is_not_dropped(tmp_path):
    mine, other = make_cache(tmp_path / "mine"), make_cache(tmp_path / "other")
    shutil.rmtree(mine.teacher)
    mine.teacher.symlink_to(other.teacher)
    before = snapshot(other.path)
    with pytest.raises(DamageError, match="links inside a cache are not followed"):
        drop_teacher(Cache(mine.path).encoding(), "toy")
    assert snapshot(other.path) == before


# Documents


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        json.dumps(nested(65)).encode(),
        b"[NaN]",
        b"[-Infinity]",
        b"[1e999]",
        b'["\\ud800"]',
        b'{"\\udc00": 1}',
        b"[" + b"9" * 5000 + b"]",
    ],
)
def test_json_that_would_stop_a_program_later_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


def test_json_as_deep_as_allowed_comes_back():
    assert parse_json(json.dumps(nested(limits.DOCUMENT_DEPTH - 1)).encode()) == nested(limits.DOCUMENT_DEPTH - 1)


def test_a_document_larger_than_a_manifest_is_not_read(tiny):
    (tiny.teacher / "zarr.json").write_bytes(b" " * (limits.DOCUMENT_BYTES + 1))
    with pytest.raises(DamageError, match="the file is too large"):
        tiny.open()


IMPOSSIBLE = {
    "k above the vocabulary": {"target": {"k": 1001}},
    "an endless k": {"target": {"k": 2**40}},
    "a step of 1e308": {"scalar_step_nats": 1e308},
    "a scalar named as an array": {"scalars": ["ids"]},
    "a scalar twice": {"scalars": ["entropy", "entropy"]},
    "a scalar named as a folder": {"scalars": ["receipts"]},
    "a wide layer": {"hidden": {"last": {"width": 2**30, "codec": "float32"}}},
    "a layer without its transform": {"hidden": {"last": {"width": 3, "codec": "transform", "budget": 0.1}}},
    "chunks that do not fill a shard": {"chunk_positions": 3},
    "a mass of 7": {"target": {"settings": {"p": 7.0}}},
    "draws of text": {"target": {"settings": {"draws": "x"}}},
    "no codec of ours": {"target": {"codec": {"name": "pickle"}}},
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_manifest_that_cannot_be_is_refused_when_its_teacher_is_opened(tiny, what):
    document = json.loads((tiny.teacher / "zarr.json").read_bytes())
    stated = document["attributes"]["logitcask"]
    for key, value in IMPOSSIBLE[what].items():
        stated[key] = stated[key] | value if key == "target" else value
        if key in stated["identity"]:
            stated["identity"][key] = stated[key]
    stated["seal"] = UNSEALED
    (tiny.teacher / "zarr.json").write_bytes(sealed_bytes(document))
    with pytest.raises(FormatError):
        tiny.open()


@pytest.mark.parametrize(
    "key", ["encodings/tiny", "encodings/tiny/teachers/toy", "encodings", "encodings/tiny/teachers/toy/ids"]
)
def test_only_the_root_of_a_cache_passes_as_one(tiny, key):
    for opening in (Cache, create_cache, verify):
        with pytest.raises(FormatError, match="not to its root") as refusal:
            opening(tiny.path / key)
        assert str(refusal.value).endswith(f"The cache's root seems to be {tiny.path}.")
    (tiny.path / "zarr.json").write_bytes((tiny.path / key / "zarr.json").read_bytes())
    with pytest.raises(FormatError, match="not to its root"):
        Cache(tiny.path)


def test_nothing_that_a_stranger_wrote_reaches_the_terminal_unescaped_through_an_error():
    error = DamageError("x", where="a\x1b[2J", expected="\u202e", found="\x07" * 10_000)
    assert str(error).isprintable()
    assert len(str(error)) < 10_000


# Sequences


def test_what_a_file_unpacks_to_is_known_before_it_is_unpacked():
    table = pa.table({"text": ["a" * 10**7] * 3})
    for compression in ("zstd", "lz4", None):
        content = ipc(table, compression)
        assert 3 * 10**7 <= unpacked_bytes(content) < 3 * 10**7 + 1000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="unpacks to"):
        read_arrow(ipc(table, "zstd"), table.schema, 10**6)
    assert pa.total_allocated_bytes() - before < 10**6


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0" + b"\xff" * 90 + b"ARROW1", b"ARROW1" * 9])
def test_what_is_no_arrow_file_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        read_arrow(content, SCHEMA, 10**6)


def test_a_column_that_lacks_values_or_is_of_another_type_is_refused():
    whole = pa.schema([pa.field("a", pa.list_(pa.uint32()), nullable=False)])
    for values, kind in (
        ([[1], None], pa.list_(pa.uint32())),
        ([[None]], pa.list_(pa.uint32())),
        ([[1]], pa.list_(pa.int64())),
    ):
        with pytest.raises(ValueError, match="column a"):
            read_arrow(ipc(pa.table({"a": pa.array(values, kind)}), "zstd"), whole, 10**6)


def test_a_small_file_of_much_text_ends_in_one_sentence(tiny):
    path = tiny.encoding / "sequences/00000.arrow"
    table = pa.ipc.open_file(str(path)).read_all()
    text = pa.array(["a" * 10**7] * len(table))
    path.write_bytes(ipc(table.set_column(table.column_names.index("text"), "text", text), "zstd"))
    assert path.stat().st_size < 10**4
    rehash(tiny)
    with pytest.raises(DamageError, match="it unpacks to 30,"):
        Cache(tiny.path).encoding().sequences(0)


def changed(sequences, **changes):
    return [replace(sequences[0], **changes), *sequences[1:]]


CONTRADICTIONS = {
    "number": {"sequence_id": 7},
    "row": {"first_position": -5},
    "last token": {"position_mask": np.arange(5) > 0},
    "text": {"text": "x"},
    "not causal": {"original_ids": np.arange(5, dtype=np.uint32)},
    "not below": {"input_ids": np.full(5, 1000, np.uint32)},
    "no token": {"input_ids": np.zeros(0, np.uint32)},
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_sequences_that_contradict_their_encoding_are_not_used(what):
    sound = random_sequences(np.random.default_rng(0), 0, 1000)
    assert contradiction(sound, "causal", 1000, 0, 0) is None
    assert what in (contradiction(changed(sound, **CONTRADICTIONS[what]), "causal", 1000, 0, 0) or "")


def test_a_writer_refuses_what_no_reader_would_unpack(monkeypatch):
    sound = random_sequences(np.random.default_rng(0), 0, 1000)
    for name, value in (("SHARD_SEQUENCES", 2), ("SEQUENCES_BYTES", 2**16 + 10)):
        with monkeypatch.context() as patch:
            patch.setattr(sequences, name, value)
            with pytest.raises(ConfigError, match=r"smaller encoding\.positions_per_shard"):
                sequences_bytes(sound)
    assert arrow_files.unpacked_bytes(sequences_bytes(sound)) < 10**4


def test_wide_chunks_are_refused_by_the_setting_that_makes_them(tiny):
    wide = tiny.manifest.model_dump(mode="json") | {"hidden": {"last": {"width": 2**26, "codec": "float32"}}}
    with pytest.raises(FormatError, match=r"smaller encoding\.chunk_positions"):
        group_layouts(TeacherManifest.model_validate(wide), 16)
