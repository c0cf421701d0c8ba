"""A sample of positions and the numbers about it: each equals what plain loops over the cache give."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cache_tools.codecs.rows import EMPTY_ID
from cache_tools.errors import IncompleteError
from cache_tools.inspection import measures
from cache_tools.inspection.sample import Document, Sample, SampledPredictions, read_sample
from cache_tools.store.predictions import SCALAR_STEP_NATS
from cache_tools.store.reader import Cache
from cache_tools.terminal import summary
from cache_tools.terminal.inspect_command import inspect_command
from store_fixtures import CHUNK_POSITIONS, SEQUENCE_TOKENS, make_cache

EVERYTHING = 10**6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("measures"))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("unfinished"), committed=2)


@pytest.fixture
def columns():
    """A sample of 500 made-up positions in 4 documents of 2 folders: all ranges of confidence, some silence."""
    rng, n = np.random.default_rng(3), 500
    sure = np.concatenate([[1.0, 1 / 15, 2 / 15, 0.5, 1.0000001], rng.random(n - 5)])
    gold = rng.integers(0, 9, n).astype(np.uint32)
    top = np.where(rng.random(n) < sure, gold, gold + 1).astype(np.uint32)
    top[5:][rng.random(n - 5) < 0.05] = EMPTY_ID  # none at the edges of bins
    loss, entropy = rng.exponential(3, n), rng.exponential(2, n)
    first = SampledPredictions(True, top, sure, rng.random(n), loss, entropy)
    second = replace(first, top1_ids=rng.permutation(top), loss_nats=rng.exponential(3, n))
    sequences = np.repeat(np.arange(10), 50)
    documents = [Document("a/1", "g"), Document("a/2", "h"), Document("b/c/3", "g"), Document("d", "h")]
    places, predictions = np.tile(np.arange(1, 51), 10), {"first": first, "second": second}
    return Sample(0, 5, np.arange(n), sequences, places, gold, sequences % 4, documents, predictions)


def inspected(cache, *arguments):
    result = CliRunner(catch_exceptions=False).invoke(inspect_command, [str(cache), "--json", *map(str, arguments)])
    (encoding,) = json.loads(result.stdout)["encodings"]
    return encoding["teachers"][0]


def naive_calibration(confidence, right):
    """Return (accuracy, confidence, ECE) by the definition: bin m holds the confidences in ((m - 1)/M, m/M]."""
    error, total = 0.0, len(right)
    for m in range(1, measures.BINS + 1):
        inside = [i for i in range(total) if (m - 1) / measures.BINS < confidence[i] <= m / measures.BINS]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            error += len(inside) / total * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return sum(right) / total, sum(confidence) / total, error


def naive_of(sample, predictions, where):
    where = [i for i in where if predictions.top1_ids[i] != EMPTY_ID]
    sure = [min(float(predictions.top1_probabilities[i]), 1.0) for i in where]
    return naive_calibration(sure, [bool(predictions.top1_ids[i] == sample.gold_ids[i]) for i in where])


def test_a_sample_of_everything_is_the_cache(tiny):
    teacher = tiny.open()
    encoding = teacher.encoding
    sample = read_sample(encoding, [teacher], EVERYTHING, 0)
    rows, places, gold, owners, sequence_ids = [], [], [], [], []
    for sequence in (s for shard in range(3) for s in encoding.sequences(shard)):
        rows += range(*sequence.rows)
        places += [int(t) + 1 for t in sequence.positions()]
        gold += sequence.gold_ids("causal").tolist()
        owners += [(sequence.document_id, sequence.group_id)] * sequence.num_positions
        sequence_ids += [sequence.sequence_id] * sequence.num_positions
    assert sample.rows.tolist() == rows
    assert sample.places.tolist() == places
    assert sample.gold_ids.tolist() == gold
    assert sample.sequence_ids.tolist() == sequence_ids
    assert [sample.documents[number] for number in sample.document_numbers] == owners


def test_the_answers_of_a_sample_are_those_of_the_teacher(tiny):
    teacher = tiny.open()
    sample = read_sample(teacher.encoding, [teacher], 2 * CHUNK_POSITIONS, 1)
    predictions = sample.predictions["toy"]
    for i, row in enumerate(sample.rows.tolist()):
        targets = teacher.targets(row, row + 1)
        best = int(np.argmax(targets.log_probs[0]))
        nonempty = targets.log_probs[0, best] > -np.inf
        assert predictions.nonempty[i] == nonempty
        assert predictions.top1_ids[i] == (targets.ids[0, best] if nonempty else EMPTY_ID)
        assert predictions.top1_probabilities[i] == pytest.approx(math.exp(targets.log_probs[0, best]))
        assert predictions.kept_mass[i] == pytest.approx(1 - math.exp(targets.log_left_out[0]), abs=1e-3)
        assert predictions.loss_nats[i] == pytest.approx(-float(teacher.scalar("gold_logprob", row, row + 1)[0]))
        assert predictions.entropy_nats[i] == pytest.approx(float(teacher.scalar("entropy", row, row + 1)[0]))


def test_a_sample_is_whole_chunks_and_its_seed_decides_which(tiny):
    teacher = tiny.open()
    drawn = [read_sample(teacher.encoding, [teacher], CHUNK_POSITIONS + 1, seed) for seed in (0, 0, *range(1, 6))]
    assert np.array_equal(drawn[0].rows, drawn[1].rows)
    assert len({tuple(sample.rows.tolist()) for sample in drawn}) > 2
    for sample in drawn:
        chunks = set((sample.rows // CHUNK_POSITIONS).tolist())
        assert sample.windows == len(chunks) == 2
        whole = read_sample(teacher.encoding, [teacher], EVERYTHING, 0).rows.tolist()
        assert sample.rows.tolist() == [row for row in whole if row // CHUNK_POSITIONS in chunks]


def test_only_finished_shards_are_sampled(unfinished, tmp_path):
    teacher = unfinished.open()
    rows = read_sample(teacher.encoding, [teacher], EVERYTHING, 0).rows
    assert set((rows // teacher.encoding.manifest.positions_per_shard).tolist()) == {0, 1}
    nothing = make_cache(tmp_path, committed=0).open()
    with pytest.raises(IncompleteError, match="no shard is finished"):
        read_sample(nothing.encoding, [nothing], EVERYTHING, 0)


def test_the_calibration_equals_its_definition(columns):
    predictions = columns.predictions["first"]
    found = measures.calibration(predictions, columns.gold_ids)
    expected = naive_of(columns, predictions, range(len(columns.rows)))
    assert (found.accuracy, found.confidence, found.ece) == pytest.approx(expected, abs=1e-12)
    assert sum(b.positions for b in found.bins) == found.positions == predictions.nonempty.sum() < len(columns.rows)
    assert found.bins[0].above == 0
    assert found.bins[-1].up_to == 1
    sure = np.minimum(predictions.top1_probabilities[predictions.nonempty], 1.0)
    for b in found.bins:
        assert b.positions == ((sure > b.above) & (sure <= b.up_to)).sum()  # 1/15 is in the first bin
        assert b.positions == 0 or b.above - 1e-9 <= b.confidence <= b.up_to + 1e-9


def test_a_teacher_that_is_as_right_as_it_says_has_no_calibration_error():
    sure, gold = np.full(10, 0.7), np.zeros(10, np.uint32)
    predictions = SampledPredictions(True, np.array([0] * 7 + [1] * 3, np.uint32), sure, sure, sure, sure)
    assert measures.calibration(predictions, gold).ece == pytest.approx(0, abs=1e-12)
    assert measures.calibration(predictions, gold + 1).ece == pytest.approx(0.4)


def test_draws_and_silence_have_no_calibration(columns):
    predictions = columns.predictions["first"]
    assert measures.calibration(replace(predictions, exact=False), columns.gold_ids) is None
    silent = replace(predictions, top1_ids=np.full_like(predictions.top1_ids, EMPTY_ID))
    assert measures.calibration(silent, columns.gold_ids) is None
    assert measures.by_group(columns, silent, "group") == measures.by_place(columns, silent) == ()


@pytest.mark.parametrize(
    ("by", "groups"), [("folder", {"a/": (0, 1), "b/": (2,), "d": (3,)}), ("group", {"g": (0, 2), "h": (1, 3)})]
)
def test_groups_equal_loops_over_their_positions(columns, by, groups):
    predictions = columns.predictions["first"]
    found = measures.by_group(columns, predictions, by)
    assert {row.group for row in found} == set(groups)
    assert [row.positions for row in found] == sorted((row.positions for row in found), reverse=True)
    for row in found:
        inside = [i for i in range(500) if columns.document_numbers[i] in groups[row.group] and predictions.nonempty[i]]
        assert row.positions == len(inside)
        assert row.loss_nats == pytest.approx(sum(predictions.loss_nats[i] for i in inside) / len(inside))
        assert row.entropy_nats == pytest.approx(sum(predictions.entropy_nats[i] for i in inside) / len(inside))
        assert row.kept_mass == pytest.approx(sum(predictions.kept_mass[i] for i in inside) / len(inside))
        assert row.perplexity == pytest.approx(math.exp(row.loss_nats))
        judged = naive_of(columns, predictions, inside)
        assert (row.accuracy, row.confidence, row.ece) == pytest.approx(judged, abs=1e-12)


def test_the_loss_by_place_equals_loops_and_covers_every_position(columns):
    predictions = columns.predictions["first"]
    found = measures.by_place(columns, predictions)
    assert [(row.first, row.last) for row in found] == [
        (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11), (12, 15), (16, 23), (24, 31), (32, 47), (48, 63)
    ]  # fmt: skip
    assert sum(row.positions for row in found) == predictions.nonempty.sum()
    for row in found:
        inside = [i for i in range(500) if row.first <= columns.places[i] <= row.last and predictions.nonempty[i]]
        assert row.loss_nats == pytest.approx(sum(predictions.loss_nats[i] for i in inside) / len(inside))


def test_agreement_equals_loops(columns):
    a, b = columns.predictions.values()
    both = [i for i in range(500) if a.nonempty[i] and b.nonempty[i]]
    share = sum(a.top1_ids[i] == b.top1_ids[i] for i in both) / len(both)
    assert measures.agreement(columns) == [[1.0, pytest.approx(share)], [pytest.approx(share), 1.0]]
    drawn = replace(columns, predictions={"a": a, "b": replace(b, exact=False)})
    assert measures.agreement(drawn) == [[1.0, None], [None, None]]


def test_the_most_surprising_passages_equal_loops(columns):
    a, b = columns.predictions.values()
    counted = [i for i in range(500) if a.nonempty[i] and b.nonempty[i]]
    losses = {i: (a.loss_nats[i] + b.loss_nats[i]) / 2 for i in counted}
    bins = {i: max(edge for edge in measures.PLACE_EDGES if edge <= columns.places[i]) for i in counted}
    usual = {edge: np.mean([losses[i] for i in counted if bins[i] == edge]) for edge in set(bins.values())}
    sums, excesses = {}, {}
    for i in counted:
        piece = (int(columns.document_numbers[i]), int(columns.sequence_ids[i]), int(columns.places[i]) // 48 * 48)
        sums[piece] = sums.get(piece, 0) + losses[i]
        excesses[piece] = excesses.get(piece, 0) + losses[i] - usual[bins[i]]
    best = {}
    for piece, excess in sorted(excesses.items(), key=lambda item: -item[1]):
        document, sequence, place = piece
        expected = measures.SurprisingPassage(sequence, place, pytest.approx(sums[piece]), pytest.approx(excess))
        best.setdefault(document, expected)
    assert measures.surprising(columns, 4) == list(best.values())
    assert measures.surprising(columns, 2) == list(best.values())[:2]


def test_an_infinite_surprise_is_the_highest_and_no_number_in_json(columns):
    a = columns.predictions["first"]
    losses = a.loss_nats.copy()
    losses[np.flatnonzero(a.nonempty)[70]] = np.inf
    infinite = replace(columns, predictions={"a": replace(a, loss_nats=losses)})
    row = int(np.flatnonzero(a.nonempty)[70])
    assert measures.surprising(infinite, 1)[0].sequence_id == columns.sequence_ids[row]
    groups = measures.by_group(infinite, infinite.predictions["a"], "group")
    assert {row.loss_nats is None for row in groups} == {True, False}
    json.dumps([asdict(group) for group in groups], allow_nan=False)


def test_histograms_are_shares_and_count_what_lies_outside_at_the_ends():
    found = measures.histogram(np.array([-1.0, 0.0, 0.5, 1.0, 7.0, np.inf, np.nan]), 0.0, 1.0, bins=2)
    assert found == measures.Histogram([0.0, 0.5, 1.0], [0.4, 0.6])
    assert measures.histogram(np.array([]), 0.0, 1.0, bins=2).shares == [0.0, 0.0]


def test_inspect_says_how_many_positions_its_sample_has(tiny):
    sample = inspected(tiny.path, "--sample", CHUNK_POSITIONS, "--groups", "group")["sample"]
    of = sum(entry.positions for entry in tiny.entries)
    assert (sample["of_positions"], sample["windows"], sample["seed"]) == (of, 1, 0)
    assert 0 < sample["positions"] <= CHUNK_POSITIONS
    assert sum(row["positions"] for row in sample["groups"]) <= sample["positions"]
    text = CliRunner().invoke(inspect_command, [str(tiny.path), "--sample", str(CHUNK_POSITIONS)]).stdout
    assert f"a sample of {sample['positions']} of {of} positions" in " ".join(text.replace("│", "").split())


def test_inspect_names_the_next_command_where_no_teacher_is_captured(tmp_path):
    tiny = make_cache(tmp_path)
    (teacher,) = Path(str(tiny.path)).glob("encodings/*/teachers/*/")
    shutil.rmtree(teacher)
    result = CliRunner(catch_exceptions=False).invoke(inspect_command, [str(tiny.path)])
    assert result.exit_code == 0
    assert "No teacher's predictions yet: 'logitcask capture'" in result.stdout


def test_inspect_reads_no_array_if_no_sample_is_asked_for(tmp_path):
    tiny = make_cache(tmp_path)
    for shard in range(3):
        for path in tiny.objects(shard):
            path.unlink()
    teacher = inspected(tiny.path, "--sample", 0)
    assert teacher["sample"] is None
    assert teacher["positions"] == sum(entry.positions for entry in tiny.entries)


def test_inspect_says_who_made_what_and_how_much_is_left(unfinished):
    unfinished.edit_receipt(0, provenance={"targets": {"software": "x", "device": "cpu", "seconds": 3.0}})
    unfinished.edit_receipt(1, provenance={"targets": {"software": "x", "device": "cpu", "seconds": 1.5}})
    teacher = inspected(unfinished.path)
    done, expected = (sum(entry.positions for entry in unfinished.entries[:n]) for n in (2, 3))
    assert (teacher["positions"], teacher["positions_expected"]) == (done, expected)
    maker = {"group": "targets", "software": "x", "device": "cpu", "shards": 2, "positions": done, "seconds": 4.5}
    assert teacher["made_by"] == [maker]
    text = " ".join(CliRunner().invoke(inspect_command, [str(unfinished.path)]).stdout.replace("│", "").split())
    assert f"2 of 3 shards, {done} of {expected} positions ({done / expected:.1%})" in text
    assert f"{4.5 * (expected / done - 1):.0f} s" in text


def test_inspect_says_how_much_of_each_split_is_captured(unfinished):
    teacher = inspected(unfinished.path)
    encoding = Cache(unfinished.path).encoding()
    captured, whole = teacher["positions_by_split"], {name: s.positions for name, s in encoding.manifest.splits.items()}
    assert sum(captured.values()) == teacher["positions"] < sum(whole.values())
    text = " ".join(CliRunner().invoke(inspect_command, [str(unfinished.path)]).stdout.replace("│", "").split())
    for split in teacher["statistics"]:
        assert summary.positions_words(captured[split], whole[split]) in text


def test_sequences_of_the_fixture_are_cut_by_chunks():
    """Otherwise no test above would see a sequence of which only a part is drawn."""
    assert any(CHUNK_POSITIONS % (tokens - 1) for tokens in SEQUENCE_TOKENS)
    assert SCALAR_STEP_NATS < 1e-3
