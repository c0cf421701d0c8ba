"""A cache on the Hugging Face hub: read at one commit, never written in place, and published in few commits.

The Hub is a server on loopback that speaks the client's HTTP calls (see ``support/hub.py``); nothing of the client is
replaced.
"""

import json
import os
import pickle
import socket
from dataclasses import replace
from itertools import count
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import tiny
from cache_tools.errors import ConfigError, DamageError, IdentityError, StorageError
from cache_tools.format.manifest import CacheManifest, write_manifest
from cache_tools.hub import refusals
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.drop import drop_teacher
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.progress.reporter import Reporter
from cache_tools.publishing import sending
from cache_tools.publishing.card import card_text, size_category
from cache_tools.publishing.facts import card_facts
from cache_tools.publishing.publish import Request, publish, repository_of
from cache_tools.storage import (
    Span,
    names,
    object_exists,
    object_size,
    object_sizes,
    pinned,
    read_object,
    read_spans,
    remove_object,
    remove_tree,
    store_path,
    write_object,
    write_objects,
)
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from hub import TOKEN, Repository, always, environment, first, is_large, serve
from logitcask import cli
from store_fixtures import make_cache, snapshot
from student_fixtures import train

NUMBERS = count()
OWN = {".gitattributes", "README.md"}


@pytest.fixture(scope="module")
def hub():
    no_xet = patch("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the variable is read when it is imported
    with serve() as running, patch.dict(os.environ, environment(running)), no_xet:
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("local"))


@pytest.fixture
def name(hub):
    """The name of a repository that is not there yet."""
    hub.requests.clear()
    return f"owner/set-{next(NUMBERS)}"


@pytest.fixture
def repository(hub, local, name):
    """A repository with the cache."""
    hub.repositories[f"datasets/{name}"] = repository = Repository()
    repository.commit("main", snapshot(local.path), "the cache")
    return repository


@pytest.fixture
def url(name):
    return f"hf://datasets/{name}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits are short; those inside the client, which begin with a second, are met once each."""
    monkeypatch.setattr(refusals, "WAITS_SECONDS", (0.01, 0.01))


def send(cache, name, **settings):
    return publish(Cache(cache), Request(name, **settings), Reporter())


def run(*arguments):
    return CliRunner(catch_exceptions=False).invoke(cli, [str(argument) for argument in arguments])


# Reading


