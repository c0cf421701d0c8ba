"""The viewer's pages on alignments: segments against naive boundaries, and the worst sequences against all of them."""

import pytest
from starlette.testclient import TestClient

from alignment_fixtures import save
from cache_tools.alignments.coverage import report
from cache_tools.alignments.making import align_encoding, cached_spans
from cache_tools.alignments.matching import NO_ROW, ONE
from cache_tools.alignments.spans import TokenBytes
from cache_tools.alignments.stored import Alignment
from cache_tools.store.reader import Cache
from cache_tools.viewer.alignments import aligned_view, open_alignment, worst_aligned
from cache_tools.viewer.app import make_app
from cache_tools.viewer.pages import pictured
from cache_tools.vocabularies.folder import open_tokenizer as open_teachers
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from view_fixtures import hostile_cache

FAMILIES = ("byte_level", "unigram", "wordpiece")


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view-alignments")
    encoding = hostile_cache(folder).encoding()
    for family in FAMILIES:
        align_encoding(encoding, family, open_tokenizer(str(save(family, folder / family))))
    align_encoding(encoding, "same", open_tokenizer(str(folder / "teacher")))
    return Cache(folder / "cache").encoding()


def pairs(encoding, alignment):
    for shard in range(len(encoding.shards)):
        yield from zip(encoding.sequences(shard), alignment.sequences(shard), strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_end_where_both_tokenizers_have_a_boundary_and_hold_each_token_once(encoding, family):
    alignment, tokens = Alignment(encoding, family), TokenBytes.of(open_teachers(encoding).tokenizer)
    for sequence, aligned in pairs(encoding, alignment):
        view = aligned_view(alignment, sequence.sequence_id)
        teacher = [token for segment in view.segments for token in segment.teacher]
        student = [token for segment in view.segments for token in segment.student]
        assert [token.index for token in teacher] == list(range(len(sequence.input_ids)))
        assert [token.index for token in student] == list(range(len(aligned.input_ids)))
        text, spans = sequence.text.encode(), cached_spans(sequence, tokens)
        ends, boundaries = 0, set(spans.ends.tolist())
        common = set()
        for token, length in zip(student, aligned.byte_lengths.tolist(), strict=True):
            if length:
                assert token.text == pictured(text[ends : ends + length])
            ends += length
            common |= {ends} & boundaries
        starts = {segment.first_byte for segment in view.segments if segment.teacher or segment.student}
        assert starts - {0, len(text)} == common - {0, len(text)}


def test_kinds_are_those_of_the_report(encoding):
    for family in FAMILIES:
        alignment = Alignment(encoding, family)
        for sequence, aligned in pairs(encoding, alignment):
            view = aligned_view(alignment, sequence.sequence_id)
            kinds = {token.index: token.kind for segment in view.segments for token in segment.student}
            for position in range(len(kinds) - 1):
                if position not in aligned.positions():
                    assert kinds[position + 1] == "context"
                elif aligned.first_rows[position] == NO_ROW:
                    assert kinds[position + 1] == "none"
                else:
                    assert (kinds[position + 1] == "exact") == (aligned.kinds[position] == ONE)
            for name in ("exact", "composed", "prefix", "none"):
                assert getattr(view.coverage, name) == list(kinds.values()).count(name)


def test_the_same_tokenizer_has_a_token_of_each_side_in_every_segment(encoding):
    view = aligned_view(Alignment(encoding, "same"), 2)
    for segment in view.segments:
        assert [token.text for token in segment.teacher] == [token.text for token in segment.student]
        assert len(segment.teacher) == 1
    assert view.coverage.exact == view.coverage.positions


def test_the_worst_sequences_are_those_of_the_report_however_many_requests_it_takes(encoding):
    alignment = Alignment(encoding, "unigram")
    whole = report(alignment, examples=5)
    page = worst_aligned(alignment, 0)
    assert (page.next, page.looked, page.coverage) == (None, page.shards, whole.coverage)
    assert [one.sequence_id for one in page.found[:5]] == [example.sequence_id for example in whole.examples]
    assert [one.worst_byte for one in page.found[:5]] == [example.first_byte for example in whole.examples]
    found, after, positions = {}, 0, 0
    while after is not None:
        part = worst_aligned(alignment, after, seconds=0)
        assert part.looked == after + 1
        after, positions = part.next, positions + part.coverage.positions
        found |= {one.sequence_id: one for one in part.found}
    assert positions == whole.coverage.positions
    assert {one.sequence_id for one in page.found} <= found.keys()


def test_addresses_answer_with_data_or_with_an_error_that_names_the_problem(encoding):
    client = TestClient(make_app(encoding.path.parent.parent), base_url="http://127.0.0.1:8008")
    shown = client.get("/api/main/alignments/unigram/3").json()
    expected = aligned_view(open_alignment(encoding, "unigram"), 3)
    assert [len(segment["student"]) for segment in shown["segments"]] == [len(s.student) for s in expected.segments]
    assert client.get("/api/main/alignments/unigram/worst?after=0").json()["found"]
    for place, words in (
        ("other/3", "no alignment 'other'"),
        ("unigram/100000", "there is no sequence 100000"),
        ("unigram/x", "not a whole number"),
        ("..%2f..%2fx/worst", "no page"),
    ):
        answer = client.get(f"/api/main/alignments/{place}")
        assert answer.status_code == 404
        assert words in answer.json()["error"]


def test_no_text_of_a_document_leaves_as_a_control_character(encoding):
    for number in range(12, sum(entry.sequences for entry in encoding.shards)):
        view = aligned_view(Alignment(encoding, "unigram"), number)
        texts = [token.text for segment in view.segments for token in (*segment.teacher, *segment.student)]
        assert all(text.isprintable() or text.isspace() for text in [*texts, view.document_id])
        assert not any("\x1b" in text or "\u202e" in text for text in texts)
