"""The viewer's data equals the reader's, its answers go to those who may see them, and no document acts."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from unittest.mock import patch
from urllib.error import HTTPError

import numpy as np
import pytest
from starlette.testclient import TestClient
from test_imports import MODELS, imported_by
from test_labels import capture as capture_labels

from bucket import environment
from bucket import serve as serve_bucket
from cache_tools.errors import ConfigError, FormatError, StorageError
from cache_tools.format import layout
from cache_tools.inspection.divergence import divergence
from cache_tools.inspection.summary import summarise
from cache_tools.inspection.views import position_view
from cache_tools.json_output import json_ready
from cache_tools.maintenance.copying import copy_cache
from cache_tools.report.data import report_data, sample_data
from cache_tools.storage import store_path
from cache_tools.viewer.app import make_app
from cache_tools.viewer.command import view_command
from cache_tools.viewer.guard import COOKIE, HEADERS
from cache_tools.viewer.overview import GROUPS, SAMPLE_POSITIONS, Samples
from cache_tools.viewer.pages import PicturedTexts, pictured
from cache_tools.viewer.search import RESULTS, look_for_highest, look_for_text
from store_fixtures import flip_bit
from view_fixtures import ATTACKS, BAD_ID, copy_of, hostile_cache

ROOT = Path(__file__).resolve().parents[1]
LOCAL = "http://127.0.0.1:8008"
BEYOND = 10**6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return hostile_cache(tmp_path_factory.mktemp("view"))


def visitor(path, base=LOCAL, **arguments):
    return TestClient(make_app(path, **arguments), base_url=base, follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(cache):
    return visitor(cache.path)


def get_raw(client, place):
    """Ask for a path that the client would tidy up."""
    request = client.build_request("GET", LOCAL)
    request.url = request.url.copy_with(raw_path=place.encode())
    return client.send(request)


def sequences(encoding):
    return [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]


def error_of(answer, status):
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert "Traceback" not in answer.text
    return answer.json()["error"]


def test_the_summary_is_that_of_inspect(client, cache):
    assert client.get("/api/summary").json() == json_ready(summarise(cache))


def test_what_colours_a_token_is_what_the_teachers_stored_for_the_position_before_it(client, cache):
    encoding = cache.encoding()
    for sequence in sequences(encoding)[::7]:
        view = client.get(f"/api/main/sequences/{sequence.sequence_id}").json()
        assert [token["id"] for token in view["tokens"]] == sequence.input_ids.tolist()
        assert (view["absent"], view["split"]) == ([], "train")
        rows = {name: encoding.teacher(name).targets(*sequence.rows) for name in encoding.teachers}
        for shown in view["teachers"]:
            teacher, kept = encoding.teacher(shown["name"]), np.exp(rows[shown["name"]].log_probs).sum(axis=1)
            surprise, entropy = (teacher.scalar(name, *sequence.rows) for name in ("gold_logprob", "entropy"))
            assert shown["surprise_nats"] == [None, *map(pytest.approx, (-surprise).tolist())]
            assert shown["entropy_nats"] == [None, *map(pytest.approx, entropy.tolist())]
            assert shown["kept_mass"] == [None, *map(pytest.approx, kept.tolist())]
            assert shown["mean_kept_mass"] == pytest.approx(kept.mean(), rel=1e-5)
        kl = divergence(rows["other"], rows["toy"]).mean_kl_nats
        assert [(pair["a"], pair["b"]) for pair in view["pairs"]] == [("other", "toy")]
        assert view["pairs"][0]["kl_nats"] == [None, *kl.tolist()]


def finished_sample(client):
    """Ask for the statistics until they are complete."""
    shares = []
    while not (answer := client.get("/api/main/sample").json())["finished"]:
        shares.append(answer["share"])
        assert answer["sample"] is None
        time.sleep(0.01)
    assert shares == sorted(shares)
    return answer


def test_the_statistics_of_the_first_page_are_those_of_the_report(client, cache):
    encoding = cache.encoding()
    teachers = [encoding.teacher(name) for name in encoding.teachers]
    expected = json_ready(report_data(cache, encoding, teachers, SAMPLE_POSITIONS, seed=0).sample)
    answer = finished_sample(client)
    shown = answer["sample"]
    assert (answer["share"], answer["num_groups"]) == (1.0, len(expected["teachers"][0]["groups"]))
    for key in ("size", "agreement", "groups_by"):
        assert shown[key] == expected[key]
    for teacher, reported in zip(shown["teachers"], expected["teachers"], strict=True):
        for group in reported["groups"]:
            group["group"] = pictured(group["group"])
        assert teacher == reported | {"groups": reported["groups"][:GROUPS]}
    assert [passage["sum_nats"] for passage in shown["passages"]] == [p["sum_nats"] for p in expected["passages"]]
    ids = [pictured(passage["view"]["document_id"]) for passage in expected["passages"]]
    assert [passage["view"]["document_id"] for passage in shown["passages"]] == ids


def test_a_passage_of_the_first_page_leads_to_a_sequence_that_the_viewer_shows(client):
    for passage in finished_sample(client)["sample"]["passages"]:
        view = client.get(f"/api/main/sequences/{passage['view']['sequence_id']}").json()
        assert view["document_id"] == passage["view"]["document_id"]
        shown = passage["view"]["tokens"]
        assert [token["id"] for token in shown] == [view["tokens"][token["index"]]["id"] for token in shown]


def waiting_teachers(cache):
    encoding = cache.encoding()
    return encoding, [encoding.teacher(name) for name in encoding.teachers]


def settle(samples, encoding, teachers):
    while not (state := samples.of(encoding, teachers)).finished:
        time.sleep(0.01)
    return state


def test_a_sample_is_read_once_in_the_background_while_requests_return_at_once(cache):
    encoding, teachers = waiting_teachers(cache)
    samples, may_go_on = Samples(positions=64), threading.Event()

    def slow(*arguments):
        arguments[-1](1, 0.25)
        assert may_go_on.wait(600)
        return sample_data(*arguments)

    with patch("cache_tools.viewer.overview.sample_data", side_effect=slow) as reading:
        samples.of(encoding, teachers)
        while (state := samples.of(encoding, teachers)).share == 0.0:
            time.sleep(0.01)
        assert (state.share, state.finished, state.sample) == (0.25, False, None)
        may_go_on.set()
        state = settle(samples, encoding, teachers)
        assert samples.of(encoding, teachers) == state
    assert reading.call_count == 1
    assert state.sample.size.positions <= 64 + encoding.teacher("toy").manifest.chunk_positions


def test_a_sample_is_read_again_after_another_shard_is_finished(tmp_path, cache):
    copy = copy_of(cache, tmp_path)
    receipts = [layout.receipt_file(copy.encoding().teacher(name).path, 0) for name in copy.encoding().teachers]
    contents = [receipt.read_bytes() for receipt in receipts]
    for receipt in receipts:
        receipt.unlink()
    encoding, teachers = waiting_teachers(copy)
    samples = Samples()
    part = settle(samples, encoding, teachers).sample.size
    for receipt, content in zip(receipts, contents, strict=True):
        receipt.write_bytes(content)
    assert settle(samples, encoding, teachers).sample.size.of_positions - part.of_positions == (
        encoding.shards[0].positions
    )


def test_a_sample_that_cannot_be_read_is_an_error_and_the_next_request_reads_again(cache):
    encoding, teachers = waiting_teachers(cache)
    samples = Samples()
    with (
        patch("cache_tools.viewer.overview.sample_data", side_effect=StorageError("the disk is gone")),
        pytest.raises(StorageError, match="the disk is gone"),
    ):
        settle(samples, encoding, teachers)
    assert settle(samples, encoding, teachers).sample is not None


def test_before_the_first_shard_is_finished_there_is_no_sample(tmp_path, cache):
    copy = copy_of(cache, tmp_path)
    for name in copy.encoding().teachers:
        for shard in range(len(copy.encoding().shards)):
            layout.receipt_file(copy.encoding().teacher(name).path, shard).unlink()
    answer = visitor(copy.path).get("/api/main/sample").json()
    assert answer == {"share": 1.0, "finished": True, "num_groups": 0, "sample": None}


def test_the_class_of_a_labelled_document_is_shown_as_the_text_of_its_token(tmp_path):
    labelled = capture_labels(tmp_path, target={"k": 300})
    client = visitor(labelled.path)
    for sequence in sequences(labelled.encoding())[:6]:
        view = client.get(f"/api/main/sequences/{sequence.sequence_id}").json()
        label = "et"[int(sequence.document_id.removeprefix("doc")) % 2]
        assert view["tokens"][sequence.positions()[0]]["text"] == label


@pytest.mark.parametrize("top", [3, 10**6])
def test_a_distribution_is_that_of_show(client, cache, top):
    encoding = cache.encoding()
    sequence = encoding.sequence(3)
    view = client.get(f"/api/main/sequences/3/7?top={top}").json()
    teachers = [encoding.teacher(name) for name in encoding.teachers]
    expected = position_view(encoding, sequence, 7, teachers, PicturedTexts.of(encoding), top)
    for shown, teacher in zip(view["teachers"], teachers, strict=True):
        row = sequence.first_position + 7
        assert shown["surprise_nats"] == -float(teacher.scalar("gold_logprob", row, row + 1)[0])
    assert view == json_ready(expected)
    assert len(view["teachers"][0]["alternatives"]) == min(top, 16)


def test_the_pages_of_the_list_hold_every_sequence_once(client, cache):
    listed, after = [], 0
    while after is not None:
        page = client.get("/api/main/find", params={"by": "all", "after": after}).json()
        assert len(page["found"]) <= RESULTS
        listed += [item["sequence_id"] for item in page["found"]]
        after = page["next"]
    assert listed == [s.sequence_id for s in sequences(cache.encoding())]
    assert len(listed) > RESULTS


def test_a_search_by_text_or_id_finds_what_it_should_and_shows_where(client, cache):
    found = client.get("/api/main/find", params={"by": "text", "query": "window.ran = 1</script>"}).json()
    expected = [s.sequence_id for s in sequences(cache.encoding()) if "window.ran = 1</script>" in s.text]
    assert [item["sequence_id"] for item in found["found"]] == expected
    assert "window.ran = 1</script>" in found["found"][0]["excerpt"]
    by_id = client.get("/api/main/find", params={"by": "id", "query": BAD_ID}).json()["found"]
    assert [item["document_id"] for item in by_id] == [pictured(BAD_ID)]


def every(look):
    """Ask until there is no more; return all that was found."""
    found, after = [], 0
    while after is not None:
        answer = look(after)
        assert answer.looked <= answer.shards
        assert answer.next is None or answer.next > after
        found, after = [*found, *answer.found], answer.next
    return found


def test_a_search_that_stops_after_each_shard_finds_the_same_in_the_end(cache):
    encoding = cache.encoding()
    hasty = every(lambda after: look_for_text(encoding, None, "of", after, seconds=-1))
    assert look_for_text(encoding, None, "of", 0, seconds=-1).looked == 1
    assert [entry.sequence_id for entry in hasty] == [s.sequence_id for s in sequences(encoding) if "of" in s.text]


@pytest.mark.parametrize("by", ["loss", "kl", "top1"])
def test_the_highest_of_all_is_found_however_often_the_search_stops(cache, by):
    encoding = cache.encoding()
    teachers = [encoding.teacher(name) for name in encoding.teachers][: 1 if by == "loss" else 2]
    hasty = every(lambda after: look_for_highest(encoding, teachers, by, after, seconds=-1))
    values = {entry.sequence_id: entry.value for entry in hasty}
    best = look_for_highest(encoding, teachers, by, 0, seconds=60)
    assert (best.next, best.looked) == (None, len(encoding.shards))
    assert [entry.value for entry in best.found] == sorted(values.values(), reverse=True)[:RESULTS]
    first = best.found[0]
    sequence = encoding.sequence(first.sequence_id)
    if by == "loss":
        assert first.value == pytest.approx(-float(teachers[0].scalar("gold_logprob", *sequence.rows).mean()))
    else:
        result = divergence(*(teacher.targets(*sequence.rows) for teacher in teachers))
        expected = result.mean_kl_nats if by == "kl" else ~result.same_top1
        assert first.value == pytest.approx(float(expected.mean()))


def strings(value):
    """Return every string in a JSON value."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in strings(part)]


