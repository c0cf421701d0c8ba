"""One text read by two tokenizers: every byte is covered once, and teacher rows go to the positions of their prefix."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_fixtures import FAMILIES, TEXTS, pairing, sequences, student, token_bytes, tokenizer
from cache_tools.alignments.making import aligned_sequences, cached_spans
from cache_tools.alignments.matching import COMPOSED, CROSSING, INSIDE, NO_ROW, NONE, ONE, OUTSIDE, match, teacher_rows
from cache_tools.alignments.spans import Spans
from cache_tools.alignments.student_tokenizer import student_texts

PAIRS = [pair for pair in product(FAMILIES, FAMILIES) if pair[0] != pair[1]]
ANY_TEXT = st.lists(
    st.one_of(
        st.sampled_from([piece for text in TEXTS for piece in text.split(" ")]),
        st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "\u3000", "\u00a0"]),
        st.text(max_size=4),
    ),
    max_size=12,
).map(lambda pieces: "".join(pieces).encode("utf-8", "ignore").decode())


def cut(points, length):
    """Return spans that cover a text of ``length`` bytes, cut at some points."""
    bounds = np.array(sorted({0, length, *points}), np.int64)
    all_true = np.ones(len(bounds) - 1, dtype=bool)
    return Spans(bounds[:-1], bounds[1:], all_true, all_true)


def assert_covers_once(spans, text):
    covering = spans.ends > spans.starts
    starts, ends = spans.starts[covering], spans.ends[covering]
    if len(starts):
        assert starts[0] == 0
        assert ends[-1] == len(text.encode())
        np.testing.assert_array_equal(starts[1:], ends[:-1])
    else:
        assert text.strip() == "" or not text.isprintable()


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=60)
@given(text=ANY_TEXT)
def test_every_byte_of_a_students_text_is_covered_once(family, text):
    (read,) = student_texts(student(family), [text], [True])
    assert_covers_once(read.spans, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_byte_of_a_cached_sequence_is_covered_once(family):
    tokens = token_bytes(family)
    for sequence in sequences(family, length=16):
        assert_covers_once(cached_spans(sequence, tokens), sequence.text)


@pytest.mark.parametrize("family", ["byte_level", "byte_level_trimmed"])
def test_byte_level_tokens_spell_every_text_to_the_byte(family):
    for read in student_texts(student(family), TEXTS, [True] * len(TEXTS)):
        framing = np.arange(len(read.input_ids)) == len(read.input_ids) - 1
        assert (read.spans.spells == ~framing).all()


def naive_match(own, theirs, rows):
    """Return (kind, first row, number of rows) of each token, from sets of bytes."""
    result = []
    for start, end in zip(own.starts, own.ends, strict=True):
        touched = [
            t
            for t in range(len(theirs.starts))
            if set(range(start, end)) & set(range(theirs.starts[t], theirs.ends[t]))
        ]
        covered = set().union(*(range(theirs.starts[t], theirs.ends[t]) for t in touched))
        if rows[touched[0]] == NO_ROW:
            result.append((OUTSIDE, NO_ROW, 0))
            continue
        if covered == set(range(start, end)):
            kind = ONE if len(touched) == 1 else COMPOSED
        else:
            kind = INSIDE if len(touched) == 1 else CROSSING
        row = rows[touched[0]] if theirs.starts[touched[0]] == start else NO_ROW
        follow = [rows[t] for t in touched]
        whole = kind == COMPOSED and follow == list(range(follow[0], follow[0] + len(follow)))
        result.append((kind, row, 0 if row == NO_ROW else len(follow) if whole else 1))
    return result


@settings(deadline=None)
@given(data=st.data(), length=st.integers(1, 24))
def test_matching_is_that_of_sets_of_bytes(data, length):
    points = st.sets(st.integers(0, length))
    own, theirs = cut(data.draw(points), length), cut(data.draw(points), length)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(theirs.starts), max_size=len(theirs.starts))))
    rows = teacher_rows(mask)
    ordinary = np.zeros(length + 1, np.int64)
    matches = match(own, theirs, rows, ordinary[: len(own.starts)], ordinary[: len(theirs.starts)])
    assert list(zip(*map(np.ndarray.tolist, matches), strict=True)) == naive_match(own, theirs, rows.tolist())


@settings(deadline=None)
@given(data=st.data(), length=st.integers(1, 24))
def test_alignments_invert(data, length):
    points = st.sets(st.integers(0, length))
    left, right = cut(data.draw(points), length), cut(data.draw(points), length)

    def matched(own, theirs):
        rows, ordinary = np.arange(len(theirs.starts)), np.zeros(length + 1, np.int64)
        return match(own, theirs, rows, ordinary[: len(own.starts)], ordinary[: len(rows)])

    there, back = matched(left, right), matched(right, left)
    ones = np.flatnonzero(there.kinds == ONE)
    np.testing.assert_array_equal(back.first_rows[there.first_rows[ones]], ones)
    for token in np.flatnonzero(there.kinds == COMPOSED):
        inside = np.arange(there.num_rows[token]) + there.first_rows[token]
        assert (back.kinds[inside] == INSIDE).all()
        assert back.first_rows[inside[0]] == token
    assert (there.kinds == ONE).sum() == (back.kinds == ONE).sum()


@pytest.mark.parametrize(("teacher", "reader"), PAIRS)
def test_a_row_belongs_to_a_position_whose_text_ends_where_the_teachers_does(teacher, reader):
    tokens = token_bytes(teacher)
    cached = sequences(teacher, length=48)
    counts = np.zeros(6, int)
    for sequence, aligned in zip(cached, aligned_sequences(cached, pairing(teacher, reader)), strict=True):
        content = sequence.text.encode()
        spans = cached_spans(sequence, tokens)
        assert aligned.byte_lengths.sum() in (0, len(content))
        ends = np.cumsum(aligned.byte_lengths.astype(np.int64))
        has_row = np.flatnonzero(aligned.first_rows != NO_ROW)
        predicting = sequence.positions()[aligned.first_rows[has_row]]
        np.testing.assert_array_equal(ends[has_row], spans.starts[predicting + 1])
        ones = has_row[aligned.kinds[has_row] == ONE]
        np.testing.assert_array_equal(ends[ones + 1], spans.ends[sequence.positions()[aligned.first_rows[ones]] + 1])
        counts += np.bincount(aligned.kinds, minlength=6)
    assert counts[ONE] + counts[COMPOSED] + counts[INSIDE] > 0.2 * counts[1:].sum()


def test_a_lower_cased_token_is_not_what_the_text_says():
    cached = sequences("byte_level", ("the fox and The Fox",))
    (aligned,) = aligned_sequences(cached, pairing("byte_level", "uncased_wordpiece"))
    names = tokenizer("uncased_wordpiece").convert_ids_to_tokens(aligned.input_ids.tolist())
    kinds = aligned.kinds.tolist()
    capital = [i for i, name in enumerate(names) if name == "the"][1]
    assert kinds[capital - 1] == NONE
    assert aligned.first_rows[capital - 1] == NO_ROW


def test_the_space_of_a_word_belongs_to_it_for_tokenizers_that_drop_it():
    cached = sequences("byte_level", ("the fox and the lazy dog",))
    (aligned,) = aligned_sequences(cached, pairing("byte_level", "wordpiece"))
    ends = np.cumsum(aligned.byte_lengths)
    covered = [cached[0].text[end - size : end] for end, size in zip(ends, aligned.byte_lengths, strict=True) if size]
    assert "".join(covered) == cached[0].text
    assert all(piece == piece.rstrip() for piece in covered)


def test_a_name_of_a_special_token_in_a_text_has_no_counterpart_unless_both_have_it():
    text = "a </s> b"
    cached = sequences("byte_level", (text,))
    (aligned,) = aligned_sequences(cached, pairing("byte_level", "unigram"))
    ids = aligned.input_ids.tolist()
    place = ids.index(tokenizer("unigram").convert_tokens_to_ids("</s>"))
    assert aligned.kinds[place - 1] == NONE


def test_the_ends_of_a_document_correspond():
    cached = sequences("byte_level", ("a quick fox",))
    (aligned,) = aligned_sequences(cached, pairing("byte_level", "unigram"))
    assert aligned.input_ids[-1] == tokenizer("unigram").eos_token_id
    assert aligned.kinds[-2] == ONE
    assert aligned.first_rows[-2] == cached[0].num_positions - 1
    (without,) = aligned_sequences(
        sequences("byte_level", ("a quick fox",), append_eos=False), pairing("byte_level", "unigram")
    )
    assert without.input_ids[-1] != tokenizer("unigram").eos_token_id


def test_the_same_tokenizer_reads_the_cached_tokens_and_every_row():
    cached = sequences("byte_level", length=16)
    for sequence, aligned in zip(cached, aligned_sequences(cached, pairing("byte_level", "byte_level")), strict=True):
        np.testing.assert_array_equal(aligned.input_ids, sequence.input_ids)
        np.testing.assert_array_equal(aligned.positions(), sequence.positions())
        np.testing.assert_array_equal(aligned.first_rows[aligned.positions()], np.arange(sequence.num_positions))


def test_of_a_chat_only_the_answer_has_rows_and_is_trained_on():
    (whole,) = sequences("byte_level", ("user: the lazy dog? assistant: the quick brown fox",), append_eos=False)
    answer = whole.text.index(" the quick")
    spans = cached_spans(whole, token_bytes("byte_level"))
    mask = whole.position_mask & np.append(spans.starts[1:] >= answer, False)
    (aligned,) = aligned_sequences([replace(whole, position_mask=mask)], pairing("byte_level", "unigram"))
    ends = np.cumsum(aligned.byte_lengths)
    trained = aligned.positions()
    assert ends[trained[0]] == answer
    assert (np.diff(trained) == 1).all()
    assert trained[-1] == len(aligned.input_ids) - 2
    assert (aligned.first_rows[: trained[0]] == NO_ROW).all()
    assert aligned.first_rows[trained[0]] == 0
