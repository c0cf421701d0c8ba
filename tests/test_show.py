"""``logitcask show``: what it prints is what the cache holds, and no document writes to the terminal by itself."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table
from rich.text import Text
from test_decoding import HOSTILE

import tiny
from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.format import layout
from cache_tools.inspection.decoding import token_texts
from cache_tools.inspection.divergence import divergence
from cache_tools.inspection.views import SequenceView, TeacherSurprise, ViewedToken
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.terminal.bidi import ISOLATE, POP, IsolatedLines, isolated
from cache_tools.terminal.sequence import BANDS, _coloured, print_matches, print_sequence, token_cell
from cache_tools.terminal.show_command import show_command
from view_fixtures import hostile_cache

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ISOLATES = re.compile(f"{ISOLATE}([^{ISOLATE}{POP}]*){POP}")
BAD_ID = "doc\x1b[2J\u202e<b>[red]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return hostile_cache(tmp_path_factory.mktemp("show"), BAD_ID, attacks=[])


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    teacher = tiny.save_teacher(folder / "teacher", masked=True)
    return tiny.capture(folder, teacher, objective="masked")


def run(*arguments):
    return CliRunner(catch_exceptions=False).invoke(show_command, [str(argument) for argument in arguments])


def found(cache, *arguments):
    return json.loads(run(cache.path, "--json", *arguments).stdout)


def sequences(encoding):
    return [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]


def assert_harmless(output):
    """Check that the output holds no character that acts; colours, line feeds and isolates of whole pieces aside."""
    for line in COLOUR.sub("", output).split("\n"):
        assert ISOLATES.sub(r"\1", line).isprintable()


def test_the_surprise_of_a_token_is_that_of_the_position_before_it(cache):
    view, encoding = found(cache, 3), cache.encoding()
    sequence = encoding.sequence(3)
    assert [token["id"] for token in view["tokens"]] == sequence.input_ids.tolist()
    for teacher in view["teachers"]:
        nats = -encoding.teacher(teacher["name"]).scalar("gold_logprob", *sequence.rows)
        assert teacher["surprise_nats"][1:] == pytest.approx(nats.tolist())
        assert teacher["surprise_nats"][0] is None
        assert teacher["mean_surprise_nats"] == pytest.approx(nats.mean(), rel=1e-5)


def test_the_surprise_of_a_masked_slot_is_its_own(masked):
    encoding = masked.encoding()
    sequence = next(s for s in sequences(encoding) if (s.input_ids != s.original_ids).any())
    view = found(masked, sequence.sequence_id)
    judged = [token["index"] for token in view["tokens"] if token["position"] is not None]
    assert judged == sequence.positions().tolist()
    hidden = [token for token in view["tokens"] if token["masked"]]
    assert [token["id"] for token in hidden] == sequence.original_ids[
        sequence.input_ids != sequence.original_ids
    ].tolist()
    assert "[[MASK]→" in run(masked.path, sequence.sequence_id).stdout.replace("│\n│", "")
    assert view["teachers"][0]["surprise_nats"][judged[0]] == pytest.approx(
        -float(encoding.teacher().scalar("gold_logprob", *sequence.rows)[0])
    )


def test_the_alternatives_of_a_position_are_its_target_by_probability(cache):
    encoding = cache.encoding()
    sequence, texts = encoding.sequence(3), token_texts(encoding)
    view = found(cache, 3, "--position", 7, "--top", 16)
    assert [teacher["name"] for teacher in view["teachers"]] == ["other", "toy"]
    for teacher in view["teachers"]:
        row = encoding.teacher(teacher["name"]).targets(sequence.first_position + 7, sequence.first_position + 8)
        order = np.argsort(-row.log_probs[0], kind="stable")
        assert [item["id"] for item in teacher["alternatives"]] == row.ids[0][order].tolist()
        shown = [item["probability"] for item in teacher["alternatives"]]
        assert shown == pytest.approx(np.exp(row.log_probs[0][order]).tolist())
        assert sum(shown) + teacher["left_out"] == pytest.approx(1, abs=1e-5)
        assert [item["id"] for item in teacher["alternatives"] if item["gold"]] in ([], [view["gold_id"]])
    assert view["gold_id"] == sequence.input_ids[8]
    assert view["gold"] == texts.shown(view["gold_id"])
    assert sequence.text.startswith(view["before"])


def test_gold_is_marked_and_its_rank_counts_likelier_tokens(cache):
    encoding = cache.encoding()
    for number, sequence in enumerate(sequences(encoding)[:12]):
        for position in range(sequence.num_positions):
            (teacher,) = found(cache, number, "--position", position, "--top", 16, "--teacher", "toy")["teachers"]
            places = [i for i, item in enumerate(teacher["alternatives"]) if item["gold"]]
            if places:
                assert teacher["gold_rank"] <= places[0]
                assert teacher["gold_probability"] == pytest.approx(
                    teacher["alternatives"][places[0]]["probability"], rel=0.05
                )
                assert "← gold" in run(cache.path, number, "--position", position, "--top", 16).stdout
                return
    pytest.fail("no gold token was kept")


def test_a_position_without_prediction_is_refused_and_those_with_one_are_named(cache):
    last = len(cache.encoding().sequence(3).input_ids) - 1
    with pytest.raises(ConfigError, match=f"no prediction is kept at position {last} .*0-{last - 1}"):
        run(cache.path, 3, "--position", last)


@pytest.mark.parametrize("arguments", [[10**6], [-0, "--position", 10**6]])
def test_what_does_not_exist_is_refused_in_a_sentence(cache, arguments):
    with pytest.raises(ConfigError, match=r"there is no sequence 1000000|no prediction is kept"):
        run(cache.path, *arguments)


def test_sequences_are_found_by_document_and_text(cache):
    of_document = found(cache, "--id", "doc3")["found"]
    assert {item["document_id"] for item in of_document} == {"doc3"}
    assert len(of_document) == sum(s.document_id == "doc3" for s in sequences(cache.encoding()))
    with_text = found(cache, "--text", "<script>")["found"]
    assert [item["document_id"] for item in with_text] == ["doc12"]
    assert found(cache, "--text", "nowhere at all")["found"] == []
    assert len(found(cache, "--text", "of", "--limit", 2)["found"]) == 2


def test_the_highest_loss_is_the_highest_of_all_and_reads_no_target(cache, monkeypatch):
    monkeypatch.setattr(CachedTeacher, "targets", lambda *_: pytest.fail("targets were read"))
    teacher = cache.encoding().teacher("toy")
    losses = {
        s.sequence_id: -float(teacher.scalar("gold_logprob", *s.rows).mean()) for s in sequences(teacher.encoding)
    }
    listed = found(cache, "--highest-loss", "--teacher", "toy", "--limit", 4)["found"]
    assert [item["value"] for item in listed] == pytest.approx(sorted(losses.values(), reverse=True)[:4])
    assert [losses[item["sequence_id"]] for item in listed] == pytest.approx([item["value"] for item in listed])


@pytest.mark.parametrize("by", ["kl", "top1"])
def test_the_highest_disagreement_is_the_highest_of_all(cache, by):
    encoding = cache.encoding()
    a, b = (encoding.teacher(name) for name in encoding.teachers)
    values = []
    for sequence in sequences(encoding):
        result = divergence(a.targets(*sequence.rows), b.targets(*sequence.rows))
        values.append(float((result.mean_kl_nats if by == "kl" else ~result.same_top1).mean()))
    listed = found(cache, "--highest-disagreement", by, "--limit", 3)["found"]
    assert [item["value"] for item in listed] == pytest.approx(sorted(values, reverse=True)[:3])


def test_a_scan_is_bounded_and_says_so(cache):
    result = run(cache.path, "--highest-loss", "--teacher", "toy", "--shards", 1)
    assert f"scanned 1 of {len(cache.encoding().shards)} shards" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--highest-loss"],
        ["--highest-disagreement", "kl", "--teacher", "toy"],
        ["--id", "a", "--highest-loss"],
        ["0", "--text", "a"],
    ],
)
def test_contradicting_options_are_usage_errors(cache, arguments):
    assert run(cache.path, *arguments).exit_code == 2


def test_teachers_that_have_not_captured_a_sequence_are_left_out_unless_they_are_named(tmp_path, cache):
    shutil.copytree(cache.path, tmp_path / "cache")
    copy = Cache(tmp_path / "cache")
    layout.receipt_file(copy.encoding().teacher("toy").path, 0).unlink()
    with pytest.raises(IncompleteError, match="'toy' has no receipt"):
        run(copy.path, 0, "--teacher", "toy")
    assert [teacher["name"] for teacher in found(copy, 0)["teachers"]] == ["other"]
    layout.receipt_file(copy.encoding().teacher("other").path, 0).unlink()
    with pytest.raises(IncompleteError):
        run(copy.path, 0)


@pytest.mark.parametrize("colour", [False, True])
def test_hostile_documents_do_nothing_to_the_terminal(cache, monkeypatch, colour):
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
    numbers = [
        s.sequence_id for s in sequences(cache.encoding()) if s.document_id not in {f"doc{i}" for i in range(12)}
    ]
    assert len(numbers) > len(HOSTILE)
    assert (COLOUR.search(run(cache.path, 0).stdout) is not None) == colour
    for arguments in [*([n] for n in numbers), *([n, "--position", 2] for n in numbers), ["--id", BAD_ID]]:
        assert_harmless(run(cache.path, *arguments).stdout)


def test_hostile_text_is_shown_as_it_is_where_it_does_no_harm(cache):
    (item,) = found(cache, "--id", "doc12")["found"]
    assert "<script>alert(1)</script>" in run(cache.path, item["sequence_id"]).stdout
    output = "".join(run(cache.path, *("--id", "doc16")).stdout)
    assert "[bold]markup[/bold]" in output
    assert ":smile:" in output


def printed(show, *arguments, width=80):
    console = Console(file=io.StringIO(), width=width)
    show(console, *arguments)
    return console.file.getvalue()


def test_a_line_of_100_000_characters_is_wrapped_and_whole():
    token = ViewedToken(index=0, id=0, text="x" * 100_000, position=0, masked=False, seen="")
    teacher = TeacherSurprise(name="toy", surprise_nats=[1.0], mean_surprise_nats=1.0)
    view = SequenceView(0, "d" * 500, None, "g", "causal", (token,), (teacher,))
    output = printed(print_sequence, view)
    assert max(map(len, output.splitlines())) <= 80
    assert output.count("x") >= 100_000


def test_an_empty_list_of_matches_prints_a_table_without_rows():
    assert "sequence" in printed(print_matches, [], None)


def test_what_the_teacher_was_not_asked_about_is_dim_and_the_rest_is_coloured_by_surprise():
    tokens = [
        ViewedToken(index=i, id=i, text=text, position=position, masked=False, seen="")
        for i, (text, position) in enumerate([("prompt", None), ("easy", 0), ("odd", 1), ("impossible", 2)])
    ]
    surprise = [None, 0.1, 5.0, None]
    text = _coloured(tokens, surprise)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles == {"prompt": "dim", "easy": BANDS[0][1], "odd": BANDS[-2][1], "impossible": BANDS[-1][1]}


def test_spaces_at_the_ends_of_a_token_can_be_seen():
    assert [token_cell(text) for text in (" the", "a b", "  ", "")] == ["␣the", "a b", "␣␣", ""]
    assert len(token_cell("x" * 1000)) < 40


HEBREW = "שלום עולם"


def test_text_from_right_to_left_is_isolated_on_every_line_it_is_wrapped_to():
    console = Console(file=io.StringIO(), width=20)
    table = Table()
    table.add_row(IsolatedLines(Text(f"{HEBREW} " * 5 + "\nlatin")), "beside")
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert sum(ISOLATE in line for line in lines) > 2
    for line in lines:
        assert (ISOLATE in line) == any(char in HEBREW.replace(" ", "") for char in line)
        assert line.count(ISOLATE) == line.count(POP)
        assert len(line) - 2 * line.count(POP) == len(lines[0])  # the marks take no room
        assert line.find("│", 1) == -1 or line.find("│", 1) > line.find(POP)


@pytest.mark.parametrize("text", ["latin, é, 日本", "", "1.5 │ ␣"])
def test_other_text_gets_no_marks(text):
    assert isolated(text) == text
    assert printed(lambda console: console.print(IsolatedLines(Text(text)))) == text + "\n"


def test_a_sequence_with_hebrew_is_isolated_and_one_without_is_not(cache):
    (hebrew,) = found(cache, "--text", "שלום")["found"]
    for arguments in ([hebrew["sequence_id"]], [hebrew["sequence_id"], "--position", 3], ["--text", "שלום"]):
        assert ISOLATES.search(COLOUR.sub("", run(cache.path, *arguments).stdout))
    assert ISOLATE not in run(cache.path, 0).stdout
