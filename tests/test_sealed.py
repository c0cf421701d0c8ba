"""Sealed JSON: what was written comes back, and no other bytes do."""

import json

import pytest

from cache_tools.errors import LogitcaskError
from cache_tools.format.manifest import KEY
from cache_tools.format.sealed import UNSEALED, read_sealed, sealed_bytes
from cache_tools.store.reader import Cache
from store_fixtures import flip_bit, make_cache, read_everything, sealed

DOCUMENT = {"levels": 4095, "text": "naïve", "nested": {"list": [1, 2.5, None]}}


def test_a_document_comes_back_as_written():
    content = sealed(DOCUMENT)
    read = read_sealed(content)
    assert read == json.loads(content)
    assert {name: read[name] for name in DOCUMENT} == DOCUMENT
    assert sealed(DOCUMENT) == content


def test_the_seal_may_lie_anywhere_in_the_document():
    read = read_sealed(sealed_bytes({"attributes": {KEY: {"seal": UNSEALED, "format": 1}}}))
    assert read["attributes"][KEY]["format"] == 1


def test_every_flipped_bit_is_refused():
    content = sealed(DOCUMENT)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"."):
            read_sealed(bytes(damaged))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", sealed(DOCUMENT)[:-1], sealed(DOCUMENT) + b"\n"])
def test_other_bytes_are_refused(content):
    with pytest.raises(ValueError, match=r"."):
        read_sealed(content)


def test_a_document_with_two_seals_is_refused():
    two = sealed(DOCUMENT).replace(b'"levels": 4095', b'"more": {"seal": "' + b"0" * 64 + b'"}')
    with pytest.raises(ValueError, match="no seal"):
        read_sealed(two)


def test_every_json_file_of_a_cache_is_sealed(tmp_path):
    tiny = make_cache(tmp_path)
    files = [path for path in tiny.path.rglob("*.json") if "tokenizer" not in path.parts]
    assert len(files) > 10
    for path in files:
        read_sealed(path.read_bytes())


def read_cache(tiny):
    """Read all that a student needs."""
    encoding = Cache(tiny.path).encoding()
    encoding.sequences(0)
    read_everything(encoding.teacher())


def test_a_reader_refuses_a_flipped_bit_in_any_json_that_says_how_to_decode(tmp_path):
    tiny = make_cache(tmp_path)
    read_cache(tiny)
    arrays = [path for path in tiny.teacher.rglob("zarr.json") if path.parent.name != "hidden"]
    manifests = [tiny.path / "zarr.json", tiny.encoding / "zarr.json"]
    for path in [*manifests, *arrays, tiny.receipt_file(0)]:
        for byte in range(0, path.stat().st_size, 97):
            flip_bit(path, byte)
            with pytest.raises(LogitcaskError):
                read_cache(tiny)
            flip_bit(path, byte)
    read_cache(tiny)