def test_hostile_text_is_data_without_characters_that_act(client, cache):
    finished_sample(client)
    answers = [client.get(f"/api/main/find?by=all&after={after}") for after in (0, RESULTS)]
    answers.append(client.get("/api/main/sample"))
    for sequence in sequences(cache.encoding()):
        place = f"/api/main/sequences/{sequence.sequence_id}"
        answers += [client.get(place), client.get(f"{place}/0?top=16")]
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
    texts = {text for answer in answers for text in strings(answer.json())}
    assert all(text.replace("\n", "").isprintable() for text in texts)
    assert any("␛" in text for text in texts)
    assert any("\\u202e" in text for text in texts)


def test_a_document_arrives_whole(client, cache):
    """What is not escaped is the text itself, markup and all."""
    wanted = next(s for s in sequences(cache.encoding()) if s.text.startswith(ATTACKS[0][:20]))
    view = client.get(f"/api/main/sequences/{wanted.sequence_id}").json()
    assert "".join(token["text"] for token in view["tokens"]).startswith(ATTACKS[0][:20])


def test_control_characters_are_shown_as_their_pictures():
    assert pictured("a\x00\x1b\t\n\x7f\u202e") == "a␀␛␉↵␡\\u202e"
    assert pictured(b"a\nb\xff", keep="\n") == "a\nb\\xff"