def test_a_cache_on_the_hub_reads_as_on_disk(local, repository, url, tmp_path):
    cache = Cache(url)
    ours, theirs = cache.encoding().teacher(), local.open()
    for start, stop in ((0, 5), (3, 9), (16, 28)):
        read, expected = ours.targets(start, stop), theirs.targets(start, stop)
        assert all(np.array_equal(values, getattr(expected, key)) for key, values in vars(read).items())
    assert verify(cache.path, deep=True) == []
    copy_cache(cache, tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == snapshot(local.path)


def test_files_sizes_and_names_are_those_of_the_commit(hub, name, url):
    hub.repositories[f"datasets/{name}"] = repository = Repository()
    content = bytes(range(256)) * 9
    repository.commit("main", {"a/b.bin": content, "a/c.txt": b"text", "a/d/e": b"", "z": b"!"}, "files")
    place = pinned(store_path(url))
    assert names(place) == ["a", "z"]
    assert object_sizes(place / "a") == {"b.bin": len(content), "c.txt": 4}
    assert read_object(place / "a" / "b.bin") == content
    assert object_size(place / "a" / "c.txt") == 4
    ranges = ((0, 1), (1, 3), (200, 2000), (3, 7), (2300, 9999), (5000, 5001), (4, 4))
    spans = [Span(place / "a" / "b.bin", start, stop) for start, stop in ranges]
    hub.requests.clear()
    assert read_spans(spans) == [content[start:stop] for start, stop in ranges]
    assert len(hub.made("GET", "/resolve/")) == 5  # the first two are one, and the last is none
    assert names(place / "nothing") == []
    assert not object_exists(place / "nothing")
    with pytest.raises(FileNotFoundError):
        read_object(place / "nothing")


def test_a_branch_is_resolved_once_and_a_later_commit_is_not_seen(repository, url, caplog):
    commit = repository.branches["main"]
    cache = Cache(url)
    assert str(cache.path) == f"{url}@{commit}"
    assert f"{url} is read at commit {commit}, the latest of main" in caplog.text
    repository.commit("main", {"README.md": b"all gone"}, "mistake")
    copied = pickle.loads(pickle.dumps(cache.encoding()))
    assert copied.teacher().targets(0, 5).ids.shape[0] == 5
    caplog.clear()
    assert Cache(f"{url}@{commit}").encodings == cache.encodings
    assert caplog.text == ""


def test_inspect_names_the_commit_that_it_read(repository, url):
    repository.branches["v1"] = repository.branches["main"]
    result = run("inspect", "--json", f"{url}@v1")
    assert json.loads(result.stdout)["path"] == f"{url}@{repository.branches['v1']}"


def test_a_token_is_sent_only_where_the_hub_asks_for_one_and_to_nobody_else(hub, repository, url):
    Cache(url).encoding().teacher().targets(0, 5)
    assert not any(request.authorized for request in hub.requests)
    hub.requests.clear()
    repository.private = True
    Cache(url).encoding().teacher().targets(0, 5)
    assert hub.made("GET", "/cdn/")
    assert not any(request.authorized for request in hub.made("GET", "/cdn/"))
    assert all(request.authorized for request in hub.made("GET", "/resolve/"))


def test_a_gated_repository_is_read_with_a_token(hub, repository, url):
    repository.gated = True
    assert Cache(url).encoding().teacher().targets(0, 5).ids.shape[0] == 5
    assert all(request.authorized for request in hub.made("GET", "/resolve/"))


def test_a_cache_in_a_hub_bucket_is_read(hub, local, name):
    hub.buckets[name] = snapshot(local.path)
    cache = Cache(f"hf://buckets/{name}")
    assert np.array_equal(cache.encoding().teacher().targets(0, 5).ids, local.open().targets(0, 5).ids)
    hub.buckets[name]["new"] = b"!"
    assert object_exists(cache.path / "new")  # nothing is remembered of what may change


def test_names_that_lead_outside_a_folder_are_not_listed(hub, name, url):
    hub.repositories[f"datasets/{name}"] = repository = Repository()
    repository.commit("main", {"a/..": b"up", "a/.": b"here", "a/b": b"below"}, "names")
    assert names(pinned(store_path(url)) / "a") == ["b"]


@pytest.mark.parametrize("protocol", ["hf://", "hf://datasets/", "hf://datasets/o"])
def test_refuses_a_url_that_names_no_repository(protocol):
    with pytest.raises(ConfigError, match="this kind of URL is not supported"):
        store_path(protocol)


def test_a_training_from_the_hub_records_the_commit(hub, name, url, tmp_path):
    send(tiny.capture(tmp_path).path, name)
    train(url, tmp_path / "student", max_steps=1)
    record = json.loads((tmp_path / "student" / "run.json").read_text())
    assert record["caches"] == [f"{url}@{hub.repositories[f'datasets/{name}'].branches['main']}"]
    assert record["config"]["cache"] == url


# Refusals


def test_a_place_on_the_hub_is_never_written(hub, local, repository, url, tmp_path):
    place = store_path(url)
    writes = (
        lambda: create_cache(place),
        lambda: copy_cache(Cache(local.path), place),
        lambda: write_object(place / "a", b""),
        lambda: write_objects(place, {"a": b""}),
        lambda: remove_object(pinned(place) / "zarr.json"),
        lambda: remove_tree(place),
        lambda: write_manifest(place, CacheManifest()),
        lambda: drop_teacher(Cache(place).encoding(), "toy"),
    )
    for write in writes:
        with pytest.raises(StorageError, match=r"not written in place.*'logitcask publish"):
            write()
    assert not hub.made("POST", "/commit/")
    assert len(repository.commits) == 1


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (401, "asks for a valid token"),
        (403, "token may not do this"),
        (429, "too busy"),
        (503, "too busy"),
        (418, "the Hub refused"),
        ("drop", "cannot be reached"),
    ],
)
def test_a_refusal_ends_in_one_sentence_without_the_token(hub, repository, url, fault, sentence):
    with hub.failing(always(fault, "/api/datasets/")), pytest.raises(StorageError, match=sentence) as error:
        Cache(url)
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_ends_in_one_sentence(repository, url):
    with pytest.raises(StorageError, match=r"no such repository, or it is private.*hf auth login"):
        Cache("hf://datasets/owner/none")
    with pytest.raises(StorageError, match="no such branch, tag or commit"):
        Cache(f"{url}@none")


