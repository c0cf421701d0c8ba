"""Two processes that begin at one place: the first finishes whole, the second is refused or writes the same bytes."""

import json
import threading

import pytest

import tiny
from bucket import environment, serve
from cache_tools.errors import CorpusError, IdentityError
from cache_tools.format import layout
from cache_tools.maintenance.verify import verify
from cache_tools.storage import object_sizes, read_object, store_path, write_object
from cache_tools.store import claims
from cache_tools.store.claims import CLAIM, Claim, claimed
from cache_tools.store.creation import create_object
from cache_tools.store.reader import Encoding
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding import parts
from store_fixtures import snapshot

CAUSAL = tiny.tokenizer()


@pytest.fixture(scope="module")
def bucket():
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(params=["disk", "memory", "bucket"])
def place(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "place"
    url = "memory://claims" if request.param == "memory" else request.getfixturevalue("bucket").url
    return store_path(f"{url}/{tmp_path.name}")


def test_an_object_is_created_once(place):
    assert create_object(place / "a", b"first")
    assert create_object(place / "a", b"first")
    assert not create_object(place / "a", b"second")
    assert read_object(place / "a") == b"first"
    write_object(place / "b", b"12")
    assert object_sizes(place) == {"a": 5, "b": 2}
    assert object_sizes(place / "none") == {}


def test_without_hard_links_an_object_is_created_once_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert create_object(tmp_path / "a", b"first")
    assert not create_object(tmp_path / "a", b"second")
    assert snapshot(tmp_path) == {"a": b"first"}


def test_of_many_threads_one_creates(tmp_path):
    made = []
    threads = [
        threading.Thread(target=lambda n=n: made.append(create_object(tmp_path / "a", bytes([n])))) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) == 1
    assert len(snapshot(tmp_path)) == 1


def test_the_same_work_joins_and_other_work_is_refused_with_what_to_do(place):
    with claimed(place, {"corpus": "a"}, "taken") as claim:
        with claimed(place, {"corpus": "a"}, "taken"):
            pass
        claim.hold()
        with pytest.raises(IdentityError) as error, claimed(place, {"corpus": "b"}, "taken"):
            pass
        text = str(error.value)
        assert text.startswith(f"{place}: taken")
        assert 'corpus: "a" -> "b"' in text
        assert f"if that process no longer runs, delete {place / CLAIM} and start again" in text
        assert claim.is_held()
    with claimed(place, {"corpus": "b"}, "taken"):
        pass
    assert object_sizes(place) == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"work": 1}', b"[" * 100_000])
def test_an_unreadable_claim_is_somebody_elses(tmp_path, content):
    (tmp_path / CLAIM).write_bytes(content)
    with pytest.raises(IdentityError, match=r"Another process began it|Process None"):
        Claim(tmp_path, {}, "taken").hold()
    assert (tmp_path / CLAIM).read_bytes() == content


def test_a_process_that_slept_through_the_end_of_its_claim_stops(tmp_path):
    sleeper = Claim(tmp_path, {"corpus": "a"}, "taken")
    sleeper.hold()
    (tmp_path / CLAIM).unlink()
    Claim(tmp_path, {"corpus": "b"}, "taken").hold()
    with pytest.raises(IdentityError):
        sleeper.hold()
    sleeper.release()
    assert json.loads((tmp_path / CLAIM).read_text())["work"] == {"corpus": "b"}


# Captures


def config_of(folder, texts, cache, **changes):
    folder.mkdir(exist_ok=True)
    tiny.write_corpus(folder / "corpus.jsonl", texts)
    return CaptureConfig.model_validate(tiny.capture_values(folder, folder, **changes) | {"cache": str(cache)})


def during(monkeypatch, shards, work):
    """Call ``work`` once, when a first capture has written so many shards."""
    original, done = parts.write_shard, []

    def write(folder, shard, *rest):
        if shard == shards and not done:
            done.append(1)
            work()
        return original(folder, shard, *rest)

    monkeypatch.setattr(parts, "write_shard", write)
    return done


OTHERS = {
    "corpus": (tiny.TEXTS[:20], CAUSAL, {}),
    "settings": (tiny.TEXTS, CAUSAL, {"max_length_tokens": 32}),
    "tokenizer": (tiny.TEXTS, tiny.tokenizer(280), {}),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("shards", [0, 3])
def test_a_second_first_capture_is_refused_and_the_first_finishes_whole(tmp_path, monkeypatch, other, shards):
    first = config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "cache")
    straight = snapshot(tiny.encode(config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "straight"), CAUSAL))
    texts, tokenizer, changes = OTHERS[other]
    second = config_of(tmp_path / "b", texts, tmp_path / "cache", **changes)

    def late():
        with pytest.raises(IdentityError, match="the cache holds this encoding from another corpus or with other"):
            tiny.encode(second, tokenizer)

    called = during(monkeypatch, shards, late)
    assert snapshot(tiny.encode(first, CAUSAL)) == straight
    assert called
    with pytest.raises(IdentityError, match="the cache holds this encoding"):
        tiny.encode(second, tokenizer)
    assert snapshot(tmp_path / "cache/encodings/main") == straight


