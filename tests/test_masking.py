"""Masks: drawn in the stated shares, from the seed and the piece's name alone, and never of a special token."""

import json
import math

import numpy as np
import pytest

import tiny
from cache_tools.store.reader import Encoding
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import MaskingConfig
from pipeline.encoding.masking import draw_mask

MASK = 3
NUM_TOKENS = 100_000
VOCABULARY = np.arange(4, 300).astype(np.uint32)
BERT = tiny.tokenizer(masked=True)


def draw(ids, maskable=None, key="a", random_ids=VOCABULARY, **settings):
    maskable = np.ones(len(ids), dtype=bool) if maskable is None else maskable
    return draw_mask(ids, maskable, MASK, random_ids, MaskingConfig(**settings), key)


def many_ids():
    """Return ids that are neither the mask token nor one that a slot may be shown as."""
    return np.full(NUM_TOKENS, 1000, dtype=np.uint32)


def is_share(count, total, share):
    """Tell whether a count is within five standard deviations of its expectation."""
    return abs(count - total * share) <= 5 * math.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("probability", [0.02, 0.15, 0.5, 1.0])
@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.4, 0.6)])
def test_slots_and_what_they_show_come_in_the_stated_shares(probability, mask_share, random_share):
    ids, shares = many_ids(), {"mask_share": mask_share, "random_share": random_share}
    shown, slots = draw(ids, probability=probability, **shares)
    assert is_share(slots.sum(), NUM_TOKENS, probability)
    assert is_share((shown == MASK).sum(), slots.sum(), mask_share)
    assert is_share(np.isin(shown, VOCABULARY).sum(), slots.sum(), random_share)
    assert np.array_equal(shown[~slots], ids[~slots])
    assert is_share((shown[slots] == ids[slots]).sum(), slots.sum(), 1 - mask_share - random_share)


@pytest.mark.parametrize("mask_share", [0.0, 0.5])
def test_random_tokens_are_drawn_evenly(mask_share):
    shown, _ = draw(many_ids(), probability=1, mask_share=mask_share, random_share=1 - mask_share)
    counts = np.bincount(shown, minlength=300)[VOCABULARY]
    assert all(is_share(count, counts.sum(), 1 / len(VOCABULARY)) for count in counts)


def test_only_maskable_tokens_become_slots():
    maskable = np.arange(NUM_TOKENS) % 3 == 0
    shown, slots = draw(many_ids(), maskable, probability=0.9)
    assert not slots[~maskable].any()
    assert (shown[~maskable] == 1000).all()
    assert is_share(slots.sum(), maskable.sum(), 0.9)


@pytest.mark.parametrize("maskable", [[True], [False, True, False], [True] * 3])
def test_there_is_at_least_one_slot(maskable):
    maskable = np.array(maskable)
    chosen = set()
    for key in map(str, range(40)):
        _, slots = draw(np.arange(len(maskable), dtype=np.uint32), maskable, key, probability=0.001)
        assert slots.sum() == 1
        chosen.add(int(slots.argmax()))
    assert chosen == set(np.flatnonzero(maskable))


def test_without_maskable_tokens_there_is_no_slot():
    _, slots = draw(many_ids()[:9], np.zeros(9, dtype=bool))
    assert not slots.any()


def test_the_same_key_draws_the_same():
    for first, second in zip(draw(many_ids()), draw(many_ids()), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("changes", [{"key": "b"}, {"seed": 1}])
def test_another_key_or_seed_draws_independently(changes):
    (_, slots), (_, others) = draw(many_ids()), draw(many_ids(), **changes)
    assert is_share((slots & others).sum(), NUM_TOKENS, 0.15**2)


def test_the_drawn_ids_are_not_changed_in_place():
    ids = many_ids()
    draw(ids)
    assert (ids == 1000).all()


def encoded(folder, texts, **masking):
    """Encode texts for a masked teacher and return the sequences by document."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("".join(lines))
    values = tiny.capture_values(folder, folder, objective="masked", masking=masking, max_length_tokens=24)
    encoding = Encoding(tiny.encode(CaptureConfig.model_validate(values), BERT), "main")
    found = {name: [] for name in texts}
    for shard in range(len(encoding.shards)):
        for sequence in encoding.sequences(shard):
            found[sequence.document_id].append(sequence)
    return found


TEXTS = {f"old{number}": text for number, text in enumerate(tiny.TEXTS[:8])}


def masks(sequences):
    return [(s.input_ids.tolist(), s.position_mask.tolist(), s.original_ids.tolist()) for s in sequences]


def test_every_position_predicts_its_original_token(tmp_path):
    for name, sequences in encoded(tmp_path, TEXTS, probability=0.3).items():
        assert len(sequences) > 1
        whole = []
        for number, sequence in enumerate(sequences):
            slots, originals = sequence.position_mask, sequence.original_ids
            assert slots.any()
            assert np.array_equal(sequence.gold_ids("masked"), originals[slots])
            assert np.array_equal(sequence.input_ids[~slots], originals[~slots])
            assert not np.isin(originals[slots], BERT.all_special_ids).any()
            whole += originals[2 if number else 1 : -1].tolist()
        assert whole == BERT(TEXTS[name], add_special_tokens=False)["input_ids"]


def test_a_special_token_is_neither_masked_nor_shown_at_random(tmp_path):
    texts = {"a": "[SEP] word [MASK] word " * 60}
    for sequence in encoded(tmp_path, texts, probability=1, mask_share=0, random_share=1)["a"]:
        special = np.isin(sequence.original_ids, BERT.all_special_ids)
        assert sequence.position_mask.any()
        assert not sequence.position_mask[special].any()
        assert not np.isin(sequence.input_ids[~special], BERT.all_special_ids).any()


def test_copies_repeat_the_text_under_other_masks(tmp_path):
    for sequences in encoded(tmp_path, TEXTS, copies=3, probability=0.5).values():
        for start in range(0, len(sequences), 3):
            copies = sequences[start : start + 3]
            assert len({tuple(s.original_ids) for s in copies}) == 1
            assert len({s.text for s in copies}) == 1
            assert len({tuple(s.position_mask) for s in copies}) == 3


def test_more_copies_leave_the_first_ones_as_they_were(tmp_path):
    one, three = encoded(tmp_path / "one", TEXTS), encoded(tmp_path / "three", TEXTS, copies=3)
    assert all(masks(one[name]) == masks(three[name][::3]) for name in TEXTS)


def test_adding_documents_changes_no_mask(tmp_path):
    before = encoded(tmp_path / "before", TEXTS)
    new = {f"new{number}": text for number, text in enumerate(tiny.TEXTS[8:12])}
    after = encoded(tmp_path / "after", {"first": tiny.TEXTS[0], **new, **dict(reversed(TEXTS.items()))})
    assert all(masks(before[name]) == masks(after[name]) for name in TEXTS)


def test_equal_texts_are_masked_differently_in_different_documents(tmp_path):
    found = encoded(tmp_path, {"a": tiny.TEXTS[0], "b": tiny.TEXTS[0]}, probability=0.5)
    assert masks(found["a"]) != masks(found["b"])
    assert [s.original_ids.tolist() for s in found["a"]] == [s.original_ids.tolist() for s in found["b"]]