def test_a_hub_that_nobody_answers_for_ends_in_one_sentence(repository, url, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(StorageError, match="the Hub cannot be reached"):
            Cache(url)


def test_a_redirect_to_a_file_is_not_followed(hub, repository, url):
    place = Cache(url).path
    with hub.failing(always("file", "/resolve/")), pytest.raises(StorageError, match="cannot be reached"):
        read_object(place / "zarr.json")


@pytest.mark.parametrize("fault", [429, 503])
def test_a_busy_hub_is_asked_again(hub, repository, url, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with hub.failing(first(1, fault, "/api/datasets/")):
        assert Cache(url).encodings


# Publishing


def test_a_published_cache_reads_as_the_local_one(hub, local, name, url):
    result = send(local.path, name)
    repository = hub.repositories[f"datasets/{name}"]
    files = repository.head()
    assert {key: content for key, content in files.items() if key not in OWN} == snapshot(local.path)
    assert result.url == f"{url}@{repository.branches['main']}"
    assert (result.commits, result.files, result.other_files) == (1, len(files) - 1, 0)
    assert verify(Cache(result.url).path, deep=True) == []


def test_publishing_again_sends_nothing_and_a_grown_cache_only_what_is_new(hub, local, name, tmp_path):
    subset_cache(Cache(local.path), tmp_path / "half", Choice(None, None, "held_out", None))
    repository_path = tmp_path / "cache"
    copy_cache(Cache(local.path), repository_path)
    receipt = sorted((Cache(repository_path).encoding().teacher().path / "receipts").iterdir())[-1]
    kept = receipt.read_bytes()
    receipt.unlink()
    part = send(repository_path, name)
    assert "not finished" in hub.repositories[f"datasets/{name}"].head()["README.md"].decode()
    hub.requests.clear()
    again = send(repository_path, name)
    assert (again.commits, again.sent_files, again.url) == (0, 0, part.url)
    assert not hub.made("PUT", "")
    receipt.write_bytes(kept)
    hub.requests.clear()
    whole = send(repository_path, name)
    objects = len(local.open().receipt(len(local.entries) - 1).objects)
    assert whole.sent_files == objects + 2  # its receipt and the card
    assert len(hub.made("PUT", "")) <= objects
    assert verify(Cache(whole.url).path, deep=True) == []


def test_a_publication_that_was_stopped_continues_and_sends_no_large_file_twice(hub, local, name, monkeypatch):
    monkeypatch.setattr(sending, "COMMIT_FILES", 20)
    monkeypatch.setattr(sending, "BATCH_FILES", 10)
    second_commit = hub.failing(lambda method, path, count: 403 if "/commit/" in path and count else None)
    with second_commit, pytest.raises(StorageError, match="may not do this"):
        send(local.path, name)
    url = f"hf://datasets/{name}"
    assert not object_exists(pinned(store_path(url)) / "zarr.json")  # manifests come last
    result = send(local.path, name)
    assert result.commits > 1
    uploads = [request.path for request in hub.made("PUT", "/lfs/")]
    assert len(uploads) == len(set(uploads))
    assert verify(Cache(result.url).path, deep=True) == []


@pytest.mark.parametrize("part", ["/preupload/", "/objects/batch", "/lfs/", "/commit/", "/api/repos/create", "/tree/"])
@pytest.mark.parametrize("fault", [503])
def test_a_publication_passes_a_busy_hub(hub, local, name, part, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with hub.failing(first(1, fault, part)):
        result = send(local.path, name)
    assert verify(Cache(result.url).path) == []


@pytest.mark.parametrize("part", ["/api/repos/create", "/preupload/", "/objects/batch", "/lfs/", "/commit/", "/tree/"])
@pytest.mark.parametrize("fault", [401, 403])
def test_a_refused_publication_ends_in_one_sentence_without_the_token(hub, local, name, part, fault):
    with hub.failing(always(fault, part)), pytest.raises(StorageError, match="token") as error:
        send(local.path, name)
    assert TOKEN not in str(error.value)


def test_a_repository_of_somebody_else_is_refused(local):
    with pytest.raises(StorageError, match=r"token may not do this.*write permission"):
        send(local.path, "others/set")


def test_a_public_repository_is_refused_before_anything_is_sent_to_it_as_private(hub, local, repository, name):
    with pytest.raises(StorageError, match="it is public"):
        send(local.path, name, private=True)
    assert not hub.made("POST", "/preupload/")
    send(local.path, f"{name}-private", private=True)
    assert hub.repositories[f"datasets/{name}-private"].private


def test_publishing_needs_a_token(local, name, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"no token.*hf auth login"):
        send(local.path, name)


def test_another_branch_leaves_main_alone(hub, local, name):
    result = send(local.path, name, branch="v1", message="First version")
    repository = hub.repositories[f"datasets/{name}"]
    assert set(repository.head("main")) == {".gitattributes"}
    assert repository.messages[-1] == "First version"
    assert result.url.endswith(repository.branches["v1"])


def test_another_cache_under_the_same_names_is_refused(local, repository, name, tmp_path):
    other = make_cache(tmp_path, k=3)
    with pytest.raises(IdentityError, match=r"another (encoding|teacher) under the name"):
        send(other.path, name)
    assert len(repository.commits) == 1


def test_a_damaged_cache_is_refused(hub, local, name, tmp_path):
    copy_cache(Cache(local.path), tmp_path / "cache")
    key = next(iter(local.open().receipt(0).objects))
    path = Cache(tmp_path / "cache").encoding().teacher().path / key
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match="the cache is damaged"):
        send(tmp_path / "cache", name)
    assert hub.requests == []
    path.write_bytes((local.teacher / key).read_bytes())
    path = next((tmp_path / "cache").rglob("hidden/last/c/0/0"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # the size is right
    with pytest.raises(DamageError, match="not the one that was written"):
        send(tmp_path / "cache", name)


def test_other_files_are_neither_sent_nor_deleted(hub, local, name, tmp_path):
    copy_cache(Cache(local.path), tmp_path / "cache")
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    (tmp_path / "cache" / "link").symlink_to(secret)
    (tmp_path / "cache" / "notes.txt").write_bytes(b"mine")
    hub.repositories[f"datasets/{name}"] = repository = Repository()
    repository.commit("main", {"theirs.csv": b"1,2"}, "data")
    assert send(tmp_path / "cache", name).other_files == 1
    assert {"theirs.csv", *snapshot(local.path), "README.md"} == set(repository.head())


@pytest.mark.parametrize(
    "url", ["s3://b/c", "hf://o/n", "hf://datasets/o/n/p", "hf://datasets/o/n@v1", "hf://buckets/o/n"]
)
def test_only_a_whole_dataset_repository_is_published_to(url):
    with pytest.raises(ConfigError, match="not a place to publish to"):
        repository_of(url)


# The card


@pytest.fixture(scope="module")
def facts(local):
    return card_facts(Cache(local.path))


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_states_what_the_cache_holds(facts, local):
    text = card_text(facts, "owner/name", None)
    encoding, teacher = Cache(local.path).encoding(), local.open()
    for stated in (
        encoding.manifest.contents_fingerprint,
        teacher.manifest.fingerprint,
        f"k = {teacher.manifest.target.k}",
        "bytes per position",
        "of the probability",
        "nats of KL",
        "KL floor",
        "This repository holds text.",
        "No licence is stated.",
        'Cache("hf://datasets/owner/name")',
    ):
        assert stated in text, stated
    assert header(text)["size_categories"] == ["n<1K"]
    assert "license" not in header(text)
    assert header(card_text(facts, "owner/name", "cc-by-4.0"))["license"] == "cc-by-4.0"


def test_the_lines_that_read_a_cache_run(hub, local, name):
    send(local.path, name)
    text = hub.repositories[f"datasets/{name}"].head()["README.md"].decode()
    scope = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    assert scope["targets"].ids.shape == (len(range(*scope["sequence"].rows)), scope["teacher"].manifest.target.k)


def test_publishing_again_keeps_what_people_wrote_into_the_card(facts):
    mine = card_text(facts, "owner/name", "mit")
    edited = (
        mine.replace("---\n\n<!--", "---\n\n# My data\n\n<!--").replace("viewer: false", "language: [en]")
        + "\nThanks.\n"
    )
    again = card_text(facts, "owner/name", None, edited)
    assert "# My data" in again
    assert again.endswith("Thanks.\n")
    assert again.count("logitcask: begin") == 1
    assert (header(again)["language"], header(again)["license"]) == (["en"], "mit")
    assert card_text(facts, "owner/name", None, again) == again
    assert card_text(facts, "owner/name", None, "# Theirs").startswith("---\n")
    assert "# Theirs" in card_text(facts, "owner/name", None, "# Theirs")
    with pytest.raises(ConfigError, match="header of the repository's card"):
        card_text(facts, "owner/name", None, "---\na: [\n---\n")


@pytest.mark.parametrize(
    ("name", "shown"), [("/home/ada/models/big", "big"), ("owner/big", "owner/big"), ("", "unknown")]
)
def test_the_card_shows_no_folders_of_its_author(facts, name, shown):
    encoding = facts.encodings[0]
    teacher = encoding.teachers[0]
    moved = replace(teacher, facts=replace(teacher.facts, model={"name": name}))
    text = card_text(replace(facts, encodings=(replace(encoding, teachers=(moved,)),)), "o/n", None)
    assert next(line for line in text.splitlines() if line.startswith("| model")) == f"| model | {shown} |"


def test_names_of_strangers_are_text_on_the_card(facts):
    encoding = facts.encodings[0]
    teacher = encoding.teachers[0]
    evil = replace(teacher.facts, model={"name": "<script>x</script> [a](http://b) | `c`\n# D\x1b[31m"})
    text = card_text(
        replace(facts, encodings=(replace(encoding, teachers=(replace(teacher, facts=evil),)),)), "o/n", None
    )
    row = next(line for line in text.splitlines() if line.startswith("| model"))
    assert "<script" not in text
    assert "\\[a\\]" in row
    assert "\x1b" not in text
    assert row.replace("\\|", "").count("|") == 3


@pytest.mark.parametrize(
    ("positions", "category"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**9, "1B<n<10B"), (10**12, "n>1T")]
)
def test_size_categories_are_the_hubs(positions, category):
    assert size_category(positions) == category


def test_the_commands_print_the_card_and_the_place(hub, local, name, url):
    card = run("card", local.path, "--license", "mit").stdout
    assert header(card)["license"] == "mit"
    result = run("publish", local.path, url, "--license", "mit")
    repository = hub.repositories[f"datasets/{name}"]
    assert result.stdout == f"{url}@{repository.branches['main']}\n"
    assert "in 1 commit" in result.stderr
    assert "checking the cache: " in result.stderr
    assert "publishing: " in result.stderr
    assert repository.head()["README.md"].decode() == card.replace("OWNER/NAME", name).replace(
        "pretty_name: NAME", f"pretty_name: {name.split('/')[1]}"
    )


def test_the_server_of_these_tests_keeps_arrays_outside_git(local):
    sizes = [is_large(content) for content in snapshot(local.path).values()]
    assert any(sizes)
    assert not all(sizes)