def test_the_same_first_capture_twice_at_once_gives_the_same_bytes(tmp_path, monkeypatch):
    config = config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "cache")
    straight = snapshot(tiny.encode(config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "straight"), CAUSAL))
    during(monkeypatch, 2, lambda: tiny.encode(config, CAUSAL))
    assert snapshot(tiny.encode(config, CAUSAL)) == straight


def test_a_capture_that_slept_while_its_claim_was_given_away_does_not_overwrite_its_successor(tmp_path, monkeypatch):
    first = config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "cache")
    second = config_of(tmp_path / "b", tiny.TEXTS[:20], tmp_path / "cache")
    straight = snapshot(tiny.encode(config_of(tmp_path / "b", tiny.TEXTS[:20], tmp_path / "straight"), CAUSAL))

    def give_away():
        (tmp_path / "cache/encodings/main" / CLAIM).unlink()
        tiny.encode(second, CAUSAL)

    during(monkeypatch, 1, give_away)
    with pytest.raises(IdentityError):
        tiny.encode(first, CAUSAL)
    result = snapshot(tmp_path / "cache/encodings/main")
    assert {key for key in straight if straight[key] != result.get(key)} <= {"sequences/00001.arrow"}
    # the one file that was being written at that very moment is all that can be lost, and verify names it


class Killed(BaseException):
    """Ends a capture as a kill would: nothing tidies up."""


def killed_capture(config, monkeypatch):
    """Encode until the second shard, and leave what a killed process leaves."""
    with monkeypatch.context() as patch:

        def die():
            raise Killed

        during(patch, 1, die)
        patch.setattr(Claim, "release", lambda self: None)
        with pytest.raises(Killed):
            tiny.encode(config, CAUSAL)


def test_after_a_kill_the_same_command_goes_on_and_another_is_told_what_to_delete(tmp_path, monkeypatch):
    first = config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "cache")
    second = config_of(tmp_path / "b", tiny.TEXTS[:20], tmp_path / "cache")
    killed_capture(first, monkeypatch)
    claim = tmp_path / "cache/encodings/main" / CLAIM
    with pytest.raises(IdentityError) as error:
        tiny.encode(second, CAUSAL)
    assert f"delete {claim} and start again" in str(error.value)
    tiny.encode(first, CAUSAL)
    assert not claim.exists()
    killed_capture(config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "other"), monkeypatch)
    (tmp_path / "other/encodings/main" / CLAIM).unlink()
    straight = snapshot(tiny.encode(config_of(tmp_path / "b", tiny.TEXTS[:20], tmp_path / "straight"), CAUSAL))
    assert snapshot(tiny.encode(config_of(tmp_path / "b", tiny.TEXTS[:20], tmp_path / "other"), CAUSAL)) == straight


@pytest.mark.parametrize("error", [CorpusError("no"), KeyboardInterrupt()])
def test_a_capture_that_stops_by_itself_leaves_no_claim(tmp_path, monkeypatch, error):
    config = config_of(tmp_path / "a", tiny.TEXTS, tmp_path / "cache")
    with monkeypatch.context() as patch:

        def stop():
            raise error

        during(patch, 1, stop)
        with pytest.raises(type(error)):
            tiny.encode(config, CAUSAL)
    assert not (tmp_path / "cache/encodings/main" / CLAIM).exists()
    tiny.encode(config_of(tmp_path / "b", tiny.TEXTS[:20], tmp_path / "cache"), CAUSAL)


def test_two_appends_of_different_files_are_kept_apart(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    tiny.encode(config_of(tmp_path / "a", tiny.TEXTS[:10], cache), CAUSAL)
    for name, texts in (("b", tiny.TEXTS[10:30]), ("c", tiny.TEXTS[30:])):
        lines = [json.dumps({"id": f"{name}{i}", "text": text}) for i, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    base = tiny.capture_values(tmp_path / "a", tmp_path / "a") | {"cache": str(cache)}

    def with_files(*names):
        paths = [str(tmp_path / "a/corpus.jsonl"), *(str(tmp_path / f"{name}.jsonl") for name in names)]
        return CaptureConfig.model_validate(base | {"corpus": base["corpus"] | {"paths": paths}})

    def late():
        with pytest.raises(IdentityError, match="has not finished"):
            tiny.encode(with_files("c"), CAUSAL, append=True)

    called = during(monkeypatch, len(Encoding(cache / "encodings/main", "main").shards), late)
    tiny.encode(with_files("b"), CAUSAL, append=True)
    assert called
    tiny.encode(with_files("b", "c"), CAUSAL, append=True)


def test_two_teachers_of_one_name_with_other_settings_are_kept_apart(tmp_path, monkeypatch):
    """The second is refused while the first writes its files, and the first's cache is whole."""
    values = tiny.capture_values(tmp_path, hidden={"layers": ["last"]})
    other = values | {"teachers": [values["teachers"][0] | {"target": {"k": 8}}]}
    original, done = claims.Claim.hold, []

    def hold(self):
        original(self)
        if self.folder.name == "toy" and not done:
            done.append(1)
            with pytest.raises(IdentityError, match="another teacher under the name 'toy'"):
                tiny.run(other)

    monkeypatch.setattr(claims.Claim, "hold", hold)
    tiny.run(values)
    assert done
    assert verify(tmp_path / "cache", deep=True) == []
    folder = layout.teacher_folder(tmp_path / "cache/encodings/main", "toy")
    assert not (folder / CLAIM).exists()
