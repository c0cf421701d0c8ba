"""The viewer's pages on alignments in a browser: from the first page to a worst stretch, and by its address alone."""

import re

import pytest
from test_view_browser import browser, open_page, pytestmark, sync_api

from alignment_fixtures import save
from cache_tools.alignments.making import align_encoding
from cache_tools.alignments.stored import Alignment
from cache_tools.store.reader import Cache
from cache_tools.viewer.alignments import aligned_view, worst_aligned
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from view_fixtures import hostile_cache, serve

__all__ = ["browser", "open_page", "pytestmark"]


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    encoding = hostile_cache(folder).encoding()
    for family in ("unigram", "wordpiece"):
        align_encoding(encoding, family, open_tokenizer(str(save(family, folder / family))))
    return Cache(folder / "cache").encoding()


@pytest.fixture(scope="module")
def address(encoding):
    with serve(encoding.path.parent.parent) as running:
        yield running


def expect_heading(page, text):
    sync_api.expect(page.locator("main h1")).to_have_text(text)


def test_from_the_overview_to_the_worst_stretch_and_on_to_a_prediction(open_page, address, encoding):
    page = open_page(address)
    page.locator(".alignments a", has_text="unigram").click()
    expect_heading(page, "Alignment unigram")
    worst = worst_aligned(Alignment(encoding, "unigram"), 0).found
    numbers = page.locator("tbody th a").all_inner_texts()
    assert [int(number) for number in numbers] == [one.sequence_id for one in worst]
    page.locator("tbody th a").first.click()
    expect_heading(page, f"Sequence {worst[0].sequence_id} as unigram cuts it")
    assert f"/{worst[0].worst_byte}" in page.url
    marked = page.locator(".segment.worst")
    assert int(marked.get_attribute("data-byte")) <= worst[0].worst_byte
    view = aligned_view(Alignment(encoding, "unigram"), worst[0].sequence_id)
    assert page.locator(".segment").count() == len(view.segments)
    student = [token.kind for segment in view.segments for token in segment.student]
    assert page.locator(".cut:not(.teacher-cut) .piece").count() == len(student)
    bands = {"exact": 0, "composed": 1, "prefix": 3, "none": 5}
    for kind, band in bands.items():
        assert page.locator(f".cut .heat-{band}").count() == student.count(kind)
    page.locator(".teacher-cut a").nth(2).click()
    expect_heading(page, f"Sequence {worst[0].sequence_id}")
    page.locator(".panel .bars").first.wait_for()
    page.locator(".alignments a", has_text="wordpiece").click()
    expect_heading(page, f"Sequence {worst[0].sequence_id} as wordpiece cuts it")


def test_a_copied_address_opens_the_same_screen_and_the_keys_move(open_page, address, encoding):
    worst = worst_aligned(Alignment(encoding, "unigram"), 0).found[0]
    page = open_page(f"{address}#/main/alignments/unigram/{worst.sequence_id}/{worst.worst_byte}")
    expect_heading(page, f"Sequence {worst.sequence_id} as unigram cuts it")
    sync_api.expect(page.locator(".segment.worst")).to_be_in_viewport()
    page.goto(f"{address}#/main/alignments/unigram/3")
    expect_heading(page, "Sequence 3 as unigram cuts it")
    page.keyboard.press("j")
    expect_heading(page, "Sequence 4 as unigram cuts it")
    page.keyboard.press("Escape")
    expect_heading(page, "Alignment unigram")
    page.go_back()
    expect_heading(page, "Sequence 4 as unigram cuts it")


def test_no_document_acts_and_an_unknown_alignment_is_named(open_page, address, encoding):
    page = open_page(f"{address}#/main/alignments/other", allow=["404"])
    sync_api.expect(page.locator("main .problem")).to_have_text(re.compile("no alignment 'other'"))
    for number in range(12, sum(entry.sequences for entry in encoding.shards)):
        page.goto(f"{address}#/main/alignments/wordpiece/{number}")
        expect_heading(page, f"Sequence {number} as wordpiece cuts it")
    assert page.evaluate("window.ran") is None