@pytest.mark.parametrize(
    ("place", "status", "message"),
    [
        (f"/api/main/sequences/{BEYOND}", 404, f"there is no sequence {BEYOND} .expected 0 to"),
        (
            "/api/main/sequences/x",
            404,
            "the sequence number is not a whole number that the viewer accepts .expected 0 to 4,611,.*, found 'x'",
        ),
        ("/api/main/sequences/-1", 404, "the sequence number is not a whole number that"),
        (f"/api/main/sequences/{'9' * 5000}", 404, "the sequence number is not a whole number that"),
        (f"/api/main/sequences/3/{BEYOND}", 404, f"no prediction is kept at position {BEYOND}"),
        ("/api/main/sequences/3/7?top=many", 404, "the number of tokens to list .'top'. is not a whole number that"),
        ("/api/nothing/find", 404, "there is no encoding 'nothing' here"),
        (f"/api/main/find?after={BEYOND}", 404, f"there is no sequence {BEYOND}"),
        ("/api/main/find?by=text", 404, "the viewer does not offer this search"),
        ("/api/main/find?by=nonsense&query=a", 404, "the viewer does not offer this search"),
        ("/api/main/find?by=kl&teacher=toy", 404, "needs 2 teachers"),
        ("/api/main/find?by=kl&teacher=toy&teacher=toy", 404, "needs 2 teachers"),
        ("/api/main/find?by=loss&teacher=nobody", 404, "there is no teacher 'nobody' here"),
        ("/api/nothing", 404, "The viewer has no page at /api/nothing"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(client, place, status, message):
    assert re.search(message, error_of(client.get(place), status))


def test_a_damaged_object_is_named_and_the_rest_can_still_be_seen(tmp_path, cache):
    copy = copy_of(cache, tmp_path)
    flip_bit(layout.sequences_file(copy.encoding().path, 0))
    client, last = visitor(copy.path), copy.encoding().shards[-1].first_sequence
    assert "the file is not the one that was written" in error_of(client.get("/api/main/sequences/0"), 500)
    assert client.get(f"/api/main/sequences/{last}").status_code == 200


def test_teachers_that_have_not_captured_a_sequence_are_named_until_they_have(tmp_path, cache):
    copy = copy_of(cache, tmp_path)
    receipts = [layout.receipt_file(copy.encoding().teacher(name).path, 0) for name in ("toy", "other")]
    contents = [receipt.read_bytes() for receipt in receipts]
    client = visitor(copy.path)
    receipts[0].unlink()
    view = client.get("/api/main/sequences/0").json()
    assert ([teacher["name"] for teacher in view["teachers"]], view["absent"]) == (["other"], ["toy"])
    receipts[1].unlink()
    assert "no teacher has captured sequence 0 yet" in error_of(client.get("/api/main/sequences/0"), 409)
    receipts[0].write_bytes(contents[0])
    assert client.get("/api/main/sequences/0").json()["absent"] == ["other"]


def test_an_unexpected_error_shows_no_traceback(tmp_path, cache):
    with patch("cache_tools.viewer.app.heat", side_effect=RuntimeError("secret")):
        message = error_of(visitor(cache.path).get("/api/main/sequences/0"), 500)
    assert message == "The viewer failed with an unexpected RuntimeError. Its terminal shows the details."


@pytest.mark.parametrize(
    "place", ["/", "/static/view.js", "/api/summary", "/api/nothing", "/api/main/sequences/x", "/static/none"]
)
def test_every_answer_has_its_headers(client, place):
    headers = client.get(place).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "access-control-allow-origin" not in headers


def test_refusals_and_accidents_have_the_headers_too(cache):
    with patch("cache_tools.viewer.app.heat", side_effect=RuntimeError):
        answers = [visitor(cache.path).get("/api/main/sequences/0")]
    answers.append(visitor(cache.path).get("/", headers={"host": "evil.example"}))
    assert [answer.status_code for answer in answers] == [500, 403]
    assert all(answer.headers["content-security-policy"].startswith("default-src 'none'") for answer in answers)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_get_is_answered(client, method):
    assert client.request(method, "/api/summary").status_code == 405


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8008", "LOCALHOST:8008"])
def test_this_machines_own_names_are_answered(client, host):
    assert client.get("/api/summary", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil@localhost", "", "127.0.0.1.evil.example", "10.0.0.1"]
)
def test_other_names_for_this_address_are_refused(client, host):
    assert client.get("/api/summary", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    ("listening", "host", "status"),
    [
        ("10.0.0.1", "10.0.0.1:80", 200),
        ("node7", "node7", 200),
        ("node7", "10.0.0.1", 403),
        ("0.0.0.0", "10.0.0.1:8008", 200),
        ("::", "[fe80::1]:8008", 200),
        ("0.0.0.0", socket.gethostname(), 200),
        ("0.0.0.0", "evil.example", 403),
    ],
)
def test_a_server_for_others_answers_to_the_name_it_was_given(cache, listening, host, status):
    assert visitor(cache.path, host=listening).get("/api/summary", headers={"host": host}).status_code == status


def test_without_the_token_nothing_is_shown_and_with_it_a_cookie_is_given(cache):
    client = visitor(cache.path, token="right")
    for place in ("/", "/api/summary", "/static/view.js", "/?token=wrong", "/?token=", "/api/summary?token=é"):
        assert client.get(place).status_code == 401
    assert client.get("/api/summary", headers={"cookie": f"{COOKIE}=wrong"}).status_code == 401
    answer = get_raw(client, "//evil.example/?token=right")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"httponly", "samesite=lax"} <= {part.strip().lower() for part in answer.headers["set-cookie"].split(";")}
    assert client.get("/api/summary").status_code == 200


@pytest.mark.parametrize(
    "place",
    [
        "/static/../view_app.py", "/static/%2e%2e/view_app.py", "/static/..%2fview_app.py", "/static//etc/passwd",
        "/api/../find", "/api/..%2f..%2fencodings%2fmain/find", "/api/%2e%2e/sequences/0", "/api/main%2fteachers/find",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_package_or_the_cache(client, place):
    assert get_raw(client, place).status_code == 404


@pytest.mark.slow
def test_a_cache_in_a_bucket_is_shown_as_the_same_on_a_disk(cache, client):
    with serve_bucket() as running, patch.dict(os.environ, environment(running)):
        place = store_path(f"{running.url}/view")
        copy_cache(cache, place)
        remote = visitor(place)
        for path in ("main/sequences/3", "main/sequences/3/7", "main/find?by=text&query=of"):
            assert remote.get(f"/api/{path}").json() == client.get(f"/api/{path}").json()


def test_viewing_imports_no_model_library(cache):
    code = "import sys; from cache_tools.viewer.app import make_app; make_app(sys.argv[1])"
    assert imported_by(code, cache.path) & MODELS <= {"tokenizers"}


def test_what_is_no_cache_is_refused_before_anything_is_served(tmp_path):
    with pytest.raises(FormatError, match="there is no readable cache manifest here"):
        view_command.main([str(tmp_path)], standalone_mode=False)


def test_a_missing_library_is_named_with_what_to_install(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"libraries are not installed .*pip install 'logitcask\[view\]'"):
        view_command.main([str(cache.path)], standalone_mode=False)


def test_a_port_that_is_taken_is_refused(cache):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="cannot listen on this address"),
    ):
        view_command.main([str(cache.path), "--port", str(taken.getsockname()[1])], standalone_mode=False)


def served(cache, *arguments):
    command = [sys.executable, "-m", "logitcask", "view", str(cache.path), "--port", "0", "--no-open", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_printed_address_works_and_ctrl_c_ends_quietly(cache):
    with served(cache) as process:
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address) as answer:
            assert b"logitcask" in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (0, "", "Press Ctrl-C to stop.\n")


def test_an_address_that_others_reach_is_printed_with_a_token_and_shows_nothing_without(cache):
    with served(cache, "--host", "0.0.0.0") as process:
        address = process.stdout.readline().strip()
        port, _, token = address.rpartition(":")[2].partition("/?token=")
        assert len(token) >= 32
        with pytest.raises(HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/summary").close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=600) == 0
        process.communicate()


def test_the_page_of_an_odd_path_shows_it_as_text(tmp_path, cache):
    odd = tmp_path / "<img src=x onerror=alert(1)>"
    odd.mkdir()
    page = visitor(copy_of(cache, odd).path).get("/").text
    assert "&lt;img src=x" in page
    assert "<img" not in page
